//! What is done with a request that a route matched.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderValue;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, StatusCode};

use super::hash_policy::HashPolicy;
use super::header::{HeaderMutations, Render};
use super::matcher::{Fraction, HeaderKey, HeaderView, PathMatch, RouteMatch};
use super::rewrite::{BadRewrite, HostRewrite, PathRewrite};
use super::split::WeightedClusters;
use crate::balance::subset::LbMetadata;
use crate::config::names::ClusterId;
use crate::http::head::RequestHead;
use crate::policy::overrides::Overrides;
use crate::resilience::circuit::Circuit;
use crate::resilience::retry::RetryPolicy;
use crate::resilience::timeout::TimeoutPolicy;
use crate::traffic::limit::RouteRules;

/// A compiled `envoy.config.route.v3.Route`.
#[derive(Debug)]
pub struct Route {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `match`.
    pub matcher: RouteMatch,
    /// `route`, `redirect` or `direct_response`.
    pub action: Action,
    /// Request mutations of the route and the levels above. A weighted cluster has its own complete list.
    pub request_headers: HeaderMutations,
    /// Response mutations, likewise.
    pub response_headers: HeaderMutations,
    /// `typed_per_filter_config` of the route and the levels above.
    pub overrides: Overrides,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// `route`.
    Forward(Box<RouteAction>),
    /// `redirect`.
    Redirect(Box<Redirect>),
    /// `direct_response`.
    Direct(DirectResponse),
}

/// A compiled `RouteAction`.
#[derive(Debug)]
pub struct RouteAction {
    /// `cluster`, `cluster_header` or `weighted_clusters`.
    pub clusters: ClusterSpecifier,
    /// `cluster_not_found_response_code`, default 503.
    pub cluster_not_found: StatusCode,
    /// `timeout`, `idle_timeout`, `max_stream_duration` and the gRPC timeouts.
    pub timeouts: TimeoutPolicy,
    /// `retry_policy` of the route, or else of its virtual host.
    pub retry: Option<Arc<RetryPolicy>>,
    /// `hedge_policy.hedge_on_per_try_timeout` of the route, or else of its virtual host.
    pub hedge: bool,
    /// `prefix_rewrite`, `regex_rewrite` or `path_rewrite`.
    pub path_rewrite: Option<PathRewrite>,
    /// `host_rewrite_specifier`.
    pub host_rewrite: HostRewrite,
    /// `append_x_forwarded_host`: the old host is appended to X-Forwarded-Host when it is rewritten.
    pub append_x_forwarded_host: bool,
    /// `priority`: which circuit breaker thresholds count.
    pub priority: Priority,
    /// `remora.circuit_breaker` of the route's metadata.
    pub circuit: Option<Arc<Circuit>>,
    /// `upgrade_configs`.
    pub upgrades: Box<[UpgradeOverride]>,
    /// `hash_policy`.
    pub hash_policy: Box<[HashPolicy]>,
    /// `metadata_match` under `envoy.lb`: the subset of the cluster. A weighted cluster has its own complete one.
    pub subset: Option<Arc<LbMetadata>>,
    /// `request_body_buffer_limit` or `per_request_buffer_limit_bytes` of the route or its virtual host: how much of a
    /// body is kept for a retry. None is the listener's limit.
    pub buffer_limit: Option<u64>,
    /// `include_request_attempt_count`: X-Envoy-Attempt-Count on every attempt.
    pub attempt_count_in_request: bool,
    /// `include_attempt_count_in_response`.
    pub attempt_count_in_response: bool,
    /// `include_is_timeout_retry_header`: X-Envoy-Is-Timeout-Retry on an attempt that follows a timeout.
    pub is_timeout_retry_header: bool,
    /// `rate_limits` of the route and its virtual host: what requests count as.
    pub limits: RouteRules,
    /// `request_mirror_policies` of the route, or else of its virtual host or its table.
    pub mirrors: Arc<[MirrorPolicy]>,
}

/// `RequestMirrorPolicy`: where a copy of the request goes.
#[derive(Debug, Clone)]
pub struct MirrorPolicy {
    /// `cluster` or `cluster_header`.
    pub cluster: ClusterRef,
    /// `runtime_fraction`, its default value; None is every request.
    pub share: Option<Fraction>,
    /// `disable_shadow_host_suffix_append` is not set: `-shadow` is appended to the host.
    pub mark_host: bool,
}

