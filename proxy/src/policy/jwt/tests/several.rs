//! Several good tokens in one request, under one key of the metadata.

use super::*;
use crate::policy::view;

/// The subject that rules see.
fn seen(filter: &JwtFilter, requirement: &Requirement, head: &RequestHead) -> Value {
    let verified = requirement.check(filter, head, now()).unwrap();
    assert_eq!(verified.len(), 2);
    let claims: Vec<_> = verified.into_iter().filter_map(|token| token.apply(&mut head.clone())).collect();
    view::payload(&claims, "jwt").unwrap()["sub"].clone()
}

/// Envoy lets each token replace the one before. Of a list they come in its order, and where none is demanded those of headers come last, the
/// first by name at the end.
#[test]
fn rules_see_the_one_that_is_verified_last() {
    let header = |name| Location::Header { name: HeaderName::from_static(name), prefix: "".into() };
    let of = |name: &str, location| Provider {
        name: name.into(),
        issuer: Some(name.into()),
        locations: [location].into(),
        ..provider(&RSA)
    };
    let token = |issuer: &str| RSA.token(json!({ "iss": issuer, "sub": issuer }));
    let filter = filter(vec![
        of("a", Location::Cookie("t".into())),
        of("b", header("x-b")),
        of("c", header("x-a")),
        of("d", Location::Param("t".into())),
    ]);
    let (a, b, c, d) = (format!("t={}", token("a")), token("b"), token("c"), token("d"));
    let all = |first, second| {
        let of = |provider| Requirement::Provider { provider, audiences: None };
        Requirement::All([of(first), of(second)].into())
    };
    let both = head("/", &[("cookie", &a), ("x-b", &b)]);
    assert_eq!(seen(&filter, &all(0, 1), &both), "b");
    assert_eq!(seen(&filter, &all(1, 0), &both), "a");
    let missing = Requirement::Optional(Leniency::Missing);
    assert_eq!(seen(&filter, &missing, &both), "b");
    assert_eq!(seen(&filter, &missing, &head("/", &[("x-b", &b), ("x-a", &c)])), "c");
    let mut in_query = head("/", &[("cookie", &a)]);
    in_query.path = format!("/?t={d}").parse().unwrap();
    assert_eq!(seen(&filter, &missing, &in_query), "d");
}
