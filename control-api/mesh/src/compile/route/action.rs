//! What a rule does: forward, redirect, answer, and change headers and paths on the way.

use std::collections::{BTreeSet, HashMap};

use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent};
use remora_xds::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use remora_xds::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, Route, RouteAction, WeightedCluster,
};
use remora_xds::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use remora_xds::pb::google::protobuf::Any;

use super::super::{names, parts, retry, session};
use super::matches::{self, quoted, regex};
use super::{Candidate, cors};
use crate::document::{
    Header, HeaderModifier, HttpFilter, HttpMatch, HttpRetry, HttpTimeouts, PathModifier, PathModifierType,
    RequestRedirect, Retries, SessionPersistence, TrafficPolicySpec, UrlRewrite,
};
use crate::mesh::Mesh;
use crate::name::Name;

/// Makes routes of rules, and remembers where they lead.
pub(super) struct Actions<'a> {
    pub(super) mesh: &'a Mesh,
    /// The policy of the Service whose callers are routed.
    pub(super) policy: Option<&'a TrafficPolicySpec>,
    /// Whether some of the rules keep sessions.
    pub(super) sessions: bool,
    pub(super) backends: BTreeSet<(Name, u16)>,
}

/// A backend that requests may go to.
struct Backend<'a> {
    cluster: String,
    weight: u32,
    filters: &'a [HttpFilter],
}

