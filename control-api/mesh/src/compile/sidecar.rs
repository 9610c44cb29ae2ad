//! One sidecar that takes its configuration from files.

use std::net::SocketAddr;
use std::sync::Arc;

use remora_xds::pb::envoy::config::core::v3::Node;

use super::node::{NodeKind, NodeRequest, UnknownWorkload};
use super::{Compiler, Profile, parts};
use crate::kinds::Documents;
use crate::mesh::Mesh;
use crate::resource::Resource;

/// The sidecar that asks.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Namespace of its Workload.
    pub namespace: String,
    /// Name of its Workload.
    pub workload: String,
    /// What it shares with others.
    pub profile: Profile,
    /// Where its admin page listens.
    pub admin: SocketAddr,
}

/// What one sidecar needs, each list by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Resources {
    /// Who it is.
    pub node: Node,
    /// Where its admin page listens.
    pub admin: SocketAddr,
    /// LDS.
    pub listeners: Vec<Arc<Resource>>,
    /// RDS.
    pub routes: Vec<Arc<Resource>>,
    /// CDS.
    pub clusters: Vec<Arc<Resource>>,
    /// EDS.
    pub endpoints: Vec<Arc<Resource>>,
}

/// What `sidecar` needs of `documents`: an inbound listener in front of its program, and for every Service that the program calls a
/// listener on loopback, its routes, and the clusters and endpoints that these lead to.
///
/// # Errors
/// The sidecar's Workload is not among the documents.
pub fn compile(documents: &Documents, sidecar: &Sidecar) -> Result<Resources, UnknownWorkload> {
    let compiler = Compiler::new(Mesh::from(documents), sidecar.profile.clone());
    let request =
        NodeRequest::new(NodeKind::Sidecar, &sidecar.namespace).with_workload(sidecar.workload.clone());
    let found = compiler.node(&request)?;
    let Some(instance) = compiler.mesh().instance(&sidecar.namespace, &sidecar.workload) else {
        return Err(UnknownWorkload { namespace: sidecar.namespace.clone(), name: sidecar.workload.clone() });
    };
    Ok(Resources {
        node: parts::node(&sidecar.profile, &instance.workload),
        admin: sidecar.admin,
        listeners: found.listeners.into_values().collect(),
        routes: found.routes.into_values().collect(),
        clusters: found.clusters.into_values().collect(),
        endpoints: found.endpoints.into_values().collect(),
    })
}
