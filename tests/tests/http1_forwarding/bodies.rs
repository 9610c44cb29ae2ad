//! Bodies and trailers.

use std::sync::Arc;
use std::time::Duration;

use remora_tests::http1::Framing;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use tokio::sync::Notify;

use crate::{GET, behind};

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

/// Each piece of the request is answered before the next one is sent.
#[tokio::test]
async fn a_conversation_over_one_exchange_goes_on() {
    let permits: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
    let mut answer = Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").early();
    for (permit, piece) in permits.iter().zip(["b", "c", "d"]) {
        answer = answer.until(permit).send(format!("1\r\n{piece}\r\n"));
    }
    let (upstream, proxy) = behind(answer.send("0\r\n\r\n").read_body()).await;
    let mut client = proxy.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n0\r\n").await;
    let (_, mut reader) = client.head("POST").await.unwrap();
    for (n, permit) in permits.iter().enumerate() {
        while reader.body.len() <= n {
            assert!(!client.body_more(&mut reader).await.unwrap());
        }
        client.send(format!("1\r\n{}\r\n", n + 1)).await;
        if n == 2 {
            client.send("0\r\n\r\n").await;
        }
        permit.notify_one();
    }
    while !client.body_more(&mut reader).await.unwrap() {}
    assert_eq!(reader.body, b"abcd");
    assert_eq!(upstream.request(0).await.text(), "0123");
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
