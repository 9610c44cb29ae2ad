//! The documents as people write them. An unknown field is a mistake, never ignored.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use remora_xds::diag::SourceMap;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

use crate::name::Name;
use crate::span::Span;

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
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
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
    /// Notes of other tools; they mean nothing here.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339. Of two HTTPRoutes that match equally well, the older one holds.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
}

fn default_name() -> String {
    "default".into()
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
}

/// `v1` Service: a name for the workloads that its selector matches.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Labels that a workload of the same namespace must have. Empty: no workloads, only HTTPRoutes lead somewhere.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name, needed when there are several.
    #[serde(default)]
    pub name: Option<String>,
    /// The number that callers know.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Number or name of the port of the workload; `port` when it is left out.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// What is spoken. Left out, the beginning of the name says it (`http`, `http2`, `grpc`, `tcp`), else it is TCP.
    #[serde(default)]
    pub app_protocol: Option<AppProtocol>,
    /// Only TCP.
    #[serde(default)]
    pub protocol: Transport,
}

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Transport {
    /// The only one.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
}

/// `appProtocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AppProtocol {
    /// HTTP/1 to the application.
    #[serde(rename = "http", alias = "HTTP")]
    Http,
    /// HTTP/2 with prior knowledge to the application.
    #[serde(rename = "kubernetes.io/h2c", alias = "http2", alias = "h2c")]
    Http2,
    /// HTTP/2, and requests are gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// Opaque bytes.
    #[serde(rename = "tcp", alias = "TCP")]
    Tcp,
}

impl ServicePort {
    /// What is spoken on the port.
    #[must_use]
    pub fn speaks(&self) -> AppProtocol {
        let by_name = || match self.name.as_deref()?.split('-').next()? {
            "http" => Some(AppProtocol::Http),
            "http2" => Some(AppProtocol::Http2),
            "grpc" => Some(AppProtocol::Grpc),
            _ => None,
        };
        self.app_protocol.or_else(by_name).unwrap_or(AppProtocol::Tcp)
    }
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name that the workload gives it.
    Name(String),
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = TargetPort;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the number or the name of a port")
            }
            fn visit_i128<E: Error>(self, value: i128) -> Result<TargetPort, E> {
                let number = u16::try_from(value).ok().filter(|n| *n > 0);
                number
                    .map(TargetPort::Number)
                    .ok_or_else(|| E::custom(format_args!("{value} is no port: 1 to 65535")))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let value = u64::deserialize(deserializer)?;
    let number = u16::try_from(value).ok().filter(|n| *n > 0);
    number.ok_or_else(|| Error::invalid_value(Unexpected::Unsigned(value), &"a port from 1 to 65535"))
}

fn some_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    port(deserializer).map(Some)
}

/// `remora.dev/v1alpha1` Workload: a process on a machine, with a sidecar beside it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Where other sidecars reach this one's.
    pub address: IpAddr,
    /// Port of the sidecar's inbound listener.
    #[serde(default = "default_inbound", deserialize_with = "port")]
    pub inbound_port: u16,
    /// Where the program listens, on loopback.
    #[serde(default)]
    pub ports: Vec<WorkloadPort>,
    /// The identity is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// Its share of the requests, relative to the others of its Services.
    #[serde(default = "one")]
    pub weight: u32,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// What the program calls. Left out: every port of every Service of the namespace that does not select this workload.
    #[serde(default)]
    pub egress: Option<Vec<Egress>>,
}

/// A place, from large to small.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Locality {
    /// Region.
    #[serde(default)]
    pub region: String,
    /// Zone of the region.
    #[serde(default)]
    pub zone: String,
    /// Part of the zone.
    #[serde(default)]
    pub sub_zone: String,
}

/// Port of the inbound listener when a Workload names none.
const fn default_inbound() -> u16 {
    15_006
}

/// A port of a workload.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadPort {
    /// What `targetPort` may say.
    #[serde(default)]
    pub name: Option<String>,
    /// Number.
    #[serde(deserialize_with = "port")]
    pub port: u16,
}

/// A Service that a workload calls, on a port of its own loopback.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// Name of the Service.
    pub service: String,
    /// Its namespace; the workload's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// A port of it; all of them when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
    /// Where the sidecar listens on 127.0.0.1; the Service's own port when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub local_port: Option<u16>,
}

/// Gateway API `HTTPRoute`, attached to Services.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The Services whose callers it routes.
    pub parent_refs: Vec<ParentRef>,
    /// What it does.
    #[serde(default)]
    pub rules: Vec<HttpRule>,
}

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the route's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// One port; all of them when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
}

/// A rule of a route.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// Name, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these; none is everything.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// What is done to requests and responses.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
    /// Where requests go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: HttpTimeouts,
}

