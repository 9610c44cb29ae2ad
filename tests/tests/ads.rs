//! The proxy under a control plane: good ones, bad ones, and ones that come and go. Traffic flows all the time, and none is lost.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use remora_tests::config::{Listener, cluster, direct, merge, to_cluster};
use remora_tests::control_plane::{ControlPlane, RawControlPlane, RawStream, Said};
use remora_tests::proxy::Proxy;
use remora_tests::resources::{
    by_ads, cds, control_cluster, eds, eds_cluster, ingress, lds, message, routes, service, under, version,
    wire,
};
use remora_tests::traffic::Traffic;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::listener::v3::Listener as PbListener;
use remora_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as PbResource};
use remora_xds::pb::google::protobuf::Any;
use remora_xds::{Kind, Resource};
use serde_json::json;
use tokio::time::Instant;

async fn start(servers: &[SocketAddr], api_type: &str) -> Proxy {
    Proxy::builder().cluster(control_cluster(servers)).dynamic(by_ads(api_type)).start().await
}

async fn changes_are_followed(api_type: &str) {
    let (one, two) = (
        Http1Upstream::answering(Answer::ok("one")).await,
        Http1Upstream::answering(Answer::ok("two")).await,
    );
    let plane = ControlPlane::start().await;
    plane.publish(service(one.address(), 1));
    let proxy = start(&[plane.address], api_type).await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "one");
    let traffic = Traffic::start(&proxy).await;

    plane.publish(service(two.address(), 2));
    plane.accepted(Kind::ClusterLoadAssignment, "origin").await;
    plane.accepted(Kind::RouteConfiguration, "routes").await;
    assert_eq!(client.get("/").await.unwrap().text(), "two", "what was acknowledged is in force");
    assert_eq!(version(&mut client).await, 2);

    // Another cluster in place of this one, and a second listener.
    let second = lds(Listener::http("second").route(direct("/", 200, "second")));
    plane.publish([cds(&cluster("other", &[one.address()])), ingress(), second, routes("other", 3)]);
    plane.accepted(Kind::RouteConfiguration, "routes").await;
    assert_eq!(client.get("/").await.unwrap().text(), "one");
    eventually_async("the second listener", async || {
        proxy.admin("GET", "/listeners").await.unwrap().text().contains("second")
    })
    .await;
    eventually_async("the old cluster to go", async || {
        !proxy.admin("GET", "/clusters").await.unwrap().text().contains("origin::")
    })
    .await;
    traffic.lost_nothing().await;
}

#[tokio::test]
async fn changes_are_followed_in_the_incremental_variant() {
    changes_are_followed("DELTA_GRPC").await;
}

#[tokio::test]
async fn changes_are_followed_in_the_state_of_the_world_variant() {
    changes_are_followed("GRPC").await;
}

/// C2.
#[tokio::test]
async fn a_control_plane_that_is_killed_again_and_again_costs_nothing() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let mut plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 0));
    let proxy = start(&[plane.address], "DELTA_GRPC").await;
    let traffic = Traffic::start(&proxy).await;
    traffic.flows(10).await;
    for round in 1..=20 {
        let address = plane.address;
        drop(plane);
        plane = ControlPlane::start_at(address).await;
        plane.publish(service(origin.address(), round));
        plane.accepted(Kind::RouteConfiguration, "routes").await;
        // What did not change was not sent again, but the control plane knows that it is there.
        plane.accepted(Kind::Cluster, "origin").await;
    }
    assert_eq!(version(&mut proxy.http1().await).await, 20);
    traffic.lost_nothing().await;
    let connections: std::collections::BTreeSet<_> = origin.requests().iter().map(|r| r.connection).collect();
    assert!(connections.len() <= 3, "upstream connections stay: {connections:?}");
}

