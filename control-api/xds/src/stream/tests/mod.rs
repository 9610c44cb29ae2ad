//! The rules of the protocol one by one, for both variants.

mod delta;
mod model;
mod random;
mod sotw;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::kind::Named;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use crate::pb::envoy::config::core::v3::DataSource;
use crate::pb::envoy::config::core::v3::data_source::Specifier;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret};
use crate::pb::google::rpc::Status;

const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::ClusterLoadAssignment.type_url();
const LDS: &str = Kind::Listener.type_url();
const SDS: &str = Kind::Secret.type_url();
const RDS: &str = Kind::RouteConfiguration.type_url();

fn node() -> Option<Node> {
    Some(Node { id: "n".into(), ..Node::default() })
}

fn cluster(name: &str, content: &str) -> Resource {
    Resource::new(&Cluster { name: name.into(), alt_stat_name: content.into(), ..Cluster::default() })
}

fn eds_cluster(name: &str, content: &str) -> Resource {
    Resource::new(&Cluster {
        name: name.into(),
        alt_stat_name: content.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..Cluster::default()
    })
}

fn endpoints(name: &str) -> Resource {
    Resource::new(&ClusterLoadAssignment { cluster_name: name.into(), ..ClusterLoadAssignment::default() })
}

/// `roots` are only a text.
fn secret(name: &str, roots: &str) -> Resource {
    let inline = Specifier::InlineString(roots.into());
    let trusted = DataSource { specifier: Some(inline), ..DataSource::default() };
    let context =
        CertificateValidationContext { trusted_ca: Some(trusted), ..CertificateValidationContext::default() };
    Resource::new(&Secret { name: name.into(), r#type: Some(Type::ValidationContext(context)) })
}

/// `routes` stand in a field that is only a text.
fn listener(name: &str, routes: &str) -> Resource {
    Resource::new(&Listener { name: name.into(), stat_prefix: routes.into(), ..Listener::default() })
}

/// `clusters` stand in a list that is only texts.
fn route(name: &str, clusters: &[&str]) -> Resource {
    Resource::new(&RouteConfiguration {
        name: name.into(),
        internal_only_headers: clusters.iter().map(ToString::to_string).collect(),
        ..RouteConfiguration::default()
    })
}

fn snapshot<const N: usize>(resources: [Resource; N]) -> Arc<NodeSnapshot> {
    Arc::new(resources.into_iter().collect())
}

fn error(text: &str) -> Option<Status> {
    Some(Status { code: 3, message: text.into(), details: Vec::new() })
}

/// The events as short texts.
fn told(stream: &mut impl Stream) -> Vec<String> {
    let text = |event| match event {
        Event::Accepted(resource) => format!("accepted {}", resource.name()),
        Event::Refused(resource, detail) => format!("refused {}: {detail}", resource.name()),
        Event::Wanted(kind, names) => format!("wanted {kind} {}", names.join(",")),
        Event::Stale(..) => "stale".into(),
        Event::Foreign(..) => "foreign".into(),
    };
    stream.take_events().into_iter().map(text).collect()
}

/// Longer than [`Limits::absent_wait`].
const A_WHILE: Duration = Duration::from_millis(60);

fn decode<M: crate::wire::Wire>(resource: &crate::pb::google::protobuf::Any) -> M {
    crate::any::unpack(resource).unwrap()
}
