//! What the compiler makes: encoded resources that know the documents that they were made of.

use std::sync::Arc;

use prost::{Message, Name as ProtoName};
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::google::protobuf::Any;
use remora_xds::{any, canonical};

use crate::name::Key;

/// Which of the xDS protocols a resource belongs to, in the order in which a change is made known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// CDS.
    Cluster,
    /// EDS.
    ClusterLoadAssignment,
    /// LDS.
    Listener,
    /// RDS.
    RouteConfiguration,
}

impl ResourceKind {
    /// `type.googleapis.com/…`
    #[must_use]
    pub fn type_url(self) -> String {
        match self {
            Self::Cluster => any::type_url::<Cluster>(),
            Self::ClusterLoadAssignment => any::type_url::<ClusterLoadAssignment>(),
            Self::Listener => any::type_url::<Listener>(),
            Self::RouteConfiguration => any::type_url::<RouteConfiguration>(),
        }
    }
}

/// An encoded resource. The same documents give the same bytes, in every process.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its protocol.
    pub kind: ResourceKind,
    /// Its name there.
    pub name: Arc<str>,
    /// The documents that it was made of, the one that it is about first: a refusal is told to their authors.
    pub documents: Vec<Key>,
    /// Type and bytes.
    pub body: Any,
}

impl Resource {
    pub(crate) fn listener(listener: &Listener, documents: Vec<Key>) -> Arc<Self> {
        Self::new(ResourceKind::Listener, &listener.name, listener, documents)
    }

    pub(crate) fn routes(routes: &RouteConfiguration, documents: Vec<Key>) -> Arc<Self> {
        Self::new(ResourceKind::RouteConfiguration, &routes.name, routes, documents)
    }

    pub(crate) fn cluster(cluster: &Cluster, documents: Vec<Key>) -> Arc<Self> {
        Self::new(ResourceKind::Cluster, &cluster.name, cluster, documents)
    }

    pub(crate) fn endpoints(assignment: &ClusterLoadAssignment, documents: Vec<Key>) -> Arc<Self> {
        let kind = ResourceKind::ClusterLoadAssignment;
        Self::new(kind, &assignment.cluster_name, assignment, documents)
    }

    fn new<M: Message + ProtoName>(
        kind: ResourceKind,
        name: &str,
        message: &M,
        documents: Vec<Key>,
    ) -> Arc<Self> {
        Arc::new(Self { kind, name: name.into(), documents, body: canonical::pack(message) })
    }
}
