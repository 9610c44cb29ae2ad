use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::balance::LbSpec;

fn spec(n: u8) -> EndpointSpec {
    EndpointSpec::new(SocketAddr::from(([10, 0, 0, n], 80)))
}

fn build(old: &EndpointSet, specs: Vec<EndpointSpec>) -> EndpointSet {
    EndpointSet::update(old, &specs.into(), &LbSpec::default())
}

fn empty() -> EndpointSet {
    EndpointSet::empty(&LbSpec::default())
}

#[test]
fn an_edit_of_other_endpoints_shares_this_one() {
    let first = build(&empty(), vec![spec(1), spec(2)]);
    let _running = first.endpoints()[1].begin();
    let second = build(&first, vec![spec(3), spec(2)]);
    assert!(Arc::ptr_eq(&first.endpoints()[1], &second.endpoints()[1]));
    assert_eq!(second.endpoints()[1].state.active(), 1);
    assert_ne!(first.endpoints()[0].key, second.endpoints()[0].key);
    assert!(first.endpoints()[0].state.is_gone());
    assert!(!second.endpoints().iter().any(|endpoint| endpoint.state.is_gone()));
    second.retire();
    assert!(second.endpoints().iter().all(|endpoint| endpoint.state.is_gone()));
}

#[test]
fn an_edited_endpoint_keeps_its_pools_and_counters() {
    let first = build(&empty(), vec![spec(1)]);
    let running = first.endpoints()[0].begin();
    let heavier = EndpointSpec { weight: 9, health: HealthStatus::Draining, ..spec(1) };
    let second = build(&first, vec![heavier]);
    let (old, new) = (&first.endpoints()[0], &second.endpoints()[0]);
    assert_eq!((old.key, new.spec.weight, new.state.active()), (new.key, 9, 1));
    drop(running);
    assert_eq!(new.state.active(), 0);
}

/// features.md, pain 21: an address that now belongs to another host.
#[test]
fn a_recycled_address_is_another_endpoint() {
    let named = |name: &str| EndpointSpec { hostname: Some(name.into()), ..spec(1) };
    let first = build(&empty(), vec![named("orders-1")]);
    let second = build(&first, vec![named("billing-7")]);
    assert_ne!(first.endpoints()[0].key, second.endpoints()[0].key);
}

#[test]
fn a_logical_endpoint_stays_when_its_address_changes() {
    let at = |n| EndpointSpec { logical: true, hostname: Some("db".into()), ..spec(n) };
    let first = build(&empty(), vec![at(1)]);
    let second = build(&first, vec![at(2)]);
    assert_eq!(first.endpoints()[0].key, second.endpoints()[0].key);
    assert_eq!(second.endpoints()[0].spec.address, spec(2).address);
}

#[test]
fn of_two_equal_endpoints_the_first_is_taken() {
    let set = build(&empty(), vec![EndpointSpec { weight: 3, ..spec(1) }, spec(1), spec(2)]);
    assert_eq!(set.endpoints().iter().map(|e| e.spec.weight).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn flags_are_independent() {
    let state = EndpointState::default();
    assert!(state.set_ejected(true) && !state.set_ejected(true));
    assert!(state.set_failed_health_check(true));
    assert!(state.set_ejected(false) && state.is_out());
    assert!(state.set_failed_health_check(false) && !state.is_out());
}

#[test]
fn the_idle_limit_is_learned_from_closes() {
    let state = EndpointState::default();
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(state.idle_limit(hour), Duration::from_secs(3));
    assert_eq!(state.idle_limit(Some(Duration::from_secs(1))), Duration::from_secs(1));
    // It grows while the endpoint keeps its connections open …
    for _ in 0..10 {
        state.idle_survived(state.idle_limit(hour));
    }
    assert_eq!(state.idle_limit(hour), Duration::from_secs(55));
    // … until a close shows where the end is, which it does not reach again.
    state.idle_closed(Duration::from_secs(20));
    assert_eq!(state.idle_limit(hour), Duration::from_secs(15));
    state.idle_survived(Duration::from_secs(15));
    assert_eq!(state.idle_limit(hour), Duration::from_secs(15));
    state.idle_closed(Duration::from_millis(1));
    assert_eq!(state.idle_limit(None), Duration::from_millis(100));
}

#[test]
fn metadata_is_found_by_path() {
    let value = serde_json::json!({"labels": {"version": "v2"}});
    let metadata = Metadata(Box::new([("istio".into(), value)]));
    assert_eq!(metadata.get("istio", &["labels", "version"]), Some(&"v2".into()));
    assert_eq!(metadata.get("istio", &["labels", "app"]), None);
    assert_eq!(metadata.get("other", &[]), None);
}

proptest! {
    #[test]
    fn updates_keep_exactly_what_stays(
        lists in prop::collection::vec(prop::collection::vec((0_u8..20, 1_u32..4), 0..20), 1..6)
    ) {
        let mut set = empty();
        for list in lists {
            let specs: Vec<_> =
                list.iter().map(|(n, weight)| EndpointSpec { weight: *weight, ..spec(*n) }).collect();
            let next = build(&set, specs.clone());
            let wanted: std::collections::BTreeSet<_> = specs.iter().map(|s| s.address).collect();
            let have: std::collections::BTreeSet<_> = next.endpoints().iter().map(|e| e.spec.address).collect();
            prop_assert_eq!(&wanted, &have);
            prop_assert_eq!(wanted.len(), next.len());
            for endpoint in next.endpoints() {
                let before = set.endpoints().iter().find(|e| e.spec.address == endpoint.spec.address);
                if let Some(before) = before {
                    prop_assert_eq!(before.key, endpoint.key);
                    prop_assert!(Arc::ptr_eq(&before.state, &endpoint.state));
                }
            }
            set = next;
        }
    }
}
