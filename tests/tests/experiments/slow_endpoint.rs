//! One of ten endpoints is twenty times slower than the others. See docs/experiments/slow-endpoint.md.

use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, cluster, merge, no_breakers, to_cluster};
use remora_tests::ledger::{Ledger, Offer};
use remora_tests::proxy::Proxy;
use serde_json::{Value, json};

use crate::service::Service;
use crate::{long, ms};

const WORK: Duration = ms(5);
const SLOW: Duration = ms(100);
const ENDPOINTS: usize = 10;
const RATE: u32 = 200;

/// `load_balancing_policy` with peak EWMA, and least request for a proxy that does not know it.
fn peak_ewma() -> Value {
    json!({ "load_balancing_policy": { "policies": [
        { "typed_extension_config": {
            "name": "remora.load_balancing_policies.peak_ewma",
            "typed_config": {
                "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                "type_url": "type.googleapis.com/remora.load_balancing_policies.peak_ewma",
            },
        }},
        { "typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
            },
        }},
    ]}})
}

/// What clients see, and which share of the requests the first endpoint got.
async fn run(first: Duration, policy: Value) -> (Ledger, f64) {
    let mut services = vec![Service::start(100, first, 1000).await];
    for _ in 1..ENDPOINTS {
        services.push(Service::start(100, WORK, 1000).await);
    }
    let addresses: Vec<SocketAddr> = services.iter().map(|service| service.address).collect();
    let mut origin = cluster("origin", &addresses);
    merge(&mut origin, no_breakers());
    merge(&mut origin, policy);
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let offer = Offer::gets(proxy.address("ingress"), RATE);
    // Nobody knows a latency yet; the first seconds tell.
    offer.clone().during(ms(1000)).await.nothing_lost("slow endpoint, warming up");
    let warm = services[0].arrivals().len();
    let ledger = offer.during(if long() { ms(30_000) } else { ms(2500) }).await;
    let share = (services[0].arrivals().len() - warm) as f64 / ledger.entries.len() as f64;
    (ledger, share)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "an experiment in time, for a machine that does nothing else: just experiments"]
async fn peak_ewma_leaves_a_slow_endpoint_alone() {
    let (healthy, _) = run(WORK, peak_ewma()).await;
    let (ewma, ewma_share) = run(SLOW, peak_ewma()).await;
    let (robin, robin_share) = run(SLOW, json!({})).await;
    for (name, ledger, share) in
        [("round robin", &robin, robin_share), ("peak EWMA", &ewma, ewma_share), ("none slow", &healthy, 0.1)]
    {
        ledger.nothing_lost(&format!("slow endpoint, {name}"));
        println!("slow endpoint, {name}: {:.2} % of the requests went there", 100.0 * share);
    }
    // One request in a hundred at the slow one is what a p99 does not show.
    assert!(robin_share > 0.08, "{robin_share}");
    assert!(ewma_share < 0.02, "{ewma_share}");
    let (p99, well) = (ewma.quantile(0.99), healthy.quantile(0.99));
    if long() {
        assert!(p99 < well.mul_f64(1.5), "{p99:?}, and {well:?} when none is slow");
    }
}
