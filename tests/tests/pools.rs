//! Pooled connections to upstreams: when they are given up although nothing is wrong with them.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_tests::certs::Authority;
use remora_tests::config::{Listener, cluster, cluster_http2, direct, merge, mutual_tls, to_cluster};
use remora_tests::control_plane::ControlPlane;
use remora_tests::proxy::Proxy;
use remora_tests::resources::{cds, eds, eds_cluster, ingress, routes, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use remora_tests::wait::{eventually, eventually_async};
use remora_xds::Kind;
use serde_json::{Value, json};

const SERVER: &str = "spiffe://mesh.example/ns/a/sa/server";
const CLIENT: &str = "spiffe://mesh.example/ns/a/sa/client";

/// From now on another server is wanted there: a connection to the one of before must not be used again. `protocol`: overlay for the cluster.
async fn another_transport_socket(origin: Value, protocol: Value) {
    let authority = Authority::new();
    let (own, client) = (authority.issue(&["a.example", SERVER]), authority.issue(&[CLIENT]));
    let secure = Listener::http("ingress").route(direct("/", 200, "secure"));
    let server = Proxy::builder().listener(secure.mutual_tls(&own, &authority, CLIENT)).start().await;
    let at = [server.address("ingress")];
    let plane = ControlPlane::start().await;
    let publish = |peer: &str, more: Value| {
        let mut origin = origin.clone();
        if origin["type"] != "EDS" {
            origin = cluster("origin", &at);
        }
        for patch in [mutual_tls(&client, &authority, peer), protocol.clone(), more] {
            merge(&mut origin, patch);
        }
        plane.publish([cds(&origin), eds("origin", &at), ingress(), routes("origin", 1)]);
    };
    publish(SERVER, json!({}));
    let proxy = under(&[plane.address]).start().await;
    let mut caller = proxy.http1().await;
    assert_eq!(caller.get("/").await.unwrap().text(), "secure");
    // An edit of something else closes nothing.
    publish(SERVER, json!({ "per_connection_buffer_limit_bytes": 65536 }));
    plane.accepted(Kind::Cluster, "origin").await;
    assert_eq!(caller.get("/").await.unwrap().text(), "secure");
    let accepted = r#"remora_downstream_connections_total{listener="ingress"}"#;
    assert_eq!(server.count(accepted).await, 1);
    publish("spiffe://mesh.example/ns/a/sa/other", json!({}));
    plane.accepted(Kind::Cluster, "origin").await;
    let refused = caller.get("/").await.unwrap();
    assert_eq!((refused.status, refused.reason()), (503, Some("upstream_tls_failure")));
    publish(SERVER, json!({}));
    eventually_async("served again", async || caller.get("/").await.unwrap().text() == "secure").await;
}

fn http2() -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let all = cluster_http2("origin", &[]);
    json!({ "typed_extension_protocol_options": { options: all["typed_extension_protocol_options"][options] } })
}

#[tokio::test]
async fn an_edited_tls_context_holds_for_the_next_request() {
    another_transport_socket(cluster("origin", &[]), json!({})).await;
}

#[tokio::test]
async fn an_edited_tls_context_of_an_eds_cluster_holds_for_the_next_request() {
    another_transport_socket(eds_cluster("origin"), json!({})).await;
}

#[tokio::test]
async fn an_edited_tls_context_holds_for_the_next_stream() {
    another_transport_socket(eds_cluster("origin"), http2()).await;
}

/// Destinations that a header names may be any number: none stays because the configuration does.
#[tokio::test]
async fn original_destinations_that_nobody_asks_for_are_forgotten() {
    let upstreams = [
        Http2Upstream::answering(Answer::ok("first")).await,
        Http2Upstream::answering(Answer::ok("second")).await,
    ];
    let mut origin = cluster_http2("origin", &[]);
    origin.as_object_mut().unwrap().remove("load_assignment");
    merge(
        &mut origin,
        json!({
            "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "cleanup_interval": "0.1s",
            "original_dst_lb_config": { "use_http_header": true },
        }),
    );
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).cluster(origin).start().await;
    let mut client = proxy.http1().await;
    for round in 1..=2 {
        for upstream in &upstreams {
            let to = upstream.address();
            let request =
                format!("GET / HTTP/1.1\r\nHost: a.example\r\nx-envoy-original-dst-host: {to}\r\n\r\n");
            client.send(request).await;
            assert_eq!(client.response().await.unwrap().status, 200);
        }
        for upstream in &upstreams {
            eventually("its connection is closed", || upstream.open_connections() == 0).await;
            assert_eq!(upstream.connections(), round, "one for each round");
        }
    }
}
