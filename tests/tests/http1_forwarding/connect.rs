//! CONNECT that ends at the proxy (`connect_config`): its bytes go to an endpoint that knows nothing of HTTP.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, cluster, direct, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const CONNECT: &str = "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";

fn tunnel() -> Value {
    json!({ "match": { "connect_matcher": {} }, "route": {
        "cluster": "origin", "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
    } })
}

async fn proxy(endpoint: SocketAddr) -> Proxy {
    let listener = Listener::http("ingress").upgrade("CONNECT").route(tunnel());
    Proxy::builder().listener(listener).cluster(cluster("origin", &[endpoint])).start().await
}

/// A cluster that may have one connection.
fn narrow(endpoint: SocketAddr) -> Value {
    let mut origin = cluster("origin", &[endpoint]);
    origin["circuit_breakers"] = json!({ "thresholds": [{ "max_connections": 1 }] });
    origin
}

/// What comes before the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a head", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn the_bytes_of_a_tunnel_go_to_the_endpoint_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy(listener.local_addr().unwrap()).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // It speaks first.
        stream.write_all(b"ready\n").await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        stream.write_all(b"bye\n").await.unwrap();
        said
    });
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    // What a client says at once belongs to the tunnel.
    client.write_all(format!("{CONNECT}early ").as_bytes()).await.unwrap();
    let answer = head(&mut client).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    // RFC 9110 section 9.3.6.
    assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
    let mut greeting = [0; 6];
    within("a greeting", client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"ready\n");
    client.write_all(b"late").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within("the end", client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye\n");
    assert_eq!(within("the server", server).await.unwrap(), b"early late");
}

/// Whoever breaks off is told to the other as one who broke off: a FIN would make a part of something a whole.
#[tokio::test]
async fn a_side_that_breaks_off_is_a_reset_for_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy(listener.local_addr().unwrap()).await;
    for client_first in [false, true] {
        let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
        client.write_all(CONNECT.as_bytes()).await.unwrap();
        let (mut server, _) = within("a tunnel", listener.accept()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        let (gone, other) = if client_first { (client, &mut server) } else { (server, &mut client) };
        socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
        drop(gone);
        let end = within("the end", other.read_u8()).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "client first: {client_first}");
    }
    for (reason, party) in
        [("upstream_reset_mid_response", "upstream"), ("downstream_disconnected", "downstream")]
    {
        let series = format!("remora_local_replies_total{{reason=\"{reason}\",party=\"{party}\"}}");
        proxy.counts(&series, 1).await;
    }
}

/// The sum of all series of a metric.
async fn sum(proxy: &Proxy, metric: &str) -> f64 {
    let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    let value = |line: &str| -> Option<f64> {
        line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once(' ')?.1.parse().ok()
    };
    page.lines().filter_map(value).sum()
}

/// A tunnel is a connection in the metrics while it is open, and no request that takes as long as it.
#[tokio::test]
async fn a_tunnel_is_counted_as_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy(listener.local_addr().unwrap()).await;
    let began = Instant::now();
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(CONNECT.as_bytes()).await.unwrap();
    head(&mut client).await;
    let answered = began.elapsed();
    let counted = async |metric: &str| sum(&proxy, &format!("remora_tcp_{metric}_total")).await as u64;
    eventually_async("an open tunnel", async || counted("connections_opened").await == 1).await;
    client.write_all(b"hello").await.unwrap();
    let (mut server, _) = within("a tunnel", listener.accept()).await.unwrap();
    let mut hello = [0; 5];
    within("hello", server.read_exact(&mut hello)).await.unwrap();
    eventually("a tunnel that lasts", || began.elapsed() > answered * 3).await;
    drop(client);
    assert_eq!(within("the end", server.read(&mut hello)).await.unwrap(), 0);
    drop(server);
    eventually_async("its end", async || counted("connections_closed").await == 1).await;
    assert_eq!((counted("received_bytes").await, counted("sent_bytes").await), (5, 0));
    eventually_async("the request", async || sum(&proxy, "remora_requests_total").await as u64 == 1).await;
    let took = sum(&proxy, "remora_request_duration_milliseconds_sum").await;
    assert!(took <= answered.as_secs_f64() * 1000.0, "{took} ms, and answered after {answered:?}");
}

