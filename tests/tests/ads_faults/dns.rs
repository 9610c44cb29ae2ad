//! C9: the name server fails, for upstreams and for the control plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use remora_tests::config::{Listener, dns_cluster, merge, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::dns::{NameServer, Reply};
use remora_tests::proxy::Proxy;
use remora_tests::resources::{by_ads, service, version};
use remora_tests::traffic::{Load, Traffic};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, reached};
use serde_json::json;

use super::converged;

const OLD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const NEW: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// What the row allows from the fix to the first request that uses it.
const RECOVERY: Duration = Duration::from_secs(5);

/// An address and the next one, both at one port.
async fn origins() -> [Http1Upstream; 2] {
    let old = Http1Upstream::answering(Answer::ok("old")).await;
    let address = SocketAddr::from((NEW, old.address().port()));
    let new = Http1Upstream::scripted_at(address, |_, _| Answer::ok("new")).await;
    [old, new]
}

/// A proxy with one cluster for each of these names, under a path of the same name.
async fn resolving(names: &[&str], port: u16, dns: &NameServer) -> Proxy {
    let mut builder = Proxy::builder();
    let mut listener = Listener::http("ingress");
    for name in names {
        let host = format!("{name}.test");
        builder = builder.cluster(dns_cluster(name, &host, port, dns.address));
        listener = listener.route(to_cluster(&format!("/{name}"), name));
    }
    builder.listener(listener).start().await
}

async fn load(proxy: &Proxy, name: &str) -> Traffic {
    let load = Load::on(proxy.address("ingress")).path(&format!("/{name}"));
    load.gap(Duration::from_millis(2)).start().await
}

/// Waits until a path is served by `body`.
async fn served_by(proxy: &Proxy, name: &str, body: &str, limit: Duration) -> Duration {
    let mut client = proxy.http1().await;
    let path = format!("/{name}");
    reached(name, limit, async || client.get(&path).await.unwrap().text() == body).await
}

/// Whatever the name server does, the last good addresses serve, and its repair is noticed soon.
#[tokio::test]
async fn a_failing_name_server_loses_no_upstream() {
    let faults = [
        ("nxdomain", Reply::NoName),
        ("empty", Reply::Empty),
        ("servfail", Reply::Failure),
        ("silence", Reply::Silence),
    ];
    let names = faults.each_ref().map(|(name, _)| *name);
    let [old, _new] = origins().await;
    let dns = NameServer::start().await;
    names.iter().for_each(|name| dns.set(&format!("{name}.test"), Reply::Addresses(vec![OLD], 60)));
    let proxy = resolving(&names, old.address().port(), &dns).await;
    let mut traffic = Vec::new();
    for (name, fault) in faults {
        dns.set(&format!("{name}.test"), fault);
        traffic.push(load(&proxy, name).await);
    }
    for name in names {
        eventually(name, || {
            let log = proxy.stderr();
            log.lines().any(|line| line.contains("not resolved") && line.contains(&format!("{name}.test")))
        })
        .await;
    }
    let unresolved = proxy.admin("GET", "/metrics").await.unwrap().text();
    assert!(unresolved.contains("remora_dns_unresolved_names 4"), "{unresolved}");
    // Until the waits between two questions do not grow any more.
    eventually("more questions", || names.iter().all(|name| dns.asked(&format!("{name}.test")) >= 4)).await;
    for (name, traffic) in names.iter().zip(&traffic) {
        traffic.flows(20).await;
        assert_eq!(proxy.http1().await.get(&format!("/{name}")).await.unwrap().text(), "old");
    }

    names.iter().for_each(|name| dns.set(&format!("{name}.test"), Reply::Addresses(vec![NEW], 60)));
    let recoveries = tokio::join!(
        served_by(&proxy, names[0], "new", RECOVERY),
        served_by(&proxy, names[1], "new", RECOVERY),
        served_by(&proxy, names[2], "new", RECOVERY),
        served_by(&proxy, names[3], "new", RECOVERY),
    );
    println!("C9: recovered after {names:?}: {recoveries:?}");
    for traffic in traffic {
        traffic.lost_nothing().await;
    }
    eventually("the end of the failures", || proxy.stderr().matches("resolved again").count() == 4).await;
}

/// A TTL of 0 does not make it ask all the time.
#[tokio::test]
async fn a_ttl_of_zero_is_asked_for_once_a_second() {
    let [old, _new] = origins().await;
    let dns = NameServer::start().await;
    dns.set("zero.test", Reply::Addresses(vec![OLD], 0));
    let mut cluster = dns_cluster("zero", "zero.test", old.address().port(), dns.address);
    merge(&mut cluster, json!({ "respect_dns_ttl": true }));
    let listener = Listener::http("ingress").route(to_cluster("/", "zero"));
    let proxy = Proxy::builder().cluster(cluster).listener(listener).start().await;
    let traffic = load(&proxy, "zero").await;
    let (began, before) = (tokio::time::Instant::now(), dns.asked("zero.test"));
    eventually("four more questions", || dns.asked("zero.test") >= before + 4).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3), "{took:?}");
    dns.set("zero.test", Reply::Addresses(vec![NEW], 0));
    let change = served_by(&proxy, "", "new", RECOVERY).await;
    println!("C9: TTL 0: four questions in {took:?}; a change was followed after {change:?}");
    traffic.lost_nothing().await;
}

/// Answers that do not fit into a datagram are fetched by TCP: the TC bit, and 1,000 records.
#[tokio::test]
async fn long_answers_come_by_tcp() {
    let [old, _new] = origins().await;
    let dns = NameServer::start().await;
    let many = (0..1000_u32).map(|n| Ipv4Addr::from_bits(OLD.to_bits() + (n << 8)));
    dns.set("many.test", Reply::Addresses(many.collect(), 60));
    dns.set("truncated.test", Reply::Truncated(vec![OLD]));
    let proxy = resolving(&["many", "truncated"], old.address().port(), &dns).await;
    assert_eq!(proxy.http1().await.get("/truncated").await.unwrap().text(), "old");
    let clusters = proxy.admin("GET", "/clusters").await.unwrap().text();
    let endpoints =
        clusters.lines().filter(|line| line.starts_with("many::127.") && line.contains("::cx_active"));
    assert_eq!(endpoints.count(), 1000, "{clusters}");
}

/// The control plane moves while its name server fails: it is found as soon as its name is.
#[tokio::test]
async fn a_control_plane_that_moves_is_found_by_its_name() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let port = plane.address.port();
    let dns = NameServer::start().await;
    dns.set("control.test", Reply::Addresses(vec![OLD], 60));
    let cluster = dns_cluster("control", "control.test", port, dns.address);
    let proxy = Proxy::builder().cluster(cluster).dynamic(by_ads("DELTA_GRPC")).start().await;
    let traffic = load(&proxy, "").await;
    dns.set("control.test", Reply::NoName);
    drop(plane);
    let plane = ControlPlane::start_at(SocketAddr::from((NEW, port))).await;
    plane.publish(service(origin.address(), 2));
    eventually("failures", || {
        let log = proxy.stderr();
        log.contains("the control plane is not connected") && log.contains("not resolved")
    })
    .await;
    let asked = dns.asked("control.test");
    eventually("more questions", || dns.asked("control.test") >= asked + 3).await;
    assert_eq!(version(&mut proxy.http1().await).await, 1);
    dns.set("control.test", Reply::Addresses(vec![NEW], 60));
    let recovery = converged(&proxy, 2, RECOVERY).await;
    println!("C9: the control plane was found {recovery:?} after its name was");
    traffic.lost_nothing().await;
}
