//! What gRPC libraries with `xds:///` targets understand: gRFC A27 (listeners, routes, clusters), A28 (routing), A29 (mTLS), A44 (retries).

use std::sync::Arc;

use remora_xds::any;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use remora_xds::pb::envoy::config::listener::v3::{ApiListener, Listener};
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::MaxStreamDuration;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
};

use super::{Scope, cluster, http, key_of, names, outlier, parts, tls};
use crate::document::{AppProtocol, Document, MtlsMode, ServicePort, ServiceSpec};
use crate::mesh::Mesh;
use crate::resource::Resource;

/// What a client asks for.
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    pub(super) service: &'a str,
    pub(super) port: Option<u16>,
}

/// What `name` means in a client of `namespace`: `service[.namespace[.svc[.cluster.local]]][:port]`.
pub(super) fn target<'a>(namespace: &'a str, name: &'a str) -> Option<Target<'a>> {
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (name, None),
    };
    let host = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    let (service, namespace) = host.split_once('.').unwrap_or((host, namespace));
    Some(Target { namespace, service, port })
}

impl Target<'_> {
    /// The port that is meant. Without a number it is the first that speaks gRPC, then HTTP/2, then HTTP.
    pub(super) fn find<'m>(&self, mesh: &'m Mesh) -> Option<(&'m Document<ServiceSpec>, &'m ServicePort)> {
        let service = mesh.service(self.namespace, self.service)?;
        let rank = |port: &&ServicePort| match port.speaks() {
            AppProtocol::Grpc => 0,
            AppProtocol::Http2 => 1,
            AppProtocol::Http | AppProtocol::Tcp => 2,
        };
        let usable = service.spec.ports.iter().filter(|port| port.speaks() != AppProtocol::Tcp);
        let found = usable.filter(|p| self.port.is_none_or(|wanted| wanted == p.port)).min_by_key(rank)?;
        Some((service, found))
    }
}

/// The listener that a library asks for as `name`.
pub(super) fn listener(name: &str, service: &Document<ServiceSpec>, port: &ServicePort) -> Arc<Resource> {
    let (namespace, service_name) = names::of(service);
    let rds = Rds {
        config_source: Some(parts::ads()),
        route_config_name: names::outbound(namespace, service_name, port.port),
    };
    let manager = HttpConnectionManager {
        stat_prefix: name.into(),
        http_filters: vec![http::router()],
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        ..HttpConnectionManager::default()
    };
    let listener = Listener {
        name: name.into(),
        api_listener: Some(ApiListener { api_listener: Some(any::pack(&manager)) }),
        ..Listener::default()
    };
    Resource::listener(&listener, vec![key_of(service)])
}

/// The cluster of a port. Of the balancing policies of `lb_policy` every library knows round robin only.
pub(super) fn cluster(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
    certificate_provider: &str,
) -> Arc<Resource> {
    let (namespace, name) = names::of(service);
    let identities = cluster::identities(scope, service, port);
    let spec = scope.mesh.policy(service).map(|document| &document.spec);
    let cluster = Cluster {
        name: names::cluster(namespace, name, port.port),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(parts::ads()),
            ..EdsClusterConfig::default()
        }),
        lb_policy: LbPolicy::RoundRobin.into(),
        circuit_breakers: Some(cluster::breakers(spec)),
        outlier_detection: outlier::detection(&spec.map(|p| p.outlier_detection).unwrap_or_default()),
        transport_socket: (scope.mesh.mtls(service, port.port) != MtlsMode::Disabled)
            .then(|| tls::provider(certificate_provider, identities)),
        metadata: Some(cluster::service_of(service)),
        ..Cluster::default()
    };
    Resource::cluster(&cluster, cluster::documents(scope, service))
}

/// Routes in the words that libraries know. None when `resource` is no route configuration.
pub(super) fn routes(resource: &Resource) -> Option<Arc<Resource>> {
    let mut configuration: RouteConfiguration = any::unpack(&resource.body).ok()?;
    for host in &mut configuration.virtual_hosts {
        host.routes = std::mem::take(&mut host.routes).into_iter().flat_map(in_their_words).collect();
    }
    Some(Resource::routes(&configuration, resource.documents.clone()))
}

fn in_their_words(mut route: Route) -> Vec<Route> {
    // It is for filters that they do not have.
    route.typed_per_filter_config.clear();
    if let Some(Action::Route(action)) = &mut route.action {
        limits(action);
    }
    let matched = route.r#match.as_ref().and_then(|m| m.path_specifier.clone());
    let Some(PathSpecifier::PathSeparatedPrefix(prefix)) = matched else { return vec![route] };
    // They do not know path_separated_prefix: it is the path itself, and everything under it.
    let under = PathSpecifier::Prefix(format!("{prefix}/"));
    [PathSpecifier::Path(prefix), under]
        .map(|path| {
            let mut route = route.clone();
            if let Some(matched) = &mut route.r#match {
                matched.path_specifier = Some(path);
            }
            route
        })
        .into()
}

/// They have `max_stream_duration` for `timeout`, and refuse a retry policy without retries.
fn limits(action: &mut RouteAction) {
    let limit = action.timeout.take().filter(|t| t.seconds != 0 || t.nanos != 0);
    action.max_stream_duration = limit
        .map(|limit| MaxStreamDuration { max_stream_duration: Some(limit), ..MaxStreamDuration::default() });
    action.retry_policy = action.retry_policy.take().filter(|p| p.num_retries.is_none_or(|n| n.value > 0));
}
