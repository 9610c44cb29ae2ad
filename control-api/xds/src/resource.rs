//! Resources as a control plane holds them: encoded once, versioned by their content, shared by every node that is sent them.

use std::sync::Arc;
use std::time::Duration;

use twox_hash::XxHash3_128;

use crate::canonical;
use crate::kind::{Kind, Named};
use crate::pb::google::protobuf::Any;

/// One resource. Immutable; share it as `Arc<Resource>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    kind: Kind,
    name: Arc<str>,
    version: Arc<str>,
    any: Any,
    endpoints: Option<Arc<str>>,
    origin: Option<Arc<str>>,
    ttl: Option<Duration>,
}

impl Resource {
    /// Encodes `message`. The version is a hash of its content: the same on every replica, and in every run.
    #[must_use]
    pub fn new<M: Named>(message: &M) -> Self {
        let any = canonical::pack(message);
        Self {
            kind: M::KIND,
            name: message.resource_name().into(),
            version: content_version(&any.value),
            any,
            endpoints: message.endpoints().map(Into::into),
            origin: None,
            ttl: None,
        }
    }

    /// Says which document it was made of: that is where a client's refusal is shown.
    #[must_use]
    pub fn with_origin(mut self, document: impl Into<Arc<str>>) -> Self {
        self.origin = Some(document.into());
        self
    }

    /// Lets clients forget it after `ttl`, unless it is confirmed, as it is while the stream lives (xDS protocol, "TTL").
    /// Clients that do not announce `xds.config.supports-resource-ttl` keep it.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name, unique in its kind.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Hash of its content.
    #[must_use]
    pub const fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// The message.
    #[must_use]
    pub const fn any(&self) -> &Any {
        &self.any
    }

    /// Key of the document that it was made of.
    #[must_use]
    pub const fn origin(&self) -> Option<&Arc<str>> {
        self.origin.as_ref()
    }

    /// See [`Self::with_ttl`].
    #[must_use]
    pub const fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// The ClusterLoadAssignment that a cluster takes its endpoints from.
    #[must_use]
    pub const fn endpoints(&self) -> Option<&Arc<str>> {
        self.endpoints.as_ref()
    }
}

/// Version of some content: 128 bits of XXH3, in hexadecimal.
pub(crate) fn content_version(bytes: &[u8]) -> Arc<str> {
    format!("{:032x}", XxHash3_128::oneshot(bytes)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
    };

    #[test]
    fn the_version_is_that_of_the_content() {
        let cluster = |name: &str| Resource::new(&Cluster { name: name.into(), ..Cluster::default() });
        assert_eq!(cluster("a").version(), cluster("a").with_origin("Service/a").version());
        assert_ne!(cluster("a").version(), cluster("b").version());
        assert_eq!(&**cluster("a").version(), "47826ba3b4a6c9383716a010c7a345cb");
    }

    #[test]
    fn an_eds_cluster_names_its_endpoints() {
        let eds = |service: &str| Cluster {
            name: "a".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig { service_name: service.into(), eds_config: None }),
            ..Cluster::default()
        };
        let endpoints = |cluster| Resource::new(&cluster).endpoints().map(ToString::to_string);
        assert_eq!(endpoints(eds("")), Some("a".to_owned()));
        assert_eq!(endpoints(eds("b")), Some("b".to_owned()));
        assert_eq!(endpoints(Cluster::default()), None);
    }
}
