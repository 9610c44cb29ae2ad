//! Clients that are slow, silent, many, or speak something else. After each of them the next request is served.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use remora_tests::certs::{Authority, ClientTls};
use remora_tests::client::Io;
use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::Http2Client;
use remora_tests::config::Listener;
use remora_tests::frame::{Frame, PREFACE};
use remora_tests::http1::Broken;
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async, within};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn upstream() -> Http1Upstream {
    Http1Upstream::answering(Answer::ok("hello")).await
}

async fn patient_for(setting: &str) -> (Http1Upstream, Proxy) {
    let upstream = upstream().await;
    let listener = guarded("ingress").manager(json!({ setting: "1s" }));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    (upstream, proxy)
}

/// The connection ends, with 408 or without, between `from` and `to` after now.
async fn given_up(client: &mut Http1Client, reasons: &[&str]) {
    let start = Instant::now();
    match client.response().await {
        Ok(response) => {
            assert_eq!(response.status, 408, "{response:?}");
            if let Some(reason) = response.reason() {
                assert!(reasons.contains(&reason), "{reason}");
            }
            assert!(client.is_closed().await);
        }
        Err(Broken::Closed | Broken::Reset(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
    let took = start.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn slowloris_ends_at_the_headers_timeout() {
    let (upstream, proxy) = patient_for("request_headers_timeout").await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut client = proxy.http1().await;
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-").await;
        slow.push(client);
    }
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200, "others are served meanwhile");
    let mut dripping = slow.pop().unwrap();
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            dripping.try_send("a").await.unwrap_or_default();
            if tokio::time::timeout(Duration::from_millis(1), dripping.any_head()).await.is_ok() {
                break;
            }
        }
    };
    within("end of the dripping client: each byte must not buy more time", drip).await;
    for client in &mut slow {
        match client.response().await {
            Ok(response) => assert_eq!(response.status, 408),
            Err(broken) => assert!(matches!(broken, Broken::Closed | Broken::Reset(_)), "{broken:?}"),
        }
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn the_first_byte_may_take_its_time_but_the_rest_may_not() {
    let (_upstream, proxy) = patient_for("request_headers_timeout").await;
    let mut client = proxy.http1().await;
    client.send("G").await;
    given_up(&mut client, &["request_headers_timeout"]).await;
}

#[tokio::test]
async fn a_stalled_body_ends_at_the_stream_idle_timeout() {
    let (upstream, proxy) = patient_for("stream_idle_timeout").await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nabc").await;
    given_up(&mut client, &["request_idle_timeout"]).await;
    upstream.ended(0).await;
    assert!(!upstream.only_request().complete);
}

/// A client that asks for much and reads nothing of it.
#[tokio::test]
async fn an_answer_that_nobody_reads_ends_at_the_stream_idle_timeout() {
    let upstream = Http1Upstream::answering(Answer::ok(&"x".repeat(16 << 20))).await;
    let listener = guarded("ingress").manager(json!({ "stream_idle_timeout": "1s" }));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    let io = Io::tcp(proxy.address("ingress")).await;
    // Otherwise the sockets would take megabytes.
    socket2::SockRef::from(io.socket()).set_recv_buffer_size(4096).unwrap();
    let mut client = Http1Client::over(io);
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head("GET").await.unwrap();
    let open = "remora_downstream_connections{listener=\"ingress\"}";
    eventually_async("the connection is closed", async || proxy.count(open).await == 0).await;
}

#[tokio::test]
async fn a_request_may_take_only_its_timeout() {
    let (_upstream, proxy) = patient_for("request_timeout").await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nabc").await;
    given_up(&mut client, &["request_timeout"]).await;
}

#[tokio::test]
async fn an_idle_connection_ends_without_an_answer() {
    let upstream = upstream().await;
    let listener = guarded("ingress").manager(
        json!({ "common_http_protocol_options": { "idle_timeout": "1s" }, "drain_timeout": "0.1s" }),
    );
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    assert!(client.is_closed().await);
    let mut client = proxy.http2().await;
    assert_eq!(client.get("/").await.answer().status, 200);
    assert_eq!(client.ended().await, Some(0), "GOAWAY(NO_ERROR)");
}

#[tokio::test]
async fn a_tls_handshake_may_not_take_for_ever() {
    let authority = Authority::new();
    let upstream = upstream().await;
    let listener = guarded("ingress").tls(&authority.issue(&["a.example"]), &["http/1.1"]);
    let mut listener: serde_json::Value = listener.into();
    listener["filter_chains"][0]["transport_socket_connect_timeout"] = "1s".into();
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    let mut silent = proxy.http1().await;
    let mut started = proxy.http1().await;
    // A record header that announces 512 bytes of ClientHello, and the first of them.
    started.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert!(silent.is_closed().await);
    started.is_closed().await;
    let tls = authority.client("a.example", &["http/1.1"], None);
    assert_eq!(proxy.https1(&tls).await.get("/").await.unwrap().text(), "hello");
}

/// Shells and service managers start programs with a low limit, which those may raise that need more.
#[tokio::test]
async fn as_many_files_are_open_as_the_machine_allows() {
    let upstream = upstream().await;
    let builder = Proxy::builder().first_open_files(64).listener(guarded("ingress"));
    let proxy = builder.upstream("origin", &upstream).start().await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut client = proxy.http1().await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        held.push(client);
    }
}

/// As many half-open requests as the file limits allow, 10,000 at most.
#[tokio::test]
async fn ten_thousand_half_open_connections_cost_little_and_harm_nobody() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
    // Tests beside this one need files as well; the proxy has the same limit as this process.
    let count = usize::try_from(limit.saturating_sub(4000).min(10_000)).unwrap().max(500);
    let upstream = upstream().await;
    let proxy = Proxy::in_front_of(&upstream).await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
    let (memory, files) = (proxy.rss(), proxy.open_files());
    let mut held = Vec::new();
    for _ in 0..count {
        let stream = within("connect", TcpStream::connect(proxy.address("ingress"))).await.unwrap();
        within("writable", stream.writable()).await.unwrap();
        stream.try_write(b"GET / HTTP/1.1\r\nHost: a.exa").unwrap();
        held.push(stream);
    }
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200, "others are served meanwhile");
    eventually("all connections accepted", || proxy.open_files() + 10 >= files + count).await;
    let each = proxy.rss().saturating_sub(memory) / count as u64;
    assert!(each < 40_000, "{each} bytes for each of {count} connections");
    drop(held);
    eventually("files given back", || proxy.open_files() <= files + 5).await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn when_files_run_out_nothing_spins_and_service_comes_back() {
    let upstream = upstream().await;
    let proxy = Proxy::builder()
        .listener(guarded("ingress"))
        .upstream("origin", &upstream)
        .open_files(128)
        .start()
        .await;
    let mut good = proxy.http1().await;
    assert_eq!(good.get("/").await.unwrap().status, 200);
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(within("connect", TcpStream::connect(proxy.address("ingress"))).await.unwrap());
    }
    let before = proxy.cpu_ticks();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        assert_eq!(good.get("/").await.unwrap().status, 200, "the connection that was there first is served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let used = proxy.cpu_ticks() - before;
    assert!(used < 20, "{used} ticks of CPU in 60: it spins");
    drop(held);
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
}

