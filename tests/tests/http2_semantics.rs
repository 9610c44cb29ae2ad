//! What the proxy answers to, and forwards of, HTTP/2 requests: malformed ones, ambiguous ones, gRPC, and bridging
//! between HTTP/2 and HTTP/1.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use remora_tests::certs::Authority;
use remora_tests::client::http2::{Http2Client, Outcome, get, request};
use remora_tests::config::{cluster, cluster_http2, direct, to_cluster};
use remora_tests::frame::{Frame, code, flag, kind};
use remora_tests::hpack;
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use tokio::sync::Notify;

/// An HTTP/1 upstream behind the standard proxy: what an attack on HTTP/2 framing aims at.
async fn pair() -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    (upstream, proxy)
}

/// What a malformed request may be met with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// 400, or a stream or connection error: common to all implementations.
    Refused,
    /// A stream or connection error, never an answer.
    Error,
    /// 400 with this reason, or a stream error.
    BadRequest(&'static str),
}

use Verdict::{BadRequest, Error, Refused};

/// Sends one malformed request; it must not be forwarded, and the next request must be served.
async fn malformed(send: impl AsyncFnOnce(&mut Http2Client) -> u32, verdict: Verdict) {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let stream = send(&mut client).await;
    let outcome = client.outcome(stream).await;
    match (&outcome, verdict) {
        (Outcome::Answer(answer), Refused) => assert_eq!(answer.status, 400),
        (Outcome::Answer(answer), BadRequest(reason)) => {
            assert_eq!(answer.status, 400);
            if proxy.is_remora() {
                assert_eq!(answer.reason(), Some(reason));
            }
        }
        (Outcome::Answer(answer), Error) => panic!("answered: {answer:?}"),
        (Outcome::Reset(reset, _), _) => assert_ne!(*reset, code::NO_ERROR),
        (Outcome::ConnectionEnded(_), _) => {}
    }
    if !matches!(outcome, Outcome::ConnectionEnded(_)) {
        assert_eq!(client.get("/marker").await.answer().status, 200, "other streams go on");
    }
    assert_eq!(proxy.http1().await.get("/marker").await.unwrap().status, 200);
    let forwarded: Vec<_> = upstream.requests().into_iter().filter(|r| r.target() != "/marker").collect();
    // A body that turns out to be wrong may be on its way already: then it must never look complete.
    assert!(!forwarded.iter().any(|r| r.complete), "forwarded: {forwarded:#?}");
}

type Pair<'a> = (&'a [u8], &'a [u8]);
const METHOD: Pair<'_> = (b":method", b"GET");
const SCHEME: Pair<'_> = (b":scheme", b"http");
const AUTHORITY: Pair<'_> = (b":authority", b"a.example");
const PATH: Pair<'_> = (b":path", b"/");

/// One test per row: the fields of a request that ends with its head.
macro_rules! malformed_heads {
    ($($name:ident: [$($field:expr),+ $(,)?] => $verdict:expr;)+) => {
        $(#[tokio::test] async fn $name() {
            let fields: &[Pair<'_>] = &[$($field),+];
            let block = hpack::encode_bytes(fields);
            malformed(async |client| client.open_block(&block, true).await, $verdict).await;
        })+
    };
}

