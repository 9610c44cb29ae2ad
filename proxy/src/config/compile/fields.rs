//! What compilers do with fields of any message: refuse those that are set, unwrap, unpack.
//!
//! Compilers take messages apart with exhaustive patterns, so that a field that nobody has thought of does not compile.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use prost::Name;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::CidrRange;
use remora_xds::pb::envoy::r#type::v3::Percent;
use remora_xds::pb::google::protobuf::{Any, BoolValue, Duration as DurationPb, UInt32Value};
use remora_xds::wire::Wire;

use super::Scope;
use super::common::duration;

/// Whether a field was written in the file (for plain scalars: whether it differs from the protobuf default).
pub(crate) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}
impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}
impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}
impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}
impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}
impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

/// Refuses each named field that is set.
macro_rules! refuse {
    ($scope:expr, $at:expr; $($field:ident),+ $(,)?) => {
        $(if $crate::config::compile::fields::IsSet::is_set($field) {
            $crate::config::compile::common::unsupported(true, &$at.field(stringify!($field)), $scope);
        })+
    };
}
pub(crate) use refuse;

/// A duration of which zero means off: `default` when absent.
pub(crate) fn timeout(
    value: Option<&DurationPb>,
    default: Option<Duration>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Duration> {
    match value {
        None => default,
        Some(_) => duration(value, at, scope).filter(|d| !d.is_zero()),
    }
}

/// The value of a wrapped bool.
pub(crate) fn boolean(value: Option<&BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// The value of a wrapped number within `range`; None when it is absent or (reported) outside.
pub(crate) fn number(
    value: Option<&UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<u32> {
    let value = value?.value;
    if range.contains(&value) {
        return Some(value);
    }
    let message = format!("{value} is not between {} and {}", range.start(), range.end());
    scope.errors.report(at, message);
    None
}

/// `type.v3.Percent`: 0 to 100.
pub(crate) fn percent(pb: Option<Percent>, default: f64, at: &At<'_>, scope: &mut Scope<'_>) -> f64 {
    let Some(pb) = pb else { return default };
    if !(0.0..=100.0).contains(&pb.value) {
        scope.errors.report(&at.field("value"), "must be from 0 to 100");
        return default;
    }
    pb.value
}

/// Whether an Any holds an `M`.
pub(crate) fn holds<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// The `M` in an Any of the right type.
pub(crate) fn unpack<M: Wire>(any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<M> {
    match M::from_bytes(&any.value) {
        Ok(message) => Some(message),
        Err(error) => {
            scope.errors.report(at, format!("cannot be decoded as {}: {error}", any.type_url));
            None
        }
    }
}

/// A CIDR range without host bits. As in Envoy a missing `prefix_len` is 0.
pub(crate) fn cidr(range: &CidrRange, at: &At<'_>, scope: &mut Scope<'_>) -> Option<IpNet> {
    let CidrRange { address_prefix, prefix_len } = range;
    let Ok(address) = address_prefix.parse::<IpAddr>() else {
        let message = format!("`{address_prefix}` is not an IP address");
        scope
            .errors
            .report(&at.field("address_prefix"), message)
            .fix("write it like 10.0.0.0, with prefix_len: 8");
        return None;
    };
    let length = prefix_len.as_ref().map_or(0, |l| l.value);
    match u8::try_from(length).ok().and_then(|length| IpNet::new(address, length).ok()) {
        Some(net) => Some(net.trunc()),
        None => {
            let most = if address.is_ipv4() { 32 } else { 128 };
            scope.errors.report(&at.field("prefix_len"), format!("{length} is more than {most}"));
            None
        }
    }
}
