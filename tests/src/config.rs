//! Bootstrap files, written as the people who run Envoy write them.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::certs::{Authority, Identity};

/// Type URL of the HTTP connection manager.
const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A whole bootstrap.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap {
    listeners: Vec<Value>,
    clusters: Vec<Value>,
    dynamic: Option<Value>,
    node: Option<String>,
    patch: Option<Value>,
}

impl Bootstrap {
    /// Adds a listener.
    #[must_use]
    pub fn listener(mut self, listener: impl Into<Value>) -> Self {
        self.listeners.push(listener.into());
        self
    }

    /// Adds a cluster.
    #[must_use]
    pub fn cluster(mut self, cluster: impl Into<Value>) -> Self {
        self.clusters.push(cluster.into());
        self
    }

    /// Sets the id of the node.
    #[must_use]
    pub fn node(mut self, id: &str) -> Self {
        self.node = Some(id.to_owned());
        self
    }

    /// Sets `dynamic_resources`.
    #[must_use]
    pub fn dynamic(mut self, dynamic: Value) -> Self {
        self.dynamic = Some(dynamic);
        self
    }

    /// Lays `patch` over the file.
    #[must_use]
    pub fn with(mut self, patch: Value) -> Self {
        self.patch = Some(patch);
        self
    }

    /// The file.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut all = json!({
            "node": { "id": self.node.as_deref().unwrap_or("test"), "cluster": "tests" },
            "admin": { "address": address(([127, 0, 0, 1], 0).into()) },
            "static_resources": { "listeners": self.listeners, "clusters": self.clusters },
        });
        if let Some(dynamic) = &self.dynamic {
            all["dynamic_resources"] = dynamic.clone();
        }
        if let Some(patch) = &self.patch {
            merge(&mut all, patch.clone());
        }
        all
    }
}

/// Spells our defaults out for Envoy where it has others, so that only real differences show.
pub fn with_our_defaults(bootstrap: &mut Value) {
    let http1 = json!({
        "accept_http_10": true,
        "enable_trailers": true,
        "header_key_format": { "stateful_formatter": {
            "name": "preserve_case",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
            },
        }},
    });
    let manager = json!({
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "request_headers_timeout": "10s",
        "http_protocol_options": http1,
    });
    let resources = &mut bootstrap["static_resources"];
    for listener in resources["listeners"].as_array_mut().into_iter().flatten() {
        let filter = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        if filter["@type"] == HCM {
            let mut all = manager.clone();
            merge(&mut all, filter.take());
            *filter = all;
        }
    }
    for cluster in resources["clusters"].as_array_mut().into_iter().flatten() {
        if cluster.get("typed_extension_protocol_options").is_none() {
            merge(cluster, upstream_protocol(json!({ "http_protocol_options": http1 })));
        }
    }
}

fn upstream_protocol(explicit: Value) -> Value {
    json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": explicit,
    }}})
}

/// `core.v3.Address`.
#[must_use]
pub fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// Overlays `patch` on `value`: objects are merged, everything else is replaced.
pub fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, patch) in from {
                merge(into.entry(key).or_insert(Value::Null), patch);
            }
        }
        (value, patch) => *value = patch,
    }
}

/// An HTTP or TCP listener on a free loopback port.
#[derive(Debug, Clone)]
pub struct Listener {
    name: String,
    manager: Value,
    routes: Vec<Value>,
    tls: Option<Value>,
    patch: Value,
}

impl Listener {
    /// An HTTP listener with codec AUTO and no routes.
    #[must_use]
    pub fn http(name: &str) -> Self {
        let manager = json!({
            "@type": HCM,
            "stat_prefix": name,
            "codec_type": "AUTO",
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        });
        Self { name: name.into(), manager, routes: Vec::new(), tls: None, patch: json!({}) }
    }