async fn an_empty_control_plane_is_not_believed(api_type: &str) {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let proxy = start(&[plane.address], api_type).await;
    let traffic = Traffic::start(&proxy).await;
    let address = plane.address;
    drop(plane);
    let plane = ControlPlane::start_at(address).await;
    plane.publish([]);
    eventually("the warning", || {
        let log = proxy.stderr();
        log.contains("kind=Listener") && log.contains("came back with nothing")
    })
    .await;
    traffic.flows(20).await;
    // When it knows something again, it is believed.
    plane.publish(service(origin.address(), 2));
    eventually_async("the new routes", async || version(&mut proxy.http1().await).await == 2).await;
    traffic.lost_nothing().await;
}

/// C3.
#[tokio::test]
async fn a_control_plane_that_comes_back_empty_is_not_believed() {
    an_empty_control_plane_is_not_believed("DELTA_GRPC").await;
}

/// C3.
#[tokio::test]
async fn nor_is_one_of_the_other_variant() {
    an_empty_control_plane_is_not_believed("GRPC").await;
}

/// A listener with fields that a text could not set: they are not supported.
fn lds_with(name: &str, change: impl FnOnce(&mut PbListener)) -> Resource {
    let mut listener = message::<PbListener>(&Listener::http(name).route(direct("/", 200, "x")).into());
    change(&mut listener);
    Resource::new(&listener)
}

/// The same for a cluster.
fn cds_with(name: &str, change: impl FnOnce(&mut Cluster)) -> Resource {
    let mut pb = message::<Cluster>(&cluster(name, &[]));
    change(&mut pb);
    Resource::new(&pb)
}

fn no_weights() -> serde_json::Value {
    let clusters = json!([{ "name": "origin", "weight": 0 }]);
    json!({ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": clusters } } })
}

fn bad_regex() -> serde_json::Value {
    json!({ "match": { "safe_regex": { "regex": "(" } }, "route": { "cluster": "origin" } })
}

/// C4: each bad resource is refused by name, and good ones of the same push are taken.
#[tokio::test]
async fn bad_resources_are_refused_by_name_and_good_ones_taken() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 1));
    let proxy = start(&[plane.address], "DELTA_GRPC").await;
    let traffic = Traffic::start(&proxy).await;

    type Make = fn(&str) -> Resource;
    let cases: [(Make, &str); 6] = [
        (|name| lds(Listener::http(name).route(no_weights())), "weight"),
        (|name| lds(Listener::http(name).route(bad_regex())), "regex"),
        (|name| lds(Listener::http(name).route(to_cluster("/", "nowhere"))), "nowhere"),
        (|name| lds_with(name, |listener| listener.enable_mptcp = true), "enable_mptcp"),
        (
            |name| cds_with(name, |cluster| cluster.upstream_config = Some(Default::default())),
            "upstream_config",
        ),
        (|name| cds(&cluster(name, &[SocketAddr::from(([127, 0, 0, 1], 0))])), "port"),
    ];
    for (n, (make, word)) in (2..).zip(cases) {
        let (good_name, bad_name) = (format!("good-{n}"), format!("bad-{n}"));
        let (good, bad) = (cds(&cluster(&good_name, &[origin.address()])), make(&bad_name));
        let kind = bad.kind();
        let began = Instant::now();
        plane.publish(service(origin.address(), n).into_iter().chain([bad, good]));
        let reason = plane.refused(kind, &bad_name).await;
        assert!(reason.contains(word), "{word}: {reason}");
        assert!(began.elapsed() < Duration::from_secs(2), "{word}: {:?}", began.elapsed());
        plane.accepted(Kind::Cluster, &good_name).await;
        plane.accepted(Kind::RouteConfiguration, "routes").await;
        assert_eq!(version(&mut proxy.http1().await).await, n);
        plane.publish(service(origin.address(), n));
    }
    assert!(!plane.said().contains(&Said::Closed), "the stream stays");
    let rejected = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    assert!(rejected.contains("remora_config_updates_rejected_total{type=\"cluster\"} 2"), "{rejected}");
    assert!(rejected.contains("remora_config_updates_rejected_total{type=\"listener\"} 4"), "{rejected}");
    assert!(rejected.contains("remora_control_plane_connected 1"), "{rejected}");
    traffic.lost_nothing().await;
}

