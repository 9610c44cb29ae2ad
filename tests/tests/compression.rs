//! Compressed answers, as clients read them. Which answers are compressed is compared with Envoy in tests/oracle (114).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Read as _;
use std::sync::Arc;

use remora_tests::config::{Listener, merge, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::{Value, json};
use tokio::sync::Notify;

const TYPE: &str = "type.googleapis.com/envoy.extensions.";

fn compressor(library: &str, message: &str, response: Value) -> Value {
    json!({
        "name": library,
        "typed_config": {
            "@type": format!("{TYPE}filters.http.compressor.v3.Compressor"),
            "response_direction_config": response,
            "compressor_library": {
                "name": library,
                "typed_config": { "@type": format!("{TYPE}compression.{library}.compressor.v3.{message}") },
            },
        },
    })
}

async fn proxy(filters: Vec<Value>, origin: &Http1Upstream) -> Proxy {
    let mut filters = filters;
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{TYPE}filters.http.router.v3.Router") },
    }));
    let mut manager = json!({});
    merge(&mut manager, json!({ "http_filters": filters }));
    Proxy::builder()
        .listener(Listener::http("ingress").manager(manager).route(to_cluster("/", "origin")))
        .upstream("origin", origin)
        .start()
        .await
}

fn gunzip(data: &[u8]) -> String {
    let mut out = String::new();
    flate2::read::GzDecoder::new(data).read_to_string(&mut out).unwrap();
    out
}

fn get(accept: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a.example\r\nAccept-Encoding: {accept}\r\n\r\n")
}

#[tokio::test]
async fn an_answer_is_compressed_by_the_coding_that_the_client_wants_most() {
    let text = "to be compressed ".repeat(5000);
    let body = text.clone();
    let origin = Http1Upstream::scripted(move |_, _| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Answer::raw(head + &body)
    })
    .await;
    let all = vec![
        compressor("gzip", "Gzip", json!({ "weaken_etag_on_compress": true })),
        compressor("brotli", "Brotli", json!({})),
        compressor("zstd", "Zstd", json!({})),
    ];
    let proxy = proxy(all, &origin).await;
    let mut client = proxy.http1().await;
    for (accept, coding) in [("gzip, br, zstd", "gzip"), ("gzip;q=0.1, br", "br"), ("zstd, br;q=0.9", "zstd")]
    {
        client.send(get(accept)).await;
        let answer = client.response().await.unwrap();
        assert_eq!(answer.fields.all("content-encoding"), [coding]);
        assert_eq!(answer.fields.all("vary"), ["Accept-Encoding"]);
        assert!(answer.fields.all("content-length").is_empty());
        assert!(answer.body.len() < text.len() / 10, "{coding}: {}", answer.body.len());
        if coding == "gzip" {
            assert_eq!(gunzip(&answer.body), text);
            assert_eq!(answer.fields.all("etag"), ["W/\"v1\""]);
        } else {
            assert!(answer.fields.all("etag").is_empty());
        }
    }
    client.send(get("identity")).await;
    let plain = client.response().await.unwrap();
    assert_eq!((plain.text(), plain.fields.all("etag")), (text, vec!["\"v1\""]));
}

/// What came is there to be read before the next of it comes.
#[tokio::test]
async fn a_stream_of_events_is_not_held_back() {
    let permit = Arc::new(Notify::new());
    let next = Arc::clone(&permit);
    let origin = Http1Upstream::scripted(move |_, _| {
        Answer::raw("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
            .send("a\r\ndata: one\n\r\n")
            .until(&next)
            .send("a\r\ndata: two\n\r\n0\r\n\r\n")
    })
    .await;
    let proxy = proxy(vec![compressor("gzip", "Gzip", json!({}))], &origin).await;
    let mut client = proxy.http1().await;
    client.send(get("gzip")).await;
    let (answer, mut reader) = client.head("GET").await.unwrap();
    assert_eq!(answer.fields.all("content-encoding"), ["gzip"]);
    let mut first = [0; 10];
    // The second event comes only when the first one was read.
    while flate2::read::GzDecoder::new(&reader.body[..]).read_exact(&mut first).is_err() {
        assert!(!client.body_more(&mut reader).await.unwrap());
    }
    assert_eq!(&first, b"data: one\n");
    permit.notify_one();
    while !client.body_more(&mut reader).await.unwrap() {}
    assert_eq!(gunzip(&reader.body), "data: one\ndata: two\n");
}
