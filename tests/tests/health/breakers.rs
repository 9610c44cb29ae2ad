//! Circuit breakers.

use std::path::Path;

use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};

use crate::{Moody, circuits, get};

/// Four calls, half of which may fail; two are let through after 300 ms.
fn settings(more: Value) -> Value {
    let mut settings = json!({
        "sliding_window_size": 4, "minimum_number_of_calls": 4, "wait_duration_in_open_state": "0.3s",
        "permitted_number_of_calls_in_half_open_state": 2,
    });
    merge(&mut settings, more);
    json!({ "metadata": { "filter_metadata": { "remora.circuit_breaker": settings } } })
}

pub(crate) fn guarded(origin: &Moody, more: Value) -> Value {
    let mut cluster = cluster("origin", &[origin.upstream.address()]);
    merge(&mut cluster, settings(more));
    cluster
}

pub(crate) fn proxy(clusters: Vec<Value>) -> Builder {
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    clusters.into_iter().fold(Proxy::builder().listener(listener), Builder::cluster)
}

async fn trip(proxy: &Proxy, origin: &Moody) {
    origin.answers(503);
    for _ in 0..4 {
        assert_eq!(get(proxy, "/").await.text(), "origin");
    }
    assert_eq!(circuits(proxy).await[0]["state"], "OPEN");
}

#[tokio::test]
async fn it_opens_half_opens_and_closes() {
    let origin = Moody::named("origin").await;
    let proxy = proxy(vec![guarded(&origin, json!({ "wait_duration_in_open_state": "2s" }))]).start().await;
    trip(&proxy, &origin).await;
    let asked = origin.asked();
    let refused = get(&proxy, "/").await;
    assert_eq!((refused.status, refused.reason()), (503, Some("circuit_open")));
    let wait: u64 = refused.fields.get("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(origin.asked(), asked, "asked although it is open");
    origin.answers(200);
    eventually_async("a call passes", async || get(&proxy, "/").await.status == 200).await;
    assert_eq!(get(&proxy, "/").await.status, 200);
    let circuit = &circuits(&proxy).await[0];
    assert_eq!((&circuit["name"], &circuit["state"]), (&json!("cluster/origin"), &json!("CLOSED")));
    for state in ["OPEN", "HALF_OPEN", "CLOSED"] {
        let series =
            format!("remora_circuit_breaker_transitions_total{{name=\"cluster/origin\",state=\"{state}\"}}");
        assert_eq!(proxy.count(&series).await, 1, "{state}");
    }
}

#[tokio::test]
async fn a_refusal_may_be_answered_with_something_fixed() {
    let origin = Moody::named("origin").await;
    let answer = json!({ "status": 203, "headers": { "content-type": "application/json" }, "body": "[]" });
    let more = json!({ "fallback": { "answer": answer }, "wait_duration_in_open_state": "60s" });
    let proxy = proxy(vec![guarded(&origin, more)]).start().await;
    trip(&proxy, &origin).await;
    let answer = get(&proxy, "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (203, "[]"));
    assert_eq!(answer.fields.get("content-type"), Some("application/json"));
    assert_eq!(answer.reason(), Some("circuit_open"));
}

#[tokio::test]
async fn another_destination_may_stand_in() {
    let (origin, other) = (Moody::named("origin").await, Moody::named("other").await);
    let more = json!({ "fallback": { "cluster": "other" }, "wait_duration_in_open_state": "60s" });
    let clusters = vec![guarded(&origin, more), cluster("other", &[other.upstream.address()])];
    let proxy = proxy(clusters).start().await;
    trip(&proxy, &origin).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "other"));
    assert_eq!(other.upstream.only_request().text(), "abc");
}

#[tokio::test]
async fn a_route_has_its_own() {
    let origin = Moody::named("origin").await;
    let mut route = to_cluster("/guarded", "origin");
    merge(&mut route, settings(json!({ "wait_duration_in_open_state": "60s" })));
    merge(&mut route, json!({ "name": "guarded" }));
    let listener = Listener::http("ingress").route(route).route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin.upstream).start().await;
    origin.answers(500);
    for _ in 0..4 {
        assert_eq!(get(&proxy, "/guarded").await.status, 500);
    }
    assert_eq!(get(&proxy, "/guarded").await.reason(), Some("circuit_open"));
    assert_eq!(get(&proxy, "/").await.status, 500);
    assert_eq!(circuits(&proxy).await[0]["name"], "route/routes/all/guarded");
}

#[tokio::test]
async fn an_operator_opens_and_closes_it() {
    let origin = Moody::named("origin").await;
    let proxy = proxy(vec![guarded(&origin, json!({}))]).start().await;
    let set = async |name: &str, state: &str| {
        proxy.admin("POST", &format!("/circuit_breakers?name={name}&state={state}")).await.unwrap().status
    };
    assert_eq!(set("cluster/nobody", "FORCED_OPEN").await, 404);
    assert_eq!(set("cluster/origin", "BROKEN").await, 400);
    assert_eq!(set("cluster/origin", "FORCED_OPEN").await, 200);
    assert_eq!(get(&proxy, "/").await.reason(), Some("circuit_open"));
    assert_eq!(set("cluster/origin", "CLOSED").await, 200);
    assert_eq!(get(&proxy, "/").await.status, 200);
}

/// Replaces a file the way careful tools do.
pub(crate) fn replace(path: &Path, clusters: &[Value]) {
    let resources: Vec<Value> = clusters
        .iter()
        .map(|cluster| {
            let mut resource = cluster.clone();
            resource["@type"] = json!("type.googleapis.com/envoy.config.cluster.v3.Cluster");
            resource
        })
        .collect();
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, json!({ "resources": resources }).to_string()).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

#[tokio::test]
async fn an_edit_keeps_the_state() {
    let origin = Moody::named("origin").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cds.json");
    replace(&file, &[guarded(&origin, json!({ "wait_duration_in_open_state": "60s" }))]);
    let source =
        json!({ "resource_api_version": "V3", "path_config_source": { "path": file.to_str().unwrap() } });
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).dynamic(json!({ "cds_config": source })).start().await;
    trip(&proxy, &origin).await;
    let mut edited = guarded(&origin, json!({ "wait_duration_in_open_state": "120s" }));
    merge(&mut edited, json!({ "connect_timeout": "2s" }));
    let applied = proxy.count("remora_config_version").await;
    replace(&file, &[edited]);
    eventually_async("the edit is applied", async || proxy.count("remora_config_version").await > applied)
        .await;
    assert_eq!(circuits(&proxy).await[0]["state"], "OPEN");
    assert_eq!(get(&proxy, "/").await.reason(), Some("circuit_open"));
}

#[tokio::test]
async fn mistakes_are_refused_with_their_path() {
    let origin = Moody::named("origin").await;
    let more = json!({ "failure_rate_threshold": 0, "sliding_windows_size": 3, "fallback": { "cluster": "origin" } });
    let (status, said) = proxy(vec![guarded(&origin, more)]).refuse().await;
    assert!(!status.success());
    for path in [
        "failure_rate_threshold",
        "sliding_windows_size",
        "the fallback of a cluster cannot be the cluster itself",
    ] {
        assert!(said.contains(path), "{path} in {said}");
    }
}
