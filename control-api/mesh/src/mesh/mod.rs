//! All documents and registrations of a mesh, indexed: who belongs to whom is a look-up, never a search.

mod apply;
mod index;
mod instance;
mod members;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::document::{Document, HttpRouteSpec, ServiceSpec, TrafficPolicySpec, WorkloadSpec};
use crate::name::{ByName, Key, Kind, Name};
use crate::read::Documents;

pub use instance::{Health, Instance};

pub(crate) use members::{Member, target};

use index::Index;

/// A document of any kind.
#[derive(Debug, Clone)]
pub enum AnyDocument {
    /// Service.
    Service(Arc<Document<ServiceSpec>>),
    /// Workload.
    Workload(Arc<Document<WorkloadSpec>>),
    /// HTTPRoute.
    HttpRoute(Arc<Document<HttpRouteSpec>>),
    /// TrafficPolicy.
    TrafficPolicy(Arc<Document<TrafficPolicySpec>>),
}

impl AnyDocument {
    /// Which one it is.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Service(d) => Key::new(Kind::Service, d.name()),
            Self::Workload(d) => Key::new(Kind::Workload, d.name()),
            Self::HttpRoute(d) => Key::new(Kind::HttpRoute, d.name()),
            Self::TrafficPolicy(d) => Key::new(Kind::TrafficPolicy, d.name()),
        }
    }
}

/// One step from one state of a mesh to the next.
#[derive(Debug, Clone)]
pub enum Change {
    /// A document was written. It replaces the one of the same key.
    Put(AnyDocument),
    /// A document was removed.
    Remove(Key),
    /// An instance registered, or its health changed. It replaces the one of the same name. A Workload document of this name
    /// holds before it.
    Register(Arc<Instance>),
    /// An instance is gone.
    Deregister(Name),
}

/// What has to be compiled again after changes. A Service that is named and no longer there is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services of which everything may have changed, and so the part of every node that uses them.
    pub services: BTreeSet<Name>,
    /// Services of which nothing but endpoints changed. None of them is in `services`.
    pub endpoints: BTreeSet<Name>,
    /// Workloads whose own part may have changed: the inbound listener, or what they call.
    pub workloads: BTreeSet<Name>,
    /// Namespaces in which a Service or a port of one came or went: it matters to nodes that call all of their namespace.
    pub namespaces: BTreeSet<Arc<str>>,
}

impl Touched {
    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.workloads.extend(other.workloads);
        self.namespaces.extend(other.namespaces);
        self.endpoints.retain(|name| !self.services.contains(name));
    }

    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Documents and registrations. Nothing in it has to refer to what exists: it is complete when everything has arrived.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    services: ByName<Arc<Document<ServiceSpec>>>,
    /// Of documents.
    workloads: ByName<Arc<Instance>>,
    /// Of the registry.
    registered: ByName<Arc<Instance>>,
    http_routes: ByName<Arc<Document<HttpRouteSpec>>>,
    policies: ByName<Arc<Document<TrafficPolicySpec>>>,
    index: Index,
}

impl From<&Documents> for Mesh {
    fn from(documents: &Documents) -> Self {
        let mut mesh = Self::default();
        for document in documents.iter() {
            mesh.apply(Change::Put(document));
        }
        mesh
    }
}

impl Mesh {
    /// A Service.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Document<ServiceSpec>>> {
        self.services.get(namespace, name)
    }

    /// The Services of a namespace.
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Arc<Document<ServiceSpec>>> {
        self.services.namespace(namespace).map(|(_, service)| service)
    }

    /// All Services.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Document<ServiceSpec>>> {
        self.services.values()
    }

    /// A Workload or a registered instance.
    #[must_use]
    pub fn instance(&self, namespace: &str, name: &str) -> Option<&Arc<Instance>> {
        self.workloads.get(namespace, name).or_else(|| self.registered.get(namespace, name))
    }

    /// All Workloads and registered instances.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let hidden = |i: &&Arc<Instance>| {
            let metadata = &i.workload.metadata;
            self.workloads.get(&metadata.namespace, &metadata.name).is_none()
        };
        self.workloads.values().chain(self.registered.values().filter(hidden))
    }

    /// The HTTPRoutes that are attached to a Service, by name.
    pub(crate) fn http_routes(
        &self,
        service: &Document<ServiceSpec>,
    ) -> impl Iterator<Item = &Arc<Document<HttpRouteSpec>>> {
        let keys = self.index.routes.linked(&service.metadata.namespace, &service.metadata.name);
        keys.filter_map(|key| self.http_routes.of(&key.name))
    }

    /// The TrafficPolicy of a Service: of several the oldest, then the first by name.
    pub(crate) fn policy(
        &self,
        service: &Document<ServiceSpec>,
    ) -> Option<&Arc<Document<TrafficPolicySpec>>> {
        let names = self.index.policies.linked(&service.metadata.namespace, &service.metadata.name);
        names.filter_map(|name| self.policies.of(name)).min_by(|a, b| a.age().cmp(&b.age()))
    }
}
