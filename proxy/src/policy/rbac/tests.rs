use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Version};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::http::head::RequestHead;
use crate::policy::view::{Claims, ConnectionView, RequestView};
use crate::route::matcher::{HeaderKey, HeaderRule};
use crate::route::text::Place;
use crate::tls::identity::PeerIdentity;

const NONE: PolicyId = PolicyId::from_index(0);

/// A request and its connection, to look at.
struct Subject {
    head: RequestHead,
    peer: Option<PeerIdentity>,
    claims: Vec<Claims>,
}

impl Subject {
    fn new(path: &str, headers: &[(&'static str, &'static str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let head = RequestHead {
            method: Method::GET,
            scheme: Scheme::HTTP,
            authority: Some(Authority::from_static("shop.example")),
            path: path.parse::<PathAndQuery>().unwrap(),
            version: Version::HTTP_11,
            headers: map,
            case: Default::default(),
        };
        Self { head, peer: None, claims: Vec::new() }
    }

    fn peer(mut self, uri: &str, dns: &[&str], subject: &str) -> Self {
        self.peer = Some(PeerIdentity {
            spiffe: None,
            uri_sans: if uri.is_empty() { vec![] } else { vec![uri.into()] },
            dns_sans: dns.iter().map(|name| (*name).into()).collect(),
            subject: subject.into(),
            fingerprint: [0; 32],
            not_after: 0,
            serial: Box::default(),
            issuer: Box::default(),
            verified: true,
        });
        self
    }

    fn view(&self) -> View<'_> {
        let here = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
        View {
            connection: ConnectionView {
                destination: SocketAddr::new(here, 8080),
                direct_remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
                remote: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)),
                secure: true,
                server_name: "shop.example",
                peer: self.peer.as_ref(),
            },
            request: Some(RequestView::from(&self.head)),
            claims: &self.claims,
        }
    }
}

fn policy(name: &str, permission: Rule, principal: Rule) -> Policy {
    Policy {
        name: name.into(),
        id: PolicyId::from_index(1),
        permissions: [permission].into(),
        principals: [principal].into(),
    }
}

fn rules(action: Action, policies: Vec<Policy>) -> Rules {
    Rules::new(action, policies, "".into(), NONE)
}

fn text(place: Place, value: &str) -> StringMatch {
    StringMatch::text(place, value, false)
}

fn header(name: &str, value: &str, grants: bool) -> Rule {
    let rule = HeaderRule::Text(text(Place::Exact, value));
    let key = HeaderKey::parse(name).unwrap();
    Rule::Header { matcher: HeaderMatch { key, rule, invert: false, missing_is_empty: false }, grants }
}

#[test]
fn nothing_is_allowed_without_a_policy_and_nothing_denied() {
    let subject = Subject::new("/", &[]);
    let view = subject.view();
    assert!(!rules(Action::Allow, vec![]).judge(&view).allowed);
    assert!(rules(Action::Deny, vec![]).judge(&view).allowed);
}

#[test]
fn those_that_would_have_given_access_are_named_up_to_a_bound() {
    let blame = |n: usize| {
        let names: Vec<_> = (0..n).map(|i| format!("p{i:02}")).collect();
        rules(Action::Allow, names.iter().map(|name| policy(name, Rule::Any, Rule::Any)).collect())
            .blame(None)
    };
    assert_eq!(blame(0), "none: there is no policy");
    assert_eq!(blame(2), "none of p00, p01");
    assert!(
        blame(BLAMED).ends_with(", p07") && blame(1000).ends_with(", p07 and 992 more"),
        "{}",
        blame(1000)
    );
}

