//! Mirrored requests: the copy is a copy, and the original does not notice.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use serde_json::{Value, json};

fn proxy(policy: Value, origin: &Http1Upstream) -> Builder {
    let mut route = to_cluster("/", "origin");
    merge(&mut route, json!({ "route": { "request_mirror_policies": [policy] } }));
    Proxy::builder().listener(Listener::http("ingress").route(route)).upstream("origin", origin)
}

#[tokio::test]
async fn a_copy_has_the_body_and_a_host_that_says_so() {
    let origin = Http1Upstream::answering(Answer::ok("original")).await;
    let copy = Http1Upstream::answering(Answer::ok("copy")).await;
    for (policy, host) in [
        (json!({ "cluster": "copy" }), "a.example-shadow"),
        (json!({ "cluster_header": "x-to", "disable_shadow_host_suffix_append": true }), "a.example"),
    ] {
        let proxy = proxy(policy, &origin).upstream("copy", &copy).start().await;
        let seen = copy.requests().len();
        let mut client = proxy.http1().await;
        client
            .send("POST /p?q HTTP/1.1\r\nHost: a.example\r\nx-to: copy\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await;
        client.send("6\r\n world\r\n0\r\n\r\n").await;
        let answer = client.response().await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "original"));
        let copied = copy.request(seen).await;
        assert_eq!((copied.method(), copied.target()), ("POST", "/p?q"));
        assert_eq!(copied.text(), "hello world");
        assert_eq!(copied.fields().all("host"), [host]);
        let original = origin.requests().pop().unwrap();
        assert_eq!(original.fields().all("host"), ["a.example"]);
        assert_eq!(original.fields().all("x-request-id"), copied.fields().all("x-request-id"));
    }
}

/// A mirror that refuses, or that never reads, costs the original nothing.
#[tokio::test]
async fn the_original_does_not_notice_a_mirror_that_fails() {
    let origin = Http1Upstream::answering(Answer::ok("original")).await;
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for address in [refusing, silent.local_addr().unwrap()] {
        let proxy =
            proxy(json!({ "cluster": "copy" }), &origin).cluster(cluster("copy", &[address])).start().await;
        let mut client = proxy.http1().await;
        for _ in 0..3 {
            // More than a copy may be behind, and than sockets hold.
            let body = "x".repeat(8 << 20);
            client
                .send(format!(
                    "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ))
                .await;
            assert_eq!(client.response().await.unwrap().status, 200);
        }
    }
}

/// Of what is behind a CONNECT there is no copy, so that its head is not copied either.
#[tokio::test]
async fn a_connect_is_not_mirrored() {
    let origin = Http1Upstream::answering(Answer::raw("HTTP/1.1 200 OK\r\n\r\n").echo()).await;
    let copy = Http1Upstream::answering(Answer::ok("copy")).await;
    let policy = json!({ "request_mirror_policies": [{ "cluster": "copy" }] });
    let mut tunnel = to_cluster("/", "origin");
    tunnel["match"] = json!({ "connect_matcher": {} });
    let mut rest = to_cluster("/", "origin");
    merge(&mut tunnel["route"], policy.clone());
    merge(&mut rest["route"], policy);
    let listener = Listener::http("ingress").upgrade("CONNECT").route(tunnel).route(rest);
    let proxy =
        Proxy::builder().listener(listener).upstream("origin", &origin).upstream("copy", &copy).start().await;
    let mut client = proxy.http1().await;
    client.send("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n").await;
    assert_eq!(client.any_head().await.unwrap().word(1), "200");
    let mut other = proxy.http1().await;
    other.send("GET /seen HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(copy.request(0).await.target(), "/seen");
}