malformed_heads! {
    carriage_return_line_feed_in_value: [METHOD, SCHEME, AUTHORITY, PATH, (b"x-a", b"b\r\nx-c: d")] => Refused;
    line_feed_in_value: [METHOD, SCHEME, AUTHORITY, PATH, (b"x-a", b"b\nc")] => Refused;
    carriage_return_in_value: [METHOD, SCHEME, AUTHORITY, PATH, (b"x-a", b"b\rc")] => Refused;
    nul_in_value: [METHOD, SCHEME, AUTHORITY, PATH, (b"x-a", b"b\0c")] => Refused;
    line_feed_in_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"/\r\nx: y")] => Refused;
    space_in_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"/ HTTP/1.1")] => Refused;
    line_feed_in_method: [(b":method", b"GET /admin HTTP/1.1\r\nx: y"), SCHEME, AUTHORITY, PATH] => Refused;
    space_in_method: [(b":method", b"GET /admin"), SCHEME, AUTHORITY, PATH] => Refused;
    line_feed_in_authority: [METHOD, SCHEME, (b":authority", b"a\r\nx: y"), PATH] => Refused;
    empty_method: [(b":method", b""), SCHEME, AUTHORITY, PATH] => Refused;
    upper_case_name: [METHOD, SCHEME, AUTHORITY, PATH, (b"X-A", b"b")] => Refused;
    space_in_name: [METHOD, SCHEME, AUTHORITY, PATH, (b"x a", b"b")] => Refused;
    colon_in_name: [METHOD, SCHEME, AUTHORITY, PATH, (b"x:a", b"b")] => Refused;
    line_feed_in_name: [METHOD, SCHEME, AUTHORITY, PATH, (b"x\r\na", b"b")] => Refused;
    empty_name: [METHOD, SCHEME, AUTHORITY, PATH, (b"", b"b")] => Refused;
    transfer_encoding: [METHOD, SCHEME, AUTHORITY, PATH, (b"transfer-encoding", b"chunked")] => Refused;
    connection: [METHOD, SCHEME, AUTHORITY, PATH, (b"connection", b"keep-alive")] => Refused;
    keep_alive: [METHOD, SCHEME, AUTHORITY, PATH, (b"keep-alive", b"timeout=5")] => Refused;
    proxy_connection: [METHOD, SCHEME, AUTHORITY, PATH, (b"proxy-connection", b"close")] => Refused;
    upgrade: [METHOD, SCHEME, AUTHORITY, PATH, (b"upgrade", b"websocket")] => Refused;
    te_gzip: [METHOD, SCHEME, AUTHORITY, PATH, (b"te", b"gzip")] => Refused;
    two_content_lengths:
        [METHOD, SCHEME, AUTHORITY, PATH, (b"content-length", b"0"), (b"content-length", b"5")] => Refused;
    content_length_is_no_number: [METHOD, SCHEME, AUTHORITY, PATH, (b"content-length", b"+0")] => Refused;
    content_length_with_end_stream: [METHOD, SCHEME, AUTHORITY, PATH, (b"content-length", b"5")] => Error;
    duplicate_method: [METHOD, METHOD, SCHEME, AUTHORITY, PATH] => Refused;
    duplicate_path: [METHOD, SCHEME, AUTHORITY, PATH, (b":path", b"/admin")] => Refused;
    duplicate_authority: [METHOD, SCHEME, AUTHORITY, (b":authority", b"b.example"), PATH] => Refused;
    duplicate_scheme: [METHOD, SCHEME, (b":scheme", b"https"), AUTHORITY, PATH] => Refused;
    late_pseudo_header: [METHOD, SCHEME, AUTHORITY, (b"x-a", b"b"), PATH] => Refused;
    unknown_pseudo_header: [METHOD, SCHEME, AUTHORITY, PATH, (b":x", b"b")] => Refused;
    status_in_a_request: [METHOD, SCHEME, AUTHORITY, PATH, (b":status", b"200")] => Refused;
    no_method: [SCHEME, AUTHORITY, PATH] => Refused;
    no_scheme: [METHOD, AUTHORITY, PATH] => Refused;
    no_path: [METHOD, SCHEME, AUTHORITY] => Refused;
    empty_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"")] => Refused;
    relative_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"x/y")] => Refused;
    absolute_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"http://a.example/")] => Refused;
    connect_with_path: [(b":method", b"CONNECT"), SCHEME, AUTHORITY, PATH] => Refused;
    connect_without_authority: [(b":method", b"CONNECT")] => Refused;
    authority_differs_from_host: [METHOD, SCHEME, AUTHORITY, PATH, (b"host", b"evil.example")] =>
        BadRequest("authority_host_mismatch");
    two_hosts: [METHOD, SCHEME, PATH, (b"host", b"a.example"), (b"host", b"b.example")] => Refused;
    neither_authority_nor_host: [METHOD, SCHEME, PATH] => BadRequest("missing_host");
    empty_authority: [METHOD, SCHEME, (b":authority", b""), PATH] => Refused;
    userinfo_in_authority: [METHOD, SCHEME, (b":authority", b"u@a.example"), PATH] => BadRequest("bad_host");
    list_in_authority: [METHOD, SCHEME, (b":authority", b"a,b"), PATH] => BadRequest("bad_host");
    path_in_authority: [METHOD, SCHEME, (b":authority", b"a/.."), PATH] => BadRequest("bad_host");
    raw_0xff_in_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"/a\xff")] => BadRequest("bad_path");
    asterisk_with_get: [METHOD, SCHEME, AUTHORITY, (b":path", b"*")] => BadRequest("bad_path");
    encoded_slash_in_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"/x%2f..%2fadmin")] => BadRequest("bad_path");
    encoded_nul_in_path: [METHOD, SCHEME, AUTHORITY, (b":path", b"/x%00")] => BadRequest("bad_path");
}

