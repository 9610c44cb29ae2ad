//! Keep-alive, pipelining, early answers.

use remora_tests::certs::Authority;
use remora_tests::client::Io;
use remora_tests::config::Listener;
use remora_tests::http1::Broken;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::behind;

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
async fn connections_to_endpoints_are_counted() {
    let (upstream, proxy) = behind(Answer::ok("hello")).await;
    let cluster = |metric: &str| format!("remora_upstream_{metric}{{cluster=\"origin\"");
    assert_eq!(proxy.count(&(cluster("connects_total") + "}")).await, 0);
    for _ in 0..3 {
        assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200);
    }
    proxy.counts(&(cluster("connects_total") + "}"), 1).await;
    proxy.counts(&(cluster("connections") + "}"), 1).await;
    let gone = upstream.address();
    drop(upstream);
    let failures = cluster("connect_failures_total") + ",reason=\"upstream_connect_failure\"}";
    eventually_async("a connect failure is counted", async || {
        assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 503, "{gone} is gone");
        proxy.count(&failures).await > 0
    })
    .await;
    proxy.counts(&(cluster("connections") + "}"), 0).await;
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

/// Without close_notify nobody could tell the end of an answer from an attacker's FIN (RFC 8446 §6.1).
#[tokio::test]
async fn the_end_of_a_tls_connection_is_announced() {
    let authority = Authority::new();
    let upstream = Http1Upstream::answering(Answer::ok("hello")).await;
    let proxy = Proxy::builder()
        .listener(Listener::http("tls").tls(&authority.issue(&["a.example"]), &["http/1.1"]))
        .upstream("origin", &upstream)
        .start()
        .await;
    let tls = authority.client("a.example", &["http/1.1"], None);
    for request in [
        "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let mut io = Io::tls(proxy.address("tls"), &tls).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert!(answer.starts_with(b"HTTP/1."), "{request:?}");
    }
}
