//! Who is served, and who has to go.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncReadExt;
use tonic::codegen::tokio_stream;

use super::*;

/// Longest that anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);
/// Longer than an exchange that nobody keeps up.
const BRIEF: Duration = Duration::from_millis(500);

fn limits(first: Duration, idle: Duration, exchange: Duration) -> Limits {
    Limits { first, idle, exchange, streams: 16 }
}

/// A port with so many places.
async fn port(most: usize, limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/", get(async || "ok"))
        .route("/empty", get(async || StatusCode::NO_CONTENT))
        .route("/never", get(std::future::pending::<StatusCode>))
        .route("/watch", get(async || watch()));
    let serve = move |stream: TcpStream, address, place| {
        tokio::spawn(http(stream, address, router.clone(), limits, place));
    };
    tokio::spawn(accept(listener, most, serve));
    address
}

/// An answer that lasts.
fn watch() -> Response {
    let body = Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>());
    let mut response = body.into_response();
    response.extensions_mut().insert(Lasts(HOUR));
    response
}

type Asking<C> = (C, tokio::task::JoinHandle<hyper::Result<()>>);

async fn http1(to: SocketAddr) -> Asking<hyper::client::conn::http1::SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

type Http2 = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn http2(to: SocketAddr) -> Asking<Http2> {
    http2_taking(to, 1 << 16).await
}

/// A client that takes so many bytes of an answer before it reads it.
async fn http2_taking(to: SocketAddr, window: u32) -> Asking<Http2> {
    let stream = TcpStream::connect(to).await.unwrap();
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(window);
    let (sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn question(to: SocketAddr) -> http::Request<Empty<Bytes>> {
    ask(to, "/")
}

fn ask(to: SocketAddr, path: &str) -> http::Request<Empty<Bytes>> {
    let request = http::Request::get(format!("http://{to}{path}"));
    request.header("host", to.to_string()).body(Empty::new()).unwrap()
}

/// Somebody else comes, and is served.
async fn is_served(to: SocketAddr) {
    let asked = async {
        let (mut sender, _connection) = http1(to).await;
        text(sender.send_request(question(to)).await.unwrap()).await
    };
    assert_eq!(timeout(PATIENCE, asked).await.expect("it is served"), "ok");
}

async fn text(response: http::Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn connections_that_say_nothing_give_their_place_to_one_that_asks() {
    let to = port(2, limits(HOUR, HOUR, HOUR)).await;
    // One that was never asked anything, and one that was.
    let mut silent = TcpStream::connect(to).await.unwrap();
    let (mut earlier, _still) = http2(to).await;
    assert_eq!(text(earlier.send_request(question(to)).await.unwrap()).await, "ok");
    is_served(to).await;
    let closed = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it gave its place up");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

#[tokio::test]
async fn a_first_request_and_a_next_one_have_to_come_in_time() {
    let to = port(10, limits(SHORT, HOUR, HOUR)).await;
    let mut silent = TcpStream::connect(to).await.unwrap();
    let closed = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it is closed");
    assert!(matches!(closed, Ok(0)), "{closed:?}");

    let to = port(10, limits(HOUR, SHORT, HOUR)).await;
    let (mut sender, connection) = http2(to).await;
    assert_eq!(text(sender.send_request(question(to)).await.unwrap()).await, "ok");
    let _ended = timeout(PATIENCE, connection).await.expect("it is closed").unwrap();
    assert!(sender.send_request(question(to)).await.is_err());

    let (mut sender, connection) = http1(to).await;
    assert_eq!(text(sender.send_request(question(to)).await.unwrap()).await, "ok");
    let _ended = timeout(PATIENCE, connection).await.expect("it is closed").unwrap();
}

#[tokio::test]
async fn answers_that_nobody_reads_keep_nobody_out() {
    let to = port(1, limits(HOUR, HOUR, HOUR)).await;
    let (mut sender, _still) = http2_taking(to, 0).await;
    let unread = sender.send_request(question(to)).await.unwrap();
    assert_eq!(unread.status(), StatusCode::OK);
    is_served(to).await;
}

#[tokio::test]
async fn questions_that_overlap_for_ever_keep_nobody_out() {
    let to = port(1, limits(HOUR, HOUR, HOUR)).await;
    let (mut sender, _still) = http2(to).await;
    let _first = sender.send_request(ask(to, "/never"));
    assert_eq!(text(sender.send_request(question(to)).await.unwrap()).await, "ok");
    is_served(to).await;
}

#[tokio::test]
async fn an_exchange_ends_in_time_and_its_connection_goes_on() {
    let to = port(10, limits(HOUR, HOUR, BRIEF)).await;
    let (mut sender, _still) = http2_taking(to, 0).await;
    let unread = sender.send_request(question(to)).await.unwrap().into_body();
    assert!(timeout(PATIENCE, unread.collect()).await.expect("it is reset").is_err());
    let never = sender.send_request(ask(to, "/never"));
    assert!(timeout(PATIENCE, never).await.expect("it is reset").is_err());
    let goes_on = sender.send_request(ask(to, "/empty")).await.unwrap();
    assert_eq!(goes_on.status(), StatusCode::NO_CONTENT);

    // Of HTTP/1 an exchange is all that its connection does.
    let (mut sender, _connection) = http1(to).await;
    let never = sender.send_request(ask(to, "/never"));
    assert!(timeout(PATIENCE, never).await.expect("it is closed").is_err());
}

#[tokio::test]
async fn what_is_meant_to_last_is_not_what_makes_room() {
    let to = port(2, limits(HOUR, HOUR, BRIEF)).await;
    let (mut sender, mut connection) = http2(to).await;
    let _lasts = sender.send_request(ask(to, "/watch")).await.unwrap();
    let mut silent = TcpStream::connect(to).await.unwrap();
    is_served(to).await;
    let closed = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it gave its place up");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    assert!(timeout(SHORT, &mut connection).await.is_err(), "it lasts");
    assert!(sender.is_ready());
}
