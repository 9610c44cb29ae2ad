//! Requests that are malformed, ambiguous or too large.

use remora_tests::client::http2::{Http2Client, Outcome, get, request};
use remora_tests::frame::{Frame, code};
use remora_tests::hpack;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http2::{Answer, Http2Upstream};

use crate::pair;

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