impl Actions<'_> {
    /// Everything to one port: the Service has no routes.
    pub(super) fn direct(&self, namespace: &str, name: &str, port: u16) -> Route {
        let backend = Backend { cluster: names::cluster(namespace, name, port), weight: 1, filters: &[] };
        Route {
            name: "default".into(),
            r#match: Some(matches::http(&HttpMatch::every())),
            action: Some(Action::Route(self.forward(&[backend], HttpTimeouts::default(), None))),
            ..Route::default()
        }
    }

    /// What a rule does with what one of its matches matches. Two routes when some of its backends do not exist, or have filters that are
    /// not supported: the Gateway API wants a 500 for their share.
    pub(super) fn compile(&mut self, candidate: &Candidate<'_>) -> Vec<Route> {
        let name = &candidate.route.name;
        let modifiers = Modifiers::of(candidate.filters);
        let route = Route {
            name: format!("{}.{}.{}", name.namespace, name.name, candidate.rule),
            r#match: Some(candidate.matched.clone()),
            request_headers_to_add: modifiers.request_add,
            request_headers_to_remove: modifiers.request_remove,
            response_headers_to_add: modifiers.response_add,
            response_headers_to_remove: modifiers.response_remove,
            typed_per_filter_config: self.overrides(candidate),
            ..Route::default()
        };
        if candidate.filters.iter().any(|filter| !filter.kind.is_supported()) {
            return vec![refusal(&route, 1, 1)];
        }
        if let Some(redirect) = candidate.filters.iter().find_map(|f| f.request_redirect.as_ref()) {
            let action = Action::Redirect(redirect_to(redirect, candidate.prefix));
            return vec![Route { action: Some(action), ..route }];
        }
        let (backends, missing) = self.split(candidate);
        let total = backends.iter().map(|b| u64::from(b.weight)).sum::<u64>() + missing;
        let mut routes = Vec::new();
        if missing > 0 || backends.is_empty() {
            routes.push(refusal(&route, missing, total));
        }
        if !backends.is_empty() {
            let mut action = self.forward(&backends, candidate.timeouts, candidate.retry);
            action.request_mirror_policies = self.mirrors(candidate);
            if let Some(rewrite) = candidate.filters.iter().find_map(|f| f.url_rewrite.as_ref()) {
                rewrite_to(&mut action, rewrite, candidate.prefix);
            }
            routes.push(Route { action: Some(Action::Route(action)), ..route });
        }
        routes
    }

    /// What a rule says to filters.
    fn overrides(&self, candidate: &Candidate<'_>) -> HashMap<String, Any> {
        let cors = candidate.filters.iter().find_map(|filter| filter.cors.as_ref());
        let cors = cors.map(|said| (cors::NAME.to_owned(), cors::of_route(said)));
        let of_all = self.policy.is_some_and(|policy| policy.load_balancing.session.is_some());
        let own = candidate.session.map(SessionPersistence::session);
        // The filter is there for another rule.
        let disabled = self.sessions && !of_all;
        let session =
            (own.is_some() || disabled).then(|| (session::NAME.to_owned(), session::of_route(own.as_ref())));
        cors.into_iter().chain(session).collect()
    }

    /// Where copies go. A backend that does not exist gets none.
    fn mirrors(&mut self, candidate: &Candidate<'_>) -> Vec<RequestMirrorPolicy> {
        let mut policies = Vec::new();
        for said in candidate.filters.iter().filter_map(|filter| filter.request_mirror.as_ref()) {
            let Some((name, port)) = self.mesh.backend(&candidate.route, said.backend_ref.to()) else {
                continue;
            };
            policies.push(RequestMirrorPolicy {
                cluster: names::cluster(&name.namespace, &name.name, port),
                runtime_fraction: said.millionths().map(|millionths| RuntimeFractionalPercent {
                    default_value: Some(parts::percent(millionths)),
                    ..RuntimeFractionalPercent::default()
                }),
                ..RequestMirrorPolicy::default()
            });
            self.backends.insert((name, port));
        }
        policies
    }

    /// The backends that get requests, and the weight of those whose requests are refused.
    fn split<'r>(&mut self, candidate: &Candidate<'r>) -> (Vec<Backend<'r>>, u64) {
        let (mut found, mut missing) = (Vec::new(), 0);
        for backend in candidate.backends.iter().filter(|b| b.weight > 0) {
            let filtered = backend.filters.iter().all(|filter| filter.kind.is_supported_for_one_backend());
            let found_at = self.mesh.backend(&candidate.route, backend.to()).filter(|_| filtered);
            let Some((name, port)) = found_at else {
                missing += u64::from(backend.weight);
                continue;
            };
            let cluster = names::cluster(&name.namespace, &name.name, port);
            found.push(Backend { cluster, weight: backend.weight, filters: &backend.filters });
            self.backends.insert((name, port));
        }
        (found, missing)
    }

    /// To `backends`, by weight.
    fn forward(
        &self,
        backends: &[Backend<'_>],
        timeouts: HttpTimeouts,
        retry: Option<&HttpRetry>,
    ) -> RouteAction {
        let limits = self.policy.map(|p| p.timeouts).unwrap_or_default();
        let defaults = Retries::default();
        let retries = self.policy.map_or(&defaults, |p| &p.retries);
        let request = timeouts.request.or(limits.request);
        let timeouts = HttpTimeouts { request, ..timeouts };
        RouteAction {
            cluster_specifier: Some(clusters(backends)),
            timeout: Some(parts::duration(request.unwrap_or_default().0)),
            max_stream_duration: request.is_none_or(|t| t.0.is_zero()).then(parts::by_the_caller),
            idle_timeout: limits.idle.map(|t| parts::duration(t.0)),
            hash_policy: self.policy.map_or_else(Vec::new, |p| session::hashed(&p.load_balancing.hash_on)),
            retry_policy: Some(retry::policy(retries, timeouts, retry)),
            ..RouteAction::default()
        }
    }
}

