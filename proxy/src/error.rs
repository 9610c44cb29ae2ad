//! Why a request failed: the one closed error type of the data path.
//!
//! Each [`Reason`] fixes, in one table, everything that depends on it: the HTTP status and gRPC code of the answer
//! that the proxy makes, the Envoy response flag of the access log, the reason id that the answer carries and
//! `remora why` explains, and whose fault it was. Adding a variant without deciding all of them does not compile.

use http::StatusCode;

/// Who ended the request (features.md N8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// The client: it sent something we refuse, or it went away.
    Downstream,
    /// This proxy, by configuration or by a limit.
    Proxy,
    /// The upstream, or the network to it.
    Upstream,
}

impl Party {
    /// Name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Proxy => "proxy",
            Self::Upstream => "upstream",
        }
    }
}

/// gRPC status codes (<https://grpc.io/docs/guides/status-codes>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the gRPC specification's")]
pub enum GrpcCode {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal, $status:literal, $grpc:ident, $flag:literal, $party:ident;)+) => {
        /// Why the proxy refused or lost a request. One row of the table per reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Stable id: header `x-remora-reason`, access log, metrics and documentation use it.
            #[must_use]
            pub const fn id(self) -> &'static str { match self { $(Self::$name => $id,)+ } }

            /// One sentence for a person.
            #[must_use]
            pub const fn explain(self) -> &'static str { match self { $(Self::$name => concat!($($doc),+),)+ } }

            /// Status of the HTTP answer.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => match StatusCode::from_u16($status) { Ok(s) => s, Err(_) => panic!("status") },)+ }
            }

            /// Status of the answer to a gRPC request.
            #[must_use]
            pub const fn grpc(self) -> GrpcCode { match self { $(Self::$name => GrpcCode::$grpc,)+ } }

            /// Envoy's response flag (`%RESPONSE_FLAGS%`), or `""` where Envoy has none.
            #[must_use]
            pub const fn flag(self) -> &'static str { match self { $(Self::$name => $flag,)+ } }

            /// Who ended the request.
            #[must_use]
            pub const fn party(self) -> Party { match self { $(Self::$name => Party::$party,)+ } }
        }
    };
}

