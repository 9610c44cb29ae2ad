//! Active health checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remora_tests::config::{Listener, cluster, cluster_http2, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{Moody, flags, get, who};

const OUT: &str = "/failed_active_hc";

fn checked(mut cluster: Value, kind: &str, check: Value) -> Builder {
    let mut health_check = json!({
        "timeout": "1s", "interval": "0.1s", "no_traffic_interval": "0.1s",
        "unhealthy_threshold": 2, "healthy_threshold": 2,
    });
    health_check[kind] = check;
    merge(&mut cluster, json!({ "health_checks": [health_check] }));
    Proxy::builder().listener(Listener::http("ingress").route(to_cluster("/", "origin"))).cluster(cluster)
}

async fn become_(proxy: &Proxy, wanted: &[&str]) {
    eventually_async(&format!("{wanted:?}"), async || flags(proxy, "origin").await == wanted).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_http_checks_is_out_until_they_pass() {
    let (a, b) = (Moody::named("a").await, Moody::named("b").await);
    let addresses = [a.upstream.address(), b.upstream.address()];
    let check = json!({ "path": "/health", "host": "check.example", "request_headers_to_add": [
        { "header": { "key": "x-check", "value": "yes" } },
    ] });
    let proxy = checked(cluster("origin", &addresses), "http_health_check", check).start().await;
    become_(&proxy, &["healthy", "healthy"]).await;
    assert_eq!(who(&proxy, 6).await, ["a", "b"]);
    let requests = a.upstream.requests();
    let asked = requests.iter().find(|request| request.target() == "/health").unwrap();
    assert_eq!((asked.method(), asked.fields().get("host")), ("GET", Some("check.example")));
    assert_eq!(asked.fields().get("x-check"), Some("yes"));
    b.healthy.store(false, Ordering::SeqCst);
    become_(&proxy, &["healthy", OUT]).await;
    assert_eq!(who(&proxy, 6).await, ["a"]);
    assert_eq!(proxy.count("remora_health_checks_failing{cluster=\"origin\"}").await, 1);
    b.healthy.store(true, Ordering::SeqCst);
    become_(&proxy, &["healthy", "healthy"]).await;
    assert_eq!(who(&proxy, 6).await, ["a", "b"]);
}

#[tokio::test]
async fn a_check_that_passes_ends_an_ejection() {
    let (a, b) = (Moody::named("a").await, Moody::named("b").await);
    let mut origin = cluster("origin", &[a.upstream.address(), b.upstream.address()]);
    merge(
        &mut origin,
        json!({ "outlier_detection": {
        "consecutive_5xx": 2, "base_ejection_time": "600s", "max_ejection_percent": 100,
    } }),
    );
    let proxy = checked(origin, "http_health_check", json!({ "path": "/health" })).start().await;
    become_(&proxy, &["healthy", "healthy"]).await;
    // Ejected by requests, and out by checks.
    b.answers(503);
    b.healthy.store(false, Ordering::SeqCst);
    eventually_async("out for both reasons", async || {
        who(&proxy, 2).await;
        let flags = flags(&proxy, "origin").await;
        flags[1].contains("failed_active_hc")
    })
    .await;
    b.answers(200);
    b.healthy.store(true, Ordering::SeqCst);
    become_(&proxy, &["healthy", "healthy"]).await;
}

/// An endpoint whose checks are answered with `status`, but only after a while.
async fn slow_to_check(status: u16) -> Http1Upstream {
    Http1Upstream::scripted(move |request, _| match request.target() {
        "/health" => {
            let said = format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\n\r\n");
            Answer1::nothing().pause(Duration::from_millis(500)).send(said)
        }
        _ => Answer1::ok("a"),
    })
    .await
}

/// As in Envoy, where a cluster is not initialised before the first check of each endpoint has ended.
#[tokio::test]
async fn no_request_comes_before_the_first_check_has_ended() {
    let origin = slow_to_check(200).await;
    let mut cluster = cluster("origin", &[origin.address()]);
    merge(&mut cluster, json!({ "common_lb_config": { "healthy_panic_threshold": { "value": 0 } } }));
    let proxy = checked(cluster.clone(), "http_health_check", json!({ "path": "/health" })).start().await;
    assert_eq!(get(&proxy, "/").await.status, 200);
    assert_eq!(origin.requests()[0].target(), "/health");
    // One that fails ends the wait, too.
    let origin = slow_to_check(503).await;
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        ["port_value"] = json!(origin.address().port());
    let proxy = checked(cluster, "http_health_check", json!({ "path": "/health" })).start().await;
    assert_eq!(proxy.count("remora_health_checks_total{cluster=\"origin\",result=\"failed\"}").await, 1);
    assert_eq!(get(&proxy, "/").await.status, 503);
}

/// Accepts connections and says `hello` until it is told to stop.
async fn greeter(address: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let _gone = stream.write_all(b"hello").await;
        }
    });
    (address, task)
}

#[tokio::test]
async fn an_endpoint_is_checked_by_tcp_at_its_own_port() {
    let origin = Moody::named("a").await;
    let (port, task) = greeter(([127, 0, 0, 1], 0).into()).await;
    let mut cluster = cluster("origin", &[origin.upstream.address()]);
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["health_check_config"] =
        json!({ "port_value": port.port() });
    // "hello" in hexadecimal digits.
    let check = json!({ "receive": [{ "text": "68656c6c6f" }] });
    let proxy = checked(cluster, "tcp_health_check", check).start().await;
    become_(&proxy, &["healthy"]).await;
    task.abort();
    become_(&proxy, &[OUT]).await;
    let (_, _task) = greeter(port).await;
    become_(&proxy, &["healthy"]).await;
}

#[tokio::test]
async fn an_endpoint_is_checked_by_grpc() {
    let serving = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&serving);
    let origin = Http2Upstream::scripted(move |_, _| {
        // HealthCheckResponse { status } behind gRPC's five bytes.
        let status = if now.load(Ordering::SeqCst) { 1 } else { 2 };
        Answer::ok("")
            .field("content-type", "application/grpc")
            .data([0, 0, 0, 0, 2, 8, status])
            .trailers(&[("grpc-status", "0")])
    })
    .await;
    let check = json!({ "service_name": "orders", "authority": "check.example" });
    let proxy =
        checked(cluster_http2("origin", &[origin.address()]), "grpc_health_check", check).start().await;
    let asked = origin.request(0).await;
    assert_eq!(asked.head.uri.path(), "/grpc.health.v1.Health/Check");
    assert_eq!(asked.head.uri.authority().unwrap(), "check.example");
    assert_eq!(asked.body, b"\0\0\0\0\x08\n\x06orders");
    assert_eq!(flags(&proxy, "origin").await, [OUT]);
    serving.store(true, Ordering::SeqCst);
    become_(&proxy, &["healthy"]).await;
    serving.store(false, Ordering::SeqCst);
    become_(&proxy, &[OUT]).await;
}
