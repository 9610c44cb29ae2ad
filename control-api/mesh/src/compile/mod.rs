//! Documents -> the resources of one sidecar.

mod cluster;
mod http;
mod inbound;
pub mod names;
mod outbound;
mod parts;
mod retry;
mod route;
mod tls;

use std::net::SocketAddr;

use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::document::{Document, ServicePort, ServiceSpec, TargetPort, TrafficPolicySpec, WorkloadSpec};
use crate::read::Documents;

pub(crate) use parts::{address, source};

/// The sidecar that asks.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Namespace of its Workload.
    pub namespace: String,
    /// Name of its Workload.
    pub workload: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Its certificate, and whom it trusts.
    pub credentials: Credentials,
    /// How it gets its resources.
    pub delivery: Delivery,
    /// On which ports it listens.
    pub listening: Listening,
    /// Where its admin page listens.
    pub admin: SocketAddr,
}

/// Files with PEM, as the sidecar sees them.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Certificate chain, the leaf first.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Certificates of the authorities.
    pub roots: String,
}

/// How a sidecar gets resources.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// From watched files in this folder; see [`crate::files()`].
    Files(String),
    /// From an ADS stream.
    Ads,
}

/// On which ports a sidecar listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// Those of the documents.
    AsWritten,
    /// Any free ones (demo, tests): `/listeners` of the admin page tells which.
    Ephemeral,
}

/// What one sidecar needs, in a fixed order.
#[derive(Debug, Clone, PartialEq)]
pub struct Resources {
    /// Who it is.
    pub node: Node,
    /// Where its admin page listens.
    pub admin: SocketAddr,
    /// LDS.
    pub listeners: Vec<Listener>,
    /// RDS.
    pub routes: Vec<RouteConfiguration>,
    /// CDS.
    pub clusters: Vec<Cluster>,
    /// EDS.
    pub endpoints: Vec<ClusterLoadAssignment>,
}

/// No Workload has the name of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWorkload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for UnknownWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no Workload {}/{}", self.namespace, self.name)
    }
}

impl std::error::Error for UnknownWorkload {}

/// What `sidecar` needs of `documents`: an inbound listener in front of its program, and for every Service that the program calls a
/// listener on loopback, its routes, and the clusters and endpoints that these lead to.
///
/// # Errors
/// The sidecar's Workload is not among the documents.
pub fn compile(documents: &Documents, sidecar: &Sidecar) -> Result<Resources, UnknownWorkload> {
    let workload = documents.workload(&sidecar.namespace, &sidecar.workload).ok_or_else(|| {
        UnknownWorkload { namespace: sidecar.namespace.clone(), name: sidecar.workload.clone() }
    })?;
    let mesh = Mesh { documents, sidecar, workload };
    let (inbound, mut clusters) = inbound::compile(&mesh);
    let mut outbound = outbound::compile(&mesh);
    let mut listeners: Vec<_> = inbound.into_iter().collect();
    listeners.append(&mut outbound.listeners);
    clusters.append(&mut outbound.clusters);
    Ok(Resources {
        node: parts::node(&mesh),
        admin: sidecar.admin,
        listeners,
        routes: outbound.routes,
        clusters,
        endpoints: outbound.endpoints,
    })
}

/// What every step of the compiler looks at.
struct Mesh<'a> {
    documents: &'a Documents,
    sidecar: &'a Sidecar,
    workload: &'a Document<WorkloadSpec>,
}

/// A Service's port that a workload calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outbound<'a> {
    pub(crate) service: &'a Document<ServiceSpec>,
    pub(crate) port: &'a ServicePort,
    pub(crate) local_port: u16,
}

/// What `workload` calls: what it says, or else every Service of its namespace that it is not a part of itself.
pub(crate) fn egress<'a>(all: &'a Documents, workload: &'a Document<WorkloadSpec>) -> Vec<Outbound<'a>> {
    let namespace = &workload.metadata.namespace;
    let Some(list) = &workload.spec.egress else {
        let others =
            all.services.iter().filter(|s| s.metadata.namespace == *namespace && !selects(s, workload));
        let each = others.flat_map(|service| service.spec.ports.iter().map(move |port| (service, port)));
        return each.map(|(service, port)| Outbound { service, port, local_port: port.port }).collect();
    };
    let mut found = Vec::new();
    for item in list {
        let Some(service) = all.service(item.namespace.as_ref().unwrap_or(namespace), &item.service) else {
            continue;
        };
        let ports = service.spec.ports.iter().filter(|p| item.port.is_none_or(|wanted| wanted == p.port));
        found.extend(ports.map(|port| Outbound {
            service,
            port,
            local_port: item.local_port.unwrap_or(port.port),
        }));
    }
    found
}

/// Whether `workload` is a part of `service`.
pub(crate) fn selects(service: &Document<ServiceSpec>, workload: &Document<WorkloadSpec>) -> bool {
    let labels = &workload.metadata.labels;
    service.metadata.namespace == workload.metadata.namespace
        && !service.spec.selector.is_empty()
        && service.spec.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Where the program of `workload` serves `port` of a Service; None when it does not.
pub(crate) fn target(port: &ServicePort, workload: &Document<WorkloadSpec>) -> Option<u16> {
    let ports = &workload.spec.ports;
    let named = |name: &str| ports.iter().find(|p| p.name.as_deref() == Some(name));
    let found = match &port.target_port {
        Some(TargetPort::Name(name)) => named(name),
        Some(TargetPort::Number(number)) => ports.iter().find(|p| p.port == *number),
        None => ports.iter().find(|p| p.port == port.port),
    };
    found.map(|p| p.port)
}

impl Documents {
    /// The Service of this name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Document<ServiceSpec>> {
        self.services.iter().find(|d| d.metadata.name == name && d.metadata.namespace == namespace)
    }

    /// The Workload of this name.
    #[must_use]
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Document<WorkloadSpec>> {
        self.workloads.iter().find(|d| d.metadata.name == name && d.metadata.namespace == namespace)
    }

    /// Workloads that are part of a Service, with the port of their program for `port`.
    pub(crate) fn backing<'a>(
        &'a self,
        service: &'a Document<ServiceSpec>,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = (&'a Document<WorkloadSpec>, u16)> {
        let members = self.workloads.iter().filter(move |w| selects(service, w));
        members.filter_map(move |w| target(port, w).map(|number| (w, number)))
    }

    /// The policy of a Service.
    pub(crate) fn policy(&self, service: &Document<ServiceSpec>) -> Option<&TrafficPolicySpec> {
        let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
        let hits = |d: &&Document<TrafficPolicySpec>| {
            d.metadata.namespace == *namespace && d.spec.target_refs.iter().any(|t| t.name == *name)
        };
        self.policies.iter().find(hits).map(|d| &d.spec)
    }
}
