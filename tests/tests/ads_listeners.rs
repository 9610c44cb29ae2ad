//! Listeners of a control plane whose sockets cannot be had, and listeners that change.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use remora_proxy::listener::socket;
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, direct};
use remora_tests::control_plane::{ControlPlane, Said};
use remora_tests::proxy::Proxy;
use remora_tests::resources::{by_ads, control_cluster, lds, routes, service};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::{Kind, Resource};
use serde_json::{Value, json};

/// A listener that answers with its name, at this port.
fn at(name: &str, port: u16) -> Resource {
    with(name, port, json!({}))
}

fn with(name: &str, port: u16, more: Value) -> Resource {
    let address = json!({ "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } } });
    lds(Listener::http(name).route(direct("/", 200, name)).with(address).with(more))
}

/// The sockets that listen at an address, by their inodes.
fn sockets(address: SocketAddr) -> BTreeSet<String> {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address}") };
    // As the kernel writes it: the bytes of the address as one number of this machine.
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let inode = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        // 0A: LISTEN.
        (words[1] == local && words[3] == "0A").then(|| words[9].to_owned())
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// A port that another program has.
fn taken() -> (TcpListener, u16) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

async fn plane() -> (ControlPlane, Http1Upstream) {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    (ControlPlane::start().await, origin)
}

#[tokio::test]
async fn one_that_cannot_be_bound_at_the_start_keeps_no_other_from_serving() {
    let (plane, origin) = plane().await;
    let (_held, port) = taken();
    plane.publish(service(origin.address(), 1).into_iter().chain([at("busy", port)]));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    assert_eq!(proxy.http1().await.get("/").await.unwrap().text(), "origin");
    eventually("the log names it", || {
        let log = proxy.stderr();
        log.contains("busy") && log.contains("cannot listen")
    })
    .await;
}

#[tokio::test]
async fn one_that_moves_to_a_port_that_is_taken_stays_where_it_was_and_is_refused_by_name() {
    let (plane, origin) = plane().await;
    let first = |port| service(origin.address(), 1).into_iter().chain([at("moving", port)]);
    plane.publish(first(0));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let old: SocketAddr = proxy.address("moving");
    let (held, port) = taken();
    plane.publish(first(port));
    let why = plane.refused(Kind::Listener, "moving").await;
    assert!(why.contains("cannot listen") && why.contains(&old.to_string()), "{why}");
    let answer = Http1Client::connect(old).await.get("/").await.unwrap();
    assert_eq!(answer.text(), "moving", "it still listens where it did");

    // Elsewhere it can be had.
    drop(held);
    let (free, other) = taken();
    drop(free);
    plane.publish(first(other));
    plane.accepted(Kind::Listener, "moving").await;
    let new = SocketAddr::from(([127, 0, 0, 1], other));
    assert_eq!(Http1Client::connect(new).await.get("/").await.unwrap().text(), "moving");
}

/// Sockets of before would drop what TPROXY gives them. Without the right it is refused, and stays as it was.
#[tokio::test]
async fn one_that_becomes_transparent_gets_new_sockets_at_its_address() {
    let (plane, origin) = plane().await;
    let publish = |more: Value| {
        plane.publish(service(origin.address(), 1).into_iter().chain([with("changing", 0, more)]));
    };
    publish(json!({}));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let address = proxy.address("changing");
    let answers = async || Http1Client::connect(address).await.get("/").await.unwrap().text();
    let filter = "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc";
    let filter =
        json!({ "name": "envoy.filters.listener.original_src", "typed_config": { "@type": filter } });
    for (word, more) in [
        ("transparent", json!({ "transparent": true })),
        ("original_src", json!({ "listener_filters": [filter] })),
    ] {
        let before = sockets(address);
        assert!(!before.is_empty());
        publish(more);
        let is_refused = |said: &Said| match said {
            Said::Refused(Kind::Listener, _, why) => {
                why.contains(&format!("{word} needs the capability NET_ADMIN"))
                    && why.contains(&format!("still listens on {address}"))
            }
            _ => false,
        };
        if socket::may_be_transparent(address, "transparent").is_err() {
            eventually("a refusal", || plane.said().iter().any(is_refused)).await;
        } else {
            eventually("new sockets, and none of before", || {
                let now = sockets(address);
                !now.is_empty() && now.is_disjoint(&before)
            })
            .await;
        }
        assert_eq!(answers().await, "changing");
    }
}

#[tokio::test]
async fn a_connection_keeps_its_routes_when_its_listener_is_removed() {
    let (plane, origin) = plane().await;
    plane.publish(service(origin.address(), 1));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let mut client = proxy.http1().await;
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
    let stays = service(origin.address(), 1).into_iter().filter(|r| r.kind() != Kind::Listener);
    plane.publish(stays.chain([at("another", 0), routes("origin", 2)]));
    plane.accepted(Kind::Listener, "another").await;
    assert_eq!(client.get("/").await.unwrap().text(), "origin");
}

#[tokio::test]
async fn one_that_could_not_be_bound_is_no_fault_of_the_next_response() {
    let (plane, origin) = plane().await;
    let (_held, port) = taken();
    let first = || service(origin.address(), 1);
    plane.publish(first());
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    plane.publish(first().into_iter().chain([at("busy", port)]));
    plane.refused(Kind::Listener, "busy").await;
    let before = plane.said().len();
    plane.publish(first().into_iter().chain([at("busy", port), at("free", 0)]));
    eventually("an answer about the other one", || {
        plane.said()[before..].iter().any(|said| match said {
            Said::Accepted(Kind::Listener, name, _) => name == "free",
            Said::Refused(kind, name, why) => panic!("{kind} {name} is refused: {why}"),
            _ => false,
        })
    })
    .await;
    assert!(proxy.admin("GET", "/listeners").await.unwrap().text().contains("free"));
}

#[tokio::test]
async fn what_was_refused_does_not_come_alive_later_and_what_it_replaced_can_still_be_removed() {
    let (plane, origin) = plane().await;
    let first = || service(origin.address(), 1);
    plane.publish(first().into_iter().chain([at("moving", 0)]));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let old = proxy.address("moving");
    let (held, port) = taken();
    plane.publish(first().into_iter().chain([at("moving", port), at("busy", port)]));
    plane.refused(Kind::Listener, "busy").await;
    plane.refused(Kind::Listener, "moving").await;
    let dump = proxy.admin("GET", "/config_dump").await.unwrap().text();
    assert!(!dump.contains(r#""name": "busy""#) && !dump.contains(&port.to_string()), "{dump}");

    // Nobody asks for them any more, and now the port is free.
    drop(held);
    plane.publish(first().into_iter().chain([at("another", 0)]));
    plane.accepted(Kind::Listener, "another").await;
    eventually_async("both are gone", async || {
        let listeners = proxy.admin("GET", "/listeners").await.unwrap().text();
        !listeners.contains("moving") && !listeners.contains("busy")
    })
    .await;
    assert!(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err());
    eventually("the old socket is closed", || TcpStream::connect(old).is_err()).await;
}
