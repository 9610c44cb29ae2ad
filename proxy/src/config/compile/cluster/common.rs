//! What all parts of the cluster compiler use.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb;

use crate::config::compile::Scope;
pub(super) use crate::config::compile::fields::percent;
use crate::upstream::endpoint::Metadata;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pb::google::protobuf;

/// Whether a field is there, in the sense of proto3.
pub(super) trait Given {
    fn given(&self) -> bool;
}

impl<T: Given> Given for &T {
    fn given(&self) -> bool {
        (**self).given()
    }
}
impl<T> Given for Option<T> {
    fn given(&self) -> bool {
        self.is_some()
    }
}
impl<T> Given for Vec<T> {
    fn given(&self) -> bool {
        !self.is_empty()
    }
}
impl<K, V, S> Given for HashMap<K, V, S> {
    fn given(&self) -> bool {
        !self.is_empty()
    }
}
impl Given for String {
    fn given(&self) -> bool {
        !self.is_empty()
    }
}
impl Given for bool {
    fn given(&self) -> bool {
        *self
    }
}
impl Given for i32 {
    fn given(&self) -> bool {
        *self != 0
    }
}
impl Given for u32 {
    fn given(&self) -> bool {
        *self != 0
    }
}

/// Reports every named field that is there as not supported. The names are local variables, taken from an exhaustive pattern: a
/// field that a newer API adds does not compile until somebody decides about it.
macro_rules! refuse {
    ($scope:expr, $at:expr, [$($field:ident),+ $(,)?]) => {
        $(if $crate::config::compile::cluster::common::Given::given(&$field) {
            $scope.errors.report(&$at.field(stringify!($field)), "is not supported");
        })+
    };
}
pub(super) use refuse;

/// The longest `google.protobuf.Duration`: 10,000 years. Adding it to an instant does not overflow.
const MAX_SECONDS: u64 = 315_576_000_000;

