//! What an operator does about it. Exhaustive: a new reason does not compile without its advice.

use crate::error::Reason;
use crate::telemetry::metrics::Refusal;
use crate::tls::error::TlsFailure;

#[expect(clippy::too_many_lines, reason = "a table, with a row for each reason")]
pub(super) const fn of_reason(reason: Reason) -> &'static str {
    use Reason as R;
    match reason {
        R::Malformed | R::BareLineEnd | R::BadChunk => {
            "Look at what the client sends (tcpdump -A). A client that speaks TLS to a plaintext port looks like this, too."
        }
        R::AmbiguousLength
        | R::BadContentLength
        | R::BadTransferEncoding
        | R::UnsupportedTransferEncoding => {
            "The client, or what stands before it, has to send one Content-Length, or Transfer-Encoding: chunked."
        }
        R::UnsupportedVersion => "Let the client speak HTTP/1.1 or HTTP/2.",
        R::MissingHost | R::BadHost | R::HostMismatch => {
            "Let the client send one Host or :authority: a name or an address, and a port if there is one."
        }
        R::BadPath => {
            "Let the client send the path in its plain form; path_with_escaped_slashes_action of the listener is about %2F."
        }
        R::BadHeader => {
            "Find the header with other bytes than RFC 9110 allows; headers_with_underscores_action is about names with `_`."
        }
        R::MethodNotAllowed => "Use another method; this one is never forwarded.",
        R::HeadersTooLarge => {
            "Send less (cookies are the usual cause), or raise max_request_headers_kb or max_headers_count of the listener."
        }
        R::BodyTooLarge => {
            "Send less, or raise max_request_bytes, or set allow_partial_message, in with_request_body of ext_authz; or raise max_request_bytes of envoy.filters.http.buffer."
        }
        R::UpgradeRefused => {
            "Add the upgrade to upgrade_configs of the listener or the route if it is wanted."
        }
        R::HeadersTimeout => {
            "The client is slow or stuck; request_headers_timeout of the listener is the limit."
        }
        R::RequestTimeout => "The client is slow or stuck; request_timeout of the listener is the limit.",
        R::RequestIdle | R::StreamIdle => {
            "See which side is silent, or raise stream_idle_timeout of the listener or idle_timeout of the route."
        }
        R::Flood => "Find out what the client is: a well-behaved one does not do so.",
        R::DownstreamGone => {
            "Compare the duration with the client's own timeout: it gave up, or lost its connection."
        }
        R::NoRoute
        | R::NoCluster
        | R::NoHealthyUpstream
        | R::UpstreamOverflow
        | R::CircuitOpen
        | R::DirectResponse
        | R::NoOriginalDestination => of_routing(reason),
        R::UpstreamTimeout => {
            "See what took the endpoint so long, or raise the timeout of the route; `attempts` says how often it was tried."
        }
        R::PerTryTimeout => {
            "See what took the endpoint so long, or raise per_try_timeout in the route's retry policy."
        }
        R::PerTryIdle => {
            "See why the endpoint fell silent, or raise per_try_idle_timeout in the route's retry policy."
        }
        R::MaxDuration => {
            "Raise max_stream_duration of the route or cluster (max_downstream_connection_duration of tcp_proxy), or let the client begin anew."
        }
        R::FaultInjected => {
            "Nothing is broken: a test asked for it. Look at the filter envoy.filters.http.fault."
        }
        R::LocalRateLimited => {
            "The client sends more than it may; `rule` names the filter (envoy.filters.http.local_ratelimit) with its buckets."
        }
        R::ConcurrencyLimit => {
            "The upstream is slower than it is without load: give it more replicas, or see what slowed it down. `rule` names the filter; remora_concurrency_latency_seconds shows both latencies."
        }
        R::RateLimited => {
            "The client sends more than it may; `rule` names the filter (envoy.filters.http.ratelimit), and its service knows the limit."
        }
        R::QuotaExceeded => {
            "The mesh sends more than it may, or this proxy's share has yet to grow; `rule` names the filter (envoy.filters.http.rate_limit_quota)."
        }
        R::RateLimitError => {
            "See why the rate limit service does not answer in time: `rule` says what happened. Without failure_mode_deny requests go on."
        }
        R::Overloaded => {
            "Give the proxy more of what it is short of, or send it less: details `overload` is memory (remora_overload_pressure), `worker_lag` CPU (remora_worker_lag_seconds), none files."
        }
        R::Draining => "Nothing is wrong: let the client try again, on a new connection.",
        R::RbacDenied
        | R::JwtMissing
        | R::JwtMalformed
        | R::JwtUnknownIssuer
        | R::JwtExpired
        | R::JwtNotYetValid
        | R::JwtLifetime
        | R::JwtAudience
        | R::JwtSubject
        | R::JwtUnknownKey
        | R::JwtAlgorithm
        | R::JwtBadSignature
        | R::JwtKeysUnavailable
        | R::JwtNoRequirement
        | R::ExtAuthzDenied
        | R::ExtAuthzError => of_policy(reason),
        R::ConnectFailure
        | R::ConnectTimeout
        | R::UpstreamTls
        | R::ReusedConnectionClosed
        | R::UpstreamClosed
        | R::UpstreamReset
        | R::UpstreamRefused
        | R::UpstreamBodyReset
        | R::UpstreamProtocol
        | R::UpstreamHeadersTooLarge => of_upstream(reason),
    }
}