#[tokio::test]
async fn a_body_shorter_than_its_content_length_is_an_error() {
    malformed(
        async |client| {
            let mut fields = request("POST", "/").to_vec();
            fields.push(("content-length", "5"));
            let stream = client.open(&fields, false).await;
            client.send(Frame::data(stream, b"abc", true)).await;
            stream
        },
        Error,
    )
    .await;
}

#[tokio::test]
async fn a_body_longer_than_its_content_length_is_an_error() {
    malformed(
        async |client| {
            let mut fields = request("POST", "/").to_vec();
            fields.push(("content-length", "5"));
            let stream = client.open(&fields, false).await;
            client.send(Frame::data(stream, b"abcdefgh", true)).await;
            stream
        },
        Error,
    )
    .await;
}

/// The h2 crate drops such a field before we see it (tests/conformance-misses.md). What counts is that it goes no
/// further: the upstream's parser refuses a trailer name that is no token.
#[tokio::test]
async fn a_pseudo_header_in_trailers_is_an_error_or_dropped() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let stream = client.open(&request("POST", "/"), false).await;
    client.send(Frame::data(stream, b"abc", false)).await;
    client.send(Frame::headers(stream, hpack::encode(&[(":path", "/admin"), ("x-sum", "7")]), true)).await;
    match client.outcome(stream).await {
        Outcome::Answer(answer) if answer.status == 200 => {
            let request = upstream.only_request();
            assert_eq!((request.target(), request.text().as_str()), ("/", "abc"));
            assert!(
                request.trailers.0.iter().all(|(name, _)| name.eq_ignore_ascii_case("x-sum")),
                "{request:?}"
            );
        }
        Outcome::Answer(answer) => assert_eq!(answer.status, 400),
        Outcome::Reset(..) | Outcome::ConnectionEnded(_) => {
            assert!(!upstream.requests().iter().any(|r| r.complete));
        }
    }
}

/// The h2 crate cuts a fragment off before we see it. Routing, policy and the upstream then all read the same path.
#[tokio::test]
async fn a_fragment_in_the_path_is_refused_or_gone_for_everybody() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    for path in ["/x#/admin", "/admin#/x", "/x?q#f"] {
        let before = upstream.requests().len();
        match client.get(path).await {
            Outcome::Answer(answer) if answer.status == 200 => {
                assert!(!path.starts_with("/admin"), "the guarded path is guarded");
                assert_eq!(upstream.requests()[before].target(), path.split('#').next().unwrap());
            }
            Outcome::Answer(answer) => assert!(matches!(answer.status, 400 | 403)),
            Outcome::Reset(..) => {}
            Outcome::ConnectionEnded(_) => client = proxy.http2().await,
        }
    }
}

#[tokio::test]
async fn trailers_without_end_stream_are_an_error() {
    malformed(
        async |client| {
            let stream = client.open(&request("POST", "/"), false).await;
            client.send(Frame::data(stream, b"abc", false)).await;
            client.send(Frame::headers(stream, hpack::encode(&[("x-sum", "7")]), false)).await;
            stream
        },
        Error,
    )
    .await;
}

/// Spaces around a value would smuggle nothing by themselves, but two hops must not see two values.
#[tokio::test]
async fn spaces_around_a_value_are_refused_or_trimmed() {
    for value in [" b", "b ", "\tb", "b\t"] {
        let (upstream, proxy) = pair().await;
        let mut client = proxy.http2().await;
        let mut fields = get("/").to_vec();
        fields.push(("x-a", value));
        let stream = client.open(&fields, true).await;
        match client.outcome(stream).await {
            Outcome::Answer(answer) if answer.status == 200 => {
                let raw = upstream.raw().concat();
                let line = raw.split(|b| *b == b'\n').find(|l| l.to_ascii_lowercase().starts_with(b"x-a"));
                let line = remora_tests::http1::latin1(line.unwrap());
                assert_eq!(line.to_ascii_lowercase(), "x-a: b\r", "trimmed");
            }
            Outcome::Answer(answer) => assert_eq!(answer.status, 400),
            Outcome::Reset(..) | Outcome::ConnectionEnded(_) => assert!(upstream.requests().is_empty()),
        }
    }
}

