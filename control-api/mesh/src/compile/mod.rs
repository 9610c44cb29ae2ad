//! Documents -> resources. What a Service gives to its callers ([`service`]) does not depend on who calls, and is compiled once;
//! what is a node's own ([`node`]) is small. [`Compiler`] keeps both up to date.

mod authorization;
mod balancing;
mod breaker;
mod cluster;
mod compiler;
mod dns;
mod everything;
mod fault;
mod grpc;
mod health;
mod http;
mod http_proxy;
mod inbound;
mod intercepted;
mod jwt;
mod lease;
mod limit;
pub mod names;
mod node;
mod outbound;
mod outlier;
mod parts;
mod request;
mod retry;
pub(crate) mod route;
mod service;
mod session;
mod tcp;
mod tls;

use crate::document::{Document, Egress, ServicePort, ServiceSpec, WorkloadSpec};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::Key;

pub(crate) use balancing::{DECAY, MAX_RING};
pub(crate) use inbound::permissive_ports;
pub(crate) use intercepted::OUTBOUND_PORT;
pub(crate) use outlier::{BASE as BASE_EJECTION, LONGEST as LONGEST_EJECTION};

pub use compiler::Compiler;
pub use lease::{Lease, leases};
pub use node::{NodeResources, Problem, UnknownWorkload, node_resources};
pub use request::{BadNode, NodeKind, NodeRequest};
pub use service::{Callers, PortResources, ServiceResources, service_resources};

/// What is the same for all nodes that share resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Other trust domains, whose workloads may call.
    pub federated: Vec<String>,
    /// A node's certificate, and whom it trusts.
    pub credentials: Credentials,
    /// On which ports they listen.
    pub listening: Listening,
    /// Groups of the key exchange between sidecars, most wanted first, by Envoy's names (`ecdh_curves`); without any, each
    /// side has its own.
    pub ecdh_curves: Vec<String>,
    /// What becomes of intercepted connections to nobody in the mesh.
    pub outbound_traffic: OutboundTraffic,
}

/// What becomes of intercepted connections to nobody in the mesh (`outboundTrafficPolicy` of Istio's MeshConfig).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundTraffic {
    /// They go on to where they were going, as they are.
    #[default]
    AllowAny,
    /// They are closed.
    RegistryOnly,
}

/// Where a node finds its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Files with PEM, as the node sees them.
    Files {
        /// Certificate chain, the leaf first.
        certificate: String,
        /// Its private key.
        key: String,
        /// Certificates of the authorities.
        roots: String,
    },
    /// From the control plane's CA: the node has its certificate as the static secret [`names::OWN_SECRET`], whose key nobody
    /// else ever has, and takes the roots as [`names::ROOTS_SECRET`] from the ADS stream.
    Issued,
}

/// On which ports a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// Those of the documents.
    AsWritten,
    /// Any free ones (demo, tests): `/listeners` of the admin page tells which.
    Ephemeral,
}

/// What every step of the compiler looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) profile: &'a Profile,
}

/// A Service's port that a node calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outbound<'a> {
    pub(crate) service: &'a Document<ServiceSpec>,
    pub(crate) port: &'a ServicePort,
    pub(crate) local_port: u16,
    /// Whether the document names `local_port`.
    pub(crate) chosen: bool,
}

/// What `workload` calls on loopback: what it says, or else every Service of its namespace that it is not a part of itself. With an HTTP proxy
/// only what it has a port for: the others are called through that.
pub(crate) fn egress<'a>(mesh: &'a Mesh, workload: &'a Document<WorkloadSpec>) -> Vec<Outbound<'a>> {
    let namespace = &workload.metadata.namespace;
    let proxied = workload.spec.http_proxy.is_some();
    let Some(list) = &workload.spec.egress else {
        if proxied {
            return Vec::new();
        }
        let instance = mesh.instance(namespace, &workload.metadata.name);
        let own = instance.map(|i| mesh.services_of(i)).unwrap_or_default();
        let others = mesh.services(namespace).filter(|s| !own.iter().any(|o| std::sync::Arc::ptr_eq(o, s)));
        return others.flat_map(|service| every_port(service)).collect();
    };
    let mut found = listed(mesh, workload, list);
    found.retain(|item| item.chosen || !proxied);
    found
}

/// What a workload says that it calls.
fn listed<'a>(mesh: &'a Mesh, workload: &'a Document<WorkloadSpec>, list: &'a [Egress]) -> Vec<Outbound<'a>> {
    let namespace = &workload.metadata.namespace;
    let mut found = Vec::new();
    for item in list {
        let Some(service) = mesh.service(item.namespace.as_ref().unwrap_or(namespace), &item.service) else {
            continue;
        };
        let ports = service.spec.ports.iter().filter(|p| item.port.is_none_or(|wanted| wanted == p.port));
        found.extend(ports.map(|port| Outbound {
            service,
            port,
            local_port: item.local_port.unwrap_or(port.port),
            chosen: item.local_port.is_some(),
        }));
    }
    found
}

/// What `workload` calls where calls find Services by themselves, intercepted or through its HTTP proxy: what it says, or else every Service, its
/// own included.
pub(crate) fn any_egress<'a>(mesh: &'a Mesh, workload: &'a Document<WorkloadSpec>) -> Vec<Outbound<'a>> {
    match &workload.spec.egress {
        Some(list) => listed(mesh, workload, list),
        None => mesh.all_services().flat_map(|service| every_port(service)).collect(),
    }
}

/// Every port of a Service, on the same port of the caller's loopback.
pub(crate) fn every_port(service: &Document<ServiceSpec>) -> impl Iterator<Item = Outbound<'_>> {
    let ports = service.spec.ports.iter();
    ports.map(move |port| Outbound { service, port, local_port: port.port, chosen: false })
}

/// The key of a Service.
pub(crate) fn key_of(service: &Document<ServiceSpec>) -> Key {
    Key::new(Kind::Service, service.name())
}