#[tokio::test]
async fn a_quiet_tunnel_ends_when_its_route_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut route = tunnel();
    route["route"]["idle_timeout"] = "0.5s".into();
    let ingress = Listener::http("ingress").upgrade("CONNECT").route(route);
    let origin = cluster("origin", &[listener.local_addr().unwrap()]);
    let proxy = Proxy::builder().listener(ingress).cluster(origin).start().await;
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(CONNECT.as_bytes()).await.unwrap();
    let (mut server, _) = within("a tunnel", listener.accept()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    for side in [&mut client, &mut server] {
        let end = within("the end", side.read_u8()).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let series = "remora_local_replies_total{reason=\"stream_idle_timeout\",party=\"downstream\"}";
    proxy.counts(series, 1).await;
}

#[tokio::test]
async fn a_tunnel_to_nobody_is_answered() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let proxy = proxy(address).await;
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(CONNECT.as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

/// Says all of `text` on one connection, and gives all that comes back until the proxy closes.
async fn said(proxy: &Proxy, text: &str) -> String {
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the end", client.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// What a client says behind a CONNECT it believes in may be chosen by somebody else: it is no request, not even when there is no tunnel.
#[tokio::test]
async fn bytes_behind_a_refused_connect_are_no_request() {
    let upstream = Http1Upstream::answering(Answer::ok("reached")).await;
    let all = to_cluster("/", "origin");
    let unknown = || Listener::http("ingress").route(all.clone());
    let refuses = json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "origin" } });
    let refuses = Listener::http("ingress").route(refuses).route(all.clone());
    let answers = json!({ "match": { "connect_matcher": {} }, "direct_response": { "status": 405 } });
    let answers = Listener::http("ingress").upgrade("CONNECT").route(answers).route(all.clone());
    for (listener, status) in [(unknown(), 404), (refuses, 403), (answers, 405)] {
        let listener = Proxy::builder().listener(listener);
        let proxy = listener.cluster(cluster("origin", &[upstream.address()])).start().await;
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let answer = said(&proxy, &format!("{CONNECT}{hidden}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    let proxy =
        Proxy::builder().listener(unknown()).cluster(cluster("origin", &[upstream.address()])).start().await;
    for (content, status) in [("Content-Length: 5", 400), ("Transfer-Encoding: chunked", 501)] {
        let head = format!("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n{content}\r\n\r\nhello");
        let answer = said(&proxy, &head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{content}: {answer}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// A reset because of bytes that nobody reads would be all that the client sees.
#[tokio::test]
async fn the_answer_to_a_refused_connect_is_read_whatever_is_behind_it() {
    let listener = Listener::http("ingress").route(direct("/", 200, "for others"));
    let proxy = Proxy::builder().listener(listener).start().await;
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(format!("{CONNECT}{}", "x".repeat(64 * 1024)).as_bytes()).await.unwrap();
    within("an answer", client.peek(&mut [0])).await.unwrap();
    // The first that is written after a reset goes through, those behind it do not.
    for _ in 0..3 {
        client.write_all(b"more").await.expect("no reset");
        tokio::task::yield_now().await;
    }
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    within("the end", client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

/// `connect_config` is about CONNECT: a request that asks for an upgrade to something of that name is an ordinary one.
#[tokio::test]
async fn only_a_connect_becomes_a_tunnel() {
    let upstream = Http1Upstream::answering(Answer::ok("served")).await;
    let route = json!({ "match": { "prefix": "/" }, "route": {
        "cluster": "origin", "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
    } });
    let listener = Proxy::builder().listener(Listener::http("ingress").route(route));
    let proxy = listener.cluster(cluster("origin", &[upstream.address()])).start().await;
    let asked = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: connect\r\n\r\n";
    let answer = said(&proxy, asked).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("served"), "{answer}");
    assert_eq!(upstream.only_request().fields().get("upgrade"), None);
}

/// A tunnel is a new connection, also where one of requests rests and the circuit breaker allows no second one.
#[tokio::test]
async fn a_tunnel_is_not_a_connection_of_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = narrow(listener.local_addr().unwrap());
    let ingress = Listener::http("ingress").upgrade("CONNECT").route(tunnel());
    let ingress = ingress.route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(ingress).cluster(origin).start().await;
    // One connection of the client: one worker, one pool.
    let mut client = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut first, _) = within("a request", listener.accept()).await.unwrap();
    head(&mut first).await;
    first.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 204 "));
    client.write_all(CONNECT.as_bytes()).await.unwrap();
    let (mut second, _) = within("a tunnel", listener.accept()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
    let mut rest = Vec::new();
    within("the first to make room", first.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    second.write_all(b"hi").await.unwrap();
    let mut hi = [0; 2];
    within("hi", client.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
}

/// As a connection of the TCP proxy would be: nobody knows when those that there are will end.
#[tokio::test]
async fn a_tunnel_beyond_the_limit_of_connections_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ingress = Listener::http("ingress").upgrade("CONNECT").route(tunnel());
    let origin = narrow(listener.local_addr().unwrap());
    let proxy = Proxy::builder().listener(ingress).cluster(origin).start().await;
    let mut first = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    first.write_all(CONNECT.as_bytes()).await.unwrap();
    assert!(head(&mut first).await.starts_with("HTTP/1.1 200 "));
    let answer = said(&proxy, CONNECT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("upstream_overflow"), "{answer}");
}

/// The limit is exact, however many endpoints there are: none has a first tunnel beyond it.
#[tokio::test]
async fn a_tunnel_to_another_endpoint_is_not_beyond_the_limit() {
    let (one, other) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let mut origin = cluster("origin", &[one.local_addr().unwrap(), other.local_addr().unwrap()]);
    origin["circuit_breakers"] = json!({ "thresholds": [{ "max_connections": 1 }] });
    let ingress = Listener::http("ingress").upgrade("CONNECT").route(tunnel());
    let proxy = Proxy::builder().listener(ingress).cluster(origin).start().await;
    let mut first = TcpStream::connect(proxy.address("ingress")).await.unwrap();
    first.write_all(CONNECT.as_bytes()).await.unwrap();
    assert!(head(&mut first).await.starts_with("HTTP/1.1 200 "));
    for _ in 0..2 {
        let answer = said(&proxy, CONNECT).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("upstream_overflow"), "{answer}");
    }
}
