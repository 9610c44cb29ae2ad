//! What the proxy answers to, and forwards of, HTTP/1 requests that are wrong, ambiguous or merely unusual.
//!
//! Every row of the table of known attacks on HTTP/1 proxies is one test. A refused request must reach no upstream:
//! this is checked by sending a marker after it, and looking at everything that came before the marker.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{cluster, direct, to_cluster};
use remora_tests::http1::{Broken, Framing};
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer, Forwarded, Http1Upstream};

/// An upstream that answers 200, behind the standard proxy.
async fn pair() -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    (upstream, proxy)
}

/// Sends a marker by a connection of its own, and returns what the upstream got before it.
async fn forwarded_before_marker(upstream: &Http1Upstream, proxy: &Proxy) -> Vec<Forwarded> {
    let mut marker = proxy.http1().await;
    assert_eq!(marker.get("/marker").await.unwrap().status, 200, "the proxy serves the next request");
    let mut requests = upstream.requests();
    requests.retain(|r| r.target() != "/marker");
    requests
}

fn check_answer(proxy: &Proxy, response: &Response, statuses: &[u16], reasons: &[&str]) {
    assert!(statuses.contains(&response.status), "status {} of {statuses:?}", response.status);
    if proxy.is_remora() && !reasons.is_empty() {
        let reason = response.reason();
        assert!(reason.is_some_and(|r| reasons.contains(&r)), "reason {reason:?} of {reasons:?}");
    }
}

/// The request is answered with one of these statuses and reasons, and none of it is forwarded.
async fn refused(request: impl AsRef<[u8]>, statuses: &[u16], reasons: &[&str]) -> (Proxy, Http1Client) {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send(request.as_ref()).await;
    let response = client.response().await.expect("an answer");
    check_answer(&proxy, &response, statuses, reasons);
    let forwarded = forwarded_before_marker(&upstream, &proxy).await;
    assert!(forwarded.is_empty(), "forwarded: {forwarded:#?}");
    (proxy, client)
}

/// As [`refused`], and the connection ends, because nobody knows where the next request begins.
async fn refused_and_closed(request: impl AsRef<[u8]>, statuses: &[u16], reasons: &[&str]) {
    let (_proxy, mut client) = refused(request, statuses, reasons).await;
    assert!(client.is_closed().await, "connection is open: {:?}", client.leftover());
}

/// The request is forwarded, and this is how.
async fn forwarded(request: impl AsRef<[u8]>) -> Forwarded {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send(request.as_ref()).await;
    assert_eq!(client.response().await.expect("an answer").status, 200);
    upstream.only_request()
}

