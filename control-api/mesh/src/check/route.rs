//! HTTPRoute.

use remora_xds::diag::{At, Errors};

use super::{need_kind, need_port, need_service};
use crate::document::{
    Document, HeaderModifier, HttpFilter, HttpFilterType, HttpRouteSpec, HttpRule, PathMatchType,
    PathModifier, PathModifierType, ValueMatch, ValueMatchType,
};
use crate::mesh::Mesh;

pub(super) fn check(mesh: &Mesh, document: &Document<HttpRouteSpec>, errors: &mut Errors) {
    let root = At::root();
    let spec = root.field("spec");
    let parents = spec.field("parentRefs");
    if document.spec.parent_refs.is_empty() {
        errors.report(&parents, "must not be empty").fix("parentRefs: [{kind: Service, name: …}]");
    }
    for (i, parent) in document.spec.parent_refs.iter().enumerate() {
        let at = parents.index(i);
        need_kind(parent.group.as_deref(), Some(parent.kind.as_deref().unwrap_or("Gateway")), &at, errors);
        let namespace = parent.namespace.as_ref().unwrap_or(&document.metadata.namespace);
        if let Some(service) = need_service(mesh, namespace, &parent.name, &at.field("name"), errors) {
            need_port(service, parent.port, &at.field("port"), errors);
        }
    }
    let rules = spec.field("rules");
    for (i, rule) in document.spec.rules.iter().enumerate() {
        check_rule(mesh, &document.metadata.namespace, rule, &rules.index(i), errors);
    }
}

fn check_rule(mesh: &Mesh, namespace: &str, rule: &HttpRule, at: &At<'_>, errors: &mut Errors) {
    let matches = at.field("matches");
    for (i, one) in rule.matches.iter().enumerate() {
        let at = matches.index(i);
        if one.path.kind != PathMatchType::RegularExpression && !one.path.value.starts_with('/') {
            errors.report(&at.field("path").field("value"), "must begin with /");
        }
        if one.path.kind == PathMatchType::RegularExpression {
            check_regex(&one.path.value, &at.field("path").field("value"), errors);
        } else {
            check_text(&one.path.value, &at.field("path").field("value"), errors);
        }
        check_values(&one.headers, true, &at.field("headers"), errors);
        check_values(&one.query_params, false, &at.field("queryParams"), errors);
        if one.method.as_ref().is_some_and(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase())) {
            errors.report(&at.field("method"), "is no method").fix("GET, POST, …");
        }
    }
    let filters = at.field("filters");
    for (i, filter) in rule.filters.iter().enumerate() {
        check_filter(rule, filter, &filters.index(i), errors);
        if rule.filters[..i].iter().any(|f| f.kind == filter.kind) {
            errors.report(&filters.index(i), "occurs twice in this rule");
        }
    }
    let redirects = rule.filters.iter().any(|f| f.kind == HttpFilterType::RequestRedirect);
    if redirects
        && (!rule.backend_refs.is_empty()
            || rule.filters.iter().any(|f| f.kind == HttpFilterType::UrlRewrite))
    {
        errors
            .report(&filters, "a redirect goes nowhere else")
            .fix("remove backendRefs and URLRewrite, or the redirect");
    }
    let backends = at.field("backendRefs");
    for (i, backend) in rule.backend_refs.iter().enumerate() {
        let at = backends.index(i);
        need_kind(backend.group.as_deref(), backend.kind.as_deref(), &at, errors);
        let namespace = backend.namespace.as_deref().unwrap_or(namespace);
        if let Some(service) = need_service(mesh, namespace, &backend.name, &at.field("name"), errors) {
            need_port(service, Some(backend.port), &at.field("port"), errors);
        }
        let filters = at.field("filters");
        for (i, filter) in backend.filters.iter().enumerate() {
            let at = filters.index(i);
            if matches!(filter.kind, HttpFilterType::UrlRewrite | HttpFilterType::RequestRedirect) {
                errors
                    .report(&at.field("type"), "is not supported for one backend")
                    .fix("put it into the rule's filters");
            }
            check_filter(rule, filter, &at, errors);
        }
    }
    if let (Some(all), Some(one)) = (rule.timeouts.request, rule.timeouts.backend_request)
        && !all.0.is_zero()
        && one > all
    {
        errors.report(
            &at.field("timeouts").field("backendRequest"),
            "is longer than the whole request may take",
        );
    }
}