/// All of these must match.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Path; every path when it is left out.
    #[serde(default)]
    pub path: PathMatch,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    /// Method.
    #[serde(default)]
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// RE2 over the whole path.
    RegularExpression,
}

/// A path match.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// What.
    #[serde(default = "slash")]
    pub value: String,
}

fn slash() -> String {
    "/".into()
}

impl Default for PathMatch {
    fn default() -> Self {
        Self { kind: PathMatchType::default(), value: slash() }
    }
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum ValueMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// RE2 over the whole value.
    RegularExpression,
}

/// A header or query parameter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// How.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `type` of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum HttpFilterType {
    /// Changes headers of the request.
    RequestHeaderModifier,
    /// Changes headers of the response.
    ResponseHeaderModifier,
    /// Changes host or path of the request.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers with a redirect.
    RequestRedirect,
}

/// A filter: the field of its type is set, and no other.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFilter {
    /// Which.
    #[serde(rename = "type")]
    pub kind: HttpFilterType,
    /// For RequestHeaderModifier.
    #[serde(default)]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For ResponseHeaderModifier.
    #[serde(default)]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For URLRewrite.
    #[serde(default)]
    pub url_rewrite: Option<UrlRewrite>,
    /// For RequestRedirect.
    #[serde(default)]
    pub request_redirect: Option<RequestRedirect>,
}

/// Changes of headers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replaced, or added.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Added to what is there.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Removed.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A rewrite.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// The new host.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The new path.
    #[serde(default)]
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PathModifierType {
    /// As a whole.
    ReplaceFullPath,
    /// The part that the rule's prefix matched.
    ReplacePrefixMatch,
}

/// A new path.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// How.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For ReplaceFullPath.
    #[serde(default)]
    pub replace_full_path: Option<String>,
    /// For ReplacePrefixMatch.
    #[serde(default)]
    pub replace_prefix_match: Option<String>,
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`; the request's when it is left out.
    #[serde(default)]
    pub scheme: Option<String>,
    /// The request's when it is left out.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The request's when it is left out.
    #[serde(default)]
    pub path: Option<PathModifier>,
    /// The scheme's, or the request's, when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    pub status_code: u16,
}

const fn found() -> u16 {
    302
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; the route's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Port of the Service.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Share of the requests.
    #[serde(default = "one")]
    pub weight: u32,
    /// For the requests that go here; header modifiers only.
    #[serde(default)]
    pub filters: Vec<HttpFilter>,
}

const fn one() -> u32 {
    1
}

/// Time limits of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTimeouts {
    /// The whole request, retries included; 0s is none.
    #[serde(default)]
    pub request: Option<Span>,
    /// One try.
    #[serde(default)]
    pub backend_request: Option<Span>,
}

/// `remora.dev/v1alpha1` TrafficPolicy: how callers treat a Service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The Services (GEP-713). A Service has at most one TrafficPolicy.
    pub target_refs: Vec<TargetRef>,
    /// Retries.
    #[serde(default)]
    pub retries: Retries,
    /// Time limits.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Limits.
    #[serde(default)]
    pub connections: Connections,
    /// How an endpoint is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
}

/// What a policy is attached to: a Service of its own namespace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
}

/// Retries.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Envoy's conditions (`5xx`, `reset`, …), besides those that are always safe: the request was not processed.
    #[serde(default)]
    pub on: Vec<String>,
    /// Statuses that are tried again.
    #[serde(default)]
    pub status_codes: Vec<u16>,
    /// Tries beyond the first, 2 when it is left out; 0 switches retries off.
    #[serde(default)]
    pub num: Option<u32>,
    /// Time limit of each try.
    #[serde(default)]
    pub per_try: Option<Span>,
    /// How many retries there may be at once.
    #[serde(default)]
    pub budget: RetryBudget,
}

/// Retries that may be in flight: a share of the requests in flight, or the minimum if that is more.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Percent; 20 when it is left out.
    #[serde(default)]
    pub percent: Option<u32>,
    /// 10 when it is left out.
    #[serde(default)]
    pub min_concurrency: Option<u32>,
}

/// Time limits of a policy. A rule's own hold before these.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The whole request, retries included; none when it is left out.
    #[serde(default)]
    pub request: Option<Span>,
    /// No byte in either direction; 5 minutes when it is left out.
    #[serde(default)]
    pub idle: Option<Span>,
    /// Connecting to an endpoint, TLS included; 1 second when it is left out.
    #[serde(default)]
    pub connect: Option<Span>,
}

/// Limits towards a Service, for each caller's sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connections {
    /// Connections; 10,000 when it is left out.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; 10,000 when it is left out.
    #[serde(default)]
    pub max_pending_requests: Option<u32>,
    /// Requests in flight; 10,000 when it is left out.
    #[serde(default)]
    pub max_requests: Option<u32>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum LoadBalancing {
    /// The less busy one of two random ones.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
}
