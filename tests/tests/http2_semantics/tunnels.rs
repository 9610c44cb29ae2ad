//! Streams that are tunnels: extended CONNECT (RFC 8441), to endpoints of HTTP/1 and HTTP/2.

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use remora_tests::client::http2::Http2Client;
use remora_tests::config::{Listener, cluster, cluster_http2, to_cluster};
use remora_tests::frame::Frame;
use remora_tests::proxy::Proxy;
use remora_tests::wait::{eventually_async, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a client asks for.
const CHAT: [(&str, &str); 5] = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":authority", "a.example"),
    (":path", "/chat"),
];

/// A proxy that lets tunnels pass, and its one endpoint.
async fn rig(http2: bool) -> (TcpListener, Proxy) {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = [endpoint.local_addr().unwrap()];
    let origin = if http2 { cluster_http2("origin", &at) } else { cluster("origin", &at) };
    let ingress = Listener::http("ingress")
        .upgrade("websocket")
        .manager(json!({ "http2_protocol_options": { "allow_connect": true } }))
        .route(to_cluster("/", "origin"));
    (endpoint, Proxy::builder().listener(ingress).cluster(origin).start().await)
}

/// Takes a request for an upgrade, and grants it.
async fn switched(endpoint: &TcpListener) -> TcpStream {
    let (mut server, _) = within("an upgrade", endpoint.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a head", server.read_u8()).await.unwrap());
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    server
}

/// A tunnel of a client, which was granted.
async fn open(client: &mut Http2Client) -> u32 {
    let stream = client.open(&CHAT, false).await;
    client.until(stream, "a tunnel", |s| s.status() == Some(200)).await;
    stream
}

/// Waits until the proxy counts a tunnel as closed.
async fn over(proxy: &Proxy) {
    eventually_async("the end of the tunnel", async || {
        let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
        let closed =
            |line: &str| line.starts_with("remora_tcp_connections_closed_total{") && line.ends_with(" 1");
        page.lines().any(closed)
    })
    .await;
}

#[tokio::test]
async fn a_half_close_goes_through_and_the_rest_comes_back() {
    let (endpoint, proxy) = rig(false).await;
    let mut client = proxy.http2().await;
    let (mut server, stream) = tokio::join!(switched(&endpoint), open(&mut client));
    client.send(Frame::data(stream, b"last words", true)).await;
    let mut said = Vec::new();
    within("the client's end", server.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"last words");
    server.write_all(b"the rest").await.unwrap();
    drop(server);
    assert_eq!(client.outcome(stream).await.answer().body, b"the rest");
    over(&proxy).await;
}

/// Takes an extended CONNECT, and grants it.
async fn granted(endpoint: &TcpListener) -> (SendStream<Bytes>, RecvStream) {
    let (io, _) = within("a connection", endpoint.accept()).await.unwrap();
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let mut connection = within("a preface", builder.handshake::<_, Bytes>(io)).await.unwrap();
    let (request, mut respond) = within("a tunnel", connection.accept()).await.unwrap().unwrap();
    let send = respond.send_response(http::Response::new(()), false).unwrap();
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
    (send, request.into_body())
}

#[tokio::test]
async fn a_half_close_goes_through_http2_and_the_rest_comes_back() {
    let (endpoint, proxy) = rig(true).await;
    let mut client = proxy.http2().await;
    let ((mut send, mut recv), stream) = tokio::join!(granted(&endpoint), open(&mut client));
    client.send(Frame::data(stream, b"last words", true)).await;
    let mut said = Vec::new();
    while let Some(data) = within("the client's end", recv.data()).await {
        said.extend_from_slice(&data.unwrap());
    }
    assert_eq!(said, b"last words");
    send.send_data(Bytes::from_static(b"the rest"), true).unwrap();
    assert_eq!(client.outcome(stream).await.answer().body, b"the rest");
    over(&proxy).await;
}

/// Nothing more is read of a client that has said its end, and still it is noticed that it is gone.
#[tokio::test]
async fn a_client_that_goes_after_its_half_close_ends_the_tunnel() {
    for connection in [false, true] {
        let (endpoint, proxy) = rig(false).await;
        let mut client = proxy.http2().await;
        let (mut server, stream) = tokio::join!(switched(&endpoint), open(&mut client));
        client.send(Frame::data(stream, b"", true)).await;
        assert_eq!(within("the client's end", server.read(&mut [0])).await.unwrap(), 0);
        if connection {
            client.reset();
        } else {
            client.send(Frame::reset(stream, 8)).await;
        }
        over(&proxy).await;
        drop(server);
    }
}

/// More than the window of a client and what the proxy reads ahead, and what is left has room in its kernel.
fn much() -> Vec<u8> {
    (0..160_000u32).map(|n| (n % 251) as u8).collect()
}

/// The client has taken nothing but a window, goes on meanwhile, and takes the rest then.
async fn takes_the_rest(client: &mut Http2Client, stream: u32) {
    client.until(stream, "a full window", |s| s.body.len() == 65_535).await;
    // Nobody takes these: the first is answered with a reset, and those behind it fail.
    for _ in 0..4 {
        client.send(Frame::data(stream, b"more", false)).await;
        assert!(client.ping().await);
    }
    assert_eq!(client.stream(stream).reset, None);
    client.send(Frame::window_update(0, 1 << 22)).await;
    client.send(Frame::window_update(stream, 1 << 22)).await;
    assert!(client.outcome(stream).await.answer().body == much());
}

/// What an endpoint said before it closed is the client's, however slowly it takes it, and whatever it still says itself.
#[tokio::test]
async fn a_slow_client_gets_all_that_was_said_before_the_endpoint_closed() {
    let (endpoint, proxy) = rig(false).await;
    let mut client = proxy.http2().await;
    client.hold_windows();
    let (mut server, stream) = tokio::join!(switched(&endpoint), open(&mut client));
    within("all is taken", server.write_all(&much())).await.unwrap();
    drop(server);
    takes_the_rest(&mut client, stream).await;
}

/// RFC 9113 section 8.1: an endpoint that wants no more of a stream resets it without an error behind its end.
#[tokio::test]
async fn a_slow_client_gets_all_that_was_said_before_the_endpoint_wanted_no_more() {
    let (endpoint, proxy) = rig(true).await;
    let mut client = proxy.http2().await;
    client.hold_windows();
    let ((mut send, recv), stream) = tokio::join!(granted(&endpoint), open(&mut client));
    send.send_data(much().into(), true).unwrap();
    drop((send, recv));
    takes_the_rest(&mut client, stream).await;
}