    /// A TCP listener in front of one cluster.
    #[must_use]
    pub fn tcp(name: &str, cluster: &str) -> Value {
        json!({
            "name": name,
            "address": address(([127, 0, 0, 1], 0).into()),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name,
                    "cluster": cluster,
                },
            }]}],
        })
    }

    /// Appends a route.
    #[must_use]
    pub fn route(mut self, route: Value) -> Self {
        self.routes.push(route);
        self
    }

    /// Overlays fields on the connection manager.
    #[must_use]
    pub fn manager(mut self, patch: Value) -> Self {
        merge(&mut self.manager, patch);
        self
    }

    /// Overlays fields on the listener.
    #[must_use]
    pub fn with(mut self, patch: Value) -> Self {
        merge(&mut self.patch, patch);
        self
    }

    /// Lets an upgrade pass.
    #[must_use]
    pub fn upgrade(self, token: &str) -> Self {
        self.manager(json!({ "upgrade_configs": [{ "upgrade_type": token }] }))
    }

    /// Terminates TLS with this certificate and these ALPN protocols.
    #[must_use]
    pub fn tls(self, identity: &Identity, alpn: &[&str]) -> Self {
        self.tls_context(json!({ "common_tls_context": {
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": { "inline_string": identity.chain },
                "private_key": { "inline_string": identity.key },
            }],
        }}))
    }

    /// Terminates mutual TLS: shows `own`, and wants a certificate of `authority` for `peer`, a URI.
    #[must_use]
    pub fn mutual_tls(self, own: &Identity, authority: &Authority, peer: &str) -> Self {
        self.tls_context(json!({
            "require_client_certificate": true,
            "common_tls_context": mutual(own, authority, peer),
        }))
    }

    /// Terminates TLS with secrets over ADS: its certificate, and with `roots` a certificate is wanted of clients.
    #[must_use]
    pub fn by_secrets(self, own: &str, roots: Option<&str>) -> Self {
        let sds =
            |name: &str| json!({ "name": name, "sds_config": { "resource_api_version": "V3", "ads": {} } });
        let mut common = json!({ "tls_certificate_sds_secret_configs": [sds(own)] });
        if let Some(roots) = roots {
            common["combined_validation_context"] = json!({
                "default_validation_context": { "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "prefix": "spiffe://mesh.test/" } },
                ]},
                "validation_context_sds_secret_config": sds(roots),
            });
        }
        self.tls_context(json!({
            "require_client_certificate": roots.is_some(),
            "common_tls_context": common,
        }))
    }

    /// Terminates TLS as this `DownstreamTlsContext` says.
    #[must_use]
    pub fn tls_context(mut self, mut context: Value) -> Self {
        context["@type"] =
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext".into();
        self.tls = Some(json!({ "name": "envoy.transport_sockets.tls", "typed_config": context }));
        self
    }
}

/// `common_tls_context` of mutual TLS: shows `own`, and wants a certificate of `authority` for `peer`, a URI.
fn mutual(own: &Identity, authority: &Authority, peer: &str) -> Value {
    json!({
        "tls_certificates": [{
            "certificate_chain": { "inline_string": own.chain },
            "private_key": { "inline_string": own.key },
        }],
        "validation_context": {
            "trusted_ca": { "inline_string": authority.pem },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    })
}

/// Overlay for a cluster: mutual TLS to servers that are called `peer` (see [`Listener::mutual_tls`]).
#[must_use]
pub fn mutual_tls(own: &Identity, authority: &Authority, peer: &str) -> Value {
    json!({ "transport_socket": {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": mutual(own, authority, peer),
        },
    }})
}

/// Overlay for a cluster: HTTP/2 that sends a PING after so much silence, and waits so long for its answer (both such as `1s`).
#[must_use]
pub fn keepalive(interval: &str, timeout: &str) -> Value {
    upstream_protocol(json!({ "http2_protocol_options": {
        "connection_keepalive": { "interval": interval, "timeout": timeout },
    }}))
}

/// A cluster whose one endpoint is a name that this name server resolves.
#[must_use]
pub fn dns_cluster(name: &str, host: &str, port: u16, resolver: SocketAddr) -> Value {
    let mut all = cluster(name, &[SocketAddr::from(([0, 0, 0, 0], port))]);
    let endpoint = &mut all["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    endpoint["address"]["socket_address"]["address"] = host.into();
    merge(
        &mut all,
        json!({
            "type": "STRICT_DNS",
            "dns_lookup_family": "V4_ONLY",
            "typed_dns_resolver_config": {
                "name": "envoy.network.dns_resolver.cares",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                    "resolvers": [address(resolver)],
                    "dns_resolver_options": { "no_default_search_domain": true },
                },
            },
        }),
    );
    all
}