/// One test per row: refused, nothing forwarded, connection closed.
macro_rules! refuse_and_close {
    ($($name:ident: $request:expr => $statuses:expr, $reasons:expr;)+) => {
        $(#[tokio::test] async fn $name() { refused_and_closed($request, &$statuses, &$reasons).await; })+
    };
}

/// One test per row: refused, nothing forwarded; the connection may live on.
macro_rules! refuse {
    ($($name:ident: $request:expr => $statuses:expr, $reasons:expr;)+) => {
        $(#[tokio::test] async fn $name() { drop(refused($request, &$statuses, &$reasons).await); })+
    };
}

/// A POST whose framing headers are these, with the body "abc" in both framings' reading.
fn post(framing: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.example\r\n{framing}\r\n\r\n{body}")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n")
}

fn with_host(host: &str) -> String {
    format!("GET / HTTP/1.1\r\n{host}\r\n\r\n")
}

const AMBIGUOUS: &str = "content_length_with_transfer_encoding";
const CHUNKED_ABC: &str = "3\r\nabc\r\n0\r\n\r\n";

refuse_and_close! {
    content_length_before_transfer_encoding:
        post("Content-Length: 3\r\nTransfer-Encoding: chunked", CHUNKED_ABC) => [400], [AMBIGUOUS];
    transfer_encoding_before_content_length:
        post("Transfer-Encoding: chunked\r\nContent-Length: 3", CHUNKED_ABC) => [400], [AMBIGUOUS];
    content_length_twice_the_same:
        post("Content-Length: 3\r\nContent-Length: 3", "abc") => [400], ["bad_content_length"];
    content_length_twice_different:
        post("Content-Length: 3\r\nContent-Length: 30", "abc") => [400], ["bad_content_length"];
    content_length_list: post("Content-Length: 3, 3", "abc") => [400], ["bad_content_length"];
    content_length_plus: post("Content-Length: +3", "abc") => [400], ["bad_content_length"];
    content_length_hex: post("Content-Length: 0x3", "abc") => [400], ["bad_content_length"];
    content_length_negative: post("Content-Length: -1", "abc") => [400], ["bad_content_length"];
    content_length_empty: post("Content-Length: ", "abc") => [400], ["bad_content_length"];
    content_length_inner_space: post("Content-Length: 3 0", "abc") => [400], ["bad_content_length"];
    content_length_wraps_64_bits:
        post("Content-Length: 18446744073709551619", "abc") => [400], ["bad_content_length"];
    transfer_encoding_gzip_chunked:
        post("Transfer-Encoding: gzip, chunked", CHUNKED_ABC) => [501], ["unsupported_transfer_encoding"];
    transfer_encoding_unknown:
        post("Transfer-Encoding: xchunked", CHUNKED_ABC) =>
        [400, 501], ["bad_transfer_encoding", "unsupported_transfer_encoding"];
    transfer_encoding_chunked_not_last:
        post("Transfer-Encoding: chunked, gzip", CHUNKED_ABC) =>
        [400, 501], ["bad_transfer_encoding", "unsupported_transfer_encoding"];
    transfer_encoding_chunked_twice_in_one_line:
        post("Transfer-Encoding: chunked, chunked", CHUNKED_ABC) => [400], ["bad_transfer_encoding"];
    transfer_encoding_chunked_tab_with_content_length:
        post("Transfer-Encoding: chunked\t\r\nContent-Length: 3", CHUNKED_ABC) =>
        [400], [AMBIGUOUS, "bad_transfer_encoding"];
    transfer_encoding_chunked_vertical_tab:
        post("Transfer-Encoding: \x0bchunked", CHUNKED_ABC) => [400], [];
    transfer_encoding_space_before_colon:
        post("Transfer-Encoding : chunked", CHUNKED_ABC) => [400], ["malformed_request", "bad_header"];
    content_length_space_before_colon:
        post("Content-Length : 3", "abc") => [400], ["malformed_request", "bad_header"];
    obs_fold:
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-Fold: one\r\n two\r\n\r\n" => [400], ["malformed_request", "bad_header"];
    header_line_starts_with_space:
        "GET / HTTP/1.1\r\n Host: a.example\r\n\r\n" => [400], [];
    transfer_encoding_on_http_1_0:
        format!("POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED_ABC}") =>
        [400], ["bad_transfer_encoding"];
    bare_line_feed:
        "GET / HTTP/1.1\nHost: a.example\n\n" => [400], ["bare_line_end"];
    bare_line_feed_in_one_header:
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\nX-C: d\r\n\r\n" => [400], ["bare_line_end"];
    bare_carriage_return_in_value:
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\rX-C: d\r\n\r\n" => [400], ["bare_line_end", "bad_header", "malformed_request"];
    nul_in_value:
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\0c\r\n\r\n" => [400], ["bad_header", "malformed_request"];
    nul_in_name:
        "GET / HTTP/1.1\r\nHost: a.example\r\nX\0A: b\r\n\r\n" => [400], ["bad_header", "malformed_request"];
    nul_in_path: get("/a\0b") => [400], ["bad_path", "malformed_request"];
    header_without_colon:
        "GET / HTTP/1.1\r\nHost: a.example\r\nnonsense\r\n\r\n" => [400], ["bad_header", "malformed_request"];
    header_with_empty_name:
        "GET / HTTP/1.1\r\nHost: a.example\r\n: x\r\n\r\n" => [400], ["bad_header", "malformed_request"];
    headers_of_70_kb:
        format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-Big: {}\r\n\r\n", "b".repeat(70_000)) =>
        [431], ["request_headers_too_large"];
    headers_of_1_mb:
        format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-Big: {}\r\n\r\n", "b".repeat(1 << 20)) =>
        [431], ["request_headers_too_large"];
    target_of_70_kb: get(&format!("/{}", "p".repeat(70_000))) => [431, 414], ["request_headers_too_large"];
    three_hundred_headers:
        format!("GET / HTTP/1.1\r\nHost: a.example\r\n{}\r\n", "X-A: b\r\n".repeat(300)) =>
        [431], ["request_headers_too_large"];
    http_1_2: "GET / HTTP/1.2\r\nHost: a.example\r\n\r\n" => [400, 505], ["unsupported_http_version", "malformed_request"];
    http_2_0_as_text:
        "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n" => [400, 505], ["unsupported_http_version", "malformed_request"];
    http_0_9: "GET /\r\n\r\n" => [400, 505], ["unsupported_http_version", "malformed_request"];
    lower_case_version: "GET / http/1.1\r\nHost: a.example\r\n\r\n" => [400, 505], [];
    garbage: "\x16\x03\x01\x02\x00 this is no request\r\n\r\n" => [400, 505], [];
    space_in_target: get("/a b") => [400, 505], [];
}

refuse! {
    no_host: "GET / HTTP/1.1\r\nX-A: b\r\n\r\n" => [400], ["missing_host"];
    two_different_hosts: with_host("Host: a.example\r\nHost: b.example") => [400], ["bad_host"];
    two_equal_hosts: with_host("Host: a.example\r\nHost: a.example") => [400], ["bad_host"];
    host_with_space: with_host("Host: a b") => [400], ["bad_host"];
    host_with_path: with_host("Host: a/..") => [400], ["bad_host"];
    host_with_userinfo: with_host("Host: u@a") => [400], ["bad_host"];
    host_with_bad_port: with_host("Host: a:xyz") => [400], ["bad_host"];
    host_with_huge_port: with_host("Host: a:99999") => [400], ["bad_host"];
    host_list: with_host("Host: a,b") => [400], ["bad_host"];
    host_empty: with_host("Host: ") => [400], ["bad_host", "missing_host"];
    absolute_form_with_userinfo:
        "GET http://u:p@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n" => [400], ["bad_host", "bad_path"];
    authority_form_with_get: "GET a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n" => [400], ["bad_path"];
    asterisk_with_get: get("*") => [400], ["bad_path"];
    relative_target: get("x/y") => [400], ["bad_path"];
    fragment: get("/x#/admin") => [400], ["bad_path"];
    encoded_slash: get("/x%2f..%2fadmin") => [400], ["bad_path"];
    encoded_slash_upper_case: get("/x%2F..%2Fadmin") => [400], ["bad_path"];
    encoded_backslash: get("/x%5c..%5cadmin") => [400], ["bad_path"];
    encoded_nul: get("/x%00") => [400], ["bad_path"];
    broken_percent: get("/x%zz") => [400], ["bad_path"];
    trace: "TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n" => [405], ["method_not_allowed"];
    connect_without_upgrade_config:
        "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n" =>
        [400, 403, 404, 405], [];
}

/// Paths that mean `/admin` to some origin: they are answered by the route for `/admin`, never forwarded.
macro_rules! guarded_paths {
    ($($name:ident: $path:expr => $statuses:expr;)+) => {
        $(#[tokio::test] async fn $name() { drop(refused(get($path), &$statuses, &[]).await); })+
    };
}

guarded_paths! {
    path_double_slash: "//admin" => [403];
    path_dot_dot: "/x/../admin" => [403];
    path_dot: "/./admin" => [403];
    path_encoded_letter: "/%61dmin" => [403];
    path_encoded_dots: "/x/%2e%2e/admin" => [403];
    path_half_encoded_dots: "/x/.%2E/admin" => [403];
    path_above_the_root: "/../../admin" => [403, 400];
    path_dot_dot_with_parameter: "/x/..;/admin" => [403, 400];
    path_dot_dot_with_parameter_value: "/x/..;a=b/admin" => [403, 400];
    path_dot_with_parameter: "/.;/admin" => [403, 400];
    path_backslashes: "/x\\..\\admin" => [403, 400];
    path_absolute_form: "http://a.example/x/../admin" => [403];
    path_with_query: "/x/../admin?a=/.." => [403];
}

#[tokio::test]
async fn a_query_is_never_normalised() {
    let request = forwarded(get("/x?next=/a/../b//c%2f%61")).await;
    assert_eq!(request.target(), "/x?next=/a/../b//c%2f%61");
}

#[tokio::test]
async fn the_path_that_was_routed_is_the_one_forwarded() {
    assert_eq!(forwarded(get("/a/./b//c/../%64")).await.target(), "/a/b/d");
}

#[tokio::test]
async fn absolute_form_wins_over_host() {
    let request = forwarded("GET http://uri.example:81/p?q HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    assert_eq!(request.target(), "/p?q");
    assert_eq!(request.fields().get("host"), Some("uri.example:81"));
}

#[tokio::test]
async fn absolute_form_with_equal_host() {
    let request = forwarded("GET http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!((request.target(), request.fields().get("host")), ("/", Some("a.example")));
}

#[tokio::test]
async fn options_asterisk_matches_no_path_prefix() {
    // It is a valid request (RFC 9110 §7.1), so no 400; but `*` does not begin with `/`.
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let response = client.response().await.unwrap();
    assert_eq!(response.status, 404);
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_lower_case_method_is_another_method() {
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let mut get_only = direct("/", 403, "GET is guarded");
    get_only["match"]["headers"] =
        serde_json::json!([{ "name": ":method", "string_match": { "exact": "GET" } }]);
    let listener =
        remora_tests::config::Listener::http("ingress").route(get_only).route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().status, 403);
    client.send("get / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 200);
    assert_eq!(upstream.only_request().method(), "get");
}

#[tokio::test]
async fn x_forwarded_client_cert_of_a_stranger_is_stripped() {
    let request = forwarded(
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Client-Cert: By=spiffe://a;URI=spiffe://b\r\n\r\n",
    )
    .await;
    assert!(!request.fields().has("x-forwarded-client-cert"), "{request:#?}");
}

#[tokio::test]
async fn a_chunk_size_with_a_space_is_refused_or_framed_anew() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send(post("Transfer-Encoding: chunked", "3 \r\nabc\r\n0\r\n\r\n")).await;
    let response = client.response().await.expect("an answer");
    match response.status {
        // The upstream's parser refuses a chunk size that is not hexadecimal digits alone.
        200 => assert_eq!(upstream.only_request().text(), "abc"),
        400 => assert!(!upstream.requests().iter().any(|r| r.complete)),
        other => panic!("status {other}"),
    }
}

/// A body that breaks off must never look complete to the upstream.
async fn body_is_never_completed(framing: &str, body: &str, reasons: &[&str]) {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send(post(framing, body)).await;
    match client.response().await {
        Ok(response) => check_answer(&proxy, &response, &[400, 431], reasons),
        Err(Broken::Closed | Broken::Reset(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
    assert!(client.is_closed().await);
    let forwarded = forwarded_before_marker(&upstream, &proxy).await;
    assert!(!forwarded.iter().any(|r| r.complete), "{forwarded:#?}");
    for request in forwarded {
        // The connection ends; it is not reused for the marker.
        upstream.ended(request.connection).await;
    }
}

macro_rules! broken_chunks {
    ($($name:ident: $body:expr;)+) => {
        $(#[tokio::test] async fn $name() {
            body_is_never_completed("Transfer-Encoding: chunked", $body, &["bad_chunk"]).await;
        })+
    };
}

broken_chunks! {
    chunk_data_too_long: "3\r\nabcdef\r\n0\r\n\r\n";
    chunk_size_negative: "-3\r\nabc\r\n0\r\n\r\n";
    chunk_size_hex_prefix: "0x3\r\nabc\r\n0\r\n\r\n";
    chunk_size_overflows: "10000000000000003\r\nabc\r\n0\r\n\r\n";
    chunk_size_missing: "\r\nabc\r\n0\r\n\r\n";
    chunk_ends_in_bare_line_feed: "3\nabc\n0\n\n";
    chunk_extension_with_bare_line_feed: "3;a\nb\r\nabc\r\n0\r\n\r\n";
    chunk_after_a_good_one: "3\r\nabc\r\nxyz\r\n";
}

#[tokio::test]
async fn a_chunk_extension_of_1_mb_is_refused() {
    let body = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(1 << 20));
    body_is_never_completed("Transfer-Encoding: chunked", &body, &["bad_chunk"]).await;
}

#[tokio::test]
async fn trailers_of_1_mb_are_refused() {
    let body = format!("3\r\nabc\r\n0\r\nX-Big: {}\r\n\r\n", "x".repeat(1 << 20));
    body_is_never_completed(
        "Transfer-Encoding: chunked",
        &body,
        &["bad_chunk", "request_headers_too_large", "bad_header"],
    )
    .await;
}

#[tokio::test]
async fn forbidden_trailer_names_are_dropped() {
    let body = "3\r\nabc\r\n0\r\nX-Sum: 7\r\nContent-Length: 99\r\nHost: evil\r\nTransfer-Encoding: gzip\r\n\
                Authorization: evil\r\n\r\n";
    let request = forwarded(post("Transfer-Encoding: chunked\r\nTrailer: X-Sum", body)).await;
    assert_eq!(request.text(), "abc");
    assert_eq!(request.trailers.get("x-sum"), Some("7"));
    for name in ["content-length", "host", "transfer-encoding", "authorization"] {
        assert!(!request.trailers.has(name), "{request:#?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_within_its_body_never_completes_the_request() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let (upstream, proxy) = pair().await;
        let mut client = proxy.http1().await;
        let body = if framing.starts_with('C') { "abc" } else { "3\r\nabc\r\n" };
        client.send(post(framing, body)).await;
        let head = upstream.request_head(0).await;
        drop(client);
        upstream.ended(head.connection).await;
        assert!(!upstream.only_request().complete, "{framing}");
    }
}

#[tokio::test]
async fn an_unknown_upgrade_with_a_second_request_behind_it_is_held_or_closed() {
    let permit = std::sync::Arc::new(tokio::sync::Notify::new());
    let answer = Answer::nothing().until(&permit).send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let upstream = Http1Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    client
        .send(
            "GET /first HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n\
             GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n",
        )
        .await;
    upstream.request_head(0).await;
    let other = proxy.http1().await;
    drop(other);
    assert_eq!(upstream.only_request().target(), "/first", "the second request waits for the first answer");
    permit.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "ok");
    match client.response().await {
        Ok(second) => assert_eq!(second.status, 403, "the second request meets the routes"),
        Err(broken) => assert!(matches!(broken, Broken::Closed | Broken::Reset(_)), "{broken:?}"),
    }
    assert_eq!(upstream.requests().len(), 1);
    assert!(!upstream.requests()[0].fields().has("upgrade"));
}

#[tokio::test]
async fn early_bytes_of_an_upgrade_that_is_refused_are_never_a_request() {
    let upstream = Http1Upstream::scripted(|_, _| Answer::ok("not switching")).await;
    let proxy = Proxy::builder()
        .listener(guarded("ingress").upgrade("websocket"))
        .upstream("origin", &upstream)
        .start()
        .await;
    let mut client = proxy.http1().await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\
             GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.unwrap().text(), "not switching");
    match client.response().await {
        Ok(second) => assert_eq!(second.status, 403),
        Err(broken) => assert!(matches!(broken, Broken::Closed | Broken::Reset(_)), "{broken:?}"),
    }
    assert_eq!(upstream.only_request().target(), "/chat");
}

#[tokio::test]
async fn upgrade_h2c_is_stripped() {
    let request = forwarded(
        "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
    )
    .await;
    assert!(!request.fields().has("upgrade") && !request.fields().has("http2-settings"), "{request:#?}");
}

#[tokio::test]
async fn underscores_in_header_names_pass_by_default() {
    let request = forwarded("GET / HTTP/1.1\r\nHost: a.example\r\nx_y: z\r\n\r\n").await;
    assert_eq!(request.fields().get("x_y"), Some("z"));
}

#[tokio::test]
async fn a_header_in_one_byte_pieces_is_the_same_request() {
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    for byte in post("Content-Length: 3", "abc").bytes() {
        client.send([byte]).await;
    }
    assert_eq!(client.response().await.unwrap().status, 200);
    assert_eq!(upstream.only_request().text(), "abc");
}

#[tokio::test]
async fn empty_lines_before_a_request_are_ignored_or_refused() {
    // RFC 9112 §2.2: a server SHOULD ignore at least one empty line before the request line.
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http1().await;
    client.send(format!("\r\n{}", get("/"))).await;
    let response = client.response().await.unwrap();
    assert!(matches!(response.status, 200 | 400));
    assert_eq!(upstream.requests().len(), usize::from(response.status == 200));
}

#[tokio::test]
async fn the_standard_proxy_reports_its_reason_ids() {
    let (_upstream, proxy) = pair().await;
    if !proxy.is_remora() {
        return;
    }
    let mut client = proxy.http1().await;
    let refused = client.get("/admin").await.unwrap();
    assert_eq!((refused.status, refused.text().as_str()), (403, "guarded"));
    assert_eq!(refused.framing, Framing::Length);
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let proxy =
        Proxy::builder().listener(guarded("ingress")).cluster(cluster("origin", &[nobody])).start().await;
    let failed = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((failed.status, failed.reason()), (503, Some("upstream_connect_failure")));
}