const fn of_routing(reason: Reason) -> &'static str {
    match reason {
        Reason::NoRoute => {
            "Compare host and path of the story with /config_dump?resource=dynamic_route_configs. With a `virtual_host`, none of its routes matches; without one, no virtual host has this host among its domains."
        }
        Reason::NoCluster => {
            "See /clusters: the cluster was removed, has not come, or is misspelt in the route."
        }
        Reason::NoHealthyUpstream => {
            "See /clusters: there is no endpoint, or health_flags say why none of them is used; of a mesh, `remora get instances`."
        }
        Reason::UpstreamOverflow => {
            "Find what keeps the endpoints busy; remora_upstream_overflow_total names the limit, and circuit_breakers of the cluster sets it."
        }
        Reason::CircuitOpen => {
            "See /circuit_breakers for its state and rates. Find why the destination fails or is slow; it is tried again after wait_duration_in_open_state. An operator may set another state there."
        }
        Reason::NoOriginalDestination => {
            "Let the connection be redirected to this listener, not made to it; a destination that is this proxy itself would be a loop."
        }
        _ => "Nothing is wrong: direct_response of the route says so.",
    }
}

const fn of_policy(reason: Reason) -> &'static str {
    match reason {
        Reason::RbacDenied => {
            "`rule` is the policy that matched, or those none of which allows it; of a mesh document, `namespace/name:rules[N]`. Compare it with peer, method, host and path of the story. `tls_certificate_revoked` in `details`: the peer's certificate is on a revocation list."
        }
        Reason::JwtMissing => {
            "Let the client send a token where the provider looks for it: `Authorization: Bearer`, unless from_headers or from_params say otherwise."
        }
        Reason::JwtMalformed => {
            "Send one token, in three parts with dots between them, and no more than one."
        }
        Reason::JwtUnknownIssuer => {
            "Compare `iss` of the token, byte by byte, with issuer of the providers in `rule`."
        }
        Reason::JwtExpired => "Get a new token; if it is new, compare the clocks of issuer and proxy.",
        Reason::JwtNotYetValid => {
            "Compare the clocks of issuer and proxy; clock_skew_seconds is what they may differ by."
        }
        Reason::JwtLifetime => {
            "Let the issuer give `exp`, and a life no longer than the provider's max_lifetime."
        }
        Reason::JwtAudience => "Compare `aud` of the token with audiences of the provider.",
        Reason::JwtSubject => "Compare `sub` of the token with subjects of the provider.",
        Reason::JwtUnknownKey => {
            "Compare `kid` of the token with the issuer's key set; after a rotation it is fetched again in time."
        }
        Reason::JwtAlgorithm => "Compare `alg` of the token with `alg` and `kty` of the key that it names.",
        Reason::JwtBadSignature => {
            "The token was changed, or signed with another key: compare issuer and key set."
        }
        Reason::JwtKeysUnavailable => {
            "The log says why the key set cannot be fetched: see the cluster of remote_jwks, and its URI."
        }
        Reason::JwtNoRequirement => {
            "Add the requirement in `rule` to requirement_map of the listener's jwt_authn, or correct the route."
        }
        Reason::ExtAuthzDenied => {
            "The service decided so: its own log says why. `rule` is the filter that asked it."
        }
        _ => {
            "`details` say what went wrong: see the service and its cluster. status_on_error and failure_mode_allow of the filter in `rule` say what happens then."
        }
    }
}

