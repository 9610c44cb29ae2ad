//! The fault matrix: what goes wrong upstream (U) and downstream (D), under load, with a ledger at both ends. In every row no answer is
//! another request's and no POST is executed twice; what else must hold is in the row's test, and in docs/reference/faults.md.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod answers;
mod clients;
mod endpoints;
mod pressure;
mod silence;

use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, budget, careful, cluster, merge};
use remora_tests::proxy::{Builder, Proxy};
use serde_json::{Value, json};

/// Listener `ingress` with careful retries to cluster `origin`; `policy` is laid over them.
fn careful_listener(policy: &Value) -> Listener {
    let [gets, others] = careful("origin", policy);
    Listener::http("ingress").route(gets).route(others)
}

/// A proxy with careful retries in front of `origin`. The budget is large: these rows are about single requests, not about storms.
fn in_front_of(mut origin: Value, policy: &Value) -> Builder {
    merge(&mut origin, budget(20, 1000));
    Proxy::builder().listener(careful_listener(policy)).cluster(origin)
}

/// The same in front of HTTP/1 origins, with nothing laid over the retries.
async fn before(endpoints: &[SocketAddr]) -> Proxy {
    in_front_of(cluster("origin", endpoints), &json!({})).start().await
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Requests that are at the endpoints of `origin` at the moment.
async fn active(proxy: &Proxy) -> u64 {
    let page = proxy.admin("GET", "/clusters").await.unwrap().text();
    let of_origin = page.lines().filter(|line| line.starts_with("origin::"));
    of_origin.filter_map(|line| line.split_once("::rq_active::")?.1.parse::<u64>().ok()).sum()
}