#[tokio::test]
async fn host_without_authority_is_the_authority() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "h.example")];
    let stream = client.open(&fields, true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 200);
    assert_eq!(upstream.only_request().fields().get("host"), Some("h.example"));
}

#[tokio::test]
async fn host_equal_to_authority_is_sent_once() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let mut fields = get("/").to_vec();
    fields.push(("host", "a.example"));
    let stream = client.open(&fields, true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 200);
    assert_eq!(upstream.only_request().fields().get("host"), Some("a.example"));
}

#[tokio::test]
async fn the_scheme_is_the_transports_not_the_clients() {
    for scheme in ["https", "HTTPS", "http"] {
        let upstream = Http2Upstream::answering(Answer::ok("hello")).await;
        let proxy = Proxy::in_front_of(&upstream).await;
        let mut client = proxy.http2().await;
        let fields = [(":method", "GET"), (":scheme", scheme), (":authority", "a.example"), (":path", "/")];
        let stream = client.open(&fields, true).await;
        match client.outcome(stream).await {
            Outcome::Answer(answer) if answer.status == 200 => {
                let request = upstream.request(0).await;
                assert_eq!(request.head.uri.scheme_str(), Some("http"), "{scheme}");
                assert!(matches!(request.field("x-forwarded-proto"), None | Some("http")));
            }
            Outcome::Answer(answer) => assert_eq!(answer.status, 400),
            Outcome::Reset(..) | Outcome::ConnectionEnded(_) => {}
        }
    }
}

#[tokio::test]
async fn paths_are_normalised_before_routing() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    for path in [
        "//admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x/..;/admin",
        "/.;/admin",
        "/x\\..\\admin",
    ] {
        match client.get(path).await {
            Outcome::Answer(answer) => {
                assert!(matches!(answer.status, 403 | 400), "{path}: {}", answer.status)
            }
            Outcome::Reset(..) => {}
            Outcome::ConnectionEnded(_) => client = proxy.http2().await,
        }
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}

#[tokio::test]
async fn cookie_crumbs_are_joined() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let mut fields = get("/").to_vec();
    fields.extend([("cookie", "a=1"), ("cookie", "b=2")]);
    let stream = client.open(&fields, true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 200);
    // RFC 9113 §8.2.3: crumbs are joined by "; " before they pass into HTTP/1.
    assert_eq!(upstream.only_request().fields().get("cookie"), Some("a=1; b=2"));
}

/// Headers over the limit, on each of the ways that a limit was once forgotten.
macro_rules! too_large {
    ($($name:ident: $fields:expr;)+) => {
        $(#[tokio::test] async fn $name() { too_large(&$fields).await; })+
    };
}

async fn too_large(fields: &[(String, String)]) {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let stream = client.open(&fields, true).await;
    match client.outcome(stream).await {
        Outcome::Answer(answer) => assert!(matches!(answer.status, 431 | 400), "{}", answer.status),
        Outcome::Reset(..) | Outcome::ConnectionEnded(_) => {}
    }
    assert_eq!(proxy.http1().await.get("/marker").await.unwrap().status, 200);
    assert_eq!(upstream.only_request().target(), "/marker");
}

fn with(extra: impl IntoIterator<Item = (&'static str, String)>) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> =
        get("/").iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    for (name, value) in extra {
        match fields.iter_mut().find(|(n, _)| n == name && name.starts_with(':')) {
            Some(field) => field.1 = value,
            None => fields.push((name.into(), value)),
        }
    }
    fields
}

too_large! {
    header_of_70_kb: with([("x-big", "b".repeat(70_000))]);
    authority_of_70_kb: with([(":authority", "a".repeat(70_000))]);
    host_of_70_kb: with([("host", "a".repeat(70_000))]);
    path_of_70_kb: with([(":path", format!("/{}", "p".repeat(70_000)))]);
    headers_of_1_mb: with([("x-big", "b".repeat(1 << 20))]);
    three_hundred_headers: with((0..300).map(|_| ("x-a", "b".to_owned())));
    cookie_crumbs_of_60_kb: with((0..200).map(|n| ("cookie", format!("c{n}={}", "v".repeat(300)))));
}

#[tokio::test]
async fn a_header_bomb_is_stopped_before_it_is_unpacked() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let before = proxy.rss();
    let mut block = hpack::encode(&get("/"));
    block.extend(hpack::encode_indexed(b"x-bomb", &[b'v'; 3900]));
    // 62 is the newest entry of the dynamic table: one byte here, 3.9 kB there.
    block.extend(std::iter::repeat_n(0x80 | 62, 4000));
    let stream = client.open_block(&block, true).await;
    match client.outcome(stream).await {
        Outcome::Answer(answer) => assert_eq!(answer.status, 431),
        Outcome::Reset(..) | Outcome::ConnectionEnded(_) => {}
    }
    assert!(proxy.rss() < before + (5 << 20), "unpacked {} bytes", proxy.rss() - before);
    assert_eq!(proxy.http1().await.get("/marker").await.unwrap().status, 200);
    assert_eq!(upstream.only_request().target(), "/marker");
}

// ---- bodies, trailers, streaming, resets

#[tokio::test]
async fn http2_to_http2_keeps_bodies_and_trailers() {
    let upstream = Http2Upstream::answering(Answer::status(200).echo()).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&request("POST", "/p?q"), false).await;
    client.send(Frame::data(stream, b"one", false)).await;
    client.until(stream, "first echo", |s| s.body == b"one").await;
    client.send(Frame::data(stream, b"two", false)).await;
    client.until(stream, "second echo", |s| s.body == b"onetwo").await;
    client.send(Frame::headers(stream, hpack::encode(&[("x-sum", "7")]), true)).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "onetwo"));
    assert_eq!(answer.trailers.get("x-sum"), Some("7"));
    let request = upstream.request(0).await;
    assert_eq!(request.head.uri.path_and_query().unwrap().as_str(), "/p?q");
    assert_eq!(request.head.uri.authority().unwrap().as_str(), "a.example");
}

