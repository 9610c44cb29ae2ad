//! Upstreams and clients that misbehave.

use std::sync::Arc;
use std::time::Duration;

use remora_tests::http1::{BodyReader, Broken};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::within;
use tokio::sync::Notify;

use crate::{GET, behind};

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