#[test]
fn the_first_policy_by_name_gives_its_name() {
    let subject = Subject::new("/admin", &[]);
    let all = |name| policy(name, Rule::Any, Rule::Any);
    let exact = policy("b", Rule::Path(text(Place::Exact, "/admin")), Rule::Any);
    let rules = rules(Action::Deny, vec![all("c"), exact, all("a b")]);
    let view = subject.view();
    let verdict = rules.judge(&view);
    assert_eq!((verdict.allowed, verdict.policy.map(|p| &**p)), (false, Some("a b")));
    assert_eq!(details(verdict.policy), "rbac_access_denied_matched_policy[a_b]");
    assert_eq!(rules.blame(verdict.policy), "a b");
    assert_eq!(details(None), "rbac_access_denied_matched_policy[none]");
    assert_eq!(policy_in(&details(verdict.policy)), Some("a_b"));
    assert_eq!(policy_in("tls_certificate_revoked"), None);
}

/// CVE-2026-26308: a second header of the same name must neither hide a forbidden value nor lend a permitted one.
#[test]
fn deny_takes_any_value_and_allow_every_value() {
    let judge = |action, headers: &[_]| {
        let grants = action == Action::Allow;
        let role = if grants { "user" } else { "admin" };
        let rules = rules(action, vec![policy("role", header("x-role", role, grants), Rule::Any)]);
        rules.judge(&Subject::new("/", headers).view()).allowed
    };
    let (user, admin) = (("x-role", "user"), ("x-role", "admin"));
    for action in [Action::Allow, Action::Deny] {
        assert!(judge(action, &[user]));
        assert!(judge(action, &[user, user]));
        assert!(!judge(action, &[admin]));
        assert!(!judge(action, &[user, admin]));
        assert!(!judge(action, &[admin, user]));
        assert!(!judge(action, &[("x-role", "user,admin")]));
        assert!(!judge(action, &[("x-role", "user, admin")]));
    }
    assert!(!judge(Action::Allow, &[]));
    assert!(judge(Action::Deny, &[]));
}

/// The same below a negation: there a match refuses where it granted, and the other way round.
#[test]
fn a_negated_header_turns_the_quantifier_round() {
    let not_guest = Rule::Not(Box::new(header("x-role", "guest", false)));
    let allow = rules(Action::Allow, vec![policy("p", not_guest, Rule::Any)]);
    assert!(allow.judge(&Subject::new("/", &[("x-role", "user")]).view()).allowed);
    assert!(!allow.judge(&Subject::new("/", &[("x-role", "user"), ("x-role", "guest")]).view()).allowed);
    let not_user = Rule::Not(Box::new(header("x-role", "user", true)));
    let deny = rules(Action::Deny, vec![policy("p", not_user, Rule::Any)]);
    assert!(deny.judge(&Subject::new("/", &[("x-role", "user")]).view()).allowed);
    assert!(!deny.judge(&Subject::new("/", &[("x-role", "user"), ("x-role", "admin")]).view()).allowed);
}

#[test]
fn an_inverted_matcher_of_deny_finds_the_odd_value() {
    let matcher = HeaderMatch {
        key: HeaderKey::parse("x-role").unwrap(),
        rule: HeaderRule::Text(text(Place::Exact, "user")),
        invert: true,
        missing_is_empty: false,
    };
    let deny = rules(Action::Deny, vec![policy("p", Rule::Header { matcher, grants: false }, Rule::Any)]);
    assert!(deny.judge(&Subject::new("/", &[("x-role", "user")]).view()).allowed);
    assert!(!deny.judge(&Subject::new("/", &[("x-role", "user"), ("x-role", "admin")]).view()).allowed);
}

#[test]
fn a_peer_is_known_by_each_of_its_names_and_only_by_them() {
    let subject = Subject::new("/", &[]).peer("spiffe://a/ns/x/sa/y", &["y.example"], "CN=y");
    let holds = |rule: Rule| rule.is_match(&subject.view());
    for name in ["spiffe://a/ns/x/sa/y", "y.example", "CN=y"] {
        assert!(holds(Rule::Authenticated(text(Place::Exact, name))), "{name}");
    }
    for name in ["spiffe://a/ns/x/sa/yy", "spiffe://a/ns/x/sa/", "example", "", "spiffe://a.evil/ns/x/sa/y"] {
        assert!(!holds(Rule::Authenticated(text(Place::Exact, name))), "{name}");
    }
    assert!(holds(Rule::AnyPeer { grants: true }));
    // TLS without a certificate: no reason for access, and reason enough to refuse.
    let nobody = Subject::new("/", &[]);
    assert!(!Rule::AnyPeer { grants: true }.is_match(&nobody.view()));
    assert!(Rule::AnyPeer { grants: false }.is_match(&nobody.view()));
}