// ---- bytes that are no protocol, on every kind of listener

struct Kinds {
    proxy: Proxy,
    _upstream: Http1Upstream,
    tls: ClientTls,
}

const KINDS: [&str; 5] = ["auto", "http1", "http2", "tls", "tcp"];

async fn kinds() -> Kinds {
    let authority = Authority::new();
    let upstream = upstream().await;
    let proxy = Proxy::builder()
        .listener(guarded("auto"))
        .listener(guarded("http1").manager(json!({ "codec_type": "HTTP1" })))
        .listener(guarded("http2").manager(json!({ "codec_type": "HTTP2" })))
        .listener(guarded("tls").tls(&authority.issue(&["a.example"]), &["h2", "http/1.1"]))
        .listener(Listener::tcp("tcp", "origin"))
        .upstream("origin", &upstream)
        .start()
        .await;
    Kinds { proxy, _upstream: upstream, tls: authority.client("a.example", &["http/1.1"], None) }
}

impl Kinds {
    async fn serves(&self, kind: &str) {
        let address = self.proxy.address(kind);
        let status = match kind {
            "http2" => Http2Client::connect(address).await.get("/").await.answer().status,
            "tls" => {
                Http1Client::connect_tls(address, &self.tls).await.unwrap().get("/").await.unwrap().status
            }
            _ => Http1Client::connect(address).await.get("/").await.unwrap().status,
        };
        assert_eq!(status, 200, "{kind}");
    }

