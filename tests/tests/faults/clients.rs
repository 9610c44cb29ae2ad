//! Clients that are slow, leave, or speak something else: D1 to D6, D9.

use remora_tests::certs::{Authority, Identity};
use remora_tests::client::Io;
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, cluster, direct, merge};
use remora_tests::ledger::{Offer, answer, executed, origin};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async, reached, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::{active, careful_listener, ms};

const OPEN: &str = "remora_downstream_connections{listener=\"ingress\"}";
const OPENED: &str = "remora_downstream_connections_total{listener=\"ingress\"}";

/// 300 clients that send a head, send a body or (every 15th) read an answer as slowly as they can, beside good ones.
#[tokio::test]
async fn d1_slow_clients_end_at_their_limits_and_nobody_notices() {
    let big = Answer::ok(&"x".repeat(8 << 20));
    let well = Http1Upstream::scripted(move |request, _| match request.target() {
        "/big" => big.clone(),
        _ => answer(request),
    })
    .await;
    let limits = json!({ "request_headers_timeout": "1s", "stream_idle_timeout": "1s" });
    let listener = careful_listener(&json!({})).manager(limits);
    let proxy =
        Proxy::builder().listener(listener).cluster(cluster("origin", &[well.address()])).start().await;
    let address = proxy.address("ingress");
    let load = Offer::both(address, 200).start();
    load.sends(50).await;
    let rss = proxy.rss();
    let openings = [
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\nabc",
    ];
    let mut slow = Vec::new();
    for n in 0..300 {
        let io = Io::tcp(address).await;
        // Who does not read would otherwise have megabytes in the sockets.
        socket2::SockRef::from(io.socket()).set_recv_buffer_size(4096).unwrap();
        let mut client = Http1Client::over(io);
        let reads = n % 15 == 0;
        client
            .send(if reads { "GET /big HTTP/1.1\r\nHost: a.example\r\n\r\n" } else { openings[n % 2] })
            .await;
        slow.push(client);
    }
    let grown = proxy.rss().saturating_sub(rss) / 300;
    let gone = reached("the end of the slow ones", ms(20_000), async || {
        // The good ones keep theirs.
        let opened = proxy.count(OPENED).await;
        opened.saturating_sub(proxy.count(OPEN).await) >= 300
    })
    .await;
    let ledger = load.end().await.with(executed(&well));
    ledger.nothing_lost("D1");
    println!("D1: {grown} bytes for each slow client, gone after {gone:.1?}");
    assert!(grown < 400_000, "{grown} bytes for each");
}