/// 500 for `missing` of `total` requests, or for all of them.
fn refusal(route: &Route, missing: u64, total: u64) -> Route {
    let mut matched = route.r#match.clone().unwrap_or_default();
    if missing < total {
        let million = missing.saturating_mul(1_000_000) / total;
        matched.runtime_fraction = Some(RuntimeFractionalPercent {
            default_value: Some(parts::percent(u32::try_from(million).unwrap_or(1_000_000).max(1))),
            ..RuntimeFractionalPercent::default()
        });
    }
    let answer = DirectResponseAction { status: 500, ..DirectResponseAction::default() };
    Route { r#match: Some(matched), action: Some(Action::DirectResponse(answer)), ..route.clone() }
}

fn clusters(backends: &[Backend<'_>]) -> ClusterSpecifier {
    if let [only] = backends
        && only.filters.is_empty()
    {
        return ClusterSpecifier::Cluster(only.cluster.clone());
    }
    let clusters = backends.iter().map(|backend| {
        let modifiers = Modifiers::of(backend.filters);
        ClusterWeight {
            name: backend.cluster.clone(),
            weight: parts::number(backend.weight),
            request_headers_to_add: modifiers.request_add,
            request_headers_to_remove: modifiers.request_remove,
            response_headers_to_add: modifiers.response_add,
            response_headers_to_remove: modifiers.response_remove,
            ..ClusterWeight::default()
        }
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
        ..WeightedCluster::default()
    })
}

#[derive(Default)]
struct Modifiers {
    request_add: Vec<HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<HeaderValueOption>,
    response_remove: Vec<String>,
}

impl Modifiers {
    fn of(filters: &[HttpFilter]) -> Self {
        let mut all = Self::default();
        for filter in filters {
            if let Some(modifier) = &filter.request_header_modifier {
                (all.request_add, all.request_remove) = changes(modifier);
            }
            if let Some(modifier) = &filter.response_header_modifier {
                (all.response_add, all.response_remove) = changes(modifier);
            }
        }
        all
    }
}

fn changes(modifier: &HeaderModifier) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option = |header: &Header, action: HeaderAppendAction| HeaderValueOption {
        // In Envoy a % begins a command; in the Gateway API a value is only a value.
        header: Some(HeaderValue {
            key: header.name.clone(),
            value: header.value.replace('%', "%%"),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    };
    let set = modifier.set.iter().map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = modifier.add.iter().map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), modifier.remove.clone())
}

/// A text that stands for itself in the substitution of a regex.
fn substitution(pattern: String, text: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex(&pattern)), substitution: text.replace('\\', r"\\") }
}

/// A new path. Where a prefix is replaced, `/a` with `/` must make `/b` of `/a/b`, and `/` of `/a`.
fn new_path(path: &PathModifier, prefix: &str) -> RegexMatchAndSubstitute {
    match path.kind {
        PathModifierType::ReplaceFullPath => {
            substitution("^/.*$".into(), path.replace_full_path.as_deref().unwrap_or("/"))
        }
        PathModifierType::ReplacePrefixMatch => {
            let prefix = prefix.trim_end_matches('/');
            let new = path.replace_prefix_match.as_deref().unwrap_or("/").trim_end_matches('/');
            if new.is_empty() {
                substitution(format!("^{}/*", quoted(prefix)), "/")
            } else if prefix.is_empty() {
                substitution("^/".into(), &format!("{new}/"))
            } else {
                substitution(format!("^{}", quoted(prefix)), new)
            }
        }
    }
}

fn rewrite_to(action: &mut RouteAction, rewrite: &UrlRewrite, prefix: &str) {
    action.host_rewrite_specifier = rewrite.hostname.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    action.regex_rewrite = rewrite.path.as_ref().map(|path| new_path(path, prefix));
}

fn redirect_to(redirect: &RequestRedirect, prefix: &str) -> RedirectAction {
    let code = match redirect.status_code {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = redirect.path.as_ref().map(|path| match (path.kind, &path.replace_full_path) {
        (PathModifierType::ReplaceFullPath, Some(full)) => PathRewriteSpecifier::PathRedirect(full.clone()),
        _ => PathRewriteSpecifier::RegexRewrite(new_path(path, prefix)),
    });
    // A port that is left out is the new scheme's.
    let port = redirect.port.map_or_else(
        || match redirect.scheme.as_deref() {
            Some("https") => 443,
            Some("http") => 80,
            _ => 0,
        },
        u32::from,
    );
    RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: port,
        response_code: code.into(),
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
        ..RedirectAction::default()
    }
}
