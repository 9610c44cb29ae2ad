//! What keeps a request alive, and what ends it: timeouts, retries, back-off. All of it is plain decisions: the time and
//! the random numbers are passed in.

use http::HeaderMap;
use http::header::HeaderName;

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod circuit;
pub mod concurrency;
pub mod health;
pub mod hedge;
pub mod outlier;
pub mod overload;
pub mod retry;
pub mod timeout;

macro_rules! control_headers {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        $($(#[doc = $doc])+ pub static $name: HeaderName = HeaderName::from_static($text);)+
        /// All of them.
        static CONTROL: &[&HeaderName] = &[$(&$name,)+];
    };
}

control_headers! {
    /// Further retry conditions (internal requests).
    RETRY_ON = "x-envoy-retry-on";
    /// Further gRPC retry conditions (internal requests).
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    /// Number of retries (internal requests).
    MAX_RETRIES = "x-envoy-max-retries";
    /// Further status codes to retry (internal requests).
    RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes";
    /// Names of headers of an answer that is retried (internal requests).
    RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names";
    /// Route timeout, milliseconds (internal requests).
    REQUEST_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    /// Timeout of one try, milliseconds (internal requests).
    PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    /// Whether another try begins beside one that is late: `true` or `false` (internal requests).
    HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout";
}

/// How long the upstream has for the answer, milliseconds: told to the upstream, and respected when it comes from a proxy
/// before us and the router's `respect_expected_rq_timeout` is set.
pub static EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Removes the headers by which a request steers its retries and timeouts. They are for this proxy: an external request may
/// not use them, an internal one has been read by now, and an upstream must not act on them again.
pub fn strip_control_headers(headers: &mut HeaderMap) {
    for name in CONTROL {
        headers.remove(*name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_headers_go_and_others_stay() {
        let mut headers = HeaderMap::new();
        for name in CONTROL.iter().copied().chain([&EXPECTED_TIMEOUT]) {
            headers.append(name, "1".parse().unwrap());
            headers.append(name, "2".parse().unwrap());
        }
        strip_control_headers(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [&EXPECTED_TIMEOUT]);
    }
}
