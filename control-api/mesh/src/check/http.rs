//! HTTPRoutes and GRPCRoutes.

use std::sync::Arc;

use remora_xds::diag::At;

use super::filter;
use super::names::{check_header_name, check_path, check_regex, check_text, is_written_path};
use super::report::Report;
use super::route::{backends, no_hostnames, parents};
use crate::document::{
    BackendRef, Document, GrpcMatch, GrpcRouteSpec, HeaderModifier, HttpFilter, HttpFilterType, HttpMatch,
    HttpRetry, HttpRouteSpec, HttpRule, PathMatchType, PathModifier, PathModifierType, ValueMatch,
    ValueMatchType,
};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;

/// An HTTPRoute.
pub(super) fn http(mesh: &Mesh, document: &Arc<Document<HttpRouteSpec>>, report: &mut Report) {
    let route = AnyDocument::HttpRoute(Arc::clone(document)).key();
    parents(mesh, &route, (&document.spec.parent_refs, document.spec.use_default_gateways), report);
    no_hostnames(&document.spec.hostnames, report);
    let root = At::root();
    let spec = root.field("spec");
    let rules = spec.field("rules");
    report.at_most(16, document.spec.rules.len(), &rules);
    for (i, rule) in document.spec.rules.iter().enumerate() {
        let at = rules.index(i);
        http_rule(rule, &at, report);
        filter::mirrors(mesh, &route, &rule.filters, &at.field("filters"), report);
        filter::session(&document.spec.rules, i, &at, report);
        filter::preflights(rule, &at, report);
        let refs = at.field("backendRefs");
        backends(mesh, &route, &rule.backend_refs, &refs, report);
        let prefixes = rule.matches.iter().all(|m| m.path.kind == PathMatchType::PathPrefix);
        backend_filters(&rule.backend_refs, prefixes, &refs, report);
    }
}

/// A GRPCRoute.
pub(super) fn grpc(mesh: &Mesh, document: &Arc<Document<GrpcRouteSpec>>, report: &mut Report) {
    let route = AnyDocument::GrpcRoute(Arc::clone(document)).key();
    parents(mesh, &route, (&document.spec.parent_refs, document.spec.use_default_gateways), report);
    no_hostnames(&document.spec.hostnames, report);
    let root = At::root();
    let spec = root.field("spec");
    let rules = spec.field("rules");
    report.at_most(16, document.spec.rules.len(), &rules);
    for (i, rule) in document.spec.rules.iter().enumerate() {
        let at = rules.index(i);
        let matches = at.field("matches");
        report.at_most(64, rule.matches.len(), &matches);
        for (i, one) in rule.matches.iter().enumerate() {
            grpc_match(one, &matches.index(i), report);
        }
        let list = at.field("filters");
        filters(&rule.filters, false, &list, report);
        for (i, filter) in rule.filters.iter().enumerate() {
            let http = [HttpFilterType::UrlRewrite, HttpFilterType::RequestRedirect, HttpFilterType::Cors];
            if http.contains(&filter.kind) {
                report.report(&list.index(i).field("type"), "does not belong to a GRPCRoute");
            }
        }
        filter::mirrors(mesh, &route, &rule.filters, &list, report);
        if rule.session_persistence.is_some() {
            report.unsupported(&at.field("sessionPersistence"), "is not supported yet").fix("remove it");
        }
        let refs = at.field("backendRefs");
        backends(mesh, &route, &rule.backend_refs, &refs, report);
        backend_filters(&rule.backend_refs, false, &refs, report);
    }
}

fn http_rule(rule: &HttpRule, at: &At<'_>, report: &mut Report) {
    let matches = at.field("matches");
    report.at_most(64, rule.matches.len(), &matches);
    for (i, one) in rule.matches.iter().enumerate() {
        http_match(one, &matches.index(i), report);
    }
    let list = at.field("filters");
    let prefixes = rule.matches.iter().all(|m| m.path.kind == PathMatchType::PathPrefix);
    filters(&rule.filters, prefixes, &list, report);
    let redirects = rule.filters.iter().any(|f| f.kind == HttpFilterType::RequestRedirect);
    let goes_on = [HttpFilterType::UrlRewrite, HttpFilterType::RequestMirror];
    if redirects && (!rule.backend_refs.is_empty() || rule.filters.iter().any(|f| goes_on.contains(&f.kind)))
    {
        report
            .report(&list, "a redirect goes nowhere else")
            .fix("remove backendRefs, URLRewrite and RequestMirror, or the redirect");
    }
    if let (Some(all), Some(one)) = (rule.timeouts.request, rule.timeouts.backend_request)
        && !all.0.is_zero()
        && one > all
    {
        let timeouts = at.field("timeouts");
        report.report(&timeouts.field("backendRequest"), "is longer than the whole request may take");
    }
    if let Some(retry) = &rule.retry {
        check_retry(retry, &at.field("retry"), report);
    }
}