/// 300 clients leave in the middle of a request or an answer, by FIN or RST.
#[tokio::test]
async fn d2_clients_that_leave_leave_nothing_behind() {
    let well = Http1Upstream::scripted(|request, _| match request.target() {
        "/hang" => Answer::nothing().hang(),
        "/half" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").hang(),
        _ => answer(request),
    })
    .await;
    let proxy = Proxy::in_front_of(&well).await;
    let address = proxy.address("ingress");
    let load = Offer::both(address, 100).start();
    load.sends(30).await;
    let files = proxy.open_files();
    let requests = [
        "POST /upload HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\nabc",
        "GET /hang HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /half HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ];
    for n in 0..300 {
        let mut client = Http1Client::connect(address).await;
        client.send(requests[n % 3]).await;
        if n % 3 == 2 {
            client.head("GET").await.unwrap();
        }
        // A FIN after the request is a half-close (decision 0006); within it, an end.
        if n % 2 == 0 || n % 3 != 0 { client.reset() } else { drop(client) }
    }
    let left = Instant::now();
    eventually_async("nothing is active but the load", async || active(&proxy).await < 20).await;
    println!("D2: cancelled within {:.1?} of the last", left.elapsed());
    let ledger = load.end().await.with(executed(&well));
    ledger.nothing_lost("D2");
    eventually_async("nothing is active", async || active(&proxy).await == 0).await;
    eventually("files given back", || proxy.open_files() <= files + 5).await;
}

/// 500 handshakes that stop after the first bytes.
#[tokio::test]
async fn d3_handshakes_that_stop_are_given_up() {
    let authority = Authority::new();
    let well = origin(ms(0)).await;
    let tls = careful_listener(&json!({})).tls(&authority.issue(&["a.example"]), &["http/1.1"]);
    let mut tls: Value = tls.into();
    tls["filter_chains"][0]["transport_socket_connect_timeout"] = "1s".into();
    let proxy = Proxy::builder().listener(tls).cluster(cluster("origin", &[well.address()])).start().await;
    let files = proxy.open_files();
    let mut held = Vec::new();
    for _ in 0..500 {
        let mut stream = within("connect", TcpStream::connect(proxy.address("ingress"))).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
        held.push(stream);
    }
    let client = authority.client("a.example", &["http/1.1"], None);
    assert_eq!(
        proxy.https1(&client).await.get("/").await.unwrap().status,
        200,
        "others are served meanwhile"
    );
    let taken = reached("files given back", ms(6000), async || proxy.open_files() <= files + 2).await;
    println!("D3: all files back after {taken:.1?}");
    for stream in &mut held {
        let mut rest = Vec::new();
        let _reset = within("end of a handshake", stream.read_to_end(&mut rest)).await;
    }
}

/// Garbage and plaintext to a TLS port, TLS to a plaintext port: 1,500 times, and the log stays quiet.
#[tokio::test]
async fn d4_bytes_of_another_protocol_flood_no_log() {
    let authority = Authority::new();
    let well = origin(ms(0)).await;
    let tls = careful_listener(&json!({})).tls(&authority.issue(&["a.example"]), &["http/1.1"]);
    let tls = tls.with(json!({ "name": "tls" }));
    let proxy = Proxy::builder()
        .listener(careful_listener(&json!({})))
        .listener(tls)
        .cluster(cluster("origin", &[well.address()]))
        .start()
        .await;
    let (lines, began) = (proxy.stderr().lines().count(), Instant::now());
    let hello = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x20";
    let cases: [(&str, &[u8]); 3] =
        [("tls", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), ("tls", &[0x80; 300]), ("ingress", hello)];
    for n in 0..1500 {
        let (listener, bytes) = cases[n % 3];
        let mut client = Http1Client::connect(proxy.address(listener)).await;
        client.send(bytes).await;
        client.half_close().await;
        let _alert = client.raw_to_end().await;
    }
    let (written, took) = (proxy.stderr().lines().count() - lines, began.elapsed());
    println!("D4: {written} lines in {took:.1?}");
    assert!(
        written as f64 <= 10.0 * took.as_secs_f64().max(1.0),
        "{written} lines in {took:?}: {}",
        proxy.stderr()
    );
    let client = authority.client("a.example", &["http/1.1"], None);
    let mut client = Http1Client::connect_tls(proxy.address("tls"), &client).await.unwrap();
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

/// A proxy with TCP listener `tcp` (with these fields) in front of `address`.
async fn opaque(address: std::net::SocketAddr, fields: Value) -> Proxy {
    let mut listener = Listener::tcp("tcp", "origin");
    merge(&mut listener["filter_chains"][0]["filters"][0]["typed_config"], fields);
    Proxy::builder().listener(listener).cluster(cluster("origin", &[address])).start().await
}

/// A client that has said all it has to say still gets all that is said to it.
#[tokio::test]
async fn d5_a_half_close_passes_and_no_byte_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = opaque(listener.local_addr().unwrap(), json!({})).await;
    let server = tokio::spawn(async move {
        for _ in 0..5 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            all.reverse();
            stream.write_all(&all).await.unwrap();
        }
    });
    for round in 0..5_u32 {
        let mut stream = TcpStream::connect(proxy.address("tcp")).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(31 + round) >> 7) as u8).collect();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        within("what comes back", stream.read_to_end(&mut back)).await.unwrap();
        back.reverse();
        assert!(back == sent, "round {round}: {} of {} bytes", back.len(), sent.len());
    }
    server.await.unwrap();
}

/// A half-closed connection on which nothing more comes ends by the idle timeout, on both sides.
#[tokio::test]
async fn d6_a_half_closed_connection_does_not_wait_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = opaque(listener.local_addr().unwrap(), json!({ "idle_timeout": "1s" })).await;
    let files = proxy.open_files();
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(proxy.address("tcp")).await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        clients.push(stream);
        servers.push(within("a connection", listener.accept()).await.unwrap().0);
    }
    let taken = reached("both ends closed", ms(5000), async || proxy.open_files() <= files).await;
    println!("D6: closed after {taken:.1?}");
    for stream in clients.iter_mut().chain(&mut servers) {
        let mut rest = Vec::new();
        let _reset = within("end of a connection", stream.read_to_end(&mut rest)).await;
    }
}

/// The server speaks first, and nobody waits for the client: not on a plain TCP listener, and not for long where protocols are told apart.
#[tokio::test]
async fn d9_a_server_may_speak_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let banners = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"5.7.0 ready\n").await.unwrap();
            open.push(stream);
        }
    });
    let mut detecting = Listener::tcp("detecting", "origin");
    merge(
        &mut detecting,
        json!({
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
            }],
            "listener_filters_timeout": "0.5s",
            "continue_on_listener_filters_timeout": true,
        }),
    );
    let proxy = Proxy::builder()
        .listener(Listener::tcp("tcp", "origin"))
        .listener(detecting)
        .cluster(cluster("origin", &[address]))
        .start()
        .await;
    for (name, limit) in [("tcp", ms(500)), ("detecting", ms(1500))] {
        let began = Instant::now();
        let mut io = Io::tcp(proxy.address(name)).await;
        let mut banner = [0; 12];
        within("the banner", io.read_exact(&mut banner)).await.unwrap();
        println!("D9: {name}: {:.1?}", began.elapsed());
        assert_eq!(&banner, b"5.7.0 ready\n");
        assert!(began.elapsed() < limit, "{name}: {:?}", began.elapsed());
    }
    banners.abort();
}

