//! A mesh with everything that was compiled of it.

use std::sync::Arc;

use super::node::{NodeResources, UnknownWorkload, node_resources};
use super::request::NodeRequest;
use super::service::{ServiceResources, service_resources};
use super::{Profile, Scope, names};
use crate::mesh::{Change, Mesh, Touched};
use crate::name::{ByName, Name};
use crate::resource::{Resource, ResourceKind};

/// Keeps the resources of all Services up to date. A change compiles what it touches, and nothing else; nodes are put together
/// from what is there.
#[derive(Debug, Clone)]
pub struct Compiler {
    mesh: Mesh,
    profile: Profile,
    services: ByName<ServiceResources>,
}

impl Compiler {
    /// Compiles all Services of `mesh`.
    #[must_use]
    pub fn new(mesh: Mesh, profile: Profile) -> Self {
        let names: Vec<_> = mesh.all_services().map(|service| service.name()).collect();
        let mut compiler = Self { mesh, profile, services: ByName::default() };
        for name in names {
            compiler.service(name);
        }
        compiler
    }

    /// What it is compiled from.
    #[must_use]
    pub const fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// What a Service gives to its callers.
    #[must_use]
    pub fn resources(&self, service: &Name) -> Option<&ServiceResources> {
        self.services.of(service)
    }

    /// Makes changes, and compiles what they touch. Nodes that are affected: those of `workloads`, those that use one of
    /// `services` or `endpoints` ([`NodeResources::services`]), and those that call all of one of `namespaces`
    /// ([`NodeResources::whole_namespace`], [`NodeResources::whole_mesh`]).
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Touched {
        let mut touched = Touched::default();
        for change in changes {
            touched.merge(self.mesh.apply(change));
        }
        for name in &touched.services {
            self.service(name.clone());
        }
        for name in &touched.endpoints {
            self.endpoints(name);
        }
        touched
    }

    fn service(&mut self, name: Name) {
        match service_resources(&self.mesh, &self.profile, &name) {
            Some(resources) => drop(self.services.insert(name, resources)),
            None => drop(self.services.remove(&name)),
        }
    }

    fn endpoints(&mut self, name: &Name) {
        let scope = Scope { mesh: &self.mesh, profile: &self.profile };
        let (Some(service), Some(old)) =
            (self.mesh.service(&name.namespace, &name.name), self.services.of(name))
        else {
            return;
        };
        let new = old.with_endpoints(scope, service);
        self.services.insert(name.clone(), new);
    }

    /// What leads an intercepted node to the pods of a Service by their own addresses: for each port the name of a listener, and the
    /// listener if there are pods.
    pub fn pods(&self, service: &Name) -> impl Iterator<Item = (String, Option<&Arc<Resource>>)> {
        let scope = Scope { mesh: &self.mesh, profile: &self.profile };
        let found = self.mesh.service(&service.namespace, &service.name).zip(self.services.of(service));
        let ports = found.into_iter().flat_map(|(service, made)| {
            made.ports.iter().zip(&service.spec.ports).map(move |(made, port)| (made, service, port))
        });
        ports.map(move |(made, service, port)| {
            let (namespace, name) = names::of(service);
            let listener =
                made.pods.of(scope, service, port).find(|resource| resource.kind == ResourceKind::Listener);
            (names::pods(namespace, name, port.port), listener)
        })
    }

    /// What a node gets.
    ///
    /// # Errors
    /// It is a sidecar, and there is no Workload or registration of its name.
    pub fn node(&self, request: &NodeRequest) -> Result<NodeResources, UnknownWorkload> {
        node_resources(&self.mesh, &self.profile, request, &|name| self.services.of(name))
    }
}