pub(super) fn http_match(one: &HttpMatch, at: &At<'_>, report: &mut Report) {
    let path = at.field("path");
    let value = path.field("value");
    if one.path.kind == PathMatchType::RegularExpression {
        check_regex(&one.path.value, &value, report);
    } else {
        check_path(&one.path.value, &value, report);
    }
    check_values(&one.headers, true, &at.field("headers"), report);
    check_values(&one.query_params, false, &at.field("queryParams"), report);
    if one.method.as_ref().is_some_and(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase())) {
        report.report(&at.field("method"), "is no method").fix("GET, POST, …");
    }
}

fn grpc_match(one: &GrpcMatch, at: &At<'_>, report: &mut Report) {
    check_values(&one.headers, true, &at.field("headers"), report);
    let Some(method) = &one.method else { return };
    let at = at.field("method");
    if method.service.is_none() && method.method.is_none() {
        report.report(&at, "needs service, or method, or both");
    }
    for (field, value) in [("service", &method.service), ("method", &method.method)] {
        let Some(value) = value else { continue };
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        match method.kind {
            ValueMatchType::RegularExpression => check_regex(value, &at.field(field), report),
            ValueMatchType::Exact if value.is_empty() || !value.bytes().all(inner) => {
                report.report(&at.field(field), format!("{value:?} is no name of a {field}"));
            }
            ValueMatchType::Exact => {}
        }
    }
}

fn check_retry(retry: &HttpRetry, at: &At<'_>, report: &mut Report) {
    let codes = at.field("codes");
    for (i, code) in retry.codes.iter().enumerate() {
        if !(400..600).contains(code) {
            report.report(&codes.index(i), format!("{code} is no status of a failure")).fix("400 to 599");
        }
    }
    if retry.backoff.is_some_and(|b| b.0.is_zero()) {
        report.report(&at.field("backoff"), "must be more than 0s");
    }
}

fn filters(list: &[HttpFilter], prefixes: bool, at: &At<'_>, report: &mut Report) {
    report.at_most(16, list.len(), at);
    for (i, filter) in list.iter().enumerate() {
        check_filter(prefixes, filter, &at.index(i), report);
        let many = filter.kind == HttpFilterType::RequestMirror;
        if !many && list[..i].iter().any(|f| f.kind == filter.kind) {
            report.report(&at.index(i), "occurs twice in this rule");
        }
    }
}

fn backend_filters(list: &[BackendRef], prefixes: bool, at: &At<'_>, report: &mut Report) {
    for (i, backend) in list.iter().enumerate() {
        let at = at.index(i);
        let at = at.field("filters");
        for (i, filter) in backend.filters.iter().enumerate() {
            let at = at.index(i);
            let modifies = [HttpFilterType::RequestHeaderModifier, HttpFilterType::ResponseHeaderModifier];
            let refused = [HttpFilterType::ExternalAuth, HttpFilterType::ExtensionRef];
            if !modifies.contains(&filter.kind) && !refused.contains(&filter.kind) {
                report
                    .unsupported(&at.field("type"), "is not supported for one backend")
                    .fix("put it into the rule's filters");
            }
            check_filter(prefixes, filter, &at, report);
        }
    }
}

fn check_filter(prefixes: bool, filter: &HttpFilter, at: &At<'_>, report: &mut Report) {
    let fields = [
        (
            "requestHeaderModifier",
            filter.request_header_modifier.is_some(),
            HttpFilterType::RequestHeaderModifier,
        ),
        (
            "responseHeaderModifier",
            filter.response_header_modifier.is_some(),
            HttpFilterType::ResponseHeaderModifier,
        ),
        ("urlRewrite", filter.url_rewrite.is_some(), HttpFilterType::UrlRewrite),
        ("requestRedirect", filter.request_redirect.is_some(), HttpFilterType::RequestRedirect),
        ("requestMirror", filter.request_mirror.is_some(), HttpFilterType::RequestMirror),
        ("cors", filter.cors.is_some(), HttpFilterType::Cors),
    ];
    for (name, set, kind) in fields {
        if set && kind != filter.kind {
            report.report(&at.field(name), "does not belong to this type of filter");
        } else if !set && kind == filter.kind {
            report.report(at, format!("{name} is missing"));
        }
    }
    let later = [
        ("externalAuth", filter.external_auth, HttpFilterType::ExternalAuth, "is not supported yet"),
        (
            "extensionRef",
            filter.extension_ref,
            HttpFilterType::ExtensionRef,
            "is not supported: there are no extensions",
        ),
    ];
    for (name, set, kind, why) in later {
        if filter.kind == kind {
            let text = format!("{} {why}", kind.as_str());
            let fix = if kind == HttpFilterType::ExternalAuth {
                "an AuthorizationPolicy with action: Custom asks in front of the program"
            } else {
                "remove the filter"
            };
            report.unsupported(&at.field("type"), text).fix(fix);
        } else if set.is_some() {
            report.report(&at.field(name), "does not belong to this type of filter");
        }
    }
    for (name, modifier) in [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ] {
        if let Some(modifier) = modifier {
            check_modifier(modifier, &at.field(name), report);
        }
    }
    if let Some(said) = &filter.cors {
        filter::cors(said, &at.field("cors"), report);
    }
    check_goal(prefixes, filter, at, report);
}

