//! How well-formed HTTP/1 traffic passes: bodies, trailers, 1xx, upgrades, keep-alive, hop-by-hop fields, and what
//! happens when an upstream misbehaves.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use remora_tests::http1::{BodyReader, Broken, Framing};
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer, End, Http1Upstream};
use remora_tests::wait::within;
use tokio::sync::Notify;

async fn behind(answer: Answer) -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::answering(answer).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    (upstream, proxy)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

// ---- bodies and trailers

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways() {
    let (upstream, proxy) = behind(Answer::chunked(&["one", "two"], &[("X-Sum", "42")])).await;
    let mut client = proxy.http1().await;
    client
        .send(
            "POST /up HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Req\r\n\r\n\
             3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Req: 7\r\n\r\n",
        )
        .await;
    let response = client.response().await.unwrap();
    assert_eq!(response.text(), "onetwo");
    assert_eq!(response.framing, Framing::Chunked);
    assert_eq!(response.trailers.get("x-sum"), Some("42"));
    let request = upstream.only_request();
    assert_eq!(request.text(), "abcdefg");
    assert_eq!(request.trailers.get("x-req"), Some("7"));
}

#[tokio::test]
async fn a_content_length_stays_a_content_length() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n12345").await;
    let response = client.response().await.unwrap();
    assert_eq!((response.framing, response.text().as_str()), (Framing::Length, "hello"));
    let request = upstream.only_request();
    assert_eq!(request.fields().get("content-length"), Some("5"));
    assert!(!request.fields().has("transfer-encoding"));
}

#[tokio::test]
async fn a_post_without_a_body_says_so() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 200);
    assert_eq!(upstream.only_request().fields().get("content-length"), Some("0"));
}

#[tokio::test]
async fn two_identical_chunked_headers_collapse_into_one() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let (upstream, proxy) = behind(Answer::raw(answer)).await;
    let mut client = proxy.http1().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nxyz\r\n0\r\n\r\n",
        )
        .await;
    let response = client.response().await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "abc"));
    assert_eq!(upstream.only_request().text(), "xyz");
}

