//! Test harness of the proxy, black-box: *upstream, proxy, client, assert*.
//!
//! ```no_run
//! # use remora_tests::{client::http1, proxy::Proxy, upstream::http1::{Answer, Http1Upstream}};
//! # async fn test() {
//! let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
//! let proxy = Proxy::in_front_of(&upstream).await;
//! let mut client = proxy.http1().await;
//! client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
//! assert_eq!(client.response().await.unwrap().status, 200);
//! # }
//! ```
//!
//! The proxy is a real process; what it forwards is recorded byte by byte by upstreams that live in the test's own
//! runtime, and what it answers is read by parsers that are stricter than any peer on the internet. `REMORA_BIN`
//! names another binary to test: `remora`, `remora-proxy`, or `envoy`, which is started with Envoy's arguments.
#![allow(clippy::unwrap_used, reason = "a harness fails by panicking")]

pub mod authorizer;
pub mod certs;
pub mod client;
pub mod config;
pub mod control_plane;
pub mod dns;
pub mod flood;
pub mod frame;
pub mod hole;
pub mod hpack;
pub mod http1;
pub mod ledger;
pub mod netns;
pub mod origin;
pub mod pods;
pub mod process;
pub mod proxy;
pub mod rate_limiter;
pub mod relay;
pub mod resources;
pub mod steady;
pub mod tokens;
pub mod traffic;
pub mod upstream;
pub mod wait;
