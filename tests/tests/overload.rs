//! Overload of the proxy itself: what it gives up when memory, connections or the time of a worker run out, and that it ends. Files are in
//! the fault matrix (D8).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::resources::{cds, eds, eds_cluster, routes, service, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};

const TYPE: &str = "type.googleapis.com/envoy.extensions.";
const MIB: u64 = 1 << 20;

fn monitor(name: &str, kind: &str, mut settings: Value) -> Value {
    settings["@type"] = json!(format!("{TYPE}resource_monitors.{kind}"));
    json!({ "name": format!("envoy.resource_monitors.{name}"), "typed_config": settings })
}

/// `actions` are taken when the memory of the process is over `bytes`.
fn heap(bytes: u64, actions: &[&str]) -> Value {
    let settings = json!({ "max_heap_size_bytes": bytes.to_string() });
    when(&monitor("fixed_heap", "fixed_heap.v3.FixedHeapConfig", settings), actions)
}

/// `actions` are taken when all of what `monitor` watches is used.
fn when(monitor: &Value, actions: &[&str]) -> Value {
    let trigger = json!({ "name": monitor["name"], "threshold": { "value": 1.0 } });
    let action = |name| json!({ "name": format!("envoy.overload_actions.{name}"), "triggers": [trigger] });
    json!({ "overload_manager": {
        "refresh_interval": "0.05s",
        "resource_monitors": [monitor],
        "actions": actions.iter().map(action).collect::<Vec<_>>(),
    } })
}

fn listener() -> Listener {
    Listener::http("ingress").route(to_cluster("/", "origin"))
}

fn in_front_of(origin: &Http1Upstream) -> Builder {
    Proxy::builder().listener(listener()).upstream("origin", origin)
}

async fn get(proxy: &Proxy) -> Response {
    proxy.http1().await.get("/").await.unwrap()
}

fn is_overloaded(response: &Response) -> bool {
    (response.status, response.reason()) == (503, Some("overloaded"))
}

/// A body that has to be kept takes the memory: others are refused, the admin page is not, and it is over when the memory is free.
#[tokio::test]
async fn requests_are_refused_for_as_long_as_memory_is_short() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let idle = in_front_of(&origin).start().await.rss();
    let buffered = json!({ "http_filters": [
        { "name": "buffer", "typed_config": {
            "@type": format!("{TYPE}filters.http.buffer.v3.Buffer"), "max_request_bytes": 60 * MIB,
        } },
        { "name": "router", "typed_config": { "@type": format!("{TYPE}filters.http.router.v3.Router") } },
    ] });
    let proxy = Proxy::builder()
        .listener(listener().manager(buffered))
        .upstream("origin", &origin)
        .with(heap(idle + 24 * MIB, &["stop_accepting_requests"]))
        // What is freed is given back at once.
        .environment("MALLOC_MMAP_THRESHOLD_", "4096")
        .start()
        .await;
    assert_eq!(get(&proxy).await.status, 200);
    let mut large = proxy.http1().await;
    large.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n", 50 * MIB)).await;
    large.send(vec![b'x'; 48 << 20]).await;
    let mut kept = proxy.http1().await;
    eventually_async("requests are refused", async || is_overloaded(&kept.get("/").await.unwrap())).await;
    let action = "remora_overload_action{action=\"envoy.overload_actions.stop_accepting_requests\"}";
    assert_eq!(proxy.count(action).await, 1);
    let story = proxy.admin("GET", "/why?reason=overloaded").await.unwrap();
    assert_eq!(story.status, 200, "{}", story.text());
    large.reset();
    eventually_async("requests are served", async || kept.get("/").await.unwrap().status == 200).await;
    assert_eq!(proxy.count(action).await, 0);
}

#[tokio::test]
async fn a_cgroup_is_watched() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let settings = json!({ "max_memory_bytes": "1" });
    let memory = monitor("cgroup_memory", "cgroup_memory.v3.CgroupMemoryConfig", settings);
    let proxy = in_front_of(&origin).with(when(&memory, &["stop_accepting_requests"])).start().await;
    let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    if !page.contains("remora_overload_pressure{monitor=\"envoy.resource_monitors.cgroup_memory\"}") {
        println!("SKIPPED: the memory of this process is counted in no cgroup that can be read");
        return;
    }
    assert!(is_overloaded(&get(&proxy).await));
}