#[tokio::test]
async fn a_close_delimited_answer_is_complete() {
    let (upstream, proxy) = behind(Answer::raw("HTTP/1.1 200 OK\r\n\r\nto the end").close()).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    assert_eq!(client.response().await.unwrap().text(), "to the end");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn head_204_and_304_have_no_body() {
    let upstream = Http1Upstream::scripted(|request, _| match (request.method(), request.target()) {
        ("HEAD", _) => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        (_, "/204") => Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        (_, "/304") => Answer::raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n"),
        _ => Answer::ok("after"),
    })
    .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    client.send("HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let head = client.response_to("HEAD").await.unwrap();
    assert_eq!(head.fields.get("content-length"), Some("1234"));
    assert_eq!(client.get("/204").await.unwrap().status, 204);
    let unchanged = client.get("/304").await.unwrap();
    assert_eq!((unchanged.status, unchanged.fields.get("etag")), (304, Some("\"x\"")));
    assert_eq!(client.get("/next").await.unwrap().text(), "after");
    assert_eq!(upstream.raw().len(), 1, "one upstream connection serves them all");
}

#[tokio::test]
async fn a_204_with_framing_headers_is_cleaned_or_refused() {
    let (_upstream, proxy) =
        behind(Answer::raw("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc")).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    // The client's parser refuses a 204 that carries Content-Length.
    let response = client.response().await.unwrap();
    assert!(matches!(response.status, 204 | 502));
    assert!(client.leftover().is_empty());
}

#[tokio::test]
async fn head_of_a_proxy_made_answer_has_no_body() {
    let (_upstream, proxy) = behind(Answer::ok("x")).await;
    let mut client = proxy.http1().await;
    client.send("HEAD /admin HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.response_to("HEAD").await.unwrap().status, 403);
    assert_eq!(client.get("/").await.unwrap().text(), "x");
}

#[tokio::test]
async fn both_directions_stream_without_buffering() {
    let permit = Arc::new(Notify::new());
    let answer = Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .early()
        .until(&permit)
        .send("6\r\nsecond\r\n0\r\n\r\n")
        .read_body();
    let (upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    // The first chunk of the answer comes while the request is unfinished …
    let (_, mut reader) = client.head("POST").await.unwrap();
    while reader.body.is_empty() {
        assert!(!client.body_more(&mut reader).await.unwrap());
    }
    assert_eq!(reader.body, b"first");
    // … and the rest of the request goes out while the answer is unfinished.
    client.send("3\r\ndef\r\n0\r\n\r\n").await;
    permit.notify_one();
    while !client.body_more(&mut reader).await.unwrap() {}
    assert_eq!(reader.body, b"firstsecond");
    assert_eq!(upstream.request(0).await.text(), "abcdef");
}

#[tokio::test]
async fn a_slow_upstream_stops_the_client() {
    let (upstream, proxy) = behind(Answer::ok("done")).await;
    upstream.read(false);
    let mut client = proxy.http1().await;
    let length = 64 << 20;
    client.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n")).await;
    let before = proxy.rss();
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while sent < length {
        match tokio::time::timeout(Duration::from_millis(300), client.try_send(&chunk)).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        sent += chunk.len();
    }
    assert!(sent < length, "the proxy took {length} bytes that nobody reads");
    assert!(proxy.rss() < before + (5 << 20), "buffered {} bytes", proxy.rss() - before);
}

#[tokio::test]
async fn a_slow_client_stops_the_upstream() {
    let mut text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20);
    text.push_str(&"x".repeat(64 << 20));
    let (_upstream, proxy) = behind(Answer::raw(text)).await;
    let mut client = proxy.http1().await;
    let before = proxy.rss();
    client.send(GET).await;
    client.any_head().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 5 << 20, "buffered {grown} bytes");
}

// ---- 1xx and Expect

#[tokio::test]
async fn expect_100_continue_is_the_upstreams_to_answer() {
    let answer = Answer::raw("HTTP/1.1 100 Continue\r\n\r\n")
        .early()
        .read_body()
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await;
    let head = upstream.request_head(0).await;
    assert_eq!(head.fields().get("expect"), Some("100-continue"));
    assert!(client.any_head().await.unwrap().start.starts_with("HTTP/1.1 100"));
    client.send("abc").await;
    assert_eq!(client.response().await.unwrap().text(), "ok");
    assert_eq!(upstream.only_request().text(), "abc");
}

#[tokio::test]
async fn expect_may_be_answered_by_a_refusal() {
    let (upstream, proxy) = behind(Answer::status(417, "Expectation Failed", "no").early().close()).await;
    let mut client = proxy.http1().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await;
    let response = client.response().await.unwrap();
    assert_eq!(response.status, 417);
    assert!(response.informational.is_empty(), "no 100 that the upstream did not send");
    assert!(upstream.only_request().body.is_empty());
}

#[tokio::test]
async fn early_hints_pass_or_are_dropped_but_never_take_the_place_of_the_answer() {
    let answer = Answer::raw(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let (_upstream, proxy) = behind(answer).await;
    let response = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    assert!(response.informational.iter().all(|h| h.word(1) == "103"));
}

// ---- HTTP/1.0

#[tokio::test]
async fn an_http_1_0_client_gets_no_chunks() {
    let (upstream, proxy) = behind(Answer::chunked(&["one", "two"], &[("X-T", "1")])).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").await;
    let response = client.response().await.unwrap();
    assert_eq!(response.text(), "onetwo");
    assert!(!response.fields.has("transfer-encoding"));
    assert!(client.is_closed().await);
    assert_eq!(upstream.only_request().head.word(2), "HTTP/1.1");
}

#[tokio::test]
async fn an_http_1_0_client_without_host_is_served() {
    let (_upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().text(), "hello");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn an_http_1_0_client_may_ask_for_keep_alive() {
    let (_upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n").await;
        let response = client.response().await.unwrap();
        assert_eq!(response.text(), "hello");
        if !response.keeps_alive() {
            assert!(client.is_closed().await);
            return;
        }
    }
}

#[tokio::test]
async fn an_http_1_0_upstream_is_understood() {
    let answer = Answer::raw("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold").close();
    let (upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "old");
    assert_eq!(client.get("/").await.unwrap().text(), "old");
    assert_eq!(upstream.raw().len(), 2, "its connections are not reused");
}

// ---- header fields

#[tokio::test]
async fn header_names_keep_their_case() {
    let (upstream, proxy) = behind(Answer::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-MiXed-CASE: 1\r\nlower-case: 2\r\n\r\n",
    ))
    .await;
    let mut client = proxy.http1().await;
    client
        .send("GET / HTTP/1.1\r\nHOST: a.example\r\nSOAPAction: x\r\nx-lower: y\r\nX-UPPER: z\r\n\r\n")
        .await;
    let response = client.response().await.unwrap();
    assert!(response.fields.spelled("X-MiXed-CASE") && response.fields.spelled("lower-case"), "{response:?}");
    let request = upstream.only_request();
    for name in ["SOAPAction", "x-lower", "X-UPPER"] {
        assert!(request.fields().spelled(name), "{name}: {request:?}");
    }
}

#[tokio::test]
async fn repeated_fields_stay_repeated_in_their_order() {
    let (upstream, proxy) = behind(Answer::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
    ))
    .await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-A: 1\r\nX-A: 2\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().fields.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(upstream.only_request().fields().all("x-a").join(","), "1,2");
}

#[tokio::test]
async fn bytes_above_ascii_in_values_pass() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nX-Name: caf\xe9\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 200);
    assert_eq!(upstream.only_request().fields().get("x-name"), Some("caf\u{e9}"));
}