#[tokio::test]
async fn http2_to_http1_bridges_bodies_and_trailers() {
    let upstream = Http1Upstream::answering(Answer1::chunked(&["one", "two"], &[("X-Sum", "42")])).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let mut fields = request("POST", "/").to_vec();
    fields.push(("te", "trailers"));
    let stream = client.open(&fields, false).await;
    client.send(Frame::data(stream, b"abc", false)).await;
    client.send(Frame::headers(stream, hpack::encode(&[("x-req", "7")]), true)).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "onetwo"));
    assert_eq!(answer.trailers.get("x-sum"), Some("42"));
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        assert!(!answer.fields.has(name), "{answer:?}");
    }
    let request = upstream.only_request();
    assert_eq!((request.text().as_str(), request.fields().get("host")), ("abc", Some("a.example")));
    assert_eq!(request.trailers.get("x-req"), Some("7"));
}

#[tokio::test]
async fn http1_to_http2_bridges_bodies_and_trailers() {
    let upstream =
        Http2Upstream::answering(Answer::status(200).data("hi").trailers(&[("x-sum", "42")])).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    client
        .send(
            "POST /p HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nConnection: TE\r\nX-Case: y\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Req: 7\r\n\r\n",
        )
        .await;
    let response = client.response().await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "hi"));
    assert_eq!(response.trailers.get("x-sum"), Some("42"));
    let request = upstream.request(0).await;
    assert_eq!(request.body, b"abc");
    assert_eq!(request.head.uri.authority().unwrap().as_str(), "a.example");
    assert_eq!(request.field("x-case"), Some("y"));
    assert_eq!(request.trailers.get("x-req").unwrap(), "7");
    for name in ["connection", "transfer-encoding", "host"] {
        assert!(request.field(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn requests_are_multiplexed() {
    let permit = Arc::new(Notify::new());
    let held = permit.clone();
    let upstream = Http1Upstream::scripted(move |request, _| match request.target() {
        "/slow" => Answer1::nothing().until(&held).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow"),
        _ => Answer1::ok("fast"),
    })
    .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let slow = client.open(&get("/slow"), true).await;
    assert_eq!(client.get("/fast").await.answer().text(), "fast");
    assert!(!client.stream(slow).ended);
    permit.notify_one();
    assert_eq!(client.outcome(slow).await.answer().text(), "slow");
}

#[tokio::test]
async fn head_and_204_have_no_body() {
    let upstream = Http1Upstream::scripted(|request, _| match request.method() {
        "HEAD" => Answer1::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        _ => Answer1::raw("HTTP/1.1 204 No Content\r\n\r\n"),
    })
    .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&request("HEAD", "/"), true).await;
    let head = client.outcome(stream).await.answer();
    assert_eq!((head.status, head.fields.get("content-length")), (200, Some("1234")));
    assert_eq!(client.get("/").await.answer().status, 204);
}

#[tokio::test]
async fn a_clients_reset_reaches_an_http2_upstream() {
    let upstream = Http2Upstream::answering(Answer::silence().early()).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&request("POST", "/"), false).await;
    upstream.request_head(0).await;
    client.send(Frame::reset(stream, code::CANCEL)).await;
    let request = upstream.request_with(0, "reset", |r| r.reset.is_some()).await;
    assert_eq!(request.reset, Some(code::CANCEL));
    assert!(client.ping().await, "the connection goes on");
}

#[tokio::test]
async fn a_clients_reset_ends_an_http1_upstream_request() {
    let upstream = Http1Upstream::answering(Answer1::nothing().hang()).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&get("/"), true).await;
    upstream.request(0).await;
    client.send(Frame::reset(stream, code::CANCEL)).await;
    upstream.ended(0).await;
    assert!(client.ping().await, "the connection goes on");
}

