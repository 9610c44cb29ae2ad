//! What happens while a new process has the sockets and has not taken over.

use remora_tests::client::http1::Http1Client;
use remora_tests::config::{cluster, direct, dns_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::process::children;
use remora_tests::resources::{by_ads, cds, control_cluster, eds_cluster, ingress, routes, service, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::{Kind, Resource};
use tokio::net::TcpStream;

use super::*;

/// A proxy of this control plane, which hands over at `path`.
fn under_at(plane: &ControlPlane, path: &Path) -> Builder {
    under(&[plane.address]).argument("--hot-restart-path").argument(path.to_str().unwrap())
}

/// [`service`], whose endpoints are in a file, and are waited for only shortly.
fn cold(version: u32, endpoints: &Path) -> [Resource; 3] {
    let mut origin = eds_cluster("origin");
    origin["eds_cluster_config"]["eds_config"] = json!({
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0.2s",
        "path_config_source": { "path": endpoints.to_str().unwrap() },
    });
    [cds(&origin), ingress(), routes("origin", version)]
}

/// An address that was free a moment ago.
fn free() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_new_process_without_endpoints_does_not_take_over() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let endpoints = folder.path().join("eds.json");
    let (plane, late) = (ControlPlane::start().await, ControlPlane::start().await);
    plane.publish(service(scene.origin.address(), 1));
    late.publish(cold(2, &endpoints));
    let mut old = under_at(&plane, &path).start().await;
    let load = newcomers(&old, 100).start();
    let new = under_at(&late, &path).launch();
    eventually("it says what it waits for", || new.stderr().contains("not taking over without it")).await;
    assert!(new.stderr().contains("endpoints of cluster origin"), "{}", new.stderr());
    load.sends(50).await;
    assert!(old.is_running() && !new.stderr().contains("taken over"), "{}", new.stderr());
    let mut found = cluster("origin", &[scene.origin.address()])["load_assignment"].take();
    found["@type"] = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into();
    std::fs::write(&endpoints, json!({ "resources": [found] }).to_string()).unwrap();
    eventually("it takes over", || new.stderr().contains("taken over")).await;
    load.sends(50).await;
    load.end().await.with(executed(&scene.origin)).nothing_lost("no endpoints yet");
    assert_eq!(old.exited().await.code(), Some(0));
}

/// What is on disk is the old process's until it was succeeded.
#[tokio::test]
async fn a_new_process_that_does_not_take_over_saves_nothing() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (folder.path().join("restart.sock"), folder.path().join("state"));
    let (plane, late) = (ControlPlane::start().await, ControlPlane::start().await);
    plane.publish(service(scene.origin.address(), 1));
    late.publish(service(scene.origin.address(), 2));
    let at = |plane: &ControlPlane| {
        under_at(plane, &path).argument("--state-dir").argument(state.to_str().unwrap())
    };
    let mut old = at(&plane).start().await;
    let file = state.join("last-good.pb.gz");
    eventually("saved", || file.is_file()).await;
    let saved = std::fs::read(&file).unwrap();
    // A name server that does not answer: what is on disk is not enough to take over.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let slow = dns_cluster("slow", "slow.example", 80, silent.local_addr().unwrap());
    let mut new = at(&late).cluster(slow).launch();
    late.accepted(Kind::Cluster, "origin").await;
    // Whoever ends saves what it has.
    new.signal("TERM");
    assert_eq!(new.exited().await.code(), Some(0));
    assert!(old.is_running() && !new.stderr().contains("taken over"), "{}", new.stderr());
    assert!(std::fs::read(&file).unwrap() == saved, "it was written");
}

/// The old process is told to end before its successor is ready: it closes sockets that are not its own any more.
#[tokio::test]
async fn who_connects_between_two_processes_waits_for_the_second_one() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let plane = ControlPlane::start().await;
    plane.publish(service(scene.origin.address(), 1));
    let mut old = under_at(&plane, &path).start().await;
    let new = under_at(&plane, &path);
    let at = plane.address;
    drop(plane);
    let new = new.launch();
    eventually("it has the sockets", || new.stderr().contains("received from the keeper")).await;
    old.signal("TERM");
    assert_eq!(old.exited().await.code(), Some(0));
    let connects = Http1Client::try_connect(old.address("ingress"));
    let mut waits = tokio::time::timeout(ms(900), connects).await.expect("it is let in at once").unwrap();
    waits.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let plane = ControlPlane::start_at(at).await;
    plane.publish(service(scene.origin.address(), 1));
    assert_eq!(waits.response().await.unwrap().status, 200);
}

/// The old process binds a listener anew, at the address of before and another one, while its successor has the sockets of before.
#[tokio::test]
async fn a_listener_that_is_bound_anew_meanwhile_leaves_no_socket_that_nobody_accepts_on() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let lds = folder.path().join("lds.json");
    let (ingress, more) = (free(), free());
    let publish = |additional: serde_json::Value| {
        let at = json!({
            "address": { "socket_address": { "port_value": ingress.port() } },
            "additional_addresses": additional,
        });
        let mut listener: serde_json::Value =
            Listener::http("ingress").route(direct("/", 200, "hello")).with(at).into();
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        let fresh = lds.with_extension("new");
        std::fs::write(&fresh, json!({ "resources": [listener] }).to_string()).unwrap();
        std::fs::rename(fresh, &lds).unwrap();
    };
    publish(json!([]));
    let resources = || [cds(&cluster("origin", &[scene.origin.address()]))];
    let plane = ControlPlane::start().await;
    plane.publish(resources());
    let mut dynamic = by_ads("DELTA_GRPC");
    dynamic["lds_config"] =
        json!({ "resource_api_version": "V3", "path_config_source": { "path": lds.to_str().unwrap() } });
    let supervisor = Proxy::builder().cluster(control_cluster(&[plane.address])).dynamic(dynamic);
    let supervisor = supervisor.argument("--supervise").start().await;
    let at = plane.address;
    drop(plane);
    supervisor.signal("HUP");
    let received = || supervisor.stderr().matches("received from the keeper").count();
    eventually("the new one has the sockets", || received() == 2).await;
    publish(
        json!([{ "address": { "socket_address": { "address": "127.0.0.1", "port_value": more.port() } } }]),
    );
    eventually_async("bound anew", async || TcpStream::connect(more).await.is_ok()).await;
    all_answer(ingress).await;

    let plane = ControlPlane::start_at(at).await;
    plane.publish(resources());
    eventually("the new one serves", || supervisor.stderr().matches("proxy serves").count() == 2).await;
    eventually("the old one is gone", || children(supervisor.pid()).len() == 1).await;
    all_answer(ingress).await;
}

/// The kernel chooses the socket, at random.
async fn all_answer(at: std::net::SocketAddr) {
    for _ in 0..20 {
        let mut client = Http1Client::connect(at).await;
        assert_eq!(client.get("/").await.unwrap().text(), "hello");
    }
}
