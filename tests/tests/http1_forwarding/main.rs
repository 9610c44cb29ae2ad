//! How well-formed HTTP/1 traffic passes, and what happens when an upstream misbehaves.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod bodies;
mod by_name;
mod connect;
mod connections;
mod messages;
mod misbehaviour;

use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};

async fn behind(answer: Answer) -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    (upstream, proxy)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