#[tokio::test]
async fn hop_by_hop_fields_stop_here() {
    let (upstream, proxy) = behind(Answer::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x-up\r\nX-Up: 1\r\nKeep-Alive: timeout=5\r\nX-Stay: 2\r\n\r\n",
    ))
    .await;
    let mut client = proxy.http1().await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: keep-alive\r\nTE: gzip\r\nX-Stay: 2\r\n\r\n",
        )
        .await;
    let response = client.response().await.unwrap();
    assert!(!response.fields.has("x-up") && !response.fields.has("keep-alive"), "{response:?}");
    assert_eq!(response.fields.get("x-stay"), Some("2"));
    let request = upstream.only_request();
    for name in ["x-mine", "keep-alive", "proxy-connection", "te"] {
        assert!(!request.fields().has(name), "{name}: {request:?}");
    }
    assert_eq!(request.fields().get("x-stay"), Some("2"));
}

#[tokio::test]
async fn te_trailers_passes() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client
        .send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: TE\r\nTE: trailers, gzip;q=0.5\r\n\r\n")
        .await;
    assert_eq!(client.response().await.unwrap().status, 200);
    let te = upstream.only_request().fields().all("te").join(",");
    assert!(te.is_empty() || te == "trailers", "{te}");
}

/// A client may not make the proxy drop framing or security fields by naming them in Connection.
macro_rules! connection_may_not_name {
    ($($name:ident: $field:expr, $line:expr;)+) => {
        $(#[tokio::test] async fn $name() { protected($field, $line).await; })+
    };
}

connection_may_not_name! {
    connection_names_host: "Host", "";
    connection_names_content_length: "Content-Length", "";
    connection_names_authorization: "Authorization", "Authorization: secret\r\n";
    connection_names_x_forwarded_for: "X-Forwarded-For", "X-Forwarded-For: 1.2.3.4\r\n";
    connection_names_cookie: "Cookie", "Cookie: a=b\r\n";
    connection_names_x_request_id: "X-Request-Id", "X-Request-Id: abc\r\n";
}

async fn protected(field: &str, line: &str) {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nConnection: {field}\r\n{line}\r\nabc"
        ))
        .await;
    let response = client.response().await.unwrap();
    match response.status {
        200 => {
            let request = upstream.only_request();
            assert!(request.fields().has(field), "{request:#?}");
            assert_eq!(request.text(), "abc");
        }
        400 => assert!(upstream.requests().is_empty()),
        other => panic!("status {other}"),
    }
}

