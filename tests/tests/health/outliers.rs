//! Outlier detection.

use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually, eventually_async};
use serde_json::{Value, json};

use crate::{Moody, flags, get, who};

fn detection(more: Value) -> Value {
    let mut detection = json!({ "outlier_detection": {
        "consecutive_5xx": 3, "interval": "0.2s", "base_ejection_time": "0.6s", "max_ejection_percent": 100,
    } });
    merge(&mut detection, json!({ "outlier_detection": more }));
    detection
}

fn watching(upstreams: &[&Moody], more: Value) -> Builder {
    let addresses: Vec<_> = upstreams.iter().map(|moody| moody.upstream.address()).collect();
    let mut cluster = cluster("origin", &addresses);
    merge(&mut cluster, detection(more));
    Proxy::builder().listener(Listener::http("ingress").route(to_cluster("/", "origin"))).cluster(cluster)
}

#[tokio::test]
async fn an_endpoint_that_answers_503_is_ejected_and_comes_back() {
    let (a, b, c) = (Moody::named("a").await, Moody::named("b").await, Moody::named("c").await);
    let proxy = watching(&[&a, &b, &c], json!({})).start().await;
    assert_eq!(who(&proxy, 12).await, ["a", "b", "c"]);
    b.answers(503);
    eventually_async("b is ejected", async || {
        who(&proxy, 3).await;
        flags(&proxy, "origin").await[1] == "/failed_outlier_check"
    })
    .await;
    b.answers(200);
    let cause = "cluster=\"origin\",type=\"consecutive_5xx\"";
    assert_eq!(proxy.count(&format!("remora_outlier_ejections_total{{{cause}}}")).await, 1);
    let asked = b.asked();
    assert_eq!(who(&proxy, 3).await, ["a", "c"]);
    assert_eq!(b.asked(), asked, "asked while it was out");
    eventually_async("b is back", async || flags(&proxy, "origin").await[1] == "healthy").await;
    assert_eq!(who(&proxy, 12).await, ["a", "b", "c"]);
    assert_eq!(proxy.count("remora_outlier_ejections_active{cluster=\"origin\"}").await, 0);
    eventually("the log tells of both", || {
        let log = proxy.stderr();
        log.contains("ejected") && log.contains("consecutive_5xx") && log.contains("no longer ejected")
    })
    .await;
}

#[tokio::test]
async fn the_last_endpoint_stays() {
    let (a, b) = (Moody::named("a").await, Moody::named("b").await);
    let proxy = watching(&[&a, &b], json!({ "base_ejection_time": "60s" })).start().await;
    a.answers(500);
    b.answers(500);
    let refused = "remora_outlier_ejections_refused_total{cluster=\"origin\",reason=\"last_endpoint\"}";
    eventually_async("one is ejected, the other would be", async || {
        who(&proxy, 6).await;
        proxy.count(refused).await > 0
    })
    .await;
    let mut flags = flags(&proxy, "origin").await;
    flags.sort_unstable();
    assert_eq!(flags, ["/failed_outlier_check", "healthy"]);
    assert_eq!(get(&proxy, "/").await.status, 500);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_ejected_as_local_origin() {
    let (a, b, dead) = (Moody::named("a").await, Moody::named("b").await, Moody::named("dead").await);
    let more = json!({ "split_external_local_origin_errors": true, "consecutive_local_origin_failure": 2, "base_ejection_time": "60s" });
    let proxy = watching(&[&a, &b, &dead], more).start().await;
    drop(dead);
    eventually_async("the dead one is ejected", async || {
        who(&proxy, 3).await;
        flags(&proxy, "origin").await[2] == "/failed_outlier_check"
    })
    .await;
    let cause = "cluster=\"origin\",type=\"consecutive_local_origin_failure\"";
    assert_eq!(proxy.count(&format!("remora_outlier_ejections_total{{{cause}}}")).await, 1);
    assert_eq!(who(&proxy, 6).await, ["a", "b"]);
}

#[tokio::test]
async fn panic_mode_is_announced() {
    let (a, b, c) = (Moody::named("a").await, Moody::named("b").await, Moody::named("c").await);
    let proxy = watching(&[&a, &b, &c], json!({})).start().await;
    a.answers(500);
    b.answers(500);
    let panic = "remora_upstream_panic{cluster=\"origin\"}";
    eventually_async("panic mode", async || {
        who(&proxy, 6).await;
        proxy.count(panic).await == 1
    })
    .await;
    a.answers(200);
    b.answers(200);
    eventually_async("panic mode is over", async || proxy.count(panic).await == 0).await;
    eventually("the log tells of both", || {
        let log = proxy.stderr();
        log.contains("panic mode begins") && log.contains("panic mode ends")
    })
    .await;
}
