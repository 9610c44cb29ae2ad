//! Small pieces of Envoy's API.

use std::net::SocketAddr;
use std::time::Duration;

use remora_xds::any;
use remora_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use remora_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use remora_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use remora_xds::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, Metadata, SocketAddress,
};
use remora_xds::pb::envoy::config::listener::v3::ListenerFilter;
use remora_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use remora_xds::pb::envoy::config::route::v3::route_action::MaxStreamDuration;
use remora_xds::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use remora_xds::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use remora_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use remora_xds::pb::envoy::r#type::v3::FractionalPercent;
use remora_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use remora_xds::pb::google::protobuf::value::Kind;
use remora_xds::pb::google::protobuf::{
    BoolValue, Duration as PbDuration, ListValue, Struct, UInt32Value, Value,
};

pub(super) use any::pack;

pub(crate) fn address(at: SocketAddr) -> Address {
    host(&at.ip().to_string(), at.port())
}

/// A name that is looked up, or an address.
pub(super) fn host(host: &str, port: u16) -> Address {
    let socket = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
pub(super) fn seconds(seconds: u64) -> Option<PbDuration> {
    Some(duration(Duration::from_secs(seconds)))
}

pub(super) fn duration(time: Duration) -> PbDuration {
    // Both fit: documents hold at most 99,999 hours.
    PbDuration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: time.subsec_nanos() as i32,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
pub(super) const fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
pub(super) const fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// So many of a million.
pub(super) fn percent(millionths: u32) -> FractionalPercent {
    FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() }
}

/// Of a route without a time limit: what the caller says in `grpc-timeout` holds, however long it is.
pub(super) fn by_the_caller() -> MaxStreamDuration {
    MaxStreamDuration { grpc_timeout_header_max: seconds(0), ..MaxStreamDuration::default() }
}

/// Looks for a server name at the beginning of a connection.
pub(super) fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".into(),
        config_type: Some(ConfigType::TypedConfig(pack(&TlsInspector::default()))),
        ..ListenerFilter::default()
    }
}

/// Asks where a connection was going before rules led it here.
pub(super) fn original_dst() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.original_dst".into(),
        config_type: Some(ConfigType::TypedConfig(pack(&OriginalDst::default()))),
        ..ListenerFilter::default()
    }
}

pub(super) fn original_src() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.original_src".into(),
        config_type: Some(ConfigType::TypedConfig(pack(&OriginalSrc::default()))),
        ..ListenerFilter::default()
    }
}

/// The stream that a node gets all its resources from.
pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

/// Metadata of a cluster under `istio`: the Service that it stands for.
pub(super) fn service(host: String, namespace: &str, name: &str) -> Metadata {
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let one =
        object([("host", Kind::StringValue(host)), ("name", text(name)), ("namespace", text(namespace))]);
    let list = ListValue { values: vec![Value { kind: Some(Kind::StructValue(one)) }] };
    let istio = object([("services", Kind::ListValue(list))]);
    Metadata { filter_metadata: [("istio".to_owned(), istio)].into(), ..Metadata::default() }
}

/// A JSON object.
pub(super) fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Kind)>) -> Struct {
    let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
    Struct { fields: fields.collect() }
}