#[tokio::test]
async fn an_upstreams_reset_within_its_answer_reaches_the_client() {
    let answer =
        Answer::status(200).data("half").pause(Duration::from_millis(50)).reset(h2::Reason::INTERNAL_ERROR);
    let upstream = Http2Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&get("/"), true).await;
    let Outcome::Reset(reset, so_far) = client.outcome(stream).await else { panic!("not reset") };
    assert_ne!(reset, code::NO_ERROR);
    assert_eq!((so_far.status(), so_far.body.as_slice()), (Some(200), b"half".as_slice()));
    assert!(client.ping().await, "the connection goes on");
}

#[tokio::test]
async fn a_truncated_http1_answer_is_a_reset() {
    let truncated =
        Answer1::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").close();
    let upstream = Http1Upstream::answering(truncated).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&get("/"), true).await;
    let outcome = client.outcome(stream).await;
    assert!(matches!(outcome, Outcome::Reset(..)), "{outcome:?}");
}

#[tokio::test]
async fn an_upstreams_reset_before_its_answer_is_reported() {
    let upstream = Http2Upstream::answering(Answer::refuse(h2::Reason::INTERNAL_ERROR)).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let answer = client.get("/").await.answer();
    assert_eq!(answer.status, 503);
    if proxy.is_remora() {
        assert_eq!(answer.reason(), Some("upstream_reset_before_response"));
    }
}

#[tokio::test]
async fn a_goaway_of_the_upstream_loses_nothing() {
    let upstream = Http2Upstream::answering(Answer::ok("hello")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    for n in 0..10 {
        assert_eq!(client.get("/").await.answer().status, 200, "request {n}");
        upstream.goaway();
    }
    assert!(upstream.connections() > 1);
}

#[tokio::test]
async fn an_early_answer_ends_the_stream() {
    let upstream = Http1Upstream::answering(
        Answer1::raw("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .early()
            .close(),
    )
    .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&request("POST", "/"), false).await;
    client.send(Frame::data(stream, vec![b'x'; 1000], false)).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
    assert!(client.ping().await, "the connection goes on");
}

#[tokio::test]
async fn a_stalled_stream_does_not_stall_the_others() {
    let big = "x".repeat(8 << 20);
    let upstream = Http2Upstream::scripted(move |request, _| match request.head.uri.path() {
        "/big" => Answer::ok(&big),
        _ => Answer::ok("small"),
    })
    .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    client.hold_windows();
    let big = client.open(&get("/big"), true).await;
    // The default connection window is 64 KiB, of which the big stream must not take all for ever: give the
    // connection more, and the stream nothing.
    client.send(Frame::window_update(0, 16 << 20)).await;
    client.until(big, "some of the big answer", |s| s.body.len() > 10_000).await;
    assert_eq!(client.get("/small").await.answer().text(), "small");
    assert!(!client.stream(big).ended);
}

// ---- gRPC

fn grpc(path: &str) -> Vec<(&'static str, &str)> {
    let mut fields = request("POST", path).to_vec();
    fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
    fields
}

#[tokio::test]
async fn grpc_trailers_pass() {
    let answer = Answer::status(200)
        .field("content-type", "application/grpc")
        .data(b"\0\0\0\0\x02hi")
        .trailers(&[("grpc-status", "5"), ("grpc-message", "not%20here")]);
    let upstream = Http2Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), false).await;
    client.send(Frame::data(stream, b"\0\0\0\0\0", true)).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!(answer.trailers.get("grpc-status"), Some("5"));
    assert_eq!(answer.trailers.get("grpc-message"), Some("not%20here"));
    assert_eq!(upstream.request(0).await.field("te"), Some("trailers"));
}

