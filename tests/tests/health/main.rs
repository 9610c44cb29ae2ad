//! Endpoints that fail are left out and come back: outlier detection, active health checks, circuit breakers, with real processes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod breakers;
mod checks;
mod last_good;
mod outliers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use remora_tests::client::http1::Response;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::Value;

/// An upstream that answers with its name and a status that the test sets.
struct Moody {
    upstream: Http1Upstream,
    status: Arc<AtomicU16>,
    /// What the path `/health` says.
    healthy: Arc<AtomicBool>,
}

impl Moody {
    async fn named(name: &'static str) -> Self {
        let (status, healthy) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicBool::new(true)));
        let (now, well) = (Arc::clone(&status), Arc::clone(&healthy));
        let upstream = Http1Upstream::scripted(move |request, _| {
            let status = match request.target() {
                "/health" if well.load(Ordering::SeqCst) => 200,
                "/health" => 503,
                _ => now.load(Ordering::SeqCst),
            };
            Answer::status(status, "Said", name)
        })
        .await;
        Self { upstream, status, healthy }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Requests that were no health checks.
    fn asked(&self) -> usize {
        self.upstream.requests().iter().filter(|request| request.target() != "/health").count()
    }
}

async fn get(proxy: &Proxy, path: &str) -> Response {
    proxy.http1().await.get(path).await.unwrap()
}

/// Who answers `n` requests, sorted, each once.
async fn who(proxy: &Proxy, n: usize) -> Vec<String> {
    let mut client = proxy.http1().await;
    let mut names = Vec::new();
    for _ in 0..n {
        names.push(client.get("/").await.unwrap().text());
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// `health_flags` of the endpoints of `cluster`, in the order of `/clusters`.
async fn flags(proxy: &Proxy, cluster: &str) -> Vec<String> {
    let page = proxy.admin("GET", "/clusters").await.unwrap().text();
    let flag = |line: &str| {
        let rest = line.strip_prefix(cluster)?.strip_prefix("::")?;
        Some(rest.split_once("::health_flags::")?.1.to_owned())
    };
    page.lines().filter_map(flag).collect()
}

async fn circuits(proxy: &Proxy) -> Vec<Value> {
    let page = proxy.admin("GET", "/circuit_breakers").await.unwrap();
    let mut page: Value = serde_json::from_slice(&page.body).unwrap();
    serde_json::from_value(page["circuit_breakers"].take()).unwrap()
}
