//! Bootstraps: of a sidecar in the mesh, as `remora inject` and `remora run` write them, and of proxies without a control plane.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::netns::POD;

/// Where every sidecar here has its admin page; they run one after the other, in a namespace of their own.
pub(super) const ADMIN: u16 = 15_000;
/// Where rules lead what a program sends.
pub(super) const OUTBOUND: u16 = 15_001;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.network";

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

/// The admin page and nothing else.
pub(super) fn minimal(admin: u16) -> Value {
    json!({
        "node": {"id": "minimal", "cluster": "bench"},
        "admin": {"address": address("127.0.0.1", admin)},
    })
}

/// A sidecar whose traffic is intercepted and that has everything from the control plane at `control`, by mutual TLS.
pub(super) fn in_mesh(control: SocketAddr) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {
            "id": format!("sidecar~{POD}~app.default~default.svc"),
            "cluster": "app.default",
            "metadata": {
                "WORKLOAD_NAME": "app", "NAMESPACE": "default", "APP": "app", "CANONICAL_SERVICE": "app",
                "VERSION": "latest", "CANONICAL_REVISION": "latest",
                "INTERCEPTION_MODE": "REDIRECT", "INSTANCE_IPS": POD,
            },
        },
        "admin": {"address": address("127.0.0.1", ADMIN)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "remora-control"}}],
            },
            "lds_config": ads, "cds_config": ads,
        },
        "static_resources": {"clusters": [control_plane(control)]},
    })
}

fn control_plane(at: SocketAddr) -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let accepted = json!({"suffix": "/ns/remora-system/sa/remora-control"});
    let mut cluster = cluster("remora-control", at);
    cluster["typed_extension_protocol_options"] = json!({
        options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        },
    });
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{"name": "default"}],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": accepted}],
                    },
                    "validation_context_sds_secret_config": {"name": "ROOTCA"},
                },
            },
        },
    });
    cluster
}

fn cluster(name: &str, at: SocketAddr) -> Value {
    let endpoint = json!({"endpoint": {"address": address(&at.ip().to_string(), at.port())}});
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

/// Adds a cluster and listeners to a bootstrap.
pub(super) fn add(whole: &mut Value, more: Value, listeners: Vec<Value>) {
    let all = &mut whole["static_resources"];
    match all["clusters"].as_array_mut() {
        Some(clusters) => clusters.push(more),
        None => all["clusters"] = json!([more]),
    }
    all["listeners"] = listeners.into();
}

/// The cluster of the origin.
pub(super) fn origin(at: SocketAddr) -> Value {
    cluster("origin", at)
}

/// A listener that leads every request to the origin; `bound` when it has a socket of its own.
pub(super) fn to_origin(name: &str, at: SocketAddr, bound: bool) -> Value {
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "origin"}});
    let manager = json!({
        "@type": format!("{FILTERS}.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "outbound",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
        "route_config": {
            "name": "outbound",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
        },
    });
    json!({
        "name": name, "address": address(&at.ip().to_string(), at.port()),
        "bind_to_port": bound, "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
        }]}],
    })
}

/// What takes every connection that rules lead to it, and gives it to the listener of its original destination. Connections to nobody are
/// the origin's as well: there must be a chain.
pub(super) fn catch_all() -> Value {
    let proxy = json!({
        "@type": format!("{FILTERS}.tcp_proxy.v3.TcpProxy"), "stat_prefix": "nobody", "cluster": "origin",
    });
    json!({
        "name": "virtualOutbound", "address": address("127.0.0.1", OUTBOUND),
        "use_original_dst": true, "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy,
        }]}],
    })
}
