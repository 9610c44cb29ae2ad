//! Start, drain and end of the process.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Http2Client, Outcome, get};
use remora_tests::config::{Listener, cluster_http2, to_cluster};
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::upstream::http2::{Answer as Answer2, Http2Upstream};
use remora_tests::wait::{eventually, eventually_async};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A proxy that may drain for `seconds`.
async fn draining_within(seconds: u32, upstream: &Http1Upstream) -> Proxy {
    Proxy::builder()
        .listener(guarded("ingress"))
        .upstream("origin", upstream)
        .argument("--drain-time-s")
        .argument(&seconds.to_string())
        .start()
        .await
}

/// Asks until the connection may no longer be used, then connects again; ends when nobody listens any more.
/// A request that was begun and not answered, or answered with an error, is lost, on whatever connection.
async fn steady_http1(address: std::net::SocketAddr, answered: Arc<AtomicUsize>) {
    while let Ok(mut client) = Http1Client::try_connect(address).await {
        loop {
            match client.get("/").await {
                Ok(response) => {
                    assert_eq!(response.status, 200, "{response:?}");
                    answered.fetch_add(1, Ordering::Relaxed);
                    if !response.keeps_alive() {
                        break;
                    }
                }
                Err(other) => panic!("lost: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_ends_with_zero() {
    let permit = Arc::new(Notify::new());
    let held = permit.clone();
    let upstream = Http1Upstream::scripted(move |request, _| match request.target() {
        "/slow" => Answer::nothing().until(&held).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow"),
        _ => Answer::ok("hello"),
    })
    .await;
    let mut proxy = draining_within(30, &upstream).await;
    let mut slow1 = proxy.http1().await;
    slow1.send("GET /slow HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    let mut idle = proxy.http1().await;
    assert_eq!(idle.get("/").await.unwrap().status, 200);

    proxy.signal("TERM");
    eventually_async("readiness off", async || {
        proxy.admin("GET", "/ready").await.is_ok_and(|r| r.status == 503)
    })
    .await;
    assert!(proxy.is_running());
    permit.notify_one();
    let answer = slow1.response().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "slow"));
    assert!(!answer.keeps_alive(), "the answer says that the connection ends: {answer:?}");
    assert!(slow1.is_closed().await);
    assert!(idle.is_closed().await);
    let start = Instant::now();
    let status = proxy.exited().await;
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(8), "it ends at zero, not at its deadline");
}

#[tokio::test]
async fn sigterm_lets_http2_streams_finish() {
    let permit = Arc::new(Notify::new());
    let upstream = Http2Upstream::answering(Answer2::status(200).until(&permit).data("late")).await;
    let mut proxy = Proxy::builder()
        .listener(guarded("ingress"))
        .upstream("origin", &upstream)
        .argument("--drain-time-s")
        .argument("30")
        .start()
        .await;
    let mut client = proxy.http2().await;
    let streams = [client.open(&get("/1"), true).await, client.open(&get("/2"), true).await];
    upstream.request(1).await;
    proxy.signal("TERM");
    let goaway = client.until_goaway().await;
    assert_eq!(goaway.code, 0);
    permit.notify_one();
    eventually("one answer sent", || upstream.count() == 2).await;
    permit.notify_one();
    for stream in streams {
        match client.outcome(stream).await {
            Outcome::Answer(answer) => assert_eq!(answer.text(), "late"),
            other => panic!("lost: {other:?}"),
        }
    }
    assert_eq!(client.ended().await, Some(0));
    assert_eq!(proxy.exited().await.code(), Some(0));
}

/// A stream that crosses the first GOAWAY on the wire is still served: the first one names the highest stream id.
#[tokio::test]
async fn the_first_goaway_refuses_no_stream() {
    let permit = Arc::new(Notify::new());
    let upstream = Http2Upstream::answering(Answer2::status(200).until(&permit).data("late")).await;
    let proxy = Proxy::builder()
        .listener(guarded("ingress"))
        .upstream("origin", &upstream)
        .argument("--drain-time-s")
        .argument("30")
        .start()
        .await;
    let mut client = proxy.http2().await;
    let first = client.open(&get("/1"), true).await;
    upstream.request(0).await;
    proxy.signal("TERM");
    let goaway = client.until_goaway().await;
    assert_eq!(goaway.last_stream, 0x7fff_ffff, "two-step shutdown (RFC 9113 §6.8)");
    permit.notify_one();
    assert_eq!(client.outcome(first).await.answer().text(), "late");
}

/// Clients are told late: who connects while the process drains is served, however slow its first words are.
#[tokio::test]
async fn connections_made_while_draining_are_served() {
    let upstream = Http1Upstream::answering(Answer::nothing().pause(Duration::from_millis(5)).send(OK)).await;
    let proxy = draining_within(30, &upstream).await;
    let mut first = proxy.http1().await;
    assert_eq!(first.get("/").await.unwrap().status, 200);
    proxy.signal("TERM");
    eventually_async("readiness off", async || {
        proxy.admin("GET", "/ready").await.is_ok_and(|r| r.status == 503)
    })
    .await;
    for n in 0..20 {
        let mut http1 = proxy.http1().await;
        let mut http2 = Http2Client::silent(remora_tests::client::Io::tcp(proxy.address("ingress")).await);
        tokio::time::sleep(Duration::from_millis(n)).await;
        http2.send_bytes(remora_tests::frame::PREFACE).await;
        http2.send(remora_tests::frame::Frame::settings(&[])).await;
        assert_eq!(http2.get("/").await.answer().status, 200, "HTTP/2, {n}");
        assert_eq!(http1.get("/").await.unwrap().status, 200, "HTTP/1, {n}");
    }
}

#[tokio::test]
async fn sigterm_under_load_loses_nothing() {
    let upstream =
        Http1Upstream::scripted(|_, _| Answer::nothing().pause(Duration::from_millis(3)).send(OK)).await;
    let mut proxy = draining_within(30, &upstream).await;
    let address = proxy.address("ingress");
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        clients.spawn(steady_http1(address, answered.clone()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        clients.spawn(steady_http2(address, answered.clone(), stop.clone()));
    }
    eventually("load", || answered.load(Ordering::Relaxed) > 200).await;
    proxy.signal("TERM");
    let start = Instant::now();
    let status = proxy.exited().await;
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// Between requests nothing is open: the moment at which a process may end is also the one at which somebody connects.
#[tokio::test]
async fn sigterm_under_sparse_load_loses_nothing() {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let mut proxies = Vec::new();
    let mut clients = tokio::task::JoinSet::new();
    let answered = Arc::new(AtomicUsize::new(0));
    for _ in 0..6 {
        let proxy = draining_within(30, &upstream).await;
        clients.spawn(one_by_one(proxy.address("ingress"), answered.clone()));
        proxies.push(proxy);
    }
    eventually("load", || answered.load(Ordering::Relaxed) > 100).await;
    for proxy in &proxies {
        proxy.signal("TERM");
    }
    for mut proxy in proxies {
        assert_eq!(proxy.exited().await.code(), Some(0));
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// A connection for each request, some milliseconds apart, until nobody listens any more.
async fn one_by_one(address: std::net::SocketAddr, answered: Arc<AtomicUsize>) {
    while let Ok(mut client) = Http1Client::try_connect(address).await {
        match client.get("/").await {
            Ok(response) => assert_eq!(response.status, 200, "{response:?}"),
            Err(other) => panic!("lost: {other:?}"),
        }
        let number = answered.fetch_add(1, Ordering::Relaxed) as u64;
        drop(client);
        // Not a wait for anything: the pace of the load.
        tokio::time::sleep(Duration::from_millis(1 + number % 4)).await;
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Asks over HTTP/2 until GOAWAY; every stream at or below its last id must be answered.
async fn steady_http2(address: std::net::SocketAddr, answered: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect(address).await else { return };
        let mut client = Http2Client::silent(remora_tests::client::Io::Tcp(stream));
        client.send_bytes(remora_tests::frame::PREFACE).await;
        client.send(remora_tests::frame::Frame::settings(&[])).await;
        loop {
            let stream = client.open(&get("/"), true).await;
            match client.outcome(stream).await {
                Outcome::Answer(answer) => {
                    assert_eq!(answer.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                // 7 = REFUSED_STREAM: certainly not processed, an HTTP client sends it again.
                Outcome::Reset(7, _) => {}
                Outcome::Reset(code, stream) => panic!("lost: reset {code} {stream:?}"),
                Outcome::ConnectionEnded(_) => {
                    let last = client.goaways().last().map(|goaway| goaway.last_stream);
                    assert!(
                        last.is_some_and(|last| last < stream),
                        "lost: stream {stream}, GOAWAY said {last:?}"
                    );
                    break;
                }
            }
            if !client.goaways().is_empty() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_never_ends_holds_the_process_up_to_its_deadline() {
    let upstream = Http1Upstream::answering(Answer::nothing().hang()).await;
    let mut proxy = draining_within(1, &upstream).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    let start = Instant::now();
    proxy.signal("TERM");
    assert_eq!(proxy.exited().await.code(), Some(0));
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
}

/// Long before its deadline; listeners stay open for a few seconds, for clients that are told late.
async fn idle_process_ends(signal: &str) {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let mut proxy = draining_within(60, &upstream).await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
    proxy.signal(signal);
    // `exited` waits for ten seconds.
    assert_eq!(proxy.exited().await.code(), Some(0));
}

#[tokio::test]
async fn an_idle_process_ends_soon_after_sigterm() {
    idle_process_ends("TERM").await;
}

#[tokio::test]
async fn an_idle_process_ends_soon_after_sigint() {
    idle_process_ends("INT").await;
}

#[tokio::test]
async fn a_second_sigterm_ends_it_at_once() {
    let upstream = Http1Upstream::answering(Answer::nothing().hang()).await;
    let mut proxy = draining_within(60, &upstream).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    proxy.signal("TERM");
    eventually_async("readiness off", async || {
        proxy.admin("GET", "/ready").await.map_or(true, |r| r.status == 503)
    })
    .await;
    proxy.signal("TERM");
    proxy.exited().await;
}

#[tokio::test]
async fn quitquitquit_ends_the_process() {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let mut proxy = draining_within(30, &upstream).await;
    assert_eq!(proxy.admin("GET", "/quitquitquit").await.unwrap().status, 405, "GET changes nothing");
    assert!(proxy.is_running());
    assert_eq!(proxy.admin("POST", "/quitquitquit").await.unwrap().status, 200);
    assert_eq!(proxy.exited().await.code(), Some(0));
}

#[tokio::test]
async fn drain_listeners_stops_listening_and_keeps_the_process() {
    let permit = Arc::new(Notify::new());
    let answer = Answer::nothing().until(&permit).send(OK);
    let upstream = Http1Upstream::answering(answer).await;
    let mut proxy = draining_within(30, &upstream).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(0).await;
    assert_eq!(proxy.admin("POST", "/drain_listeners").await.unwrap().status, 200);
    let address = proxy.address("ingress");
    eventually_async("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
    permit.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "ok", "what was in flight finishes");
    assert!(proxy.is_running());
    assert!(proxy.admin("GET", "/server_info").await.is_ok());
}

#[tokio::test]
async fn healthcheck_fail_turns_readiness_off_and_ok_turns_it_on() {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    assert_eq!(proxy.admin("POST", "/healthcheck/fail").await.unwrap().status, 200);
    assert_eq!(proxy.admin("GET", "/ready").await.unwrap().status, 503);
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200, "it still serves");
    assert_eq!(proxy.admin("POST", "/healthcheck/ok").await.unwrap().status, 200);
    assert_eq!(proxy.admin("GET", "/ready").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_bootstrap_that_cannot_be_understood_ends_the_process_with_the_path_of_the_error() {
    let listener = guarded("ingress").manager(serde_json::json!({ "no_such_field": 1 }));
    let (status, stderr) = Proxy::builder().listener(listener).refuse().await;
    assert!(!status.success());
    assert!(stderr.contains("no_such_field"), "{stderr}");
}

#[tokio::test]
async fn a_listener_whose_port_is_taken_ends_the_process_with_its_name() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listener = guarded("ingress")
        .with(serde_json::json!({ "address": { "socket_address": { "port_value": port } } }));
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let (status, stderr) = Proxy::builder().listener(listener).upstream("origin", &upstream).refuse().await;
    assert!(!status.success());
    assert!(stderr.contains("ingress"), "{stderr}");
}

/// A proxy in front of an HTTP/2 upstream whose connections have `limits` (`common_http_protocol_options`).
async fn with_limits(upstream: &Http2Upstream, limits: serde_json::Value) -> Proxy {
    let mut cluster = cluster_http2("origin", &[upstream.address()]);
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"][options]["common_http_protocol_options"] = limits;
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    Proxy::builder().listener(listener).cluster(cluster).start().await
}

#[tokio::test]
async fn an_http2_connection_takes_as_many_requests_as_it_may() {
    let upstream = Http2Upstream::answering(Answer2::ok("hello")).await;
    let proxy = with_limits(&upstream, serde_json::json!({ "max_requests_per_connection": 2 })).await;
    let mut client = proxy.http1().await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
    assert_eq!(upstream.connections(), 3);
    eventually("worn connections are closed", || upstream.open_connections() <= 1).await;
}

#[tokio::test]
async fn an_http2_connection_grows_as_old_as_it_may_and_its_streams_finish() {
    let permit = Arc::new(Notify::new());
    let held = permit.clone();
    let upstream = Http2Upstream::scripted(move |request, _| match request.head.uri.path() {
        "/held" => Answer2::status(200).until(&held).data("late"),
        _ => Answer2::ok("hello"),
    })
    .await;
    let proxy = with_limits(&upstream, serde_json::json!({ "max_connection_duration": "0.3s" })).await;
    let mut slow = proxy.http2().await;
    let stream = slow.open(&get("/held"), true).await;
    upstream.request_head(0).await;
    let mut client = proxy.http1().await;
    eventually_async("a second connection is opened", async || {
        assert_eq!(client.get("/").await.unwrap().status, 200);
        upstream.connections() >= 2
    })
    .await;
    permit.notify_one();
    assert_eq!(slow.outcome(stream).await.answer().status, 200);
}