#[tokio::test]
async fn grpc_trailers_only_stay_trailers_only() {
    let answer = Answer::status(200).field("content-type", "application/grpc").field("grpc-status", "7");
    let upstream = Http2Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!(answer.fields.get("grpc-status"), Some("7"));
    assert!(answer.head_only);
}

#[tokio::test]
async fn grpc_streams_in_both_directions_at_once() {
    let upstream =
        Http2Upstream::answering(Answer::status(200).field("content-type", "application/grpc").echo()).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/chat"), false).await;
    for n in 1..=20 {
        client.send(Frame::data(stream, b"\0\0\0\0\x02hi", false)).await;
        client.until(stream, "echo", |s| s.body.len() == n * 7).await;
    }
    client.send(Frame::data(stream, b"", true)).await;
    assert_eq!(client.outcome(stream).await.answer().body.len(), 140);
}

/// Errors of the proxy itself, as gRPC: 200, trailers-only, `grpc-status`.
async fn proxy_made_grpc_error(proxy: &Proxy, path: &str, status: &str, reason: &str) {
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc(path), true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.fields.get("grpc-status")), (200, Some(status)), "{answer:?}");
    assert_eq!(answer.fields.get("content-type"), Some("application/grpc"));
    assert!(answer.head_only, "trailers-only: {answer:?}");
    assert!(answer.fields.has("grpc-message"));
    if proxy.is_remora() && !reason.is_empty() {
        assert_eq!(answer.reason(), Some(reason));
    }
}

#[tokio::test]
async fn errors_of_the_proxy_are_grpc_to_grpc_clients() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let listener = remora_tests::config::Listener::http("ingress")
        .route(direct("/denied", 403, "no"))
        .route(to_cluster("/svc", "origin"))
        .route(to_cluster("/empty", "empty"));
    let proxy = Proxy::builder()
        .listener(listener)
        .cluster(cluster_http2("origin", &[nobody]))
        .cluster(cluster("empty", &[]))
        .start()
        .await;
    proxy_made_grpc_error(&proxy, "/svc/method", "14", "upstream_connect_failure").await;
    proxy_made_grpc_error(&proxy, "/empty", "14", "no_healthy_upstream").await;
    proxy_made_grpc_error(&proxy, "/nowhere", "12", "no_route").await;
    proxy_made_grpc_error(&proxy, "/denied", "7", "").await;
}

#[tokio::test]
async fn an_upstreams_http_error_is_not_rewritten_for_grpc() {
    let upstream = Http2Upstream::answering(Answer::status(502).data("from the origin")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&grpc("/svc/method"), true).await;
    assert_eq!(client.outcome(stream).await.answer().status, 502);
}

#[tokio::test]
async fn grpc_timeout_is_honoured() {
    let upstream = Http2Upstream::answering(Answer::silence()).await;
    let mut route = to_cluster("/", "origin");
    route["route"] = serde_json::json!({ "cluster": "origin", "max_stream_duration": { "grpc_timeout_header_max": "0s" } });
    let listener = remora_tests::config::Listener::http("ingress").route(route);
    let proxy = Proxy::builder()
        .listener(listener)
        .cluster(cluster_http2("origin", &[upstream.address()]))
        .start()
        .await;
    let mut client = proxy.http2().await;
    let mut fields = grpc("/svc/method");
    fields.push(("grpc-timeout", "200m"));
    let start = tokio::time::Instant::now();
    let stream = client.open(&fields, true).await;
    let answer = client.outcome(stream).await.answer();
    assert_eq!((answer.status, answer.fields.get("grpc-status")), (200, Some("4")), "{answer:?}");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(190) && took < Duration::from_secs(2), "{took:?}");
}

// ---- connections

