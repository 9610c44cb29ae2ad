//! `RouteAction.hash_policy`.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3::route_action::HashPolicy as Pb;
use remora_xds::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
};

use crate::config::compile::Scope;
use crate::config::compile::common::{duration, has_control, header_key, substitution, unsupported};
use crate::route::hash_policy::{HashPolicy, HashSource, NewCookie};

/// The policies of a route, in their order.
pub(super) fn policies(list: &[Pb], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[HashPolicy]> {
    let policy = |(i, pb): (usize, &Pb)| {
        let Pb { terminal, policy_specifier } = pb;
        let source = source(policy_specifier.as_ref(), &at.index(i), scope)?;
        Some(HashPolicy { source, terminal: *terminal })
    };
    list.iter().enumerate().filter_map(policy).collect()
}

fn source(pb: Option<&PolicySpecifier>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HashSource> {
    match pb {
        Some(PolicySpecifier::Header(Header { header_name, regex_rewrite })) => {
            let at = at.field("header");
            let key = header_key(header_name, &at.field("header_name"), scope)?;
            let rewrite_at = at.field("regex_rewrite");
            let rewrite = regex_rewrite.as_ref().map(|pb| substitution(pb, &rewrite_at, scope));
            match rewrite {
                None => Some(HashSource::Header { key, rewrite: None }),
                Some(rewrite) => Some(HashSource::Header { key, rewrite: Some(rewrite?) }),
            }
        }
        Some(PolicySpecifier::Cookie(pb)) => cookie(pb, &at.field("cookie"), scope),
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip })) => {
            if !source_ip {
                let at = at.field("connection_properties");
                scope.errors.report(&at.field("source_ip"), "must be true: there is nothing else to hash");
            }
            Some(HashSource::SourceIp)
        }
        Some(PolicySpecifier::QueryParameter(QueryParameter { name })) => {
            if name.is_empty() {
                let at = at.field("query_parameter");
                scope.errors.report(&at.field("name"), "must not be empty");
            }
            Some(HashSource::Query(name.as_str().into()))
        }
        Some(PolicySpecifier::FilterState(_)) => {
            unsupported(true, &at.field("filter_state"), scope);
            None
        }
        None => {
            scope.errors.report(at, "needs header, cookie, connection_properties or query_parameter");
            None
        }
    }
}

fn cookie(pb: &Cookie, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HashSource> {
    let Cookie { name, ttl, path, attributes } = pb;
    let ttl = duration(ttl.as_ref(), &at.field("ttl"), scope);
    if ttl.is_none() && !(path.is_empty() && attributes.is_empty()) {
        scope.errors.report(at, "path and attributes have no effect without ttl");
    }
    let named = |a: &CookieAttribute| (a.name.as_str().into(), a.value.as_str().into());
    let cookie = NewCookie {
        ttl: ttl.unwrap_or_default(),
        path: path.as_str().into(),
        attributes: attributes.iter().map(named).collect(),
    };
    cookie_text(name, &cookie, at, scope);
    Some(HashSource::Cookie { name: name.as_str().into(), make: ttl.map(|_| cookie) })
}

/// Checks that the parts of a cookie stay what they are in `Set-Cookie`.
pub(in crate::config::compile) fn cookie_text(
    name: &str,
    cookie: &NewCookie,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) {
    if name.is_empty() {
        scope.errors.report(&at.field("name"), "must not be empty");
    }
    let attributes = cookie.attributes.iter().flat_map(|(name, value)| [&**name, &**value]);
    let attributes = attributes.map(|text| ("attributes", text));
    for (field, text) in [("name", name), ("path", &*cookie.path)].into_iter().chain(attributes) {
        if has_control(text) || !text.is_ascii() || text.contains([';', '"']) {
            let message = "must not hold control characters, quotes, semicolons or what is not ASCII";
            scope.errors.report(&at.field(field), message);
        }
    }
}