/// A listener that goes on without first bytes where the server may speak first still waits for those of a client that no chain takes without
/// them: its port is told apart by what clients say.
#[tokio::test]
async fn d9_a_slow_client_of_a_port_where_clients_speak_first_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut said = [0; 18];
        stream.read_exact(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
    });
    let mut strict = Listener::tcp("strict", "origin");
    strict["filter_chains"][0]["filter_chain_match"] = json!({ "application_protocols": ["http/1.1"] });
    merge(
        &mut strict,
        json!({
            "listener_filters": [{
                "name": "envoy.filters.listener.http_inspector",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" },
            }],
            "listener_filters_timeout": "0.1s",
            "continue_on_listener_filters_timeout": true,
        }),
    );
    let proxy = Proxy::builder().listener(strict).cluster(cluster("origin", &[address])).start().await;
    let mut stream = TcpStream::connect(proxy.address("strict")).await.unwrap();
    let mut answer = [0; 18];
    // Neither closed nor served.
    let early = tokio::time::timeout(ms(500), stream.read_exact(&mut answer)).await;
    assert!(early.is_err(), "{early:?}");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    within("an echo", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"GET / HTTP/1.1\r\n\r\n");
    echo.await.unwrap();
}

/// A listener that takes HTTP over TLS, and what nobody has said anything about to the chain of `plain`.
fn both(name: &str, identity: &Identity, plain: Value) -> Value {
    let over_tls = Listener::http(name).tls(identity, &["http/1.1"]).route(direct("/", 200, "over TLS"));
    let mut both: Value = over_tls.into();
    let mut in_plaintext = plain["filter_chains"][0].clone();
    merge(
        &mut in_plaintext,
        json!({ "name": "plain", "filter_chain_match": { "transport_protocol": "raw_buffer" } }),
    );
    let chains = both["filter_chains"].as_array_mut().unwrap();
    merge(&mut chains[0], json!({ "name": "tls", "filter_chain_match": { "server_names": ["a.example"] } }));
    chains.push(in_plaintext);
    merge(
        &mut both,
        json!({
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
            }],
            "listener_filters_timeout": "0.1s",
            "continue_on_listener_filters_timeout": true,
        }),
    );
    both
}

/// Neither closed nor served.
async fn is_waited_for(stream: &mut TcpStream) {
    let early = tokio::time::timeout(ms(500), stream.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
}

/// Silence is that of a client that waits for the server only where the server may speak first, and whoever has begun is not silent.
#[tokio::test]
async fn d9_a_slow_client_is_not_taken_for_one_in_plaintext() {
    let authority = Authority::new();
    let identity = authority.issue(&["a.example"]);
    let tls = authority.client("a.example", &["http/1.1"], None);
    let greets = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = greets.local_addr().unwrap();
    let greets = tokio::spawn(async move {
        let (mut stream, _) = greets.accept().await.unwrap();
        stream.write_all(b"5.7.0 ready\n").await.unwrap();
    });
    let http = Listener::http("plain").route(direct("/", 200, "in plaintext"));
    let proxy = Proxy::builder()
        .listener(both("http", &identity, http.into()))
        .listener(both("tcp", &identity, Listener::tcp("plain", "greets")))
        .cluster(cluster("greets", &[address]))
        .start()
        .await;

    let mut stream = TcpStream::connect(proxy.address("http")).await.unwrap();
    is_waited_for(&mut stream).await;
    let io = Io::tls_over(stream, &tls).await.unwrap();
    assert_eq!(Http1Client::over(io).get("/").await.unwrap().text(), "over TLS");

    let mut hello = Vec::new();
    let mut handshake = rustls::ClientConnection::new(tls.config.clone(), tls.server_name.clone()).unwrap();
    handshake.write_tls(&mut hello).unwrap();
    let (first, rest) = hello.split_at(20);
    let mut stream = TcpStream::connect(proxy.address("tcp")).await.unwrap();
    stream.write_all(first).await.unwrap();
    is_waited_for(&mut stream).await;
    stream.write_all(rest).await.unwrap();
    // The server's part of the handshake (RFC 8446 section 5.1).
    assert_eq!(within("an answer", stream.read_u8()).await.unwrap(), 22);
    greets.abort();
}