/// Rewrites and redirects.
fn check_goal(prefixes: bool, filter: &HttpFilter, at: &At<'_>, report: &mut Report) {
    let (rewrite, redirect) = (at.field("urlRewrite"), at.field("requestRedirect"));
    let hosts = [
        (rewrite.field("hostname"), filter.url_rewrite.as_ref().and_then(|r| r.hostname.as_ref())),
        (redirect.field("hostname"), filter.request_redirect.as_ref().and_then(|r| r.hostname.as_ref())),
    ];
    for (at, host) in hosts {
        if host.is_some_and(|h| {
            h.is_empty() || !h.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        }) {
            report.report(&at, "is no host name");
        }
    }
    if let Some(path) = filter.url_rewrite.as_ref().and_then(|r| r.path.as_ref()) {
        check_new_path(prefixes, path, &rewrite.field("path"), report);
    }
    let Some(request) = &filter.request_redirect else { return };
    if let Some(path) = &request.path {
        check_new_path(prefixes, path, &redirect.field("path"), report);
    }
    if !matches!(request.status_code, 301 | 302 | 303 | 307 | 308) {
        report.report(&redirect.field("statusCode"), "is no redirect").fix("301, 302, 303, 307 or 308");
    }
    if request.scheme.as_ref().is_some_and(|s| s != "http" && s != "https") {
        report.report(&redirect.field("scheme"), "is not supported").fix("http or https");
    }
}

fn check_new_path(prefixes: bool, path: &PathModifier, at: &At<'_>, report: &mut Report) {
    let (needed, other, value) = match path.kind {
        PathModifierType::ReplaceFullPath => {
            ("replaceFullPath", path.replace_prefix_match.is_some(), path.replace_full_path.as_ref())
        }
        PathModifierType::ReplacePrefixMatch => {
            ("replacePrefixMatch", path.replace_full_path.is_some(), path.replace_prefix_match.as_ref())
        }
    };
    match value {
        None => {
            report.report(at, format!("{needed} is missing"));
        }
        Some(value) if !value.is_empty() && !value.starts_with('/') => {
            report.report(&at.field(needed), "must begin with /");
        }
        Some(value) if !value.is_empty() && !is_written_path(value) => {
            let text = "has characters that no path may have";
            report.report(&at.field(needed), text).fix("percent-encode them: %20 for a space");
        }
        Some(_) => {}
    }
    if other {
        report.report(at, format!("only {needed} belongs to this type"));
    }
    if path.kind == PathModifierType::ReplacePrefixMatch && !prefixes {
        report
            .report(at, "a prefix can only be replaced where one is matched")
            .fix("match by PathPrefix everywhere");
    }
}

/// The names and values of a match.
fn check_values(list: &[ValueMatch], headers: bool, at: &At<'_>, report: &mut Report) {
    report.at_most(16, list.len(), at);
    for (i, one) in list.iter().enumerate() {
        let at = at.index(i);
        if headers {
            check_header_name(&one.name, &at.field("name"), report);
        } else if one.name.is_empty() {
            report.report(&at.field("name"), "is empty");
        } else {
            check_text(&one.name, &at.field("name"), report);
        }
        match one.kind {
            ValueMatchType::Exact => check_text(&one.value, &at.field("value"), report),
            ValueMatchType::RegularExpression => check_regex(&one.value, &at.field("value"), report),
        }
    }
}

fn check_modifier(modifier: &HeaderModifier, at: &At<'_>, report: &mut Report) {
    for (field, list) in [("set", &modifier.set), ("add", &modifier.add)] {
        let at = at.field(field);
        for (i, header) in list.iter().enumerate() {
            let at = at.index(i);
            check_header_name(&header.name, &at.field("name"), report);
            check_text(&header.value, &at.field("value"), report);
        }
    }
    let remove = at.field("remove");
    for (i, name) in modifier.remove.iter().enumerate() {
        check_header_name(name, &remove.index(i), report);
    }
}
