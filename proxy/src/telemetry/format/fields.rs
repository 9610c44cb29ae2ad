//! Operators without argument.

use std::net::SocketAddr;

use crate::telemetry::record::AccessRecord;

macro_rules! fields {
    ($($name:literal = $variant:ident),+ ; numbers: $($number:literal = $number_variant:ident),+ $(,)?) => {
        /// An operator without argument.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field { $($variant,)+ $($number_variant,)+ }

        impl Field {
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    $($number => Some(Self::$number_variant),)+
                    _ => None,
                }
            }

            /// Whether the value is a number, which JSON logs write without quotes.
            pub(super) const fn is_number(self) -> bool {
                matches!(self, $(Self::$number_variant)|+)
            }
        }

        /// Names of all operators that can be used.
        pub const SUPPORTED: &[&str] = &[
            "REQ", "RESP", "TRAILER", "START_TIME", "GRPC_STATUS", "GRPC_STATUS_NUMBER", "HOSTNAME",
            $($name,)+ $($number,)+
        ];
    };
}

fields! {
    "PROTOCOL" = Protocol,
    "UPSTREAM_PROTOCOL" = UpstreamProtocol,
    "RESPONSE_CODE_DETAILS" = ResponseCodeDetails,
    "CONNECTION_TERMINATION_DETAILS" = ConnectionTerminationDetails,
    "RESPONSE_FLAGS" = ResponseFlags,
    "RESPONSE_FLAGS_LONG" = ResponseFlagsLong,
    "UPSTREAM_HOST" = UpstreamHost,
    "UPSTREAM_CLUSTER" = UpstreamCluster,
    "UPSTREAM_LOCAL_ADDRESS" = UpstreamLocalAddress,
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" = UpstreamLocalIp,
    "UPSTREAM_REMOTE_ADDRESS" = UpstreamRemoteAddress,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" = UpstreamRemoteIp,
    "UPSTREAM_TRANSPORT_FAILURE_REASON" = UpstreamTransportFailure,
    "UPSTREAM_PEER_URI_SAN" = UpstreamPeerUriSan,
    "UPSTREAM_TLS_VERSION" = UpstreamTlsVersion,
    "UPSTREAM_TLS_CIPHER" = UpstreamTlsCipher,
    "DOWNSTREAM_REMOTE_ADDRESS" = DownstreamRemoteAddress,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" = DownstreamRemoteIp,
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" = DownstreamDirectRemoteAddress,
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" = DownstreamDirectRemoteIp,
    "DOWNSTREAM_LOCAL_ADDRESS" = DownstreamLocalAddress,
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" = DownstreamLocalIp,
    "DOWNSTREAM_PEER_URI_SAN" = DownstreamPeerUriSan,
    "DOWNSTREAM_LOCAL_URI_SAN" = DownstreamLocalUriSan,
    "DOWNSTREAM_PEER_SUBJECT" = DownstreamPeerSubject,
    "DOWNSTREAM_TLS_VERSION" = DownstreamTlsVersion,
    "DOWNSTREAM_TLS_CIPHER" = DownstreamTlsCipher,
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON" = DownstreamTransportFailure,
    "REQUESTED_SERVER_NAME" = RequestedServerName,
    "ROUTE_NAME" = RouteName,
    "FILTER_CHAIN_NAME" = FilterChainName,
    "STREAM_ID" = StreamId,
    "TRACE_ID" = TraceId,
    "REMORA_REASON" = Reason,
    "REMORA_PARTY" = Party,
    "REMORA_SHADOW" = Shadow;
    numbers:
    "RESPONSE_CODE" = ResponseCode,
    "BYTES_RECEIVED" = BytesReceived,
    "BYTES_SENT" = BytesSent,
    "DURATION" = Duration,
    "REQUEST_DURATION" = RequestDuration,
    "REQUEST_TX_DURATION" = RequestTxDuration,
    "RESPONSE_DURATION" = ResponseDuration,
    "RESPONSE_TX_DURATION" = ResponseTxDuration,
    "REQUEST_HEADERS_BYTES" = RequestHeadersBytes,
    "RESPONSE_HEADERS_BYTES" = ResponseHeadersBytes,
    "RESPONSE_TRAILERS_BYTES" = ResponseTrailersBytes,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT" = Attempts,
    "CONNECTION_ID" = ConnectionId,
    "UPSTREAM_LOCAL_PORT" = UpstreamLocalPort,
    "UPSTREAM_REMOTE_PORT" = UpstreamRemotePort,
    "DOWNSTREAM_LOCAL_PORT" = DownstreamLocalPort,
    "DOWNSTREAM_REMOTE_PORT" = DownstreamRemotePort,
    "DOWNSTREAM_DIRECT_REMOTE_PORT" = DownstreamDirectRemotePort,
}