pub use crate::resilience::breaker::RoutingPriority as Priority;

/// `cluster_specifier`.
#[derive(Debug)]
pub enum ClusterSpecifier {
    /// `cluster` or `cluster_header`.
    One(ClusterRef),
    /// `weighted_clusters`.
    Weighted(WeightedClusters),
}

/// A cluster, or where its name stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterRef {
    /// By name.
    Id(ClusterId),
    /// `cluster_header`: the first value of a header names it.
    Header(HeaderKey),
}

/// A cluster as one request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedCluster<'a> {
    /// A cluster that the configuration names.
    Id(ClusterId),
    /// A cluster that the request names.
    Name(&'a str),
    /// The request should name one but does not: the answer is [`RouteAction::cluster_not_found`].
    Missing,
}

impl ClusterRef {
    /// Resolves the reference for a request.
    #[must_use]
    pub fn resolve<'h>(&self, head: &'h RequestHead) -> NamedCluster<'h> {
        let value = match self {
            Self::Id(id) => return NamedCluster::Id(*id),
            Self::Header(HeaderKey::Name(name)) => head.headers.get(name).map(HeaderValue::as_bytes),
            Self::Header(pseudo) => head.pseudo(pseudo),
        };
        match value.and_then(|v| std::str::from_utf8(v).ok()) {
            Some(cluster) if !cluster.is_empty() => NamedCluster::Name(cluster),
            _ => NamedCluster::Missing,
        }
    }
}

/// Where one request goes and what is changed on the way.
#[derive(Debug, Clone, Copy)]
pub struct Target<'r> {
    /// The cluster.
    pub cluster: &'r ClusterRef,
    /// All request mutations.
    pub request_headers: &'r HeaderMutations,
    /// All response mutations.
    pub response_headers: &'r HeaderMutations,
    /// Host of the weighted cluster, when the route itself has no rewrite.
    pub host: Option<&'r Authority>,
    /// The subset of the cluster.
    pub subset: Option<&'r LbMetadata>,
}

impl Route {
    /// Chooses the cluster of a request. `random` draws a weighted cluster: give another number than the one that
    /// chose the route, or `runtime_fraction` and weights depend on each other (in Envoy they do).
    #[must_use]
    pub fn target<'r>(&'r self, action: &'r RouteAction, random: u64, headers: &HeaderMap) -> Target<'r> {
        match &action.clusters {
            ClusterSpecifier::One(cluster) => Target {
                cluster,
                request_headers: &self.request_headers,
                response_headers: &self.response_headers,
                host: None,
                subset: action.subset.as_deref(),
            },
            ClusterSpecifier::Weighted(split) => {
                let picked = split.pick(random, headers);
                let own = matches!(action.host_rewrite, HostRewrite::Keep);
                Target {
                    cluster: &picked.cluster,
                    request_headers: &picked.request_headers,
                    response_headers: &picked.response_headers,
                    host: picked.host_rewrite.as_ref().filter(|_| own),
                    subset: picked.subset.as_deref(),
                }
            }
        }
    }
}

/// `RouteAction.UpgradeConfig`: overrides the listener's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeOverride {
    /// `upgrade_type`, lower-case; `connect` is the method CONNECT.
    pub token: Arc<str>,
    /// `enabled`, default true.
    pub enabled: bool,
    /// `connect_config`: the CONNECT ends here, its payload goes upstream as plain TCP.
    pub terminate_connect: bool,
}

impl RouteAction {
    /// What this route says about an upgrade `token` (any case); None leaves it to the listener.
    #[must_use]
    pub fn upgrade(&self, token: &str) -> Option<&UpgradeOverride> {
        self.upgrades.iter().find(|u| u.token.eq_ignore_ascii_case(token))
    }

    /// Whether a CONNECT ends here (`connect_config`).
    #[must_use]
    pub fn ends_connect(&self) -> bool {
        self.upgrade("connect").is_some_and(|rule| rule.enabled && rule.terminate_connect)
    }
}