/// Connections end after their request, which is served.
#[tokio::test]
async fn connections_end_after_their_request_when_memory_is_short() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let proxy = in_front_of(&origin).with(heap(1, &["disable_http_keepalive"])).start().await;
    let mut client = proxy.http1().await;
    let response = client.get("/").await.unwrap();
    assert_eq!((response.status, response.keeps_alive()), (200, false));
    assert!(client.is_closed().await);
    let mut client = proxy.http2().await;
    assert_eq!(client.get("/").await.answer().status, 200);
    assert_eq!(client.until_goaway().await.code, 0);
}

/// New connections wait in the kernel's queue; the admin page answers.
#[tokio::test]
async fn nobody_is_let_in_when_memory_is_short() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let proxy = in_front_of(&origin).with(heap(1, &["stop_accepting_connections"])).start().await;
    let mut waiting = proxy.http1().await;
    waiting.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let pause = tokio::time::timeout(Duration::from_millis(500), waiting.response()).await;
    assert!(pause.is_err(), "{pause:?}");
    let accepted = "remora_downstream_connections_total{listener=\"ingress\"}";
    assert_eq!(proxy.count(accepted).await, 0);
    assert!(origin.requests().is_empty());
}

/// Its socket is closed, and would reset whom the kernel has let in already.
#[tokio::test]
async fn who_waits_for_a_listener_that_is_removed_is_served() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let proxy = under(&[plane.address]).with(heap(1, &["stop_accepting_connections"])).start().await;
    let mut waiting = proxy.http1().await;
    waiting.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    plane.publish([cds(&eds_cluster("origin")), eds("origin", &[origin.address()]), routes("origin", 1)]);
    assert_eq!(waiting.response().await.unwrap().text(), "fine");
}

#[tokio::test]
async fn connections_are_limited_over_all_listeners() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let settings = json!({ "max_active_downstream_connections": "2" });
    let kind = "downstream_connections.v3.DownstreamConnectionsConfig";
    let limit = monitor("global_downstream_max_connections", kind, settings);
    let proxy = in_front_of(&origin)
        .listener(Listener::http("other").route(to_cluster("/", "origin")))
        .with(json!({ "overload_manager": { "resource_monitors": [limit] } }))
        .start()
        .await;
    let (mut one, mut other) = (proxy.http1().await, Http1Client::connect(proxy.address("other")).await);
    for client in [&mut one, &mut other] {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
    assert!(proxy.http1().await.is_closed().await, "one too many");
    proxy.counts("remora_downstream_rejected_total{reason=\"connection_limit\"}", 1).await;
    drop(other);
    eventually_async("there is room", async || {
        let mut client = proxy.http1().await;
        client.get("/").await.is_ok_and(|response| response.status == 200)
    })
    .await;
    assert_eq!(one.get("/").await.unwrap().status, 200, "who is there stays");
}

/// A worker that is not let run is late again and again: it refuses requests, until it keeps up.
#[tokio::test]
async fn a_worker_that_is_late_refuses_requests() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let proxy = in_front_of(&origin).start().await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let mut refused = false;
    // From the second time on; more of them when this machine was late itself.
    for _ in 0..6 {
        proxy.signal("STOP");
        // This is what happens to the proxy, not a wait for something.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        proxy.signal("CONT");
        for _ in 0..20 {
            refused |= is_overloaded(&client.get("/").await.unwrap());
        }
        if refused {
            break;
        }
    }
    assert!(refused, "every request was served");
    eventually_async("the worker keeps up", async || {
        let page = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
        let lag = page.lines().find_map(|line| line.strip_prefix("remora_worker_lag_seconds{worker=\"0\"} "));
        lag.unwrap().parse::<f64>().unwrap() < 0.5
    })
    .await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
}

/// An action that Envoy knows and we do not is refused, with its path.
#[tokio::test]
async fn what_is_not_supported_is_refused() {
    let origin = Http1Upstream::answering(Answer::ok("fine")).await;
    let (status, stderr) = in_front_of(&origin).with(heap(1, &["shrink_heap"])).refuse().await;
    assert!(!status.success());
    assert!(stderr.contains("overload_manager.actions[0].name"), "{stderr}");
}
