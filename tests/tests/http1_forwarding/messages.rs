//! 1xx and Expect, HTTP/1.0, header fields, upgrades.

use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer, End, Http1Upstream};

use crate::behind;

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
