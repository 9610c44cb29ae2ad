//! Asking an external service whether a request may go on, as `envoy.extensions.filters.http.ext_authz.v3` says. Pure: how the
//! question looks, and what the answer means; [`crate::http::authz`] asks.
//!
//! - [`grpc`][]: `envoy.service.auth.v3.Authorization/Check`.
//! - [`web`][]: `http_service`.
//! - [`answer`][]: what a service may say, checked whole before any of it is done.

pub mod answer;
pub mod grpc;
pub mod web;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};

use self::grpc::GrpcService;
use self::web::WebService;
use super::view::ConnectionView;
use crate::config::names::{ClusterId, PolicyId};
use crate::http::head::RequestHead;
use crate::policy::rbac::ClaimMatch;
use crate::policy::view::Claims;
use crate::route::header::ValueTemplate;
use crate::route::matcher::Fraction;
use crate::route::text::StringMatch;

/// The largest answer of a service, bytes.
pub const MAX_ANSWER: usize = 256 * 1024;
/// The longest body of a denial, bytes.
pub const MAX_DENIED_BODY: usize = 64 * 1024;
/// The most of a request's body that is read ahead, bytes.
pub const MAX_BUFFER: u32 = 1024 * 1024;

/// A compiled `ExtAuthz`.
#[derive(Debug)]
pub struct AuthzFilter {
    /// Where the service is.
    pub cluster: ClusterId,
    /// `grpc_service` or `http_service`.
    pub service: Service,
    /// Limit of a check; 200 ms for gRPC by default.
    pub timeout: Duration,
    /// What becomes of a request when the service gives no answer.
    pub on_failure: OnFailure,
    /// `filter_enabled`; None asks about every request.
    pub enabled: Option<Fraction>,
    /// `filter_enabled_metadata`; None asks about every request.
    pub condition: Option<Condition>,
    /// `deny_at_disable`.
    pub deny_disabled: bool,
    /// `with_request_body`.
    pub buffer: Option<Buffer>,
    /// What the service is told of a request.
    pub told: Told,
    /// `clear_route_cache`.
    pub clear_route_cache: bool,
    /// `max_denied_response_body_bytes`, default [`MAX_DENIED_BODY`].
    pub max_denied_body: usize,
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// The number under which decisions are counted.
    pub id: PolicyId,
}

/// How the service is asked.
#[derive(Debug)]
pub enum Service {
    /// `grpc_service`.
    Grpc(GrpcService),
    /// `http_service`.
    Web(WebService),
}

impl Service {
    /// Headers that the file adds to each check (`initial_metadata`, `headers_to_add`).
    #[must_use]
    pub fn added(&self) -> &[(HeaderName, ValueTemplate)] {
        match self {
            Self::Grpc(service) => &service.metadata,
            Self::Web(service) => &service.headers_to_add,
        }
    }
}

/// `filter_enabled_metadata`: what filters in front must have left, so that a request is asked about.
#[derive(Debug)]
pub enum Condition {
    /// `envoy.filters.http.jwt_authn`: claims of verified tokens.
    Claim(ClaimMatch),
    /// `envoy.filters.http.rbac`: a verdict.
    Verdict(ClaimMatch),
}

impl Condition {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, claims: &[Claims], verdicts: &[Claims]) -> bool {
        match self {
            Self::Claim(matcher) => matcher.is_match(claims),
            Self::Verdict(matcher) => matcher.is_match(verdicts),
        }
    }

    /// The key of the verdict that it is about.
    #[must_use]
    pub const fn verdict(&self) -> Option<&Arc<str>> {
        match self {
            Self::Claim(_) => None,
            Self::Verdict(matcher) => Some(&matcher.payload),
        }
    }
}

/// What becomes of a request when the service gives no answer.
#[derive(Debug, Clone, Copy)]
pub struct OnFailure {
    /// `failure_mode_allow`: it goes on.
    pub allow: bool,
    /// `failure_mode_allow_header_add`: and says so.
    pub mark: bool,
    /// `status_on_error`, default 403.
    pub status: StatusCode,
}

