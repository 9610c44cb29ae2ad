//! The kinds of documents, in one table.

use std::fmt;
use std::sync::Arc;

use remora_xds::diag::SourceMap;

use crate::document::{
    AuthenticationPolicySpec, AuthorizationPolicySpec, BackendRef, Document, EndpointSliceSpec,
    FaultPolicySpec, GrpcRouteSpec, HttpFilter, HttpRouteSpec, ParentRef, PortRef, RateLimitPolicySpec,
    ReferenceGrantSpec, ServiceSpec, TcpRouteSpec, TlsRouteSpec, TrafficPolicySpec, WorkloadSpec,
};
use crate::name::{ByName, Key};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $list:ident, $spec:ident, $name:literal, $versions:expr;)+) => {
        /// A kind of document.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: [Self; [$(stringify!($kind)),+].len()] = [$(Self::$kind),+];

            /// `kind` as documents write it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// The `apiVersion` to write.
            #[must_use]
            pub const fn api_version(self) -> &'static str {
                self.api_versions()[0]
            }

            /// The `apiVersion`s that mean this kind, the one to write first.
            #[must_use]
            pub const fn api_versions(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => &$versions,)+
                }
            }
        }

        /// A document of any kind. Cheap to clone.
        #[derive(Debug, Clone)]
        pub enum AnyDocument {
            $($(#[$doc])* $kind(Arc<Document<$spec>>),)+
        }

        impl AnyDocument {
            /// Which one it is.
            #[must_use]
            pub fn key(&self) -> Key {
                match self {
                    $(Self::$kind(document) => Key::new(Kind::$kind, document.name()),)+
                }
            }

            /// Its file.
            #[must_use]
            pub fn source(&self) -> &Arc<str> {
                match self {
                    $(Self::$kind(document) => &document.source,)+
                }
            }

            /// Where its fields stand in that file.
            #[must_use]
            pub fn map(&self) -> &SourceMap {
                match self {
                    $(Self::$kind(document) => &document.map,)+
                }
            }
        }

        /// All documents of some texts, in their order.
        #[derive(Debug, Clone, Default)]
        pub struct Documents {
            $($(#[$doc])* pub $list: Vec<Document<$spec>>,)+
        }

        impl Documents {
            /// Number of documents.
            #[must_use]
            pub const fn len(&self) -> usize {
                0 $(+ self.$list.len())+
            }

            /// All of them, each as it would be applied to a [`crate::Mesh`].
            pub fn iter(&self) -> impl Iterator<Item = AnyDocument> {
                let all = std::iter::empty();
                $(let all = all.chain(self.$list.iter().cloned().map(|d| AnyDocument::$kind(Arc::new(d))));)+
                all
            }
        }

        /// Documents by kind and name.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct Tables {
            $(pub(crate) $list: ByName<Arc<Document<$spec>>>,)+
        }

        impl Tables {
            /// The document of `key`.
            pub(crate) fn get(&self, key: &Key) -> Option<AnyDocument> {
                match key.kind {
                    $(Kind::$kind => self.$list.of(&key.name).cloned().map(AnyDocument::$kind),)+
                }
            }

            /// Puts `document` in its place.
            pub(crate) fn insert(&mut self, document: AnyDocument) {
                match document {
                    $(AnyDocument::$kind(document) => drop(self.$list.insert(document.name(), document)),)+
                }
            }

            /// Takes the document of `key` out.
            pub(crate) fn remove(&mut self, key: &Key) {
                match key.kind {
                    $(Kind::$kind => drop(self.$list.remove(&key.name)),)+
                }
            }
        }
    };
}

kinds! {
    /// Service.
    Service, services, ServiceSpec, "Service", ["v1"];
    /// Workload.
    Workload, workloads, WorkloadSpec, "Workload", ["remora.dev/v1alpha1"];
    /// EndpointSlice.
    EndpointSlice, slices, EndpointSliceSpec, "EndpointSlice", ["discovery.k8s.io/v1"];
    /// HTTPRoute.
    HttpRoute, http_routes, HttpRouteSpec, "HTTPRoute",
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    /// GRPCRoute.
    GrpcRoute, grpc_routes, GrpcRouteSpec, "GRPCRoute", ["gateway.networking.k8s.io/v1"];
    /// TCPRoute.
    TcpRoute, tcp_routes, TcpRouteSpec, "TCPRoute",
        ["gateway.networking.k8s.io/v1alpha2", "gateway.networking.k8s.io/v1"];
    /// TLSRoute.
    TlsRoute, tls_routes, TlsRouteSpec, "TLSRoute",
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"];
    /// ReferenceGrant.
    ReferenceGrant, grants, ReferenceGrantSpec, "ReferenceGrant",
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
    /// TrafficPolicy.
    TrafficPolicy, policies, TrafficPolicySpec, "TrafficPolicy", ["remora.dev/v1alpha1"];
    /// AuthenticationPolicy.
    AuthenticationPolicy, authentications, AuthenticationPolicySpec, "AuthenticationPolicy", ["remora.dev/v1alpha1"];
    /// AuthorizationPolicy.
    AuthorizationPolicy, authorizations, AuthorizationPolicySpec, "AuthorizationPolicy", ["remora.dev/v1alpha1"];
    /// RateLimitPolicy.
    RateLimitPolicy, rate_limits, RateLimitPolicySpec, "RateLimitPolicy", ["remora.dev/v1alpha1"];
    /// FaultPolicy.
    FaultPolicy, faults, FaultPolicySpec, "FaultPolicy", ["remora.dev/v1alpha1"];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Kind {
    /// The part of `apiVersion` before the slash; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }
}

impl Documents {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AnyDocument {
    /// What a route is attached to; nothing for other kinds.
    pub(crate) fn parents(&self) -> &[ParentRef] {
        match self {
            Self::HttpRoute(d) => &d.spec.parent_refs,
            Self::GrpcRoute(d) => &d.spec.parent_refs,
            Self::TcpRoute(d) => &d.spec.parent_refs,
            Self::TlsRoute(d) => &d.spec.parent_refs,
            _ => &[],
        }
    }

    /// What a route leads to, or whom a policy asks or lets answer; nothing for other kinds.
    pub(crate) fn backends(&self) -> Vec<PortRef<'_>> {
        fn all<'a>(lists: impl Iterator<Item = &'a Vec<BackendRef>>) -> Vec<PortRef<'a>> {
            lists.flatten().map(BackendRef::to).collect()
        }
        fn mirrors(filters: &[HttpFilter]) -> impl Iterator<Item = PortRef<'_>> {
            filters.iter().filter_map(|filter| Some(filter.request_mirror.as_ref()?.backend_ref.to()))
        }
        match self {
            Self::HttpRoute(d) => {
                let mirrors = d.spec.rules.iter().flat_map(|rule| mirrors(&rule.filters));
                all(d.spec.rules.iter().map(|rule| &rule.backend_refs)).into_iter().chain(mirrors).collect()
            }
            Self::GrpcRoute(d) => {
                let mirrors = d.spec.rules.iter().flat_map(|rule| mirrors(&rule.filters));
                all(d.spec.rules.iter().map(|rule| &rule.backend_refs)).into_iter().chain(mirrors).collect()
            }
            Self::TcpRoute(d) => all(d.spec.rules.iter().map(|rule| &rule.backend_refs)),
            Self::TlsRoute(d) => all(d.spec.rules.iter().map(|rule| &rule.backend_refs)),
            Self::TrafficPolicy(d) => {
                let said = d.spec.circuit_breaker.iter().filter_map(|breaker| breaker.fallback.as_ref());
                said.filter_map(|fallback| Some(fallback.backend_ref.as_ref()?.to())).collect()
            }
            Self::AuthorizationPolicy(d) => {
                d.spec.provider.iter().map(|provider| provider.backend_ref.to()).collect()
            }
            Self::RateLimitPolicy(d) => d.spec.global.iter().map(|said| said.backend_ref.to()).collect(),
            _ => Vec::new(),
        }
    }
}