/// A compiled `RedirectAction`.
#[derive(Debug)]
pub struct Redirect {
    /// `response_code`, default 301.
    pub status: StatusCode,
    /// `https_redirect` or `scheme_redirect`.
    pub scheme: Option<Scheme>,
    /// `host_redirect`.
    pub host: Option<Box<str>>,
    /// `port_redirect`; 0 is none.
    pub port: u16,
    /// `path_rewrite_specifier`.
    pub path: RedirectPath,
    /// `strip_query`.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug)]
pub enum RedirectPath {
    /// The request's.
    Keep,
    /// `path_redirect`. A query of its own replaces the request's, and is never stripped.
    Replace(Box<str>),
    /// `prefix_rewrite`, `regex_rewrite` or `path_rewrite`.
    Rewrite(PathRewrite),
}

impl Redirect {
    /// The Location of the answer to a request that `matcher` accepted.
    ///
    /// # Errors
    /// [`BadRewrite`] when the rewrite gives something that is not a path.
    pub fn location(
        &self,
        head: &RequestHead,
        matcher: &PathMatch,
        render: &mut Render<'_>,
    ) -> Result<HeaderValue, BadRewrite> {
        let scheme = self.scheme.as_ref().unwrap_or(&head.scheme);
        let port = if self.port == 0 { String::new() } else { format!(":{}", self.port) };
        let authority = head.authority.as_ref().map_or("", |a| a.as_str());
        let host = match &self.host {
            Some(host) => host,
            None => self.kept_host(authority, &head.scheme, scheme),
        };
        let path = self.new_path(head, matcher, render)?;
        HeaderValue::try_from(format!("{}://{host}{port}{path}", scheme.as_str()))
            .map_err(|_| BadRewrite("location"))
    }

    /// The request's host. Its port goes when a new one comes, and when it is the old scheme's own and the scheme changes.
    fn kept_host<'h>(&self, authority: &'h str, old: &Scheme, new: &Scheme) -> &'h str {
        let Some(colon) = port_start(authority) else { return authority };
        let port = &authority[colon..];
        let default = (*old == Scheme::HTTPS && port == ":443") || (*old == Scheme::HTTP && port == ":80");
        if self.port != 0 || (old != new && default) { &authority[..colon] } else { authority }
    }

    fn new_path(
        &self,
        head: &RequestHead,
        matcher: &PathMatch,
        render: &mut Render<'_>,
    ) -> Result<String, BadRewrite> {
        let rewritten = match &self.path {
            RedirectPath::Replace(path) if path.contains('?') => return Ok(path.to_string()),
            RedirectPath::Replace(path) => {
                let query = head.path.query().filter(|_| !self.strip_query);
                return Ok(query.map_or_else(|| path.to_string(), |q| format!("{path}?{q}")));
            }
            RedirectPath::Rewrite(rewrite) => rewrite.apply(&head.path, matcher, &head.headers, render)?,
            RedirectPath::Keep => None,
        };
        let path = rewritten.as_ref().unwrap_or(&head.path);
        Ok(if self.strip_query { path.path() } else { path.as_str() }.to_owned())
    }
}

/// The Location that sends a request of a virtual host with `require_tls` to https, status 301.
#[must_use]
pub fn tls_location(head: &RequestHead) -> Option<HeaderValue> {
    let authority = head.authority.as_ref()?;
    HeaderValue::try_from(format!("https://{authority}{}", head.path)).ok()
}

/// Where the `:port` of a host begins. The colons of an IPv6 address in brackets are none.
#[must_use]
pub fn port_start(host: &str) -> Option<usize> {
    let colon = host.rfind(':')?;
    match host.rfind(']') {
        Some(bracket) if bracket > colon => None,
        _ => Some(colon),
    }
}