impl From<Listener> for Value {
    fn from(listener: Listener) -> Self {
        let mut manager = listener.manager;
        if manager.get("rds").is_none() {
            merge(&mut manager, json!({ "route_config": route_config("routes", listener.routes) }));
        }
        let mut chain = json!({
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }],
        });
        if let Some(tls) = listener.tls {
            chain["transport_socket"] = tls;
        }
        let mut all = json!({
            "name": listener.name,
            "address": address(([127, 0, 0, 1], 0).into()),
            "filter_chains": [chain],
        });
        merge(&mut all, listener.patch);
        all
    }
}

/// A RouteConfiguration with one virtual host for every domain.
#[must_use]
pub fn route_config(name: &str, routes: Vec<Value>) -> Value {
    json!({ "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] })
}

/// A route for a path prefix to a cluster, without Envoy's 15 s timeout.
#[must_use]
pub fn to_cluster(prefix: &str, cluster: &str) -> Value {
    json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster, "timeout": "0s" } })
}

/// Routes of everything to `cluster` as a careful person writes them: a GET is tried again whenever nothing came, everything else where
/// nothing was sent. `patch` is laid over both retry policies.
#[must_use]
pub fn careful(cluster: &str, patch: &Value) -> [Value; 2] {
    let route = |matched: Value, on: &str| {
        let mut route = json!({
            "match": matched,
            "route": { "cluster": cluster, "timeout": "0s", "retry_policy": {
                "retry_on": on,
                "num_retries": 3,
                "retry_back_off": { "base_interval": "0.01s", "max_interval": "0.1s" },
                "retry_host_predicate": [{
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                    },
                }],
            }},
        });
        merge(&mut route["route"]["retry_policy"], patch.clone());
        route
    };
    let get =
        json!({ "prefix": "/", "headers": [{ "name": ":method", "string_match": { "exact": "GET" } }] });
    [
        route(get, "gateway-error,reset,connect-failure,refused-stream"),
        route(json!({ "prefix": "/" }), "connect-failure,refused-stream,reset-before-request"),
    ]
}

/// A route for a path prefix that the proxy answers itself.
#[must_use]
pub fn direct(prefix: &str, status: u16, body: &str) -> Value {
    json!({
        "match": { "prefix": prefix },
        "direct_response": { "status": status, "body": { "inline_string": body } },
    })
}

/// A STATIC cluster.
#[must_use]
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> =
        endpoints.iter().map(|e| json!({ "endpoint": { "address": address(*e) } })).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
    })
}

/// A STATIC cluster that speaks HTTP/2 with prior knowledge.
#[must_use]
pub fn cluster_http2(name: &str, endpoints: &[SocketAddr]) -> Value {
    let mut all = cluster(name, endpoints);
    merge(&mut all, upstream_protocol(json!({ "http2_protocol_options": {} })));
    all
}

/// Circuit breakers that never open.
#[must_use]
pub fn no_breakers() -> Value {
    let limit = 1_000_000;
    json!({ "circuit_breakers": { "thresholds": [{
        "max_connections": limit, "max_pending_requests": limit, "max_requests": limit, "max_retries": limit,
    }]}})
}

/// A retry budget of a share of the requests in flight, and at least so many retries at once.
#[must_use]
pub fn budget(percent: u32, least: u32) -> Value {
    json!({ "circuit_breakers": { "thresholds": [{ "retry_budget": {
        "budget_percent": { "value": percent }, "min_retry_concurrency": least,
    }}]}})
}

/// `rds` of a connection manager: the table `name` in the file at `path`.
///
/// # Panics
/// When the path is not UTF-8.
#[must_use]
pub fn rds_file(name: &str, path: &Path, watched: Option<&Path>) -> Value {
    let mut source = json!({ "path": path.to_str().expect("UTF-8 path") });
    if let Some(folder) = watched {
        source["watched_directory"] = json!({ "path": folder.to_str().expect("UTF-8 path") });
    }
    json!({ "rds": {
        "route_config_name": name,
        "config_source": { "resource_api_version": "V3", "path_config_source": source },
    }})
}

/// A DiscoveryResponse with one RouteConfiguration, for [`rds_file`].
#[must_use]
pub fn rds_response(version: &str, mut config: Value) -> String {
    config["@type"] = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration".into();
    json!({ "version_info": version, "resources": [config] }).to_string()
}
