//! The documents as people write them. An unknown field is a mistake, never ignored.

mod authorization;
mod backend;
mod balancing;
mod breaker;
mod cors;
mod fault;
mod grant;
mod grpc;
mod health;
mod http;
mod http_filter;
mod jwt;
mod limit;
mod outlier;
mod percent;
mod policy;
mod provider;
mod service;
mod session;
mod slice;
mod tcp;
mod traffic;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

use remora_xds::diag::SourceMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, Unexpected};

use crate::name::Name;

pub use authorization::{
    Action, Attribute, AuthorizationPolicySpec, AuthorizationRule, Condition, From, Operation, Source, To,
    cidr,
};
pub(crate) use backend::PortRef;
pub use backend::{BackendObjectReference, BackendRef, ParentRef};
pub use balancing::{LbPolicy, LoadBalancing, SlowStart};
pub use breaker::{CircuitBreaker, Fallback, FixedAnswer, LastGood, WindowType};
pub use cors::{Cors, Fraction, RequestMirror};
pub use fault::{Abort, Delay, Fault, FaultPolicySpec};
pub use grant::{GrantFrom, GrantTo, ReferenceGrantSpec};
pub use grpc::{GrpcMatch, GrpcMethod, GrpcRouteSpec, GrpcRule};
pub use health::{GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
pub use http::{
    HttpMatch, HttpRetry, HttpRouteSpec, HttpRule, HttpTimeouts, PathMatch, PathMatchType, ValueMatch,
    ValueMatchType,
};
pub use http_filter::{
    Header, HeaderModifier, HttpFilter, HttpFilterType, PathModifier, PathModifierType, RequestRedirect,
    UrlRewrite,
};
pub use jwt::{ClaimToHeader, JwtHeader, JwtRule, KeyServer};
pub use limit::{Descriptor, Entry, GlobalLimits, Limit, LimitBy, LimitScope, RateLimitPolicySpec};
pub use outlier::{FailurePercentage, OutlierDetection, SuccessRate};
pub use percent::{Percent, Statuses};
pub use policy::{AuthenticationPolicySpec, Mtls, MtlsMode, PortMtls, TargetRef};
pub use provider::{ForwardBody, GrpcAuth, HttpAuth, Provider, ProviderProtocol};
pub use service::{AppProtocol, ServicePort, ServiceSpec, TargetPort, Transport};
pub use session::{Cookie, CookieConfig, HashOn, LifetimeType, Session, SessionPersistence, SessionType};
pub(crate) use slice::SliceEnvelope;
pub use slice::{Conditions, EndpointSliceSpec, ObjectRef, SERVICE_NAME, SIDECARS, SliceEndpoint, SlicePort};
pub use tcp::{TcpRouteSpec, TcpRule, TlsRouteSpec};
pub use traffic::{Connections, Retries, RetryBudget, Timeouts, TrafficPolicySpec};
pub use workload::{Egress, HttpProxy, INBOUND_PORT, Interception, Locality, WorkloadPort, WorkloadSpec};

/// A document that was read.
#[derive(Debug, Clone)]
pub struct Document<S> {
    /// Who it is.
    pub metadata: Metadata,
    /// What it says.
    pub spec: S,
    /// Its file.
    pub source: Arc<str>,
    /// Where its fields stand in that file.
    pub map: SourceMap,
}

impl<S> Document<S> {
    /// Its namespace and name.
    #[must_use]
    pub fn name(&self) -> Name {
        Name::new(&self.metadata.namespace, &self.metadata.name)
    }

    /// Of two documents that say different things the older one holds, then the first by namespace and name. A document without a
    /// time is a file's; it is newer than any that has one.
    pub(crate) fn age(&self) -> (bool, Option<&str>, &str, &str) {
        let metadata = &self.metadata;
        (
            metadata.creation_timestamp.is_none(),
            metadata.creation_timestamp.as_deref(),
            metadata.namespace.as_str(),
            metadata.name.as_str(),
        )
    }
}

/// `metadata` of Kubernetes, the part that means something here.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique in its kind and namespace.
    pub name: String,
    /// Namespace; `default` when it is left out.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// What selectors match. `app` and `version` also become labels of metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Notes of other tools, which mean nothing here; but for `remora.dev/sidecars` of an EndpointSlice.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339. Of two HTTPRoutes that match equally well, the older one holds.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
    /// What Kubernetes keeps with a document and nobody writes; it means nothing here.
    #[serde(default, rename = "uid")]
    pub(crate) _uid: Kept,
    #[serde(default, rename = "resourceVersion")]
    pub(crate) _resource_version: Kept,
    #[serde(default, rename = "generation")]
    pub(crate) _generation: Kept,
    #[serde(default, rename = "managedFields")]
    pub(crate) _managed_fields: Kept,
    #[serde(default, rename = "ownerReferences")]
    pub(crate) _owner_references: Kept,
    #[serde(default, rename = "finalizers")]
    pub(crate) _finalizers: Kept,
    #[serde(default, rename = "generateName")]
    pub(crate) _generate_name: Kept,
}

/// Any value, which is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kept;

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// A field of the Gateway API, or one that is planned, which cannot be honoured yet. Whatever it holds is refused by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unsupported(());

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(()))
    }
}

crate::schema::written!(Kept, "Kept", { "x-kubernetes-preserve-unknown-fields": true });
crate::schema::written!(Unsupported, "Unsupported", { "x-kubernetes-preserve-unknown-fields": true });

/// The namespace of documents that name none.
pub(crate) const DEFAULT: &str = "default";

fn default_name() -> String {
    DEFAULT.into()
}

/// The whole text of a document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Envelope<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(crate) metadata: Metadata,
    pub(crate) spec: S,
    /// What controllers say of a document in Kubernetes.
    #[serde(default, rename = "status")]
    _status: Kept,
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let value = u64::deserialize(deserializer)?;
    let number = u16::try_from(value).ok().filter(|n| *n > 0);
    number.ok_or_else(|| Error::invalid_value(Unexpected::Unsigned(value), &"a port from 1 to 65535"))
}

fn some_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    port(deserializer).map(Some)
}

const fn one() -> u32 {
    1
}