#[tokio::test]
async fn an_unknown_upgrade_is_ignored() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().text(), "hello");
    assert!(!upstream.only_request().fields().has("upgrade"));
    assert_eq!(client.get("/again").await.unwrap().status, 200);
}

// ---- upgrades

#[tokio::test]
async fn an_upgrade_passes_bytes_and_half_close() {
    let switched = Answer::raw(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello",
    )
    .early()
    .echo();
    let upstream = Http1Upstream::answering(switched).await;
    let proxy = Proxy::builder()
        .listener(guarded("ingress").upgrade("websocket"))
        .upstream("origin", &upstream)
        .start()
        .await;
    let mut client = proxy.http1().await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
             Sec-WebSocket-Key: y\r\n\r\n",
        )
        .await;
    let (head, _) = client.head("GET").await.unwrap();
    assert_eq!((head.status, head.fields.get("sec-websocket-accept")), (101, Some("x")));
    assert_eq!(client.raw(5).await.unwrap(), b"hello");
    client.send(b"\x00\xff\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.raw(24).await.unwrap(), b"\x00\xff\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    client.send("last words").await;
    client.half_close().await;
    assert_eq!(client.raw_to_end().await.unwrap(), b"last words");
    let request = upstream.only_request();
    assert!(request.fields().get("upgrade").is_some_and(|u| u.eq_ignore_ascii_case("websocket")));
    assert_eq!(upstream.ended(0).await, End::Fin);
}

// ---- keep-alive, pipelining, early answers

#[tokio::test]
async fn upstream_connections_are_reused() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    for _ in 0..5 {
        // A new client each time: the pool is the proxy's.
        assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
    }
    assert_eq!(upstream.raw().len(), 1);
}

