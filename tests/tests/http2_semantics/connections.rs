//! Connections: how they begin, what they announce, how they end.

use std::sync::Arc;

use remora_tests::certs::Authority;
use remora_tests::client::http2::{Http2Client, get, request};
use remora_tests::frame::{Frame, code, flag, kind};
use remora_tests::hpack;
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use tokio::sync::Notify;

use crate::pair;

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