fn check_filter(rule: &HttpRule, filter: &HttpFilter, at: &At<'_>, errors: &mut Errors) {
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
    ];
    for (name, set, kind) in fields {
        if set && kind != filter.kind {
            errors.report(&at.field(name), "does not belong to this type of filter");
        } else if !set && kind == filter.kind {
            errors.report(at, format!("{name} is missing"));
        }
    }
    for (name, modifier) in [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ] {
        if let Some(modifier) = modifier {
            check_modifier(modifier, &at.field(name), errors);
        }
    }
    let (rewrite, redirect) = (at.field("urlRewrite"), at.field("requestRedirect"));
    let hosts = [
        (rewrite.field("hostname"), filter.url_rewrite.as_ref().and_then(|r| r.hostname.as_ref())),
        (redirect.field("hostname"), filter.request_redirect.as_ref().and_then(|r| r.hostname.as_ref())),
    ];
    for (at, host) in hosts {
        if host.is_some_and(|h| {
            h.is_empty() || !h.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        }) {
            errors.report(&at, "is no host name");
        }
    }
    if let Some(path) = filter.url_rewrite.as_ref().and_then(|r| r.path.as_ref()) {
        check_path(rule, path, &rewrite.field("path"), errors);
    }
    let Some(request) = &filter.request_redirect else { return };
    if let Some(path) = &request.path {
        check_path(rule, path, &redirect.field("path"), errors);
    }
    if !matches!(request.status_code, 301 | 302 | 303 | 307 | 308) {
        errors.report(&redirect.field("statusCode"), "is no redirect").fix("301, 302, 303, 307 or 308");
    }
    if request.scheme.as_ref().is_some_and(|s| s != "http" && s != "https") {
        errors.report(&redirect.field("scheme"), "is not supported").fix("http or https");
    }
}

fn check_path(rule: &HttpRule, path: &PathModifier, at: &At<'_>, errors: &mut Errors) {
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
            errors.report(at, format!("{needed} is missing"));
        }
        Some(value) if !value.is_empty() && !value.starts_with('/') => {
            errors.report(&at.field(needed), "must begin with /");
        }
        Some(value) => check_text(value, &at.field(needed), errors),
    }
    if other {
        errors.report(at, format!("only {needed} belongs to this type"));
    }
    let prefixes = rule.matches.iter().all(|m| m.path.kind == PathMatchType::PathPrefix);
    if path.kind == PathModifierType::ReplacePrefixMatch && !prefixes {
        errors
            .report(at, "a prefix can only be replaced where one is matched")
            .fix("match by PathPrefix everywhere");
    }
}

/// The names and values of a match.
fn check_values(list: &[ValueMatch], headers: bool, at: &At<'_>, errors: &mut Errors) {
    for (i, one) in list.iter().enumerate() {
        let at = at.index(i);
        if headers {
            check_header_name(&one.name, &at.field("name"), errors);
        } else if one.name.is_empty() {
            errors.report(&at.field("name"), "is empty");
        } else {
            check_text(&one.name, &at.field("name"), errors);
        }
        match one.kind {
            ValueMatchType::Exact => check_text(&one.value, &at.field("value"), errors),
            ValueMatchType::RegularExpression => check_regex(&one.value, &at.field("value"), errors),
        }
    }
}

fn check_modifier(modifier: &HeaderModifier, at: &At<'_>, errors: &mut Errors) {
    for (field, list) in [("set", &modifier.set), ("add", &modifier.add)] {
        let at = at.field(field);
        for (i, header) in list.iter().enumerate() {
            let at = at.index(i);
            check_header_name(&header.name, &at.field("name"), errors);
            check_text(&header.value, &at.field("value"), errors);
        }
    }
    let remove = at.field("remove");
    for (i, name) in modifier.remove.iter().enumerate() {
        check_header_name(name, &remove.index(i), errors);
    }
}

/// RFC 9110 section 5.6.2 token. Host and pseudo-headers are not for modifiers, and have matches of their own.
fn check_header_name(name: &str, at: &At<'_>, errors: &mut Errors) {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        errors.report(at, format!("{name:?} is no name of a header"));
    } else if name.eq_ignore_ascii_case("host") {
        errors.report(at, "Host is not matched or changed here").fix("URLRewrite has hostname");
    }
}

/// No control characters: they would end a line of HTTP.
fn check_text(text: &str, at: &At<'_>, errors: &mut Errors) {
    if text.chars().any(char::is_control) {
        errors.report(at, "has control characters");
    }
}

fn check_regex(text: &str, at: &At<'_>, errors: &mut Errors) {
    if text.is_empty() {
        errors.report(at, "is empty");
    } else if let Err(error) = regex::Regex::new(text) {
        let error = error.to_string();
        errors.report(at, format!("is no regular expression: {}", error.lines().last().unwrap_or_default()));
    }
}
