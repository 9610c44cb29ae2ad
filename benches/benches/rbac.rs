//! What access policies cost a request: `cargo bench -p remora-benches --bench rbac`.
//!
//! Each line is a shape of rules, with 10 and with 1,000 policies, and the nanoseconds of one verdict, the view of the
//! request included: when the first policy matches, when the last one does, and when none does. The goal: 1,000 policies
//! cost a request at most 1 µs. A miss ends with status 1. What is not indexed has no goal: every policy is looked at.
//!
//! A request that was let in also keeps a copy of its head, by which it is judged again when rules change: the last line.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

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
const ROUNDS: u32 = 100_000;
/// Measurements, of which the shortest counts: what disturbs one only makes it longer.
const REPETITIONS: usize = 5;
/// Most nanoseconds of a verdict of 1,000 indexed policies.
const GOAL: f64 = 1_000.0;

fn main() -> ExitCode {
    // `cargo test` runs benches to see that they work, not what they measure.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let rounds = if measured { ROUNDS } else { 100 };
    println!("{:<44} {:^26} {:^26}", "verdict, ns", "10 policies", "1,000 policies");
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "first", "last", "none", "first", "last", "none"
    );
    let mut worst: f64 = 0.0;
    for (name, shape) in SHAPES {
        let [few, many] = [10, 1_000].map(|count| measure(&rules(count, *shape), rounds));
        let [a, b, c] = few;
        let [d, e, f] = many;
        println!("{name:<44} {a:>8.0} {b:>8.0} {c:>8.0} {d:>8.0} {e:>8.0} {f:>8.0}");
        if !name.starts_with(NOT_INDEXED) {
            worst = many.into_iter().fold(worst, f64::max);
        }
    }
    let head = head(0);
    let copy = nanoseconds(rounds, || {
        black_box(black_box(&head).clone());
    });
    println!("{:<44} {copy:>8.0}", "a copy of the head");
    println!("slowest verdict of 1,000 indexed policies: {worst:.0} ns (at most {GOAL:.0})");
    if measured && worst > GOAL { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Makes the rules of policy number `n`: permission and principal.
type Shape = fn(usize) -> (Rule, Rule);

const NOT_INDEXED: &str = "not indexed: ";

const SHAPES: &[(&str, Shape)] = &[
    ("methods and a path for a caller, as in a mesh", |n| {
        let methods = Rule::Or([header(":method", "HEAD"), header(":method", "GET")].into());
        let path = Rule::Path(text(Place::Prefix, &format!("/service-{n}/")));
        (Rule::And([methods, path].into()), caller(n))
    }),
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

/// The number of a request that no policy is about.
const STRANGER: usize = 999_999;

fn name(n: usize) -> String {
    format!("policy-{n:04}")
}

/// Policy `n` matches request `n`.
fn rules(count: usize, shape: Shape) -> Rules {
    let policies = (0..count).map(|n| {
        let (permission, principal) = shape(n);
        Policy {
            name: name(n).into(),
            id: PolicyId::from_index(0),
            permissions: [permission].into(),
            principals: [principal].into(),
        }
    });
    Rules::new(Action::Allow, policies.collect(), "".into(), PolicyId::from_index(0))
}

/// Nanoseconds for a verdict about a request that the first policy lets in, one that the last does, and one that none does.
fn measure(rules: &Rules, rounds: u32) -> [f64; 3] {
    let last = rules.len() - 1;
    [Some(0), Some(last), None].map(|policy| {
        let n = policy.unwrap_or(STRANGER);
        let (head, peer) = (head(n), peer(n));
        let verdict = rules.judge(&view(&head, &peer));
        assert_eq!(verdict.policy.map(|name| name.to_string()), policy.map(name), "request {n}");
        nanoseconds(rounds, || {
            black_box(rules.judge(black_box(&view(&head, &peer))).allowed);
        })
    })
}

/// Nanoseconds of `work`.
fn nanoseconds(rounds: u32, mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let begin = Instant::now();
        (0..rounds).for_each(|_| work());
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
    };
    (0..REPETITIONS).map(once).fold(f64::INFINITY, f64::min)
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
    if let Ok(role) = HeaderValue::try_from(format!("role-{n}")) {
        headers.insert("x-role", role);
    }
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
