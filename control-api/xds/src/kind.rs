//! The kinds of resources that a stream carries.

use prost::{Message, Name};

use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

/// A kind of resource, in the order in which a push introduces them: what refers comes after what is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SDS: certificates, keys and trusted authorities.
    Secret,
    /// CDS.
    Cluster,
    /// EDS.
    ClusterLoadAssignment,
    /// LDS.
    Listener,
    /// RDS.
    RouteConfiguration,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Self; 5] =
        [Self::Secret, Self::Cluster, Self::ClusterLoadAssignment, Self::Listener, Self::RouteConfiguration];

    /// Its type URL.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::ClusterLoadAssignment => {
                "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
            }
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind with this type URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Its number: the index into a list with an entry for each kind.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The message name without its package, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::Cluster => "Cluster",
            Self::ClusterLoadAssignment => "ClusterLoadAssignment",
            Self::Listener => "Listener",
            Self::RouteConfiguration => "RouteConfiguration",
        }
    }

    /// Whether a state-of-the-world response has to hold all resources of this kind, so that one that is missing is gone
    /// (xDS protocol, "Deleting resources"). Only these kinds have the legacy wildcard, an empty list of names.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The kinds that refer to this one: it is removed after them.
    #[must_use]
    pub const fn referrers(self) -> &'static [Self] {
        match self {
            Self::Secret => &[Self::Cluster, Self::Listener],
            Self::Cluster => &[Self::Listener, Self::RouteConfiguration],
            Self::ClusterLoadAssignment => &[Self::Cluster],
            Self::Listener => &[],
            Self::RouteConfiguration => &[Self::Listener],
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message that is a resource of its own.
pub trait Named: Message + Name + Default {
    /// Its kind.
    const KIND: Kind;
    /// Its name, unique in its kind.
    fn resource_name(&self) -> &str;
    /// The ClusterLoadAssignment that it takes its endpoints from.
    fn endpoints(&self) -> Option<&str> {
        None
    }
}

impl Named for Secret {
    const KIND: Kind = Kind::Secret;
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for Cluster {
    const KIND: Kind = Kind::Cluster;
    fn resource_name(&self) -> &str {
        &self.name
    }
    fn endpoints(&self) -> Option<&str> {
        let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
        if self.cluster_discovery_type.as_ref() != Some(&eds) {
            return None;
        }
        let named = self.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
        Some(named.filter(|name| !name.is_empty()).unwrap_or(&self.name))
    }
}

impl Named for ClusterLoadAssignment {
    const KIND: Kind = Kind::ClusterLoadAssignment;
    fn resource_name(&self) -> &str {
        &self.cluster_name
    }
}

impl Named for Listener {
    const KIND: Kind = Kind::Listener;
    fn resource_name(&self) -> &str {
        &self.name
    }
}

impl Named for RouteConfiguration {
    const KIND: Kind = Kind::RouteConfiguration;
    fn resource_name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        fn check<M: Named>() {
            assert_eq!(M::KIND.type_url(), M::type_url());
            assert_eq!(Kind::from_type_url(&M::type_url()), Some(M::KIND));
            assert_eq!(Kind::ALL[M::KIND.index()], M::KIND);
        }
        check::<Secret>();
        check::<Cluster>();
        check::<ClusterLoadAssignment>();
        check::<Listener>();
        check::<RouteConfiguration>();
        assert_eq!(Kind::from_type_url("type.googleapis.com/envoy.config.core.v3.Node"), None);
    }

    #[test]
    fn a_push_introduces_what_is_referred_to_first() {
        for kind in Kind::ALL {
            let cluster_of_endpoints = kind == Kind::ClusterLoadAssignment;
            let later = |k: &Kind| *k > kind || cluster_of_endpoints || kind == Kind::RouteConfiguration;
            assert!(kind.referrers().iter().all(later), "{kind}");
        }
    }
}