/// A duration that is not negative.
pub(super) fn duration(pb: protobuf::Duration, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Duration> {
    let (seconds, nanos) = (u64::try_from(pb.seconds).ok(), u32::try_from(pb.nanos).ok());
    match (seconds.filter(|s| *s <= MAX_SECONDS), nanos.filter(|n| *n < 1_000_000_000)) {
        (Some(seconds), Some(nanos)) => Some(Duration::new(seconds, nanos)),
        _ => {
            scope.errors.report(at, "must be from 0 to 315576000000 s");
            None
        }
    }
}

/// A duration that, when it is there, is longer than zero.
pub(super) fn positive(
    pb: Option<protobuf::Duration>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Duration> {
    let value = duration(pb?, at, scope)?;
    if value.is_zero() {
        scope.errors.report(at, "must be longer than zero");
        return None;
    }
    Some(value)
}

/// A timeout: absent is `default`, zero switches it off.
pub(super) fn timeout(
    pb: Option<protobuf::Duration>,
    default: Option<Duration>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Duration> {
    match pb {
        None => default,
        Some(pb) => duration(pb, at, scope).filter(|d| !d.is_zero()),
    }
}

/// The message in an `Any`, when its type is `M`.
pub(super) fn unpack<M: remora_xds::wire::Wire>(
    any: &protobuf::Any,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<M> {
    match M::from_bytes(&any.value) {
        Ok(message) => Some(message),
        Err(error) => {
            scope.errors.report(at, format!("is not a {}: {error}", M::full_name()));
            None
        }
    }
}

/// The type that an `Any` says it holds, without the part before the last slash.
pub(super) fn type_name(any: &protobuf::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether an `Any` says that it holds an `M`.
pub(super) fn is<M: prost::Name>(any: &protobuf::Any) -> bool {
    type_name(any) == M::full_name()
}

/// A host as an address names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

/// Host and port of a TCP `socket_address`.
pub(super) fn host_port(
    pb: Option<&core::Address>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Host, u16)> {
    let socket = match pb.and_then(|a| a.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => socket,
        Some(core::address::Address::Pipe(_)) => {
            scope.errors.report(&at.field("pipe"), "is not supported");
            return None;
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            scope.errors.report(&at.field("envoy_internal_address"), "is not supported");
            return None;
        }
        None => {
            scope.errors.report(&at.field("socket_address"), "is required");
            return None;
        }
    };
    let at = at.field("socket_address");
    socket_host_port(socket, &at, scope)
}

/// Host and port of a TCP `SocketAddress`. Port 0 is for the caller to judge.
pub(super) fn socket_host_port(
    pb: &core::SocketAddress,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Host, u16)> {
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = pb;
    let before = scope.errors.len();
    refuse!(scope, at, [resolver_name, ipv4_compat, network_namespace_filepath]);
    if *protocol != core::socket_address::Protocol::Tcp as i32 {
        scope.errors.report(&at.field("protocol"), "must be TCP");
    }
    let port = match port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok().or_else(|| {
            scope
                .errors
                .report(&at.field("port_value"), format!("{port} is not a port: the highest is 65535"));
            None
        }),
        Some(PortSpecifier::NamedPort(_)) => {
            scope.errors.report(&at.field("named_port"), "is not supported").fix("write port_value");
            None
        }
        None => {
            scope.errors.report(&at.field("port_value"), "is required");
            None
        }
    };
    let host = host(address, &at.field("address"), scope);
    (scope.errors.len() == before).then_some((host?, port?))
}

fn host(address: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Host> {
    if let Ok(ip) = address.parse() {
        return Some(Host::Ip(ip));
    }
    let name = address.strip_suffix('.').unwrap_or(address);
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
        scope.errors.report(at, format!("{address:?} is neither an IP address nor a host name"));
        return None;
    }
    Some(Host::Name(address.into()))
}

/// A `SocketAddress` that holds an IP address.
pub(super) fn ip_port(pb: &core::SocketAddress, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SocketAddr> {
    match socket_host_port(pb, at, scope)? {
        (Host::Ip(ip), port) => Some(SocketAddr::new(ip, port)),
        (Host::Name(name), _) => {
            scope.errors.report(&at.field("address"), format!("{name:?} is not an IP address"));
            None
        }
    }
}

/// `filter_metadata`; None when it is empty.
pub(super) fn metadata(
    pb: Option<&core::Metadata>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<Metadata>> {
    let core::Metadata { filter_metadata, typed_filter_metadata } = pb?;
    refuse!(scope, at, [typed_filter_metadata]);
    if filter_metadata.is_empty() {
        return None;
    }
    let sorted: BTreeMap<_, _> = filter_metadata.iter().collect();
    let fields = sorted.into_iter().map(|(name, value)| (name.as_str().into(), object(value)));
    Some(Arc::new(Metadata(fields.collect())))
}

fn object(pb: &protobuf::Struct) -> serde_json::Value {
    // Sorted: the order of a protobuf map is another one in every process.
    let sorted: BTreeMap<_, _> = pb.fields.iter().collect();
    serde_json::Value::Object(sorted.into_iter().map(|(k, v)| (k.clone(), json(v))).collect())
}

/// Recursion is bounded: the decoder refuses messages that are nested deeper than 100.
pub(crate) fn json(pb: &protobuf::Value) -> serde_json::Value {
    use pb::google::protobuf::value::Kind;
    match &pb.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::NumberValue(n)) => (*n).into(),
        Some(Kind::StringValue(s)) => s.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(json).collect(),
        Some(Kind::StructValue(fields)) => object(fields),
    }
}

/// A header name.
pub(super) fn header_name(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<http::HeaderName> {
    let parsed = http::HeaderName::from_bytes(name.as_bytes()).ok();
    if parsed.is_none() {
        scope.errors.report(at, format!("{name:?} is not a header name"));
    }
    parsed
}