#[tokio::test]
async fn connection_close_of_the_upstream_stays_with_the_upstream() {
    let answer = Answer::raw("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").close();
    let (upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    for _ in 0..3 {
        let response = client.get("/").await.unwrap();
        assert!(response.keeps_alive(), "{response:?}");
    }
    assert_eq!(upstream.raw().len(), 3);
}

#[tokio::test]
async fn connection_close_of_the_client_is_obeyed() {
    let (_upstream, proxy) = behind(Answer::ok("hello")).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await;
    let response = client.response().await.unwrap();
    assert!(!response.keeps_alive(), "says so");
    assert!(client.is_closed().await, "and does so");
}

#[tokio::test]
async fn a_get_that_meets_a_closing_connection_is_sent_again() {
    // The second request on a connection is met by FIN without a byte of an answer.
    let upstream =
        Http1Upstream::scripted(|_, n| if n == 1 { Answer::nothing().close() } else { Answer::ok("hello") })
            .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/one").await.unwrap().status, 200);
    assert_eq!(client.get("/two").await.unwrap().text(), "hello");
    let targets: Vec<_> = upstream.requests().iter().map(|r| (r.target().to_owned(), r.connection)).collect();
    assert_eq!(targets, [("/one".into(), 0), ("/two".into(), 0), ("/two".into(), 1)]);
}

#[tokio::test]
async fn a_post_that_meets_a_closing_connection_is_not_sent_twice() {
    let upstream =
        Http1Upstream::scripted(|_, n| if n == 1 { Answer::nothing().close() } else { Answer::ok("hello") })
            .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/one").await.unwrap().status, 200);
    client.send("POST /pay HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc").await;
    let response = client.response().await.unwrap();
    assert_eq!(response.status, 503);
    if proxy.is_remora() {
        assert!(response.reason().is_some_and(|r| r.starts_with("upstream_")), "{response:?}");
    }
    assert_eq!(upstream.requests().iter().filter(|r| r.target() == "/pay").count(), 1);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_while_idle_is_not_used() {
    let (upstream, proxy) = behind(Answer::ok("hello").close()).await;
    let mut client = proxy.http1().await;
    for n in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(client.response().await.unwrap().status, 200, "request {n}");
    }
    assert_eq!(upstream.requests().len(), 20);
}

#[tokio::test]
async fn a_connection_closed_on_a_fresh_request_is_reported() {
    let (upstream, proxy) = behind(Answer::nothing().close()).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc").await;
    let response = client.response().await.unwrap();
    assert_eq!(response.status, 503);
    if proxy.is_remora() {
        assert_eq!(response.reason(), Some("upstream_closed_before_response"));
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Http1Upstream::scripted(|request, _| Answer::ok(request.target())).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    let all: String = (0..10).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a.example\r\n\r\n")).collect();
    client.send(all).await;
    for n in 0..10 {
        assert_eq!(client.response().await.unwrap().text(), format!("/{n}"));
    }
    assert_eq!(upstream.requests().len(), 10);
}

#[tokio::test]
async fn pipelined_posts_keep_their_bodies() {
    let upstream = Http1Upstream::scripted(|request, _| Answer::ok(&request.text())).await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc\
             POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n",
        )
        .await;
    // The script answers when the whole request has come; its body is in the record.
    for n in 0..2 {
        assert_eq!(client.response().await.unwrap().status, 200);
        assert_eq!(upstream.requests()[n].text(), ["abc", "de"][n]);
    }
}

#[tokio::test]
async fn an_early_answer_arrives_while_the_body_is_still_coming() {
    let early =
        Answer::raw("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .early()
            .close();
    let upstream =
        Http1Upstream::scripted(
            move |r, _| if r.method() == "POST" { early.clone() } else { Answer::ok("hello") },
        )
        .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n").await;
    client.send(vec![b'x'; 1000]).await;
    let response = client.response().await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    // The rest of the body is never taken for a request, on either side.
    client.send("GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    match client.response().await {
        Err(Broken::Closed | Broken::Reset(_) | Broken::Silent(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(proxy.http1().await.get("/").await.unwrap().text(), "hello");
    assert_eq!(upstream.requests().len(), 2);
}

// ---- upstreams that misbehave

/// A truncated answer must not look complete: not by a final chunk, not by a Content-Length, not by FIN.
async fn truncated(answer: Answer) {
    let (_upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    let broken = client.response().await.expect_err("a truncated answer is not complete");
    assert!(matches!(broken, Broken::Truncated(_) | Broken::Reset(_)), "{broken:?}");
    let mut next = proxy.http1().await;
    assert_eq!(next.get("/admin").await.unwrap().status, 403, "the proxy lives");
}

macro_rules! truncated {
    ($($name:ident: $answer:expr;)+) => { $(#[tokio::test] async fn $name() { truncated($answer).await; })+ };
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

truncated! {
    reset_within_a_content_length: Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").pause(Duration::from_millis(50)).reset();
    fin_within_a_content_length: Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").close();
    reset_within_chunks: Answer::raw(CHUNKED).send("5\r\nhello\r\n").pause(Duration::from_millis(50)).reset();
    fin_within_chunks: Answer::raw(CHUNKED).send("5\r\nhello\r\n").close();
    fin_within_a_chunk: Answer::raw(CHUNKED).send("5\r\nhel").close();
    bad_chunk_size: Answer::raw(CHUNKED).send("5\r\nhello\r\nxyz\r\n").hang();
    bad_chunk_end: Answer::raw(CHUNKED).send("5\r\nhello-much-too-long\r\n0\r\n\r\n").hang();
    huge_response_trailers: Answer::raw(CHUNKED).send(format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))).hang();
}

#[tokio::test]
async fn truncation_towards_an_http_1_0_client_is_a_reset() {
    // A body that ends with the connection can be seen to be truncated only when the connection is reset.
    let answer = Answer::raw(CHUNKED).send("5\r\nhello\r\n").pause(Duration::from_millis(50)).reset();
    let (_upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").await;
    let broken = client.response().await.expect_err("a truncated answer is not complete");
    assert!(matches!(broken, Broken::Reset(_)), "{broken:?}");
}

/// The upstream's answer cannot be trusted: 502, and its connection is never used again.
async fn bad_answer(answer: Answer, reasons: &[&str]) {
    let upstream =
        Http1Upstream::scripted(
            move |r, _| if r.target() == "/bad" { answer.clone() } else { Answer::ok("good") },
        )
        .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    let response = client.get("/bad").await.unwrap();
    assert_eq!(response.status, 502);
    if proxy.is_remora() {
        assert!(response.reason().is_some_and(|r| reasons.contains(&r)), "{response:?}");
    }
    upstream.ended(0).await;
    assert_eq!(proxy.http1().await.get("/good").await.unwrap().text(), "good");
    assert_eq!(upstream.raw().len(), 2);
}

macro_rules! bad_answers {
    ($($name:ident: $answer:expr => $reasons:expr;)+) => {
        $(#[tokio::test] async fn $name() { bad_answer(Answer::raw($answer).hang(), &$reasons).await; })+
    };
}

const PROTOCOL: &str = "upstream_protocol_error";
const TOO_LARGE: &str = "upstream_headers_too_large";

bad_answers! {
    answer_with_two_content_lengths: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nhello" => [PROTOCOL];
    answer_with_length_and_chunks:
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" => [PROTOCOL];
    answer_with_bad_content_length: "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello" => [PROTOCOL];
    answer_with_unknown_coding: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello" => [PROTOCOL];
    answer_with_a_thousand_1xx: "HTTP/1.1 102 Processing\r\n\r\n".repeat(1000) => [PROTOCOL];
    answer_that_is_garbage: "220 smtp.example ESMTP\r\n\r\n" => [PROTOCOL];
    answer_with_bad_status: "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n" => [PROTOCOL];
    answer_with_nul: "HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n" => [PROTOCOL];
    answer_with_bare_cr: "HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n" => [PROTOCOL];
    answer_with_1_mb_of_headers:
        format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\nContent-Length: 0\r\n\r\n", "b".repeat(1 << 20)) => [TOO_LARGE];
    answer_with_a_thousand_headers:
        format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X-A: b\r\n".repeat(1000)) => [TOO_LARGE];
    answer_of_switching_that_nobody_asked_for:
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n" => [PROTOCOL];
}

#[tokio::test]
async fn bytes_after_an_answer_are_never_the_next_answer() {
    let split =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let upstream =
        Http1Upstream::scripted(move |_, n| if n == 0 { Answer::raw(split) } else { Answer::ok("good") })
            .await;
    let proxy = Proxy::in_front_of(&upstream).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "ok");
    assert_eq!(client.get("/").await.unwrap().text(), "good");
    assert_eq!(upstream.raw().len(), 2, "the connection with the extra bytes is not reused");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_upstream_request() {
    let (upstream, proxy) = behind(Answer::nothing().hang()).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    let request = upstream.request(0).await;
    client.reset();
    within("cancellation", upstream.ended(request.connection)).await;
}

#[tokio::test]
async fn a_client_that_half_closes_still_gets_its_answer() {
    let permit = Arc::new(Notify::new());
    let answer = Answer::nothing().until(&permit).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate");
    let (upstream, proxy) = behind(answer).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    client.half_close().await;
    upstream.request(0).await;
    permit.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "late");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_leaves_within_the_answer_cancels_the_upstream_request() {
    let (upstream, proxy) =
        behind(Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").hang()).await;
    let mut client = proxy.http1().await;
    client.send(GET).await;
    let (_, mut reader): (_, BodyReader) = client.head("GET").await.unwrap();
    while reader.body.len() < 5 {
        client.body_more(&mut reader).await.unwrap();
    }
    client.reset();
    upstream.ended(0).await;
}