#[tokio::test]
async fn drain_says_goaway_and_finishes_the_streams() {
    let permit = Arc::new(Notify::new());
    let upstream = Http2Upstream::answering(Answer::status(200).until(&permit).data("late")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http2().await;
    let stream = client.open(&get("/"), true).await;
    upstream.request(0).await;
    assert_eq!(proxy.admin("POST", "/drain_listeners?graceful").await.unwrap().status, 200);
    if proxy.is_remora() {
        let goaway = client.until_goaway().await;
        assert_eq!(goaway.code, code::NO_ERROR);
    }
    permit.notify_one();
    assert_eq!(client.outcome(stream).await.answer().text(), "late");
    if proxy.is_remora() {
        assert_eq!(client.ended().await, Some(code::NO_ERROR));
        assert!(client.goaways().last().unwrap().last_stream >= stream);
    }
}

#[tokio::test]
async fn the_protocol_is_detected_by_its_first_bytes() {
    let (upstream, proxy) = pair().await;
    assert_eq!(proxy.http1().await.get("/one").await.unwrap().status, 200);
    assert_eq!(proxy.http2().await.get("/two").await.answer().status, 200);
    // The preface in pieces, slower than one read.
    let mut client = Http2Client::silent(remora_tests::client::Io::tcp(proxy.address("ingress")).await);
    for byte in remora_tests::frame::PREFACE {
        client.send_bytes(&[*byte]).await;
    }
    client.send(Frame::settings(&[])).await;
    assert_eq!(client.get("/three").await.answer().status, 200);
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn alpn_decides_under_tls() {
    let authority = Authority::new();
    let identity = authority.issue(&["a.example"]);
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let proxy = Proxy::builder()
        .listener(guarded("ingress").tls(&identity, &["h2", "http/1.1"]))
        .upstream("origin", &upstream)
        .start()
        .await;
    let h1 = authority.client("a.example", &["http/1.1"], None);
    assert_eq!(proxy.https1(&h1).await.get("/").await.unwrap().text(), "hello");
    let none = authority.client("a.example", &[], None);
    assert_eq!(proxy.https1(&none).await.get("/").await.unwrap().text(), "hello");
    let h2 = authority.client("a.example", &["h2"], None);
    let mut client = Http2Client::connect_tls(proxy.address("ingress"), &h2).await.unwrap();
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/")];
    let stream = client.open(&fields, true).await;
    assert_eq!(client.outcome(stream).await.answer().text(), "hello");
}

#[tokio::test]
async fn settings_announce_bounds() {
    let (_upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    assert_eq!(client.get("/").await.answer().status, 200);
    // 3 = SETTINGS_MAX_CONCURRENT_STREAMS.
    assert!(client.settings.get(&3).is_some_and(|n| *n <= 1024), "{:?}", client.settings);
    // 2 = SETTINGS_ENABLE_PUSH: a server may only say 0.
    assert!(matches!(client.settings.get(&2), None | Some(0)));
}

#[tokio::test]
async fn padding_and_priority_are_read() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    let stream = client.next_stream();
    let block = hpack::encode(&request("POST", "/"));
    let mut payload = vec![3, 0, 0, 0, 0, 15];
    payload.extend_from_slice(&block);
    payload.extend_from_slice(&[0; 3]);
    client
        .send(Frame::new(kind::HEADERS, flag::END_HEADERS | flag::PADDED | flag::PRIORITY, stream, payload))
        .await;
    client.send(Frame::new(kind::DATA, flag::END_STREAM | flag::PADDED, stream, b"\x02abc\0\0")).await;
    assert_eq!(client.outcome(stream).await.answer().status, 200);
    assert_eq!(upstream.only_request().text(), "abc");
}

#[tokio::test]
async fn a_push_promise_of_a_client_ends_the_connection() {
    let (_upstream, proxy) = pair().await;
    for (what, open, stream) in [("idle", false, 1), ("open", true, 1), ("pushed", false, 2)] {
        let mut client = proxy.http2().await;
        if open {
            client.open(&request("POST", "/"), false).await;
        }
        let promise = [&4u32.to_be_bytes()[..], &hpack::encode(&get("/"))].concat();
        client.send(Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, stream, promise)).await;
        assert_eq!(client.ended().await, Some(code::PROTOCOL_ERROR), "on an {what} stream");
    }
}

/// Well-behaved requests around every kind of nonsense.
#[tokio::test]
async fn nonsense_after_the_preface_ends_only_its_connection() {
    let (_upstream, proxy) = pair().await;
    for garbage in [
        &[0xff; 64][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 9],
        &Frame::new(kind::PUSH_PROMISE, 4, 1, [0; 8]).encode(),
    ] {
        let mut client = proxy.http2().await;
        client.send_bytes(garbage).await;
        // All zero bytes are a DATA frame on stream 0.
        client.ended().await;
        assert_eq!(proxy.http2().await.get("/").await.answer().status, 200);
    }
}