    /// Sends bytes and FIN, and reads whatever comes until the end.
    async fn nonsense(&self, kind: &str, bytes: &[u8]) {
        if kind == "tcp" && bytes.iter().any(|b| !b.is_ascii_graphic()) {
            // A TCP listener forwards anything; the strict upstream would rightly complain.
            return;
        }
        let mut client = Http1Client::connect(self.proxy.address(kind)).await;
        client.send(bytes).await;
        client.half_close().await;
        match client.raw_to_end().await {
            Ok(_) | Err(Broken::Reset(_)) => {}
            Err(other) => panic!("{kind}: {other:?} after {:?}", remora_tests::http1::latin1(bytes)),
        }
        self.serves(kind).await;
    }
}

fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    (0..length).map(|_| byte()).collect()
}

#[tokio::test]
async fn noise_is_survived_by_every_kind_of_listener() {
    let kinds = kinds().await;
    for kind in KINDS {
        for (seed, length) in [(1, 1), (2, 24), (3, 300), (4, 20_000), (5, 200_000)] {
            kinds.nonsense(kind, &noise(seed, length)).await;
        }
    }
}

#[tokio::test]
async fn truncated_openings_are_survived_by_every_kind_of_listener() {
    let http1 = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nab";
    let http2 = [PREFACE.to_vec(), Frame::settings(&[]).encode(), Frame::headers(1, b"\x82", false).encode()]
        .concat();
    let tls = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x20";
    let kinds = kinds().await;
    for kind in KINDS.into_iter().filter(|k| *k != "tcp") {
        for opening in [&http1[..], &http2, &tls[..]] {
            for cut in [1, 3, opening.len() / 2, opening.len()] {
                kinds.nonsense(kind, &opening[..cut]).await;
            }
        }
    }
}

#[tokio::test]
async fn a_megabyte_of_headers_is_survived_by_every_kind_of_listener() {
    let kinds = kinds().await;
    let head = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-Big: {}\r\n\r\n", "b".repeat(1 << 20));
    for kind in ["auto", "http1", "http2", "tls"] {
        let mut client = Http1Client::connect(kinds.proxy.address(kind)).await;
        client.send(&head).await;
        if matches!(kind, "auto" | "http1") {
            assert_eq!(client.response().await.unwrap().status, 431, "{kind}");
        }
        kinds.serves(kind).await;
    }
    let io = Io::tls(kinds.proxy.address("tls"), &kinds.tls).await.unwrap();
    drop(io);
    let mut client = Http1Client::connect_tls(kinds.proxy.address("tls"), &kinds.tls).await.unwrap();
    client.send(&head).await;
    assert_eq!(client.response().await.unwrap().status, 431);
    kinds.serves("tls").await;
}

#[tokio::test]
async fn connections_that_say_nothing_leave_nothing_behind() {
    let kinds = kinds().await;
    for kind in KINDS {
        kinds.serves(kind).await;
    }
    let files = kinds.proxy.open_files();
    for kind in KINDS {
        for _ in 0..20 {
            let io = Io::tcp(kinds.proxy.address(kind)).await;
            io.reset();
            drop(Io::tcp(kinds.proxy.address(kind)).await);
        }
    }
    eventually("files given back", || kinds.proxy.open_files() <= files).await;
}