reasons! {
    // The request is not one that we forward (RFC 9110, 9112, 9113). DPE = downstream protocol error.
    /// The bytes are not an HTTP request.
    Malformed = "malformed_request", 400, Internal, "DPE", Downstream;
    /// A line ends in a bare LF, or a value holds a bare CR.
    BareLineEnd = "bare_line_end", 400, Internal, "DPE", Downstream;
    /// The HTTP version is not one that we speak.
    UnsupportedVersion = "unsupported_http_version", 505, Internal, "DPE", Downstream;
    /// Content-Length and Transfer-Encoding together could be read in two ways.
    AmbiguousLength = "content_length_with_transfer_encoding", 400, Internal, "DPE", Downstream;
    /// Content-Length is missing digits, repeated or out of range.
    BadContentLength = "bad_content_length", 400, Internal, "DPE", Downstream;
    /// Transfer-Encoding names a coding other than one final chunked.
    BadTransferEncoding = "bad_transfer_encoding", 400, Internal, "DPE", Downstream;
    /// Transfer-Encoding names a coding that we do not implement.
    UnsupportedTransferEncoding = "unsupported_transfer_encoding", 501, Internal, "DPE", Downstream;
    /// The chunked body is malformed.
    BadChunk = "bad_chunk", 400, Internal, "DPE", Downstream;
    /// An HTTP/1.1 request without Host, or an HTTP/2 request without :authority and host.
    MissingHost = "missing_host", 400, Internal, "DPE", Downstream;
    /// Host is repeated or is not a host name with an optional port.
    BadHost = "bad_host", 400, Internal, "DPE", Downstream;
    /// :authority and host differ.
    HostMismatch = "authority_host_mismatch", 400, Internal, "DPE", Downstream;
    /// The request target is not a path, or could be read in two ways (fragment, %2F, %5C, %00, dot segment with parameters).
    BadPath = "bad_path", 400, Internal, "DPE", Downstream;
    /// A header name or value holds bytes that are not allowed.
    BadHeader = "bad_header", 400, Internal, "DPE", Downstream;
    /// TRACE is refused: it would show the hop's headers to the caller.
    MethodNotAllowed = "method_not_allowed", 405, Internal, "DPE", Downstream;
    /// The request's headers are larger or more than the listener's limit.
    HeadersTooLarge = "request_headers_too_large", 431, ResourceExhausted, "DPE", Downstream;
    /// The request's body is larger than the limit.
    BodyTooLarge = "request_body_too_large", 413, ResourceExhausted, "", Downstream;
    /// The request asks to upgrade in a way that this listener refuses.
    UpgradeRefused = "upgrade_refused", 403, PermissionDenied, "DPE", Downstream;
    /// The request's head did not arrive in time.
    HeadersTimeout = "request_headers_timeout", 408, DeadlineExceeded, "DPE", Downstream;
    /// The whole request did not arrive in time.
    RequestTimeout = "request_timeout", 408, DeadlineExceeded, "DT", Downstream;
    /// Nothing more of the request came for the stream idle timeout.
    RequestIdle = "request_idle_timeout", 408, DeadlineExceeded, "SI", Downstream;
    /// Nothing moved on the stream for the idle timeout.
    StreamIdle = "stream_idle_timeout", 504, Unavailable, "SI", Downstream;
    /// The peer sent more control frames, resets or errors than a well-behaved peer would.
    Flood = "http2_flood", 400, ResourceExhausted, "DPE", Downstream;
    /// The client went away before the answer was complete.
    DownstreamGone = "downstream_disconnected", 499, Cancelled, "DC", Downstream;

    // Configuration and limits of this proxy.
    /// No virtual host or route matches the request.
    NoRoute = "no_route", 404, Unimplemented, "NR", Proxy;
    /// The route names a cluster that does not exist (any more).
    NoCluster = "no_cluster", 503, Unavailable, "NC", Proxy;
    /// The cluster has no endpoint that may be used.
    NoHealthyUpstream = "no_healthy_upstream", 503, Unavailable, "UH", Proxy;
    /// A circuit breaker limit (connections, pending or active requests) is reached.
    UpstreamOverflow = "upstream_overflow", 503, Unavailable, "UO", Proxy;
    /// The circuit breaker of the route or of the destination is open: too many calls failed or were slow of late.
    CircuitOpen = "circuit_open", 503, Unavailable, "UO", Proxy;
    /// The route's timeout ended the request.
    UpstreamTimeout = "upstream_request_timeout", 504, Unavailable, "UT", Proxy;
    /// The last try ran into its per-try timeout.
    PerTryTimeout = "upstream_per_try_timeout", 504, Unavailable, "UT", Proxy;
    /// Nothing moved on the last try for its per-try idle timeout.
    PerTryIdle = "upstream_per_try_idle_timeout", 504, Unavailable, "UT", Proxy;
    /// The stream reached its maximum duration.
    MaxDuration = "max_stream_duration", 504, DeadlineExceeded, "", Proxy;
    /// The route's configuration answers directly.
    DirectResponse = "direct_response", 200, Unknown, "", Proxy;
    /// The proxy is shedding load.
    Overloaded = "overloaded", 503, Unavailable, "OM", Proxy;
    /// The proxy is shutting down, or the filter chain of the connection was removed, and the drain time is over.
    Draining = "draining", 503, Unavailable, "DT", Proxy;
    /// An access policy (RBAC) refuses it.
    RbacDenied = "rbac_denied", 403, PermissionDenied, "", Proxy;
    /// The request needs a token (JWT) and has none.
    JwtMissing = "jwt_missing", 401, Unauthenticated, "", Proxy;
    /// What stands in the token's place is none, is too long, or there are several.
    JwtMalformed = "jwt_malformed", 401, Unauthenticated, "", Proxy;
    /// The token is of another issuer.
    JwtUnknownIssuer = "jwt_unknown_issuer", 401, Unauthenticated, "", Proxy;
    /// The token's time is over.
    JwtExpired = "jwt_expired", 401, Unauthenticated, "", Proxy;
    /// The token's time has not come.
    JwtNotYetValid = "jwt_not_yet_valid", 401, Unauthenticated, "", Proxy;
    /// The token does not expire, or lives for longer than is allowed.
    JwtLifetime = "jwt_lifetime", 401, Unauthenticated, "", Proxy;
    /// The token is for another audience.
    JwtAudience = "jwt_audience", 403, PermissionDenied, "", Proxy;
    /// The token's subject is not one of those that its issuer may vouch for.
    JwtSubject = "jwt_subject", 401, Unauthenticated, "", Proxy;
    /// The token names a key that its issuer does not have.
    JwtUnknownKey = "jwt_unknown_key", 401, Unauthenticated, "", Proxy;
    /// The token's algorithm is none of those of the key.
    JwtAlgorithm = "jwt_algorithm", 401, Unauthenticated, "", Proxy;
    /// The token's signature is not genuine.
    JwtBadSignature = "jwt_bad_signature", 401, Unauthenticated, "", Proxy;
    /// The keys of the token's issuer could not be fetched.
    JwtKeysUnavailable = "jwt_keys_unavailable", 401, Unauthenticated, "", Proxy;
    /// The route names a requirement for tokens that the listener does not have.
    JwtNoRequirement = "jwt_no_requirement", 403, PermissionDenied, "", Proxy;
    /// The external authorisation service refuses it.
    ExtAuthzDenied = "ext_authz_denied", 403, PermissionDenied, "UAEX", Proxy;
    /// The external authorisation service gave no answer that can be believed.
    ExtAuthzError = "ext_authz_error", 403, PermissionDenied, "UAEX", Proxy;
    /// Fault injection aborted the request.
    FaultInjected = "fault_injected", 503, Unavailable, "FI", Proxy;
    /// A limit of this proxy on the rate of requests is reached.
    LocalRateLimited = "local_rate_limited", 429, Unavailable, "RL", Proxy;
    /// A rate limit service says that there are too many requests.
    RateLimited = "rate_limited", 429, Unavailable, "RL", Proxy;
    /// A rate limit service gave no answer that can be believed.
    RateLimitError = "rate_limit_error", 500, Unknown, "RLSE", Proxy;
    /// As many requests are on their way as the upstream can serve without a queue (adaptive concurrency).
    ConcurrencyLimit = "concurrency_limit", 503, Unavailable, "", Proxy;
    /// This proxy's share of a rate limit of the mesh is used up.
    QuotaExceeded = "rate_limit_quota_exceeded", 429, Unavailable, "RL", Proxy;
    /// Original-destination routing was asked for, but the connection has none.
    NoOriginalDestination = "no_original_destination", 503, Unavailable, "UH", Proxy;

    // Upstream.
    /// The connection to the endpoint was refused or unreachable.
    ConnectFailure = "upstream_connect_failure", 503, Unavailable, "UF", Upstream;
    /// The connection to the endpoint was not established in time.
    ConnectTimeout = "upstream_connect_timeout", 503, Unavailable, "UF", Upstream;
    /// The TLS handshake with the endpoint failed.
    UpstreamTls = "upstream_tls_failure", 503, Unavailable, "UF", Upstream;
    /// A kept-alive connection turned out to be closed before any byte of the answer came.
    ReusedConnectionClosed = "upstream_reused_connection_closed", 503, Unavailable, "UC", Upstream;
    /// The endpoint closed the connection before the head of its answer.
    UpstreamClosed = "upstream_closed_before_response", 503, Unavailable, "UC", Upstream;
    /// The endpoint reset the stream before the head of its answer.
    UpstreamReset = "upstream_reset_before_response", 503, Unavailable, "UR", Upstream;
    /// The endpoint refused the stream without processing it (REFUSED_STREAM, or GOAWAY with a lower last stream id).
    UpstreamRefused = "upstream_refused_stream", 503, Unavailable, "UR", Upstream;
    /// The endpoint broke off in the middle of its answer.
    UpstreamBodyReset = "upstream_reset_mid_response", 502, Unavailable, "UPE", Upstream;
    /// The endpoint's answer is not valid HTTP.
    UpstreamProtocol = "upstream_protocol_error", 502, Unavailable, "UPE", Upstream;
    /// The endpoint's answer has larger or more headers than the limit.
    UpstreamHeadersTooLarge = "upstream_headers_too_large", 502, Unavailable, "UPE", Upstream;
}

impl Reason {
    /// The reason with this id.
    #[must_use]
    pub fn by_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.id() == id)
    }

    /// What the stream idle timeout means: the client stopped sending, or nobody answers (Envoy's 408 and 504).
    #[must_use]
    pub const fn idle(request_complete: bool) -> Self {
        if request_complete { Self::StreamIdle } else { Self::RequestIdle }
    }

    /// The request was certainly not processed by an endpoint, so that it may be tried again whatever its method.
    #[must_use]
    pub const fn never_processed(self) -> bool {
        matches!(
            self,
            Self::ConnectFailure
                | Self::ConnectTimeout
                | Self::UpstreamTls
                | Self::UpstreamRefused
                | Self::UpstreamOverflow
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id())
    }
}

impl std::error::Error for Reason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_snake_case() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.id()), "{} twice", reason.id());
            assert!(reason.id().bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()));
            assert!(reason.explain().trim().ends_with('.'));
        }
    }
}
