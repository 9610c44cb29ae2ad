//! What the proxy answers to, and forwards of, HTTP/2 requests.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod bodies;
mod connections;
mod grpc;
mod requests;
mod tunnels;

use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};

/// An HTTP/1 upstream behind the standard proxy: what an attack on HTTP/2 framing aims at.
async fn pair() -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    (upstream, proxy)
}