/// C5: a version that changes every 10 ms; the last one counts.
#[tokio::test]
async fn a_flapping_control_plane_ends_in_its_last_version() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let plane = ControlPlane::start().await;
    plane.publish(service(origin.address(), 0));
    let proxy = start(&[plane.address], "DELTA_GRPC").await;
    let traffic = Traffic::start(&proxy).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for n in 1..=200 {
        ticks.tick().await;
        plane.publish(service(origin.address(), n % 2));
    }
    plane.publish(service(origin.address(), 1000));
    let last = Instant::now();
    eventually_async("the last version", async || version(&mut proxy.http1().await).await == 1000).await;
    assert!(last.elapsed() < Duration::from_secs(2), "{:?}", last.elapsed());
    traffic.lost_nothing().await;
}

/// Serves one service on a raw stream.
async fn serve_raw(plane: &mut RawControlPlane, origin: &Http1Upstream) -> RawStream {
    let mut stream = plane.stream().await;
    stream.push(Kind::Cluster, vec![wire(&cds(&eds_cluster("origin")))]).await;
    stream.push(Kind::ClusterLoadAssignment, vec![wire(&eds("origin", &[origin.address()]))]).await;
    stream.push(Kind::Listener, vec![wire(&ingress())]).await;
    stream.push(Kind::RouteConfiguration, vec![wire(&routes("origin", 1))]).await;
    stream
}

/// C11: routes that come before their cluster wait for it, and a cluster that goes before its routes stays until then.
#[tokio::test]
async fn a_wrong_order_opens_no_gap() {
    let (old, new) = (
        Http1Upstream::answering(Answer::ok("old")).await,
        Http1Upstream::answering(Answer::ok("new")).await,
    );
    let mut plane = RawControlPlane::start().await;
    let address = [plane.address];
    let (proxy, mut stream) =
        tokio::join!(start(&address, "DELTA_GRPC"), async { serve_raw(&mut plane, &old).await });
    let traffic = Traffic::start(&proxy).await;
    traffic.flows(10).await;
    stream.push(Kind::RouteConfiguration, vec![wire(&routes("later", 2))]).await;
    traffic.flows(50).await;
    assert_eq!(version(&mut proxy.http1().await).await, 1, "the new routes wait");
    stream.send(Kind::Cluster, vec![wire(&cds(&eds_cluster("later")))], &["origin"]).await;
    traffic.flows(50).await;
    assert_eq!(version(&mut proxy.http1().await).await, 1, "the cluster is there, and has no endpoints");
    stream.push(Kind::ClusterLoadAssignment, vec![wire(&eds("later", &[new.address()]))]).await;
    let mut client = proxy.http1().await;
    assert_eq!(version(&mut client).await, 2);
    assert_eq!(client.get("/").await.unwrap().text(), "new");
    eventually_async("the old cluster to go", async || {
        !proxy.admin("GET", "/clusters").await.unwrap().text().contains("origin::")
    })
    .await;
    traffic.lost_nothing().await;
}

