//! What the compiler makes: encoded resources that know the documents that they were made of.

use std::sync::Arc;

use prost::{Message, Name as ProtoName};
use remora_xds::any;
use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::google::protobuf::Any;

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

    /// A cluster. `tail` is what its message cannot encode in a fixed order; see [`ordered`].
    pub(crate) fn cluster(cluster: &Cluster, tail: &impl Message, documents: Vec<Key>) -> Arc<Self> {
        let mut body = any::pack(cluster);
        body.value.extend(tail.encode_to_vec());
        let name = cluster.name.as_str().into();
        Arc::new(Self { kind: ResourceKind::Cluster, name, documents, body })
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
        Arc::new(Self { kind, name: name.into(), documents, body: any::pack(message) })
    }
}

/// Parts of Envoy's messages with maps that stand in order. A protobuf map of the generated types is a hash map, and is encoded
/// in an order that is another one in each process; resources must be the same bytes in all of them. Fields of a message may
/// come in any order (protobuf, "Encoding": Field Order), so what is encoded from here follows the rest.
pub(crate) mod ordered {
    use std::collections::BTreeMap;

    use prost::Message;

    /// `envoy.config.cluster.v3.Cluster`, the field `metadata`.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct ClusterTail {
        #[prost(message, optional, tag = "25")]
        pub(crate) metadata: Option<Metadata>,
    }

    /// `envoy.config.core.v3.Metadata`.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Metadata {
        #[prost(btree_map = "string, message", tag = "1")]
        pub(crate) filter_metadata: BTreeMap<String, Struct>,
    }

    /// `google.protobuf.Struct`.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Struct {
        #[prost(btree_map = "string, message", tag = "1")]
        pub(crate) fields: BTreeMap<String, Value>,
    }

    /// `google.protobuf.Value`, the kinds that are needed.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Value {
        #[prost(oneof = "Kind", tags = "3, 5, 6")]
        pub(crate) kind: Option<Kind>,
    }

    /// `google.protobuf.Value.kind`.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Kind {
        #[prost(string, tag = "3")]
        Text(String),
        #[prost(message, tag = "5")]
        Struct(Struct),
        #[prost(message, tag = "6")]
        List(List),
    }

    /// `google.protobuf.ListValue`.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct List {
        #[prost(message, repeated, tag = "1")]
        pub(crate) values: Vec<Value>,
    }
}
