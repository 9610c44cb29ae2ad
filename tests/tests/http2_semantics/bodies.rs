//! Bodies, trailers, streaming and resets, and bridging between HTTP/2 and HTTP/1.

use std::sync::Arc;
use std::time::Duration;

use remora_tests::client::http2::{Outcome, get, request};
use remora_tests::frame::{Frame, code};
use remora_tests::hpack;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use tokio::sync::Notify;

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

/// `max_headers_count` of a cluster is 100 unless it says otherwise.
#[tokio::test]
async fn an_answer_with_too_many_headers_is_not_passed_on() {
    // The codec adds `content-length` and `date`, or not.
    for (headers, status) in [(90, 200), (101, 502)] {
        let answer = (0..headers).fold(Answer::ok("hello"), |a, n| a.field(&format!("x-{n}"), "y"));
        let upstream = Http2Upstream::answering(answer).await;
        let proxy = Proxy::in_front_of(&upstream).await;
        let answer = proxy.http2().await.get("/").await.answer();
        assert_eq!(answer.status, status, "{headers}");
        if proxy.is_remora() && status == 502 {
            assert_eq!(answer.reason(), Some("upstream_headers_too_large"));
        }
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
