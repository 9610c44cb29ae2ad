//! ClusterLoadAssignment -> endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::{HealthStatus as PbHealth, Metadata};
use remora_xds::pb::envoy::config::endpoint::v3 as pb;
use remora_xds::pb::google::protobuf::value::Kind;

use super::common::{Host, host_port, json, refuse};
use super::health;
use crate::balance::subset::LbMetadata;
use crate::config::compile::Scope;
use crate::upstream::dns::DnsTarget;
use crate::upstream::endpoint::{
    Assignment, AssignmentPolicy, EndpointCheck, EndpointSpec, HealthStatus, Locality, LocalityGroup,
};

/// Envoy's ceiling of `priority`.
const MAX_PRIORITY: u32 = 128;

/// Compiles an assignment whose addresses are IP addresses (EDS and STATIC). When that adds to `scope.errors`, the answer lacks
/// the endpoints with mistakes and is not for use.
#[must_use]
pub fn compile_load_assignment(
    pb: &pb::ClusterLoadAssignment,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Assignment {
    let (members, policy) = members(pb, at, scope);
    let mut endpoints = Vec::with_capacity(members.len());
    for member in members {
        match member.host {
            Host::Ip(ip) => endpoints.push(member.spec.at(ip)),
            Host::Name(name) => {
                let message = format!("{name:?} is not an IP address");
                let (group, endpoint) = member.place;
                let at = at.field("endpoints");
                let at = at.index(group);
                let at = at.field("lb_endpoints");
                let at = at.index(endpoint);
                let at = at.field("endpoint");
                let at = at.field("address");
                let at = at.field("socket_address");
                scope
                    .errors
                    .report(&at.field("address"), message)
                    .fix("names need a cluster of type STRICT_DNS or LOGICAL_DNS");
            }
        }
    }
    Assignment { endpoints, policy }
}

/// Compiles an assignment whose addresses are names to be resolved.
pub(super) fn compile_dns_targets(
    pb: &pb::ClusterLoadAssignment,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> (Vec<DnsTarget>, AssignmentPolicy) {
    let (members, policy) = members(pb, at, scope);
    let target = |member: Member| {
        let host: Arc<str> = match member.host {
            Host::Ip(ip) => ip.to_string().into(),
            Host::Name(name) => name,
        };
        // Envoy takes the name for host rewriting and SNI too unless the endpoint has another.
        let hostname = member.spec.hostname.clone().or_else(|| Some(Arc::clone(&host)));
        DnsTarget { host, template: EndpointSpec { hostname, ..member.spec } }
    };
    (members.into_iter().map(target).collect(), policy)
}

struct Member {
    host: Host,
    /// Without its IP address.
    spec: EndpointSpec,
    /// Index of the locality and of the endpoint in it.
    place: (usize, usize),
}

fn members(
    pb: &pb::ClusterLoadAssignment,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> (Vec<Member>, AssignmentPolicy) {
    let pb::ClusterLoadAssignment { cluster_name, endpoints, named_endpoints, policy: pb_policy } = pb;
    refuse!(scope, at, [named_endpoints]);
    if cluster_name.is_empty() {
        scope.errors.report(&at.field("cluster_name"), "must not be empty");
    }
    let policy = policy(pb_policy.as_ref(), &at.field("policy"), scope);
    let list = at.field("endpoints");
    let mut members = Vec::new();
    let mut priorities: foldhash::HashMap<u32, u64> = foldhash::HashMap::default();
    let mut last_labels = None;
    for (i, group) in endpoints.iter().enumerate() {
        let at = list.index(i);
        let compiled = locality(group, &at, scope);
        let sum = priorities.entry(compiled.priority).or_default();
        *sum += u64::from(compiled.weight.unwrap_or(0));
        if *sum > u64::from(u32::MAX) {
            let message = "the weights of all localities of one priority must not exceed 4294967295 together";
            scope.errors.report(&at.field("load_balancing_weight"), message);
        }
        let mut weights = 0;
        for (j, endpoint) in group.lb_endpoints.iter().enumerate() {
            let at = at.field("lb_endpoints");
            let at = at.index(j);
            let Some((host, spec)) = lb_endpoint(endpoint, &at, (&compiled, &mut last_labels), scope) else {
                continue;
            };
            weights += u64::from(spec.weight);
            members.push(Member { host, spec, place: (i, j) });
        }
        if weights > u64::from(u32::MAX) {
            let message = "the weights of all endpoints of a locality must not exceed 4294967295 together";
            scope.errors.report(&at.field("lb_endpoints"), message);
        }
    }
    (members, policy)
}

fn policy(
    pb: Option<&pb::cluster_load_assignment::Policy>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> AssignmentPolicy {
    let Some(pb) = pb else { return AssignmentPolicy::default() };
    let pb::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = pb;
    refuse!(scope, at, [drop_overloads, endpoint_stale_after]);
    let overprovisioning = overprovisioning_factor.map_or(140, |f| f.value);
    if overprovisioning == 0 {
        scope.errors.report(&at.field("overprovisioning_factor"), "must be at least 1");
    }
    AssignmentPolicy { overprovisioning, weighted_health: *weighted_priority_health }
}

fn locality(pb: &pb::LocalityLbEndpoints, at: &At<'_>, scope: &mut Scope<'_>) -> Arc<LocalityGroup> {
    let pb::LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints: _,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = pb;
    refuse!(scope, at, [metadata, proximity]);
    match lb_config {
        None => {}
        Some(pb::locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(_)) => {
            scope.errors.report(&at.field("leds_cluster_locality_config"), "is not supported");
        }
        #[expect(deprecated, reason = "refused by name")]
        Some(pb::locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(_)) => {
            scope.errors.report(&at.field("load_balancer_endpoints"), "is not supported");
        }
    }
    if *priority > MAX_PRIORITY {
        scope.errors.report(&at.field("priority"), format!("must be at most {MAX_PRIORITY}"));
    }
    let weight = load_balancing_weight.map(|w| w.value);
    if weight == Some(0) {
        scope.errors.report(&at.field("load_balancing_weight"), "must be at least 1");
    }
    let locality = locality.as_ref().map_or_else(Locality::default, |l| Locality {
        region: l.region.as_str().into(),
        zone: l.zone.as_str().into(),
        sub_zone: l.sub_zone.as_str().into(),
    });
    Arc::new(LocalityGroup { locality, priority: (*priority).min(MAX_PRIORITY), weight })
}

type Shared<'a> = (&'a Arc<LocalityGroup>, &'a mut Option<Arc<str>>);

fn lb_endpoint(
    pb: &pb::LbEndpoint,
    at: &At<'_>,
    (group, last_labels): Shared<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Host, EndpointSpec)> {
    let pb::LbEndpoint { health_status, metadata: pb_metadata, load_balancing_weight, host_identifier } = pb;
    let weight = load_balancing_weight.map_or(1, |w| w.value);
    if weight == 0 {
        scope.errors.report(&at.field("load_balancing_weight"), "must be at least 1");
    }
    let workload = workload(pb_metadata.as_ref(), &at.field("metadata"), scope);
    let metadata = lb_metadata(pb_metadata.as_ref()).map(Arc::new);
    let health = health_of(*health_status, at, scope);
    let endpoint = match host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(_)) => {
            scope.errors.report(&at.field("endpoint_name"), "is not supported");
            return None;
        }
        None => {
            scope.errors.report(&at.field("endpoint"), "is required");
            return None;
        }
    };
    let at = at.field("endpoint");
    let pb::Endpoint { address, health_check_config, hostname, additional_addresses, observability_name } =
        endpoint;
    refuse!(scope, at, [additional_addresses]);
    let check = health_check_config.as_ref().map(|pb| check(pb, &at.field("health_check_config"), scope));
    let at = at.field("address");
    let (host, port) = host_port(address.as_ref(), &at, scope)?;
    if port == 0 {
        scope.errors.report(&at.field("socket_address").field("port_value"), "must not be 0");
        return None;
    }
    let hostname = (!hostname.is_empty()).then(|| hostname.as_str().into());
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let group = Arc::clone(group);
    let labels = workload.or(Some(observability_name.as_str())).filter(|text| !text.is_empty());
    // Endpoints of one workload say the same: one copy serves them all.
    if labels.is_some() && labels != last_labels.as_deref() {
        *last_labels = labels.map(Into::into);
    }
    let labels = labels.and_then(|_| last_labels.clone());
    Some((
        host,
        EndpointSpec { address, hostname, weight, group, labels, metadata, health, check, logical: false },
    ))
}

/// What is under `envoy.lb`: subsets and consistent hashing go by it.
pub(in crate::config::compile) fn lb_metadata(pb: Option<&Metadata>) -> Option<LbMetadata> {
    let fields = &pb?.filter_metadata.get("envoy.lb")?.fields;
    let fields = LbMetadata::new(fields.iter().map(|(key, value)| (key.as_str(), json(value))));
    (!fields.is_empty()).then_some(fields)
}

fn check(pb: &pb::endpoint::HealthCheckConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Arc<EndpointCheck> {
    let pb::endpoint::HealthCheckConfig { port_value, hostname, address, disable_active_health_check } = pb;
    let own = (*port_value != 0).then(|| health::port(*port_value, &at.field("port_value"), scope)).flatten();
    let other = address.as_ref().and_then(|pb| host_port(Some(pb), &at.field("address"), scope));
    let (address, port) = match other {
        None => (None, own),
        Some((Host::Ip(ip), port)) => (Some(ip), own.or_else(|| Some(port).filter(|port| *port != 0))),
        Some((Host::Name(name), _)) => {
            scope.errors.report(&at.field("address"), format!("{name:?} is not an IP address"));
            (None, own)
        }
    };
    let hostname = (!hostname.is_empty()).then(|| hostname.as_str().into());
    if hostname.as_deref().is_some_and(|name: &str| name.parse::<http::uri::Authority>().is_err()) {
        scope.errors.report(&at.field("hostname"), "is not a host name");
    }
    Arc::new(EndpointCheck { address, port, hostname, disabled: *disable_active_health_check })
}

/// `workload` under `istio`, where Istio's control plane puts what metrics are labelled with.
fn workload<'a>(pb: Option<&'a Metadata>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<&'a str> {
    let Metadata { filter_metadata, typed_filter_metadata } = pb?;
    refuse!(scope, at, [typed_filter_metadata]);
    match &filter_metadata.get("istio")?.fields.get("workload")?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn health_of(pb: i32, at: &At<'_>, scope: &mut Scope<'_>) -> HealthStatus {
    match PbHealth::try_from(pb) {
        Ok(PbHealth::Unknown | PbHealth::Healthy) => HealthStatus::Healthy,
        Ok(PbHealth::Degraded) => HealthStatus::Degraded,
        Ok(PbHealth::Draining) => HealthStatus::Draining,
        Ok(PbHealth::Unhealthy | PbHealth::Timeout) => HealthStatus::Unhealthy,
        Err(_) => {
            scope.errors.report(&at.field("health_status"), format!("{pb} is not a health status"));
            HealthStatus::Unhealthy
        }
    }
}
