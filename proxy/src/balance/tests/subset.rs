use super::*;
use crate::balance::{LbPolicy, LbSpec};
use crate::upstream::endpoint::{Assignment, EndpointSet, EndpointSpec, HealthStatus};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;

type Fields<'a> = &'a [(&'a str, Value)];

fn metadata(fields: Fields<'_>) -> LbMetadata {
    LbMetadata::new(fields.iter().map(|(key, value)| (*key, value.clone())))
}

fn endpoint(port: usize, fields: Fields<'_>) -> EndpointSpec {
    let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
    let metadata = (!fields.is_empty()).then(|| metadata(fields).into());
    EndpointSpec { metadata, ..EndpointSpec::new(address) }
}

fn selector(keys: &[&str], fallback: Option<SelectorFallback>) -> Selector {
    Selector { keys: keys.iter().map(|k| (*k).into()).collect(), fallback, single_host: false }
}

fn spec(selectors: Vec<Selector>, fallback: Fallback) -> SubsetSpec {
    let default = metadata(&[("stage", json!("prod"))]);
    SubsetSpec { selectors: selectors.into(), fallback, default, panic_mode_any: false, list_as_any: false }
}

fn set(spec: SubsetSpec, endpoints: Vec<EndpointSpec>) -> EndpointSet {
    let lb = LbSpec { subsets: Some(Arc::new(spec)), policy: LbPolicy::Random, ..LbSpec::default() };
    EndpointSet::update(&EndpointSet::empty(&lb), &Assignment::from(endpoints), &lb)
}

/// Ports that a request with these fields gets to.
fn reached(set: &EndpointSet, wanted: Fields<'_>) -> Vec<u16> {
    let wanted = metadata(wanted);
    let (mut cursor, mut rng) = (WorkerCursor::default(), fastrand::Rng::with_seed(1));
    let context = LbContext { subset: Some(&wanted), ..LbContext::default() };
    let picks = (0..200).filter_map(|_| set.pick(&mut cursor, &mut rng, &context));
    picks.map(|e| e.spec.address.port()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn three_versions() -> Vec<EndpointSpec> {
    vec![
        endpoint(1, &[("stage", json!("prod")), ("version", json!("1"))]),
        endpoint(2, &[("stage", json!("prod")), ("version", json!("2"))]),
        endpoint(3, &[("stage", json!("dev")), ("version", json!("2"))]),
        endpoint(4, &[]),
    ]
}

fn selectors() -> Vec<Selector> {
    vec![selector(&["version"], None), selector(&["stage", "version"], None)]
}

#[test]
fn all_keys_and_values_must_be_those_of_a_selector() {
    let set = set(spec(selectors(), Fallback::Nobody), three_versions());
    assert_eq!(reached(&set, &[("version", json!("2"))]), [2, 3]);
    assert_eq!(reached(&set, &[("version", json!("2")), ("stage", json!("prod"))]), [2]);
    assert!(reached(&set, &[("version", json!("3"))]).is_empty());
    assert!(reached(&set, &[("version", json!(2))]).is_empty(), "a number is no text");
    assert!(reached(&set, &[("stage", json!("prod"))]).is_empty(), "no selector has this key alone");
    assert!(reached(&set, &[]).is_empty(), "nothing is asked for: the fallback");
}

#[test]
fn fallbacks_of_the_cluster() {
    let any = set(spec(selectors(), Fallback::Anybody), three_versions());
    assert_eq!(reached(&any, &[("version", json!("9"))]), [1, 2, 3, 4]);
    assert_eq!(reached(&any, &[]), [1, 2, 3, 4]);
    let default = set(spec(selectors(), Fallback::Default), three_versions());
    assert_eq!(reached(&default, &[("nothing", json!("x"))]), [1, 2]);
    assert_eq!(reached(&default, &[("version", json!("2"))]), [2, 3]);
    let lost =
        SubsetSpec { default: metadata(&[("stage", json!("gone"))]), ..spec(vec![], Fallback::Default) };
    assert!(reached(&set(lost.clone(), three_versions()), &[]).is_empty());
    let panic = SubsetSpec { panic_mode_any: true, ..lost };
    assert_eq!(reached(&set(panic, three_versions()), &[]), [1, 2, 3, 4]);
}

#[test]
fn fallbacks_of_a_selector_go_before_the_clusters() {
    let with = |fallback, cluster| {
        let own = vec![selector(&["version"], None), selector(&["stage", "version"], Some(fallback))];
        set(spec(own, cluster), three_versions())
    };
    let wanted = [("version", json!("1")), ("stage", json!("dev"))];
    let nobody = with(SelectorFallback::As(Fallback::Nobody), Fallback::Anybody);
    assert!(reached(&nobody, &wanted).is_empty());
    let anybody = with(SelectorFallback::As(Fallback::Anybody), Fallback::Nobody);
    assert_eq!(reached(&anybody, &wanted), [1, 2, 3, 4]);
    let default = with(SelectorFallback::As(Fallback::Default), Fallback::Nobody);
    assert_eq!(reached(&default, &wanted), [1, 2]);
    let keys = with(SelectorFallback::Keys(["version".into()].into()), Fallback::Anybody);
    assert_eq!(reached(&keys, &wanted), [1], "the version is kept, the stage is not");
    let unknown = [("version", json!("7")), ("stage", json!("dev"))];
    assert_eq!(reached(&keys, &unknown), [1, 2, 3, 4], "the selector of the version says nothing");
}

#[test]
fn lists_and_single_hosts() {
    let endpoints = || {
        vec![
            endpoint(1, &[("version", json!(["1", "2"]))]),
            endpoint(2, &[("version", json!("2"))]),
            endpoint(3, &[("version", json!("2"))]),
        ]
    };
    let plain = spec(vec![selector(&["version"], None)], Fallback::Nobody);
    assert_eq!(reached(&set(plain.clone(), endpoints()), &[("version", json!("2"))]), [2, 3]);
    assert_eq!(reached(&set(plain.clone(), endpoints()), &[("version", json!(["1", "2"]))]), [1]);
    let lists = SubsetSpec { list_as_any: true, ..plain.clone() };
    assert_eq!(reached(&set(lists, endpoints()), &[("version", json!("2"))]), [1, 2, 3]);
    let single = Selector { single_host: true, ..selector(&["version"], None) };
    let single = SubsetSpec { selectors: [single].into(), ..plain };
    assert_eq!(reached(&set(single, endpoints()), &[("version", json!("2"))]), [2]);
}

/// A subset has priorities and panic mode of its own.
#[test]
fn health_counts_within_a_subset() {
    let mut endpoints = three_versions();
    endpoints[1].health = HealthStatus::Unhealthy;
    let set = set(spec(selectors(), Fallback::Anybody), endpoints);
    assert_eq!(reached(&set, &[("version", json!("2"))]), [3]);
    let prod = [("version", json!("2")), ("stage", json!("prod"))];
    assert_eq!(reached(&set, &prod), [2], "the only one, in panic mode");
}

proptest! {
    /// A subset has exactly the endpoints whose metadata agree with what is asked for.
    #[test]
    fn a_subset_is_what_a_look_at_every_endpoint_finds(
        rows in prop::collection::vec((0_u8..3, 0_u8..3), 1..30), stage in 0_u8..3, version in 0_u8..3
    ) {
        let text = |n: u8| json!(n.to_string());
        let endpoints = rows.iter().enumerate().map(|(i, (s, v))| {
            endpoint(i + 1, &[("stage", text(*s)), ("version", text(*v))])
        });
        let set = set(spec(selectors(), Fallback::Nobody), endpoints.collect());
        let want: Vec<u16> = (1..).zip(&rows).filter(|(_, row)| **row == (stage, version)).map(|(i, _)| i).collect();
        let got = reached(&set, &[("version", text(version)), ("stage", text(stage))]);
        // 200 random picks may miss one of thirty, but nobody else may be among them.
        prop_assert!(got.iter().all(|port| want.contains(port)));
        prop_assert_eq!(got.is_empty(), want.is_empty());
        if want.len() <= 5 {
            prop_assert_eq!(got, want);
        }
    }
}
