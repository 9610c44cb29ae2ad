//! Resources as the files of a sidecar: a bootstrap, and a file for each kind of resource that it watches.

use std::sync::Arc;

use remora_xds::Schema;
use remora_xds::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use remora_xds::pb::envoy::config::bootstrap::v3::{Admin, Bootstrap};
use remora_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use remora_xds::pb::google::protobuf::Any;

use crate::compile::{Delivery, Resources, address, source};
use crate::resource::Resource;

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in the folder.
    pub name: &'static str,
    /// YAML.
    pub text: String,
}

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Listeners,
    Routes,
    Clusters,
    Endpoints,
    Secrets,
}

impl FileKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Listeners => "listeners.yaml",
            Self::Routes => "routes.yaml",
            Self::Clusters => "clusters.yaml",
            Self::Endpoints => "endpoints.yaml",
            Self::Secrets => "secrets.yaml",
        }
    }
}

/// The files of a sidecar that watches `folder`, in the order in which they should be written: what is referred to comes before what
/// refers to it, and the bootstrap last. Write each beside its place and rename it over the old one.
#[must_use]
pub fn files(schema: &Schema, folder: &str, resources: &Resources) -> Vec<File> {
    let delivery = Delivery::Files(folder.to_owned());
    let from = |kind| Some(source(&delivery, kind));
    let bootstrap = Bootstrap {
        node: Some(resources.node.clone()),
        admin: Some(Admin { address: Some(address(resources.admin)), ..Admin::default() }),
        dynamic_resources: Some(DynamicResources {
            lds_config: from(FileKind::Listeners),
            cds_config: from(FileKind::Clusters),
            ..DynamicResources::default()
        }),
        ..Bootstrap::default()
    };
    let response = |kind: FileKind, resources: Vec<Any>| File {
        name: kind.name(),
        text: schema.to_yaml(&DiscoveryResponse { resources, ..DiscoveryResponse::default() }),
    };
    vec![
        response(FileKind::Clusters, bodies(&resources.clusters)),
        response(FileKind::Endpoints, bodies(&resources.endpoints)),
        response(FileKind::Routes, bodies(&resources.routes)),
        response(FileKind::Listeners, bodies(&resources.listeners)),
        File { name: "bootstrap.yaml", text: schema.to_yaml(&bootstrap) },
    ]
}

fn bodies(resources: &[Arc<Resource>]) -> Vec<Any> {
    resources.iter().map(|resource| resource.body.clone()).collect()
}