/// Envoy's operators that are known and not supported: refused with other words than a typing mistake.
pub(super) const REFUSED: &[&str] = &[
    "ACCESS_LOG_TYPE",
    "CEL",
    "CLUSTER_METADATA",
    "COMMON_DURATION",
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DYNAMIC_METADATA",
    "EMIT_TIME",
    "ENVIRONMENT",
    "FILTER_STATE",
    "LISTENER_METADATA",
    "LOCAL_REPLY_BODY",
    "METADATA",
    "PATH",
    "QUERY_PARAM",
    "QUERY_PARAMS",
    "REQ_WITHOUT_QUERY",
    "START_TIME_LOCAL",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "UNIQUE_ID",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_METADATA",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

/// The text of a field, where it is one.
pub(super) enum Text<'a> {
    Str(&'a str),
    Address(SocketAddr),
    Ip(SocketAddr),
    FlagsShort,
    FlagsLong,
}

impl Field {
    /// The value of a text field, None when it is absent.
    pub(super) fn text<'a>(self, r: &'a AccessRecord<'_>) -> Option<Text<'a>> {
        let text = match self {
            Self::Protocol => protocol(r.request?.version),
            Self::UpstreamProtocol => protocol(r.upstream.protocol?),
            Self::ResponseCodeDetails => r.details()?,
            Self::ConnectionTerminationDetails => r.termination_details?,
            Self::ResponseFlags => return Some(Text::FlagsShort),
            Self::ResponseFlagsLong => return Some(Text::FlagsLong),
            Self::RequestedServerName => r.downstream.server_name?,
            Self::RouteName => r.route_name?,
            Self::FilterChainName => r.downstream.filter_chain?,
            Self::StreamId => {
                r.stream_id.or_else(|| r.request?.headers.get("x-request-id")?.to_str().ok())?
            }
            Self::TraceId => r.trace_id?,
            Self::Reason => r.reason?.id(),
            Self::Party => r.reason?.party().as_str(),
            Self::Shadow => r.shadow?,
            _ => return self.peer(r),
        };
        (!text.is_empty()).then_some(Text::Str(text))
    }

    /// The value of a text field that tells of one of the two connections.
    fn peer<'a>(self, r: &'a AccessRecord<'_>) -> Option<Text<'a>> {
        let (down, up) = (&r.downstream, &r.upstream);
        let text = match self {
            Self::UpstreamCluster => up.cluster?,
            Self::UpstreamTransportFailure => up.transport_failure?,
            Self::UpstreamPeerUriSan => up.peer_uri_san?,
            Self::UpstreamTlsVersion => up.tls_version?,
            Self::UpstreamTlsCipher => up.tls_cipher?,
            Self::DownstreamPeerUriSan => down.peer_uri_san?,
            Self::DownstreamLocalUriSan => down.local_uri_san?,
            Self::DownstreamPeerSubject => down.peer_subject?,
            Self::DownstreamTlsVersion => down.tls_version?,
            Self::DownstreamTlsCipher => down.tls_cipher?,
            Self::DownstreamTransportFailure => down.transport_failure?,
            Self::UpstreamHost | Self::UpstreamRemoteAddress => return up.remote.map(Text::Address),
            Self::UpstreamRemoteIp => return up.remote.map(Text::Ip),
            Self::UpstreamLocalAddress => return up.local.map(Text::Address),
            Self::UpstreamLocalIp => return up.local.map(Text::Ip),
            Self::DownstreamRemoteAddress => return down.remote.map(Text::Address),
            Self::DownstreamRemoteIp => return down.remote.map(Text::Ip),
            Self::DownstreamDirectRemoteAddress => return down.direct_remote.map(Text::Address),
            Self::DownstreamDirectRemoteIp => return down.direct_remote.map(Text::Ip),
            Self::DownstreamLocalAddress => return down.local.map(Text::Address),
            Self::DownstreamLocalIp => return down.local.map(Text::Ip),
            _ => return None,
        };
        (!text.is_empty()).then_some(Text::Str(text))
    }

    /// The value of a number field, None when it is absent.
    pub(super) fn number(self, r: &AccessRecord<'_>) -> Option<u64> {
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let t = &r.timings;
        let port = |a: Option<SocketAddr>| a.map(|a| u64::from(a.port()));
        match self {
            Self::ResponseCode => Some(u64::from(r.status_code())),
            Self::BytesReceived => Some(r.bytes_received),
            Self::BytesSent => Some(r.bytes_sent),
            Self::Duration => t.total.map(millis),
            Self::RequestDuration => t.request_received.map(millis),
            Self::RequestTxDuration => t.request_sent.map(millis),
            Self::ResponseDuration => t.response_started.map(millis),
            Self::ResponseTxDuration => Some(millis(t.total?.saturating_sub(t.response_started?))),
            Self::RequestHeadersBytes => Some(r.request.map_or(0, request_bytes)),
            Self::ResponseHeadersBytes => Some(r.response.map_or(0, |h| header_bytes(&h.headers) + 10)),
            Self::ResponseTrailersBytes => Some(r.trailers.map_or(0, header_bytes)),
            Self::Attempts => Some(u64::from(r.attempts)),
            Self::ConnectionId => r.downstream.connection_id,
            Self::UpstreamLocalPort => port(r.upstream.local),
            Self::UpstreamRemotePort => port(r.upstream.remote),
            Self::DownstreamLocalPort => port(r.downstream.local),
            Self::DownstreamRemotePort => port(r.downstream.remote),
            Self::DownstreamDirectRemotePort => port(r.downstream.direct_remote),
            _ => None,
        }
    }
}

/// Envoy's names of the HTTP versions.
const fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 | http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// Names and values, without separators: what Envoy calls the uncompressed size.
fn header_bytes(headers: &http::HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

fn request_bytes(head: &crate::http::head::RequestHead) -> u64 {
    let authority = head.authority.as_ref().map_or(0, |a| ":authority".len() + a.as_str().len());
    let pseudo = ":method".len() + ":path".len() + ":scheme".len() + authority;
    let values = head.method.as_str().len() + head.path.as_str().len() + head.scheme.as_str().len();
    header_bytes(&head.headers) + (pseudo + values) as u64
}