/// C4, what only a raw server can send: bytes that are no message, a resource under another name, the same one twice, types that
/// nobody asked for.
#[tokio::test]
async fn garbage_is_refused_and_the_rest_goes_on() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let mut plane = RawControlPlane::start().await;
    let address = [plane.address];
    let (proxy, mut stream) =
        tokio::join!(start(&address, "DELTA_GRPC"), async { serve_raw(&mut plane, &origin).await });
    let traffic = Traffic::start(&proxy).await;
    let raw = |name: &str, value: &[u8]| PbResource {
        name: name.into(),
        version: "1".into(),
        resource: Some(Any { type_url: Kind::Cluster.type_url().into(), value: value.to_vec() }),
        ..PbResource::default()
    };
    let good = || wire(&cds(&cluster("good", &[origin.address()])));
    let other_name = PbResource { name: "renamed".into(), ..good() };
    let twice = || wire(&cds(&cluster("twice", &[origin.address()])));
    let not_utf8 = raw("not-utf8", b"\x0a\x02\xff\xfe");
    let no_bytes = raw("no-bytes", b"\x0a\x7f");
    let answer =
        stream.push(Kind::Cluster, vec![not_utf8, good(), no_bytes, other_name, twice(), twice()]).await;
    let said = answer.error_detail.unwrap().message;
    for name in ["not-utf8", "no-bytes", "renamed", "twice"] {
        assert!(said.contains(&format!("Cluster {name}: ")), "{name}: {said}");
    }
    assert!(!said.contains("Cluster good"), "{said}");
    assert!(proxy.admin("GET", "/clusters").await.unwrap().text().contains("good::"));

    let unasked = DeltaDiscoveryResponse { type_url: "type.googleapis.com/x.Y".into(), ..Default::default() };
    stream.send_raw(unasked).await;
    let mut again = plane.stream().await;
    let first = again.request_of(Kind::Cluster).await;
    let held: Vec<_> = first.initial_resource_versions.into_keys().collect();
    assert_eq!(held.len(), 2, "{held:?}");
    traffic.lost_nothing().await;
}

/// P6: the last good configuration on disk.
#[tokio::test]
async fn a_proxy_starts_from_disk_while_its_control_plane_is_down() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("last-good.pb.gz");
    let plane = ControlPlane::start().await;
    let address = plane.address;
    plane.publish(service(origin.address(), 7));
    let proxy = |address| under(&[address]).argument("--state-dir").argument(state.path().to_str().unwrap());
    let first = proxy(address).start().await;
    eventually("the file", || file.is_file()).await;
    drop((first, plane));

    let second = proxy(address).start().await;
    let mut client = second.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
    assert_eq!(version(&mut client).await, 7);
    assert!(second.stderr().contains("from disk"), "{}", second.stderr());
    let dump = second.admin("GET", "/config_dump").await.unwrap().text();
    assert!(dump.replace(' ', "").contains("\"from_disk\":true"), "{dump}");
    assert!(second.admin("GET", "/metrics").await.unwrap().text().contains("remora_config_from_disk 1"));
    // The control plane comes back, and only the difference is new.
    let plane = ControlPlane::start_at(address).await;
    plane.publish(service(origin.address(), 8));
    plane.accepted(Kind::Cluster, "origin").await;
    plane.accepted(Kind::RouteConfiguration, "routes").await;
    assert_eq!(version(&mut client).await, 8);
    assert!(second.admin("GET", "/metrics").await.unwrap().text().contains("remora_config_from_disk 0"));
    drop(second);

    std::fs::write(&file, b"not what it was").unwrap();
    let third = proxy(address).start().await;
    assert!(third.stderr().contains("not usable"), "{}", third.stderr());
    assert_eq!(version(&mut third.http1().await).await, 8);
}

#[tokio::test]
async fn mistakes_in_the_bootstrap_are_told() {
    let mut dynamic = by_ads("DELTA_GRPC");
    merge(
        &mut dynamic,
        json!({ "ads_config": { "grpc_services": [{ "envoy_grpc": { "cluster_name": "nobody" } }] } }),
    );
    let (status, said) = Proxy::builder().dynamic(dynamic.clone()).refuse().await;
    assert_eq!(status.code(), Some(2));
    assert!(said.contains("\"nobody\" is not among static_resources.clusters"), "{said}");
    merge(
        &mut dynamic,
        json!({ "ads_config": { "grpc_services": [{ "envoy_grpc": { "cluster_name": "nobody", "authority": "outbound|15012||istiod" } }] } }),
    );
    let (_, said) = Proxy::builder().dynamic(dynamic).refuse().await;
    assert!(said.contains("authority: \"outbound|15012||istiod\" is no host name"), "{said}");
    let mut dynamic = by_ads("DELTA_GRPC");
    dynamic.as_object_mut().unwrap().remove("ads_config");
    let (_, said) = Proxy::builder().dynamic(dynamic).refuse().await;
    assert!(said.contains("there is no dynamic_resources.ads_config"), "{said}");
}
