//! What access policies cost a request: `cargo bench -p remora-benches --bench rbac`.
//!
//! Each line is a shape of rules, with 10 and with 1,000 policies, and the time of one verdict. The goal: 1,000 policies
//! add at most 1 µs to a request.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Version};
use remora_proxy::config::names::PolicyId;
use remora_proxy::http::head::RequestHead;
use remora_proxy::policy::rbac::{Action, Policy, Rule, Rules};
use remora_proxy::policy::view::{ConnectionView, RequestView, View};
use remora_proxy::route::matcher::{HeaderKey, HeaderMatch, HeaderRule};
use remora_proxy::route::text::{Place, StringMatch};
use remora_proxy::tls::identity::PeerIdentity;
use tokio::time::Instant;

/// Verdicts of one measurement.
const ROUNDS: u32 = 200_000;

fn main() {
    // `cargo test` runs benches to see that they work, not what they measure.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 100 };
    println!("{:<44} {:>12} {:>12}", "rules (the last policy matches, or none)", "10 policies", "1,000");
    for (name, shape) in SHAPES {
        let [few, many] = [10, 1_000].map(|count| measure(&rules(count, *shape), rounds));
        println!("{name:<44} {few:>9.0} ns {many:>9.0} ns");
    }
}

/// Makes the rules of policy number `n`: permission and principal.
type Shape = fn(usize) -> (Rule, Rule);

const SHAPES: &[(&str, Shape)] = &[
    ("a path and any caller", |n| (exact_path(n), Rule::Any)),
    ("a path prefix and any caller", |n| {
        (Rule::Path(text(Place::Prefix, &format!("/service-{n}/"))), Rule::Any)
    }),
    ("anything for one caller", |n| (Rule::Any, caller(n))),
    ("anything for a namespace", |n| (Rule::Any, namespace(n))),
    ("a path for one caller", |n| (exact_path(n), caller(n))),
    ("method and path of one host for a caller", |n| {
        let permission = Rule::And([header(":method", "GET"), host(n), exact_path(n)].into());
        (permission, Rule::Or([caller(n), caller(n + 10_000)].into()))
    }),
    ("a header of any caller", |n| (header("x-role", &format!("role-{n}")), Rule::Any)),
    ("not indexed: the end of a path", |n| {
        (Rule::Path(text(Place::Suffix, &format!("-{n}/orders"))), Rule::Any)
    }),
];

fn text(place: Place, value: &str) -> StringMatch {
    StringMatch::text(place, value, false)
}

fn exact_path(n: usize) -> Rule {
    Rule::Path(text(Place::Exact, &format!("/service-{n}/orders")))
}

fn caller(n: usize) -> Rule {
    Rule::Authenticated(text(Place::Exact, &format!("spiffe://mesh.example/ns/shop-{n}/sa/cart")))
}

fn namespace(n: usize) -> Rule {
    Rule::Authenticated(text(Place::Prefix, &format!("spiffe://mesh.example/ns/shop-{n}/")))
}

fn host(n: usize) -> Rule {
    header(":authority", &format!("host-{n}.example"))
}

fn header(name: &str, value: &str) -> Rule {
    let key = HeaderKey::parse(name).unwrap_or(HeaderKey::Path);
    let rule = HeaderRule::Text(text(Place::Exact, value));
    Rule::Header { matcher: HeaderMatch { key, rule, invert: false, missing_is_empty: false }, grants: true }
}

fn rules(count: usize, shape: Shape) -> Rules {
    let policies = (0..count).map(|n| {
        // The policy that matches the request is the last by name.
        let (permission, principal) = shape(count - 1 - n);
        Policy {
            name: format!("policy-{:04}", count - 1 - n).into(),
            id: PolicyId::from_index(0),
            permissions: [permission].into(),
            principals: [principal].into(),
        }
    });
    Rules::new(Action::Allow, policies.collect(), "".into(), PolicyId::from_index(0))
}

/// Nanoseconds for a verdict, the mean of those about a request that the last policy lets in and one that none does.
fn measure(rules: &Rules, rounds: u32) -> f64 {
    let last = rules.len() - 1;
    let subjects = [(head(last), peer(last)), (head(999_999), peer(999_999))];
    let begin = Instant::now();
    for _ in 0..rounds {
        for (head, peer) in &subjects {
            black_box(rules.judge(black_box(&view(head, peer))).allowed);
        }
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(rounds * 2)
}

fn view<'a>(head: &'a RequestHead, peer: &'a PeerIdentity) -> View<'a> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    View {
        connection: ConnectionView {
            destination: SocketAddr::new(here, 8080),
            direct_remote: here,
            remote: here,
            secure: true,
            server_name: "",
            peer: Some(peer),
        },
        request: Some(RequestView::from(head)),
        claims: &[],
    }
}

fn head(n: usize) -> RequestHead {
    let mut headers = HeaderMap::new();
    for name in
        ["accept", "user-agent", "x-request-id", "x-forwarded-for", "x-forwarded-proto", "traceparent"]
    {
        headers.insert(name, HeaderValue::from_static("something of a usual length"));
    }
    headers.insert("x-role", HeaderValue::from_static("nobody"));
    RequestHead {
        method: Method::GET,
        scheme: Scheme::HTTPS,
        authority: format!("host-{n}.example").parse::<Authority>().ok(),
        path: format!("/service-{n}/orders").parse().unwrap_or(PathAndQuery::from_static("/")),
        version: Version::HTTP_2,
        headers,
        case: Default::default(),
    }
}

fn peer(n: usize) -> PeerIdentity {
    PeerIdentity {
        spiffe: None,
        uri_sans: vec![format!("spiffe://mesh.example/ns/shop-{n}/sa/cart").into()],
        dns_sans: Vec::new(),
        subject: "".into(),
        fingerprint: [0; 32],
        not_after: 0,
        serial: Box::default(),
        issuer: Box::default(),
        verified: true,
    }
}
