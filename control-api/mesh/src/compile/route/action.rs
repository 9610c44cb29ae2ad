//! What a rule does: forward, redirect, answer, and change headers and paths on the way.

use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use remora_xds::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use remora_xds::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use remora_xds::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, Route, RouteAction, WeightedCluster,
};
use remora_xds::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use super::super::{names, parts, retry};
use super::matches::regex;
use crate::document::{
    BackendRef, Header, HeaderModifier, HttpFilter, HttpMatch, HttpRule, HttpTimeouts, PathModifier,
    PathModifierType, RequestRedirect, Retries, TrafficPolicySpec, UrlRewrite,
};

/// Fills in what `rule` does with what `matched` matches.
pub(super) fn compile(
    route: &mut Route,
    namespace: &str,
    rule: &HttpRule,
    matched: &HttpMatch,
    policy: Option<&TrafficPolicySpec>,
) {
    let modifiers = Modifiers::of(&rule.filters);
    route.request_headers_to_add = modifiers.request_add;
    route.request_headers_to_remove = modifiers.request_remove;
    route.response_headers_to_add = modifiers.response_add;
    route.response_headers_to_remove = modifiers.response_remove;
    if let Some(redirect) = rule.filters.iter().find_map(|f| f.request_redirect.as_ref()) {
        route.action = Some(Action::Redirect(redirect_to(redirect, matched)));
        return;
    }
    // Without anywhere to go the Gateway API wants a 500.
    if rule.backend_refs.iter().all(|b| b.weight == 0) {
        route.action = Some(Action::DirectResponse(DirectResponseAction {
            status: 500,
            ..DirectResponseAction::default()
        }));
        return;
    }
    let mut action = forward(namespace, &rule.backend_refs, rule.timeouts, policy);
    if let Some(rewrite) = rule.filters.iter().find_map(|f| f.url_rewrite.as_ref()) {
        rewrite_to(&mut action, rewrite, matched);
    }
    route.action = Some(Action::Route(action));
}

/// To `backends`, by weight.
pub(super) fn forward(
    namespace: &str,
    backends: &[BackendRef],
    timeouts: HttpTimeouts,
    policy: Option<&TrafficPolicySpec>,
) -> RouteAction {
    let limits = policy.map(|p| p.timeouts).unwrap_or_default();
    let defaults = Retries::default();
    let retries = policy.map_or(&defaults, |p| &p.retries);
    let request = timeouts.request.or(limits.request).unwrap_or_default();
    RouteAction {
        cluster_specifier: Some(clusters(namespace, backends)),
        timeout: Some(parts::duration(request.0)),
        idle_timeout: limits.idle.map(|t| parts::duration(t.0)),
        retry_policy: Some(retry::policy(retries, timeouts)),
        ..RouteAction::default()
    }
}

fn clusters(namespace: &str, backends: &[BackendRef]) -> ClusterSpecifier {
    let name = |b: &BackendRef| names::cluster(b.namespace.as_deref().unwrap_or(namespace), &b.name, b.port);
    let used: Vec<_> = backends.iter().filter(|b| b.weight > 0).collect();
    if let [only] = used[..]
        && only.filters.is_empty()
    {
        return ClusterSpecifier::Cluster(name(only));
    }
    let clusters = used.into_iter().map(|backend| {
        let modifiers = Modifiers::of(&backend.filters);
        ClusterWeight {
            name: name(backend),
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

/// Characters that mean something in RE2, escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '/' && c != '_' && c != '-' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A new path. Where a prefix is replaced, `/a` with `/` must make `/b` of `/a/b`, and `/` of `/a`.
fn new_path(path: &PathModifier, matched: &HttpMatch) -> RegexMatchAndSubstitute {
    match path.kind {
        PathModifierType::ReplaceFullPath => {
            substitution("^/.*$".into(), path.replace_full_path.as_deref().unwrap_or("/"))
        }
        PathModifierType::ReplacePrefixMatch => {
            let prefix = matched.path.value.trim_end_matches('/');
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

fn rewrite_to(action: &mut RouteAction, rewrite: &UrlRewrite, matched: &HttpMatch) {
    action.host_rewrite_specifier = rewrite.hostname.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    action.regex_rewrite = rewrite.path.as_ref().map(|path| new_path(path, matched));
}

fn redirect_to(redirect: &RequestRedirect, matched: &HttpMatch) -> RedirectAction {
    let code = match redirect.status_code {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = redirect.path.as_ref().map(|path| match (path.kind, &path.replace_full_path) {
        (PathModifierType::ReplaceFullPath, Some(full)) => PathRewriteSpecifier::PathRedirect(full.clone()),
        _ => PathRewriteSpecifier::RegexRewrite(new_path(path, matched)),
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