#[test]
fn the_query_is_no_part_of_the_path() {
    let rule = Rule::Path(text(Place::Exact, "/a"));
    assert!(rule.is_match(&Subject::new("/a?b=/c", &[]).view()));
    assert!(!rule.is_match(&Subject::new("/a/", &[]).view()));
}

#[test]
fn addresses_ports_and_server_names() {
    let subject = Subject::new("/", &[]);
    let holds = |rule: Rule| rule.is_match(&subject.view());
    assert!(holds(Rule::DestinationIp("10.0.0.0/8".parse().unwrap())));
    assert!(!holds(Rule::DestinationIp("::/0".parse().unwrap())));
    assert!(holds(Rule::DestinationPort(8080..8081)));
    assert!(!holds(Rule::DestinationPort(8000..8080)));
    assert!(holds(Rule::DirectRemoteIp("127.0.0.0/8".parse().unwrap())));
    assert!(!holds(Rule::RemoteIp("127.0.0.0/8".parse().unwrap())));
    assert!(holds(Rule::RemoteIp("192.0.2.9/32".parse().unwrap())));
    assert!(holds(Rule::ServerName(text(Place::Suffix, ".example"))));
}

#[test]
fn claims_are_matched_by_path() {
    let mut subject = Subject::new("/", &[]);
    let payload = json!({"sub": "ann", "groups": ["dev", "ops"], "realm": {"level": 3}, "nothing": null});
    subject.claims.push(Claims { key: "jwt".into(), payload: payload.into() });
    let holds = |path: &[&str], value: ValueMatch| {
        let path = path.iter().map(|key| (*key).into()).collect();
        ClaimMatch { payload: "jwt".into(), path, value, invert: false }.is_match(&subject.claims)
    };
    assert!(holds(&["sub"], ValueMatch::Text(text(Place::Exact, "ann"))));
    assert!(!holds(&["sub"], ValueMatch::Text(text(Place::Exact, "an"))));
    assert!(holds(&["groups"], ValueMatch::OneOf(Box::new(ValueMatch::Text(text(Place::Exact, "ops"))))));
    assert!(!holds(&["groups"], ValueMatch::Text(text(Place::Exact, "ops"))));
    assert!(holds(&["realm", "level"], ValueMatch::Number(3.0)));
    assert!(holds(&["realm", "level"], ValueMatch::Range(3.0..4.0)));
    assert!(holds(&["nothing"], ValueMatch::Null));
    assert!(!holds(&["absent"], ValueMatch::Null));
    assert!(holds(&["sub"], ValueMatch::Present));
    assert!(!holds(&["absent"], ValueMatch::Present));
    assert!(!holds(&["sub", "deeper"], ValueMatch::Present));
    // Another token under the same key takes its place, as in Envoy, and one under another key does not.
    for (key, payload) in [("jwt", json!({"sub": "bob"})), ("other", json!({"sub": "eve"}))] {
        subject.claims.push(Claims { key: key.into(), payload: payload.into() });
    }
    let is = |sub| {
        let value = ValueMatch::Text(text(Place::Exact, sub));
        ClaimMatch { payload: "jwt".into(), path: ["sub".into()].into(), value, invert: false }
            .is_match(&subject.claims)
    };
    assert!(is("bob") && !is("ann") && !is("eve"));
}

