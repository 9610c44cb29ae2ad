//! The filters `CORS` and `RequestMirror`, and `sessionPersistence` of rules.

use remora_xds::diag::At;

use super::balancing::check_cookie_name;
use super::names::check_header_name;
use super::report::Report;
use super::route::reference;
use crate::document::{
    Cors, HttpFilter, HttpMatch, HttpRule, RequestMirror, SessionPersistence, SessionType,
};
use crate::mesh::Mesh;
use crate::name::Key;

/// Entries of one list (the Gateway API's).
const MOST: usize = 64;

pub(super) fn cors(said: &Cors, at: &At<'_>, report: &mut Report) {
    let origins = at.field("allowOrigins");
    if said.allow_origins.is_empty() {
        report.report(&origins, "must not be empty: no page could call").fix("https://shop.example");
    }
    report.at_most(MOST, said.allow_origins.len(), &origins);
    for (i, origin) in said.allow_origins.iter().enumerate() {
        if !is_origin(origin) {
            let fix = "https://shop.example, https://*.shop.example, or * for every one";
            report.report(&origins.index(i), format!("{origin:?} is no origin")).fix(fix);
        }
    }
    let lists = [
        ("allowMethods", &said.allow_methods),
        ("allowHeaders", &said.allow_headers),
        ("exposeHeaders", &said.expose_headers),
    ];
    for (field, list) in lists {
        let at = at.field(field);
        report.at_most(MOST, list.len(), &at);
        for (i, name) in list.iter().enumerate() {
            check_header_name(name, &at.index(i), report);
        }
        if said.allow_credentials && list.iter().any(|name| name == "*") {
            let text = "has *, which browsers take for a name: allowCredentials is set";
            report.report(&at, text).fix("name them, or remove allowCredentials");
        }
    }
    if said.max_age == Some(0) {
        report.report(&at.field("maxAge"), "must be 1 or more").fix("5 is usual");
    }
}

/// Preflights get to a rule with `CORS`.
pub(super) fn preflights(rule: &HttpRule, at: &At<'_>, report: &mut Report) {
    let other = |matched: &HttpMatch| matched.method.as_ref().is_some_and(|method| method != "OPTIONS");
    if rule.matches.is_empty() || !rule.matches.iter().all(other) {
        return;
    }
    let list = at.field("filters");
    for (i, _) in rule.filters.iter().enumerate().filter(|(_, filter)| filter.cors.is_some()) {
        let text = "gets no preflight: every one of the rule's matches names another method than OPTIONS";
        report.report(&list.index(i), text).fix("a match with method: OPTIONS, or without method");
    }
}

/// `*`, or `scheme://host[:port]`, where `*.` may stand for the first labels.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let host = rest.strip_prefix("*.").unwrap_or(rest);
    let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        && !host.is_empty()
        && host.bytes().all(inner)
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// The mirrors of a rule of `route`.
pub(super) fn mirrors(mesh: &Mesh, route: &Key, filters: &[HttpFilter], at: &At<'_>, report: &mut Report) {
    for (i, filter) in filters.iter().enumerate() {
        if let Some(said) = &filter.request_mirror {
            mirror(mesh, route, said, &at.index(i).field("requestMirror"), report);
        }
    }
}

fn mirror(mesh: &Mesh, route: &Key, said: &RequestMirror, at: &At<'_>, report: &mut Report) {
    reference(mesh, route, said.backend_ref.to(), &at.field("backendRef"), report);
    if said.percent.is_some() && said.fraction.is_some() {
        report.report(at, "has percent and fraction, and one of them would not count").fix("remove one");
    }
    if said.percent.is_some_and(|percent| percent > 100) {
        report.report(&at.field("percent"), "is more than 100");
    }
    let Some(fraction) = &said.fraction else { return };
    let at = at.field("fraction");
    if fraction.denominator == 0 {
        report.report(&at.field("denominator"), "must be 1 or more").fix("100 is usual");
    } else if fraction.numerator > fraction.denominator {
        let text = format!("is more than the denominator, which is {}", fraction.denominator);
        report.report(&at.field("numerator"), text).fix("lower it, or raise denominator");
    }
}

/// `sessionPersistence` of the rule with this number, at `at`.
pub(super) fn session(rules: &[HttpRule], number: usize, at: &At<'_>, report: &mut Report) {
    let rule = &rules[number];
    let Some(said) = &rule.session_persistence else { return };
    let at = at.field("sessionPersistence");
    if said.idle_timeout.is_some() {
        let text = "is not supported: a session does not end because nobody uses it";
        report.unsupported(&at.field("idleTimeout"), text).fix("absoluteTimeout of a permanent cookie");
    }
    lifetime(said, &at, report);
    let name = at.field("sessionName");
    match said.kind {
        SessionType::Cookie => check_cookie_name(said.name(), &name, report),
        SessionType::Header => check_header_name(said.name(), &name, report),
    }
    if rule.backend_refs.iter().filter(|backend| backend.weight > 0).count() > 1 {
        let text = "is not supported for several backendRefs: a session would change between them";
        report.unsupported(&at, text).fix("one backendRef");
    }
    let taken = |other: &HttpRule| {
        let same = |other: &SessionPersistence| (other.kind, other.name()) == (said.kind, said.name());
        other.session_persistence.as_ref().is_some_and(same) && other.backend_refs != rule.backend_refs
    };
    if let Some(first) = rules[..number].iter().position(taken) {
        let text = format!(
            "{:?} is that of spec.rules[{first}], which leads elsewhere: one session would undo the other",
            said.name()
        );
        report.report(&name, text).fix("a name of its own");
    }
}

fn lifetime(said: &SessionPersistence, at: &At<'_>, report: &mut Report) {
    let (config, timeout) = (at.field("cookieConfig"), at.field("absoluteTimeout"));
    if said.kind == SessionType::Header && said.cookie_config.is_some() {
        report.report(&config, "does not belong to type: Header").fix("remove it, or type: Cookie");
    }
    match said.absolute_timeout {
        None if said.is_permanent() => {
            let text = "is missing: spec.rules[].sessionPersistence.cookieConfig.lifetimeType is Permanent";
            report.report(&timeout, text).fix("absoluteTimeout: 1h");
        }
        Some(time) if time.0.is_zero() => {
            report.report(&timeout, "must be more than 0s").fix("remove it");
        }
        Some(_) if !said.is_permanent() => {
            let text =
                "is only supported for a cookie that is permanent: it is the client that ends a session";
            report.unsupported(&timeout, text).fix("cookieConfig: {lifetimeType: Permanent}");
        }
        _ => {}
    }
}