/// A compiled `DirectResponseAction`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// `status`.
    pub status: StatusCode,
    /// `body`, read when the configuration was compiled.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matcher::tests::get;
    use crate::route::re2::Substitution;

    fn redirect(path: RedirectPath) -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: 0,
            path,
            strip_query: false,
        }
    }

    #[track_caller]
    fn check(r: &Redirect, scheme: Scheme, host: &str, path: &str, want: &str) {
        let mut head = get(host, path, &[]);
        head.scheme = scheme;
        let matcher = PathMatch::Prefix { text: "/old".into(), ignore_case: false };
        let got = r.location(&head, &matcher, &mut |_, _| None).unwrap();
        assert_eq!(got.to_str().unwrap(), want);
    }

    #[test]
    fn location_follows_envoys_rules() {
        let https = Redirect { scheme: Some(Scheme::HTTPS), ..redirect(RedirectPath::Keep) };
        check(&https, Scheme::HTTP, "a.example", "/x?q=1", "https://a.example/x?q=1");
        check(&https, Scheme::HTTP, "a.example:80", "/x", "https://a.example/x");
        check(&https, Scheme::HTTP, "a.example:81", "/x", "https://a.example:81/x");
        check(&https, Scheme::HTTP, "[::1]:80", "/x", "https://[::1]/x");
        check(&https, Scheme::HTTP, "[::1]", "/x", "https://[::1]/x");
        check(&https, Scheme::HTTPS, "a.example:443", "/x", "https://a.example:443/x");
        let http = Redirect { scheme: Some(Scheme::HTTP), ..redirect(RedirectPath::Keep) };
        check(&http, Scheme::HTTPS, "a.example:443", "/x", "http://a.example/x");

        let port = Redirect { port: 8443, ..redirect(RedirectPath::Keep) };
        check(&port, Scheme::HTTP, "a.example:99", "/x", "http://a.example:8443/x");
        let host = Redirect { host: Some("b.example".into()), ..redirect(RedirectPath::Keep) };
        check(&host, Scheme::HTTP, "a.example:99", "/x", "http://b.example/x");
        let both = Redirect { host: Some("b.example".into()), port: 81, ..redirect(RedirectPath::Keep) };
        check(&both, Scheme::HTTP, "a.example", "/x", "http://b.example:81/x");
    }

    #[test]
    fn redirect_paths_and_queries() {
        let replace =
            |p: &str, strip_query| Redirect { strip_query, ..redirect(RedirectPath::Replace(p.into())) };
        check(
            &replace("/new-path-1", false),
            Scheme::HTTP,
            "h",
            "/old-path-1?bar=1",
            "http://h/new-path-1?bar=1",
        );
        check(&replace("/new-path-2", true), Scheme::HTTP, "h", "/old-path-2?bar=1", "http://h/new-path-2");
        check(
            &replace("/new-path-3?foo=1", true),
            Scheme::HTTP,
            "h",
            "/old?bar=1",
            "http://h/new-path-3?foo=1",
        );
        let strip = Redirect { strip_query: true, ..redirect(RedirectPath::Keep) };
        check(&strip, Scheme::HTTP, "h", "/old?bar=1", "http://h/old");
        let prefix = redirect(RedirectPath::Rewrite(PathRewrite::Prefix("/new".into())));
        check(&prefix, Scheme::HTTP, "h", "/old/x?bar=1", "http://h/new/x?bar=1");
        let regex = PathRewrite::Regex(Substitution::new("^/old/(.*)$", r"/\1").unwrap());
        let regex = Redirect { strip_query: true, ..redirect(RedirectPath::Rewrite(regex)) };
        check(&regex, Scheme::HTTP, "h", "/old/x?bar=1", "http://h/x");
    }

    #[test]
    fn tls_redirect_and_ports() {
        assert_eq!(tls_location(&get("a.example:80", "/x?q", &[])).unwrap(), "https://a.example:80/x?q");
        assert_eq!(tls_location(&get("", "/x", &[])), None);
        assert_eq!(port_start("a:1"), Some(1));
        assert_eq!(port_start("a"), None);
        assert_eq!(port_start("[::1]"), None);
        assert_eq!(port_start("[::1]:1"), Some(5));
    }

    #[test]
    fn a_cluster_header_names_the_cluster() {
        let by_header = ClusterRef::Header(HeaderKey::parse("x-cluster").unwrap());
        let head = get("h", "/", &[("x-cluster", "c1"), ("x-cluster", "c2")]);
        assert_eq!(by_header.resolve(&head), NamedCluster::Name("c1"));
        assert_eq!(by_header.resolve(&get("h", "/", &[])), NamedCluster::Missing);
        assert_eq!(by_header.resolve(&get("h", "/", &[("x-cluster", "")])), NamedCluster::Missing);
        let by_host = ClusterRef::Header(HeaderKey::Authority);
        assert_eq!(by_host.resolve(&head), NamedCluster::Name("h"));
    }
}