const fn of_upstream(reason: Reason) -> &'static str {
    match reason {
        Reason::ConnectFailure => {
            "See whether the program listens on the address in `endpoint`, and whether a firewall lets it be reached."
        }
        Reason::ConnectTimeout => {
            "See whether the endpoint is there and a firewall lets it be reached; connect_timeout of the cluster is the limit."
        }
        Reason::UpstreamTls => {
            "Compare the certificates of both sides (/certs here and there); of a mesh, the endpoint's `remora why` has the other half of it."
        }
        Reason::ReusedConnectionClosed => {
            "The endpoint closes idle connections sooner than the cluster's idle_timeout: make that shorter. The request was not safe to try again."
        }
        Reason::UpstreamClosed | Reason::UpstreamReset | Reason::UpstreamBodyReset => {
            "See the endpoint's log at this time: it crashed, was stopped, or ran into a limit of its own."
        }
        Reason::UpstreamRefused => {
            "The endpoint takes no more streams: it is shutting down, or at its limit."
        }
        Reason::UpstreamHeadersTooLarge => "Let the endpoint answer with fewer or shorter headers.",
        _ => {
            "The endpoint does not speak the protocol that the cluster says (HTTP/1.1, HTTP/2), or speaks it badly."
        }
    }
}

pub(super) const fn of_refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::ConnectionLimit => "Raise the limit, or let clients keep fewer connections open.",
        Refusal::Overloaded => of_reason(Reason::Overloaded),
        Refusal::Draining => of_reason(Reason::Draining),
        Refusal::NoFilterChain => {
            "Compare destination, server_name and protocol of the connection with filter_chain_match of the listener's chains."
        }
        Refusal::DetectTimeout => {
            "The client waits for the server to speak, but the listener tells its chains apart by what the client says: take this port out, or set continue_on_listener_filters_timeout and have a chain for plaintext."
        }
        Refusal::TlsTimeout => {
            "The client connected and did not go on: a probe, or a client that speaks no TLS."
        }
        Refusal::Unauthorized => "`remora why rbac_denied` has the stories, with the policy in `rule`.",
        Refusal::NoOriginalDestination => of_reason(Reason::NoOriginalDestination),
        Refusal::Tls(failure) => of_tls(failure),
    }
}

const fn of_tls(failure: TlsFailure) -> &'static str {
    use TlsFailure as T;
    match failure {
        T::PeerClosed | T::Io => {
            "A probe that only connects looks like this; otherwise the client's log says why it left."
        }
        T::NotTls => "Let the client speak TLS to this port, or see whether it means another one.",
        T::Protocol | T::Incompatible => {
            "Bring the client's TLS library up to date, or compare tls_params of both sides."
        }
        T::NoCommonAlpn => {
            "Compare the protocols that the client offers with alpn_protocols of the filter chain."
        }
        T::NoClientCertificate => {
            "Give the client a certificate; without one it may only use ports that do not ask for it."
        }
        T::NoServerCertificate => {
            "See which server name the client sends; /certs lists what there is to show."
        }
        T::CertificateExpired | T::CertificateNotYetValid => {
            "Renew the certificate of the peer; if it is new, compare the clocks."
        }
        T::CertificateRevoked => {
            "The peer was locked out on purpose; of a mesh, `remora certs` has the list."
        }
        T::CertificateUntrusted => {
            "Compare the peer's issuer with the roots in /certs; after a rotation of the root, see `remora certs`."
        }
        T::CertificateName => {
            "Compare the names in the peer's certificate with match_typed_subject_alt_names."
        }
        T::CertificateRefused => "Have the certificate issued anew: one SPIFFE ID, not a CA's, for this use.",
        T::RefusedByPeer => {
            "The client does not believe us: compare its trusted roots with our certificate in /certs."
        }
        T::NoServerName => "Let the client send a server name (SNI).",
        T::SecretMissing => {
            "See where the secret should come from: the log of the proxy, `remora status`, /certs."
        }
        T::Internal => {
            "This is a mistake of the proxy: the log at level debug has the error; please report it."
        }
    }
}
