//! The registry without a REST interface before it, over a store whose writes can be held up.

use std::collections::BTreeMap;
use std::sync::Arc;

use remora_control::document::{Incoming, Text, read};
use remora_control::registry::change::{How, Mode, Refused};
use remora_control::registry::instances::{self, Health, Instances, REGISTRATION, Registration, health};
use remora_control::store::{Expect, Key, Put};
use serde_json::json;

use crate::gate::{Gate, Rigged, gated};
use crate::support::{ROUTE, SERVICE, until};

const APPLY: How = How { mode: Mode::Apply, dry_run: false, force: false };

fn documents(text: String) -> Vec<Incoming> {
    read(&[Text { name: "mesh.yaml".into(), text }], "default").unwrap()
}

fn services(count: usize) -> Vec<Incoming> {
    let one = |i| SERVICE.replace("name: shop", &format!("name: shop-{i}"));
    documents((0..count).map(one).collect::<Vec<_>>().join("---\n"))
}

async fn register(instances: &Instances, name: &str, ttl: u64) {
    let workload = json!({"address": "127.0.0.1", "ports": [{"port": 8080}], "egress": []});
    let said = Registration {
        labels: BTreeMap::new(),
        services: Vec::new(),
        workload: workload.as_object().unwrap().clone(),
        ttl_ms: Some(ttl),
    };
    instances.register("default", name, &said).await.unwrap();
}

fn state(rig: &Rigged, name: &str) -> Option<Health> {
    rig.registry.get(&Key::new(REGISTRATION, "default", name)).map(|record| health(&record))
}

#[tokio::test]
async fn an_instance_that_registers_again_while_others_are_marked_dead_stays_ready() {
    let rig = gated().await;
    let instances = Arc::new(Instances::new(Arc::clone(&rig.registry)));
    // Both are silent for too long, "a" first.
    register(&instances, "a", 500).await;
    register(&instances, "b", 500).await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    rig.gate.send_replace(Gate::HoldsDead);
    tokio::spawn(Arc::clone(&instances).keep());
    rig.waiting.clone().wait_for(|waiting| *waiting == 1).await.unwrap();
    register(&instances, "b", 60_000).await;
    register(&instances, "a", 60_000).await;
    rig.gate.send_replace(Gate::Open);
    until("a is dead: that was on its way", async || state(&rig, "a") == Some(Health::Dead)).await;
    // The next one that is silent is seen after those before it.
    register(&instances, "c", 500).await;
    until("c is dead", async || state(&rig, "c") == Some(Health::Dead)).await;
    assert_eq!(state(&rig, "b"), Some(Health::Ready));
    assert!(instances.renew("default", "b").is_ok());

    let renewed = instances.renew("default", "a");
    assert!(matches!(renewed, Err(instances::Refused::Unknown(_))), "whoever is listed as dead is told");
    register(&instances, "a", 60_000).await;
    assert_eq!(state(&rig, "a"), Some(Health::Ready));
    assert!(instances.renew("default", "a").is_ok());
}

#[tokio::test]
async fn of_two_writers_with_the_same_version_one_is_told_that_it_is_late() {
    let rig = gated().await;
    rig.registry.write(&services(60), APPLY).await.unwrap();
    for round in 0..10 {
        let key = Key::new("Service", "default", "shop-5");
        let version = rig.registry.get(&key).unwrap().revision;
        let edit = |port: u32| {
            let text = SERVICE.replace("8080", &port.to_string());
            documents(text.replace("name: shop}", &format!("name: shop-5, resourceVersion: '{version}'}}")))
        };
        let (one, two) = (edit(10_000 + round), edit(20_000 + round));
        let put = How { mode: Mode::Replace, ..APPLY };
        let (one, two) = tokio::join!(rig.registry.write(&one, put), rig.registry.write(&two, put));
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        let refused = one.err().or_else(|| two.err()).unwrap();
        assert!(matches!(refused, Refused::Conflict { .. }), "{refused:?}");

        let new = |port: u32| {
            let text = SERVICE.replace("8080", &port.to_string());
            documents(text.replace("name: shop}", &format!("name: new-{round}}}")))
        };
        let (one, two) = (new(10_000), new(20_000));
        let post = How { mode: Mode::Create, ..APPLY };
        let (one, two) = tokio::join!(rig.registry.write(&one, post), rig.registry.write(&two, post));
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        let refused = one.err().or_else(|| two.err()).unwrap();
        assert!(matches!(refused, Refused::Exists(_)), "{refused:?}");
    }
}

#[tokio::test]
async fn what_was_written_before_a_transaction_failed_is_told() {
    let rig = gated().await;
    rig.gate.send_replace(Gate::RefusesSingle);
    // As many as a transaction takes, and one.
    let all = services(129);
    let refused = rig.registry.write(&all, APPLY).await.unwrap_err();
    let Refused::Partly(done, because) = refused else { panic!("{refused:?}") };
    assert_eq!(done.len(), 128);
    assert!(matches!(*because, Refused::Store(_)), "{because:?}");
    assert!(done.iter().all(|outcome| outcome.record.is_some()));

    rig.gate.send_replace(Gate::Open);
    rig.registry.write(&all, APPLY).await.unwrap();
    rig.gate.send_replace(Gate::RefusesSingle);
    let keys: Vec<_> = all.iter().map(|document| document.key.clone()).collect();
    let refused = rig.registry.remove(&keys, None, APPLY).await.unwrap_err();
    assert!(matches!(&refused, Refused::Partly(done, _) if done.len() == 128), "{refused:?}");
}

#[test]
fn documents_are_checked_while_others_are_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let rig = gated().await;
        let (dry_run, all) = (How { dry_run: true, ..APPLY }, services(2));
        // The one thread for work that takes time is busy, and the runtime's own is not for that.
        let (done, busy) = std::sync::mpsc::channel::<()>();
        let work = tokio::task::spawn_blocking(move || busy.recv());
        let mut write = std::pin::pin!(rig.registry.write(&all, dry_run));
        tokio::select! {
            biased;
            _ = &mut write => panic!("in the runtime's own thread"),
            () = std::future::ready(()) => {}
        }
        drop(done);
        assert!(work.await.unwrap().is_err(), "nobody sent anything");
        assert_eq!(write.await.unwrap().len(), 2);
    });
}

/// As one of a newer version, or of Kubernetes, which nobody checked.
#[tokio::test]
async fn one_document_that_cannot_be_read_hides_no_mistake_of_another() {
    let rig = gated().await;
    let key = Key::new("Service", "default", "newer");
    let metadata = json!({"name": "newer", "namespace": "default"});
    let body =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"weather": "good"}});
    let put = Put { key: key.clone(), value: body.to_string().into(), expect: Expect::Any, lease: None };
    rig.registry.store().put(put).await.unwrap();
    until("it is there", async || rig.registry.get(&key).is_some()).await;
    let refused = rig.registry.write(&documents(ROUTE.into()), APPLY).await;
    assert!(matches!(refused, Err(Refused::Invalid(_))), "its Service is not there: {refused:?}");
    rig.registry.write(&documents(format!("{SERVICE}---\n{ROUTE}")), APPLY).await.unwrap();
    let (checked, found) = rig.registry.mistakes();
    assert_eq!(checked, rig.registry.revision());
    assert!(matches!(&found[..], [(of, _)] if *of == key), "{found:?}");
}
