//! The bootstrap of a sidecar in a pod.

use serde_json::{Map, Value, json};

use super::annotations::{Mode, Wanted};
use super::probes::{Probes, Target};
use super::{Interception, Settings};
use crate::sidecar;

/// Port of readiness and of the program's probes.
pub(super) const HEALTH: u16 = 15_021;
/// Port of the first gRPC probe.
pub(super) const FIRST_GRPC: u16 = 15_030;
const ADMIN: u16 = 15_000;
/// Seconds between looks at a port that is open, whatever the probe's period.
const SLOWEST_LOOK: u64 = 3;

/// Whose sidecar it is, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) app: &'a str,
    pub(super) version: &'a str,
}

/// As one line of JSON. Kubernetes replaces `$(POD_NAME)`, `$(POD_NAMESPACE)`, `$(POD_IP)` and, with interception, `$(INSTANCE_IPS)` in it.
pub(super) fn text(named: Named<'_>, settings: &Settings, wanted: &Wanted, probes: &Probes) -> String {
    let (mut listeners, mut clusters) = (vec![health(probes)], vec![admin()]);
    clusters.extend(probes.paths.iter().map(|(path, target)| cluster_of(path, target)));
    for (port, own) in &probes.grpc {
        listeners.push(grpc(*port, *own));
        let name = format!("probe|grpc|{port}");
        clusters.push(program(&name, *port, json!({"typed_extension_protocol_options": sidecar::http2()})));
    }
    let (app, version) = (literal(named.app), literal(named.version));
    let mut metadata = json!({
        "WORKLOAD_NAME": POD, "NAMESPACE": NAMESPACE, "APP": app, "CANONICAL_SERVICE": app,
        "VERSION": version, "CANONICAL_REVISION": version,
    });
    if wanted.interception != Interception::None {
        // The control plane gives it listeners for what rules lead to it.
        let mode = match wanted.mode {
            Mode::Redirect => "REDIRECT",
            Mode::Tproxy => "TPROXY",
        };
        metadata["INTERCEPTION_MODE"] = mode.into();
        metadata["INSTANCE_IPS"] = "$(INSTANCE_IPS)".into();
        if wanted.capture_dns {
            metadata["DNS_CAPTURE"] = "true".into();
        }
    }
    let mut whole = sidecar::dynamic(settings.control);
    whole["node"] = json!({
        "id": format!("sidecar~$(POD_IP)~{POD}.{NAMESPACE}~{NAMESPACE}.svc"),
        "cluster": format!("{app}.{NAMESPACE}"), "metadata": metadata,
    });
    whole["admin"] = json!({"address": socket("127.0.0.1", ADMIN)});
    if let Some(all) = whole["static_resources"]["clusters"].as_array_mut() {
        all.extend(clusters);
    }
    whole["static_resources"]["listeners"] = listeners.into();
    whole.to_string()
}

const POD: &str = "$(POD_NAME)";
const NAMESPACE: &str = "$(POD_NAMESPACE)";
const OWN_ADMIN: &str = "admin";

/// A text in which Kubernetes is to replace nothing: it makes `$` of every `$$`, also where no `(` follows.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn admin() -> Value {
    program(OWN_ADMIN, ADMIN, json!({}))
}

/// A cluster of one port on loopback, with what `more` says.
fn program(name: &str, port: u16, more: Value) -> Value {
    let name = literal(name);
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": assignment(&name, json!({"address": socket("127.0.0.1", port)})),
    });
    if let (Some(cluster), Value::Object(more)) = (cluster.as_object_mut(), more) {
        cluster.extend(more);
    }
    cluster
}

fn assignment(name: &str, endpoint: Value) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]})
}

fn cluster_of(path: &str, target: &Target) -> Value {
    match target {
        Target::Http { port, tls: false, .. } => program(path, *port, json!({})),
        Target::Http { port, tls: true, .. } => {
            program(path, *port, json!({"transport_socket": unverified()}))
        }
        Target::Tcp { port, every } => looked_at(path, *port, *every),
    }
}

/// As the kubelet, which does not verify either: the certificate is not for an address of the pod.
fn unverified() -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context": {"trust_chain_verification": "ACCEPT_UNTRUSTED"}},
        },
    })
}

/// Requests go to the admin page, which is always well; whether they may is what a look at the program's port says.
fn looked_at(name: &str, port: u16, every: u64) -> Value {
    let endpoint = json!({
        "address": socket("127.0.0.1", ADMIN), "health_check_config": {"port_value": port},
    });
    // The sidecar starts before the program: an open port has to be seen well before the probe gives up.
    let (closed, open) = ("1s", format!("{}s", every.min(SLOWEST_LOOK)));
    let check = json!({
        "timeout": "1s", "interval": open, "unhealthy_interval": closed,
        "no_traffic_interval": closed, "no_traffic_healthy_interval": open,
        "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {},
    });
    let mut cluster = program(
        name,
        ADMIN,
        json!({
            "health_checks": [check], "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        }),
    );
    cluster["load_assignment"] = assignment(&literal(name), endpoint);
    cluster
}

/// Readiness, and the program's probes: GET of these paths, and of nothing else.
fn health(probes: &Probes) -> Value {
    let ready = route("/healthz/ready", OWN_ADMIN, "/healthz/ready", Some("localhost"));
    let probes = probes.paths.iter().map(|(path, target)| match target {
        Target::Http { path: asked, .. } => route(path, path, asked, None),
        Target::Tcp { .. } => route(path, path, "/healthcheck", Some("localhost")),
    });
    listener("health", HEALTH, std::iter::once(ready).chain(probes).collect())
}

/// `host`: the admin page answers to nobody who calls it by a name from elsewhere.
fn route(path: &str, cluster: &str, asked: &str, host: Option<&str>) -> Value {
    let mut action = json!({"cluster": literal(cluster), "prefix_rewrite": literal(asked), "timeout": "0s"});
    if let Some(host) = host {
        action["host_rewrite_literal"] = host.into();
    }
    json!({
        "match": {
            "path": literal(path),
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
        },
        "route": action,
    })
}

/// gRPC health checks of one port of the program.
fn grpc(port: u16, own: u16) -> Value {
    let cluster = format!("probe|grpc|{port}");
    let action = json!({"cluster": cluster, "timeout": "0s"});
    let route = json!({"match": {"path": "/grpc.health.v1.Health/Check"}, "route": action});
    listener(&format!("probe_grpc_{port}"), own, vec![route])
}

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

fn listener(name: &str, port: u16, routes: Vec<Value>) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{TYPES}.http.router.v3.Router")},
    });
    let manager = json!({
        "@type": format!("{TYPES}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "http_filters": [router],
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        },
    });
    json!({
        "name": name, "address": socket("0.0.0.0", port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    })
}

/// With nothing for `None`.
pub(super) fn entries<const N: usize>(list: [(&str, Option<Value>); N]) -> Value {
    let present = list.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<_, _>>())
}
