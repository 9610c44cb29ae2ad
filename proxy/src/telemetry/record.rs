//! What is known about one finished request or connection: the input of access logs, and of header values with
//! operators, which are rendered from a record that is only partly filled in.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, Version};

use crate::error::Reason;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::flags::ResponseFlags;

/// One finished request (HTTP) or connection (TCP). Everything is borrowed: building one costs no allocation.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessRecord<'a> {
    /// Wall clock when the request's first byte, or the connection, arrived.
    pub start: Option<SystemTime>,
    /// The request; None in a TCP log.
    pub request: Option<&'a RequestHead>,
    /// The response that was sent downstream; None when the request ended before one.
    pub response: Option<&'a ResponseHead>,
    /// Read instead of the headers of `request`: while they are being changed, they are not in their head.
    pub request_headers: Option<&'a HeaderMap>,
    /// Read instead of the headers of `response`.
    pub response_headers: Option<&'a HeaderMap>,
    /// Response trailers.
    pub trailers: Option<&'a HeaderMap>,
    /// Status sent downstream; 499 when the client went away before.
    pub status: Option<StatusCode>,
    /// Why the proxy ended the request, when it did.
    pub reason: Option<Reason>,
    /// Response flags besides the one of `reason`.
    pub flags: ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`; None derives it from `reason` and `response`.
    pub response_code_details: Option<&'a str>,
    /// What `shadow_rules` would have said (`%REMORA_SHADOW%`).
    pub shadow: Option<&'a str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<&'a str>,
    /// Body bytes received from downstream (TCP: all bytes).
    pub bytes_received: u64,
    /// Body bytes sent downstream (TCP: all bytes).
    pub bytes_sent: u64,
    /// When what happened.
    pub timings: Timings,
    /// `%ROUTE_NAME%`.
    pub route_name: Option<&'a str>,
    /// `%STREAM_ID%`; None falls back on the header x-request-id.
    pub stream_id: Option<&'a str>,
    /// `%TRACE_ID%`.
    pub trace_id: Option<&'a str>,
    /// Upstream attempts, 0 when the request never left this proxy.
    pub attempts: u32,
    /// The client's side.
    pub downstream: Downstream<'a>,
    /// The endpoint's side, of the last attempt.
    pub upstream: Upstream<'a>,
}

/// Points in time of a request, each as the time since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Last byte sent downstream: `%DURATION%`.
    pub total: Option<Duration>,
    /// Last byte of the request received: `%REQUEST_DURATION%`.
    pub request_received: Option<Duration>,
    /// Last byte of the request sent upstream: `%REQUEST_TX_DURATION%`.
    pub request_sent: Option<Duration>,
    /// First byte of the response received from upstream: `%RESPONSE_DURATION%`.
    pub response_started: Option<Duration>,
}

/// The downstream connection of a record.
#[derive(Debug, Clone, Copy, Default)]
pub struct Downstream<'a> {
    /// `%CONNECTION_ID%`.
    pub connection_id: Option<u64>,
    /// The client, as X-Forwarded-For or the PROXY protocol tell it.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket.
    pub direct_remote: Option<SocketAddr>,
    /// Our side: the original destination of an intercepted connection.
    pub local: Option<SocketAddr>,
    /// Server name of the TLS ClientHello.
    pub server_name: Option<&'a str>,
    /// URI SANs of the peer certificate, joined with `,`; the first is the SPIFFE ID.
    pub peer_uri_san: Option<&'a str>,
    /// URI SANs of our own certificate.
    pub local_uri_san: Option<&'a str>,
    /// Subject of the peer certificate.
    pub peer_subject: Option<&'a str>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub tls_version: Option<&'a str>,
    /// Name of the cipher suite.
    pub tls_cipher: Option<&'a str>,
    /// `%FILTER_CHAIN_NAME%`.
    pub filter_chain: Option<&'a str>,
    /// Why the TLS handshake failed.
    pub transport_failure: Option<&'a str>,
}

/// The upstream connection of a record.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upstream<'a> {
    /// The endpoint.
    pub remote: Option<SocketAddr>,
    /// Our side of the connection to it.
    pub local: Option<SocketAddr>,
    /// The cluster.
    pub cluster: Option<&'a str>,
    /// HTTP version towards the endpoint.
    pub protocol: Option<Version>,
    /// URI SANs of the endpoint's certificate.
    pub peer_uri_san: Option<&'a str>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub tls_version: Option<&'a str>,
    /// Name of the cipher suite.
    pub tls_cipher: Option<&'a str>,
    /// Why connecting or the TLS handshake failed.
    pub transport_failure: Option<&'a str>,
}

impl AccessRecord<'_> {
    /// All response flags.
    #[must_use]
    pub fn all_flags(&self) -> ResponseFlags {
        self.reason.map_or(self.flags, |reason| self.flags.with(ResponseFlags::of(reason)))
    }

    /// Status as a number; 0 when no response began, as in Envoy.
    #[must_use]
    pub fn status_code(&self) -> u16 {
        self.status.or_else(|| self.response.map(|r| r.status)).map_or(0, |s| s.as_u16())
    }

    /// `%RESPONSE_CODE_DETAILS%`: Envoy's words where Envoy has the same case, otherwise the reason id.
    #[must_use]
    pub fn details(&self) -> Option<&str> {
        if self.response_code_details.is_some() {
            return self.response_code_details;
        }
        match self.reason {
            Some(Reason::NoRoute) => Some("route_not_found"),
            Some(Reason::NoCluster) => Some("cluster_not_found"),
            Some(Reason::UpstreamTimeout) => Some("response_timeout"),
            Some(Reason::MaxDuration) => Some("max_duration_timeout"),
            Some(Reason::DownstreamGone) => Some("downstream_remote_disconnect"),
            Some(reason) => Some(reason.id()),
            // Nobody was asked, and nothing is wrong: a redirect.
            None => {
                self.response.map(|_| if self.attempts == 0 { "direct_response" } else { "via_upstream" })
            }
        }
    }

    /// gRPC status of a gRPC request: trailers, else response headers, else mapped from the HTTP status
    /// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>). None for other requests.
    #[must_use]
    pub fn grpc_status(&self) -> Option<i64> {
        if !self.request?.is_grpc() {
            return None;
        }
        let header = self
            .trailers
            .and_then(|t| t.get("grpc-status"))
            .or_else(|| self.response.and_then(|r| r.headers.get("grpc-status")));
        match header {
            // An unreadable status is -1 in Envoy's log as well.
            Some(value) => {
                Some(value.to_str().ok().and_then(|v| v.trim().parse::<u32>().ok()).map_or(-1, i64::from))
            }
            None => Some(match self.status_code() {
                0 => return None,
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            }),
        }
    }
}