/// A peer's bytes decide how long a list is, and not how much is tried.
#[test]
fn a_list_that_repeats_itself_costs_no_more_than_its_elements() {
    let role = |name: &str| {
        policy(
            name,
            Rule::And([header("x-role", name, false), Rule::Path(text(Place::Suffix, "/none"))].into()),
            Rule::Any,
        )
    };
    let deny = rules(Action::Deny, vec![role("a"), role("b")]);
    let mut subject = Subject::new("/", &[]);
    for _ in 0..50 {
        subject.head.headers.append("x-role", "a,b,".repeat(10_000).parse().unwrap());
    }
    let tried = std::cell::Cell::new(0);
    let found = deny.index.first(&subject.view(), |_| {
        tried.set(tried.get() + 1);
        false
    });
    assert_eq!(found, None);
    assert_eq!(tried.get(), 2);
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let place = prop_oneof![Just(Place::Exact), Just(Place::Prefix), Just(Place::Suffix)];
    let matcher = (place, "(/[ab]{0,2}){0,2}").prop_map(|(place, value)| text(place, &value));
    let leaf = prop_oneof![
        Just(Rule::Any),
        matcher.clone().prop_map(Rule::Path),
        matcher.prop_map(Rule::Authenticated),
        "(shop|cart).example".prop_map(|host| header(":authority", &host, true)),
        Just(header(":method", "GET", true)),
        ("[ab],?[ab]?", any::<bool>()).prop_map(|(role, grants)| header("x-role", &role, grants)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let set = proptest::collection::vec(inner.clone(), 1..3);
        prop_oneof![
            set.clone().prop_map(|rules| Rule::And(rules.into())),
            set.prop_map(|rules| Rule::Or(rules.into())),
            inner.prop_map(|rule| Rule::Not(Box::new(rule))),
        ]
    })
}

proptest! {
    /// The index leaves nothing out and changes no order.
    #[test]
    fn the_index_agrees_with_trying_every_policy(
        parts in proptest::collection::vec((any_rule(), any_rule()), 0..12),
        path in "(/[ab]{0,2}){1,3}",
        peer in proptest::option::of("(/[ab]{0,2}){1,3}"),
        roles in proptest::collection::vec("[ab](, ?[ab])?", 0..3),
    ) {
        let parts = parts.into_iter().enumerate();
        let policies = parts.map(|(n, (permission, principal))| policy(&format!("{n:02}"), permission, principal));
        let rules = rules(Action::Allow, policies.collect());
        let mut subject = Subject::new(&path, &[]);
        for role in roles {
            subject.head.headers.append("x-role", role.parse().unwrap());
        }
        if let Some(peer) = peer {
            subject = subject.peer(&peer, &["/a", "/b/a"], "/");
        }
        let view = subject.view();
        let naive = rules.policies.iter().find(|policy| policy.is_match(&view)).map(|policy| &policy.name);
        prop_assert_eq!(rules.judge(&view).policy, naive);
    }
}

#[test]
fn a_verdict_leaves_its_policy_and_result_under_the_keys_of_its_engine() {
    let subject = Subject::new("/admin", &[]);
    let prefixed = |action, policies| Rules::new(action, policies, "p_".into(), NONE);
    let denies = prefixed(Action::Deny, vec![policy("admin", Rule::Any, Rule::Any)]);
    let left = |rules: &Rules, engine, key: &str| {
        let verdict = rules.judge(&subject.view());
        verdict.field(engine, key).map(|field| verdict.value(field).map(ToOwned::to_owned))
    };
    let value = |text: &str| Some(Some(text.to_owned()));
    assert_eq!(left(&denies, Engine::Shadow, "p_shadow_effective_policy_id"), value("admin"));
    assert_eq!(left(&denies, Engine::Shadow, "p_shadow_engine_result"), value("denied"));
    assert_eq!(left(&denies, Engine::Shadow, "p_enforced_engine_result"), None);
    assert_eq!(left(&denies, Engine::Shadow, "shadow_engine_result"), None);
    assert_eq!(left(&denies, Engine::Enforced, "p_enforced_effective_policy_id"), value("admin"));
    let nobody = prefixed(Action::Deny, vec![]);
    assert_eq!(left(&nobody, Engine::Shadow, "p_shadow_effective_policy_id"), Some(None));
    assert_eq!(left(&nobody, Engine::Enforced, "p_enforced_engine_result"), value("allowed"));
}