/// `BufferSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// `max_request_bytes`.
    pub limit: usize,
    /// `allow_partial_message`; otherwise a longer body is refused with 413.
    pub partial: bool,
    /// `pack_as_bytes`.
    pub as_bytes: bool,
}

/// What the service is told of a request.
#[derive(Debug, Default)]
pub struct Told {
    /// `allowed_headers`; None allows all.
    pub allowed: Option<Box<[StringMatch]>>,
    /// `disallowed_headers`: has the last word.
    pub disallowed: Box<[StringMatch]>,
    /// `encode_raw_headers`.
    pub raw_headers: bool,
    /// `include_tls_session`.
    pub tls_session: bool,
    /// `metadata_context_namespaces` has `envoy.filters.http.jwt_authn`.
    pub claims: bool,
}

impl Told {
    fn allows(&self, name: &str) -> bool {
        let any = |list: &[StringMatch]| list.iter().any(|matcher| matcher.is_match(name.as_bytes()));
        self.allowed.as_deref().is_none_or(any) && !any(&self.disallowed)
    }
}

/// `CheckSettings` of a route, with those of the levels above it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckSettings {
    /// `context_extensions`.
    pub context: BTreeMap<String, String>,
    /// `with_request_body`, or `disable_request_body_buffering` (`Some(None)`); None leaves it to the filter.
    pub buffer: Option<Option<Buffer>>,
}

impl CheckSettings {
    /// These settings below others: contexts are merged, everything else is the more specific one's.
    #[must_use]
    pub fn below(&self, above: &Self) -> Self {
        let mut context = above.context.clone();
        context.extend(self.context.clone());
        Self { context, buffer: self.buffer }
    }
}

/// The beginning of a request's body.
#[derive(Debug, Clone)]
pub struct Piece {
    /// At most `max_request_bytes` of it.
    pub bytes: Bytes,
    /// There is more.
    pub partial: bool,
}

/// A request to ask about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Its head.
    pub head: &'a RequestHead,
    /// Its connection.
    pub connection: ConnectionView<'a>,
    /// The peer of the connection.
    pub peer: SocketAddr,
    /// The identity that was shown to the peer.
    pub own: Option<&'a str>,
    /// Server name that the client asked for; None without TLS.
    pub server_name: Option<&'a str>,
    /// When it came.
    pub time: SystemTime,
    /// The beginning of its body, if that is asked for.
    pub body: Option<&'a Piece>,
    /// Length of its body, if that is known.
    pub length: Option<u64>,
    /// `context_extensions`.
    pub context: Option<&'a BTreeMap<String, String>>,
    /// Claims of verified tokens.
    pub claims: &'a [Claims],
}

impl Question<'_> {
    /// Path and query. CONNECT has none.
    fn path(&self) -> Option<&str> {
        (self.head.method != Method::CONNECT).then(|| self.head.path.as_str())
    }

    /// Whether the body was cut off, as the service is told in `x-envoy-auth-partial-body`.
    fn partial(&self) -> Option<&'static str> {
        self.body.map(|piece| if piece.partial { "true" } else { "false" })
    }

    fn pseudo(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let authority = self.head.authority.as_ref().map(|host| (":authority", host.as_str()));
        let path = self.path().map(|path| (":path", path));
        let rest = [(":method", self.head.method.as_str()), (":scheme", self.head.scheme.as_str())];
        rest.into_iter().chain(authority).chain(path)
    }

    /// A header as one value: lines are joined as RFC 9110 §5.3 says, and those of Cookie as RFC 9113 §8.2.3 does.
    fn joined(&self, name: &HeaderName) -> Cow<'_, [u8]> {
        let lines = self.head.headers.get_all(name);
        let mut rest = lines.iter();
        match (rest.next(), rest.next()) {
            (Some(only), None) => Cow::Borrowed(only.as_bytes()),
            _ => {
                let between: &[u8] = if name == header::COOKIE { b"; " } else { b"," };
                Cow::Owned(lines.iter().map(|v| v.as_bytes()).collect::<Vec<_>>().join(between))
            }
        }
    }
}

/// Says in a check whether the body that it has was cut off.
pub static PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// Tells the upstream that nobody was there to be asked (`failure_mode_allow_header_add`).
pub static FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
