//! Restarts, rows L1 to L6 of docs/reference/faults.md: a process ends, is replaced, is stopped or is killed under load, with a ledger at both ends.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod handover;
mod overlap;
mod start;
mod supervised;
mod terminate;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use remora_tests::certs::{Authority, ClientTls};
use remora_tests::client::http2::{Http2Client, get};
use remora_tests::config::{Listener, merge, to_cluster};
use remora_tests::ledger::{Offer, answer, executed};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::steady::{Speaks, Steady};
use remora_tests::upstream::http1::Http1Upstream;
use remora_tests::upstream::http2::{Answer as Answer2, Http2Upstream};
use serde_json::json;
use tokio::sync::Notify;

const SERVER: &str = "spiffe://mesh.example/ns/a/sa/server";
const CLIENT: &str = "spiffe://mesh.example/ns/a/sa/client";

/// Origins, certificates, and how a proxy in front of them is built, again and again.
struct Scene {
    origin: Http1Upstream,
    /// Answers `/stream` with a word, and with another one when it may end.
    streams: Http2Upstream,
    end_streams: Arc<Notify>,
    authority: Authority,
    tls: ClientTls,
    tls2: ClientTls,
    own: remora_tests::certs::Identity,
}

impl Scene {
    async fn new() -> Self {
        let end_streams = Arc::new(Notify::new());
        let permit = Arc::clone(&end_streams);
        let streams = Http2Upstream::scripted(move |_, _| {
            let grpc = Answer2::status(200).field("content-type", "application/grpc");
            grpc.data("first").until(&permit).data("last").trailers(&[("grpc-status", "0")])
        })
        .await;
        let origin = Http1Upstream::scripted(|request, _| match request.target() {
            "/" => remora_tests::upstream::http1::Answer::ok("hello"),
            _ => answer(request),
        })
        .await;
        let authority = Authority::new();
        let (own, client) = (authority.issue(&["a.example", SERVER]), authority.issue(&[CLIENT]));
        let tls = |alpn: &[&str]| authority.client("a.example", alpn, Some(&client));
        let (tls, tls2) = (tls(&["http/1.1"]), tls(&["h2"]));
        Self { origin, streams, end_streams, authority, tls, tls2, own }
    }

    /// Listeners `ingress` in plaintext and `secure` with mutual TLS. Processes may drain for 30 s.
    fn proxy(&self) -> Builder {
        let listener = |name| {
            let mut to_streams = to_cluster("/stream", "streams");
            merge(&mut to_streams, json!({ "route": { "timeout": "0s" } }));
            Listener::http(name).route(to_streams).route(to_cluster("/", "origin"))
        };
        let secure = listener("secure").mutual_tls(&self.own, &self.authority, CLIENT);
        let proxy = Proxy::builder().listener(listener("ingress")).listener(secure);
        let proxy = proxy.upstream("origin", &self.origin).upstream("streams", &self.streams);
        proxy.argument("--drain-time-s").argument("30")
    }

    /// The same, which hands over at this path.
    fn at(&self, path: &Path) -> Builder {
        self.proxy().argument("--hot-restart-path").argument(path.to_str().unwrap())
    }

    /// Clients of every kind.
    fn clients(&self, proxy: &Proxy) -> [Steady; 4] {
        let (ingress, secure) = (proxy.address("ingress"), proxy.address("secure"));
        [
            Steady::on(ingress, Speaks::Http1, 4),
            Steady::on(ingress, Speaks::Http2, 2),
            Steady::on(secure, Speaks::Https1(self.tls.clone()), 2),
            Steady::on(secure, Speaks::Https2(self.tls2.clone()), 2),
        ]
    }

    /// Opens a stream that goes on until [`Stream::ends`].
    async fn stream(&self, proxy: &Proxy) -> Stream {
        let mut client = proxy.http2().await;
        let id = client.open(&get("/stream"), true).await;
        client.until(id, "its first word", |stream| stream.body == b"first").await;
        Stream { client, id }
    }
}

/// A gRPC stream that is open.
struct Stream {
    client: Http2Client,
    id: u32,
}

impl Stream {
    /// Lets all streams of the scene end: this one must end in order.
    async fn ends(mut self, scene: &Scene) {
        assert!(!self.client.stream(self.id).ended);
        scene.end_streams.notify_waiters();
        let answer = self.client.outcome(self.id).await.answer();
        assert_eq!(answer.text(), "firstlast");
        assert_eq!(self.client.stream(self.id).heads.len(), 2, "trailers");
    }
}

/// GET and POST by turns, each on a connection of its own: none may be refused or reset.
fn newcomers(proxy: &Proxy, rate: u32) -> Offer {
    Offer::both(proxy.address("ingress"), rate).field("Connection", "close")
}

/// Whether the long versions are to run.
fn long() -> bool {
    std::env::var_os("REMORA_LONG").is_some()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
