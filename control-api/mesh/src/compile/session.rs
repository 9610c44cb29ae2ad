//! Requests that belong together: what of them is hashed, and the filter that keeps sessions with their endpoints.

use remora_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use remora_xds::pb::envoy::config::route::v3::route_action::HashPolicy;
use remora_xds::pb::envoy::config::route::v3::route_action::hash_policy as pb;
use remora_xds::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use remora_xds::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use remora_xds::pb::envoy::r#type::http::v3::Cookie as PbCookie;
use remora_xds::pb::google::protobuf::Any;

use super::http::http_filter;
use super::parts;
use crate::document::{HashOn, Session};

/// Its name, also where routes say something to it.
pub(super) const NAME: &str = "envoy.filters.http.stateful_session";

/// What of a request is hashed.
pub(super) fn hashed(said: &[HashOn]) -> Vec<HashPolicy> {
    said.iter()
        .filter_map(|on| Some(HashPolicy { terminal: on.terminal, policy_specifier: Some(one(on)?) }))
        .collect()
}

/// What of an opaque connection is: the address of its client, if anything.
pub(super) fn of_connections(said: &[HashOn]) -> Vec<HashPolicy> {
    let by_address = HashOn { source_ip: true, ..HashOn::default() };
    if said.iter().any(|on| on.source_ip) { hashed(&[by_address]) } else { Vec::new() }
}

fn one(on: &HashOn) -> Option<PolicySpecifier> {
    if let Some(name) = &on.header {
        return Some(PolicySpecifier::Header(pb::Header { header_name: name.clone(), regex_rewrite: None }));
    }
    if let Some(cookie) = &on.cookie {
        return Some(PolicySpecifier::Cookie(pb::Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(|ttl| parts::duration(ttl.0)),
            path: cookie.path.clone().unwrap_or_default(),
            ..pb::Cookie::default()
        }));
    }
    if let Some(name) = &on.query_parameter {
        return Some(PolicySpecifier::QueryParameter(pb::QueryParameter { name: name.clone() }));
    }
    on.source_ip
        .then_some(PolicySpecifier::ConnectionProperties(pb::ConnectionProperties { source_ip: true }))
}

/// The filter that keeps sessions with their endpoints.
pub(super) fn filter(session: &Session) -> Option<HttpFilter> {
    Some(http_filter(NAME, parts::pack(&config(session)?)))
}

/// What a route says to that filter: a session of its own, or none.
pub(super) fn of_route(session: Option<&Session>) -> Any {
    let own = session.and_then(config).map_or(Override::Disabled(true), Override::StatefulSession);
    parts::pack(&StatefulSessionPerRoute { r#override: Some(own) })
}

fn config(session: &Session) -> Option<StatefulSession> {
    let (name, state) = if let Some(cookie) = &session.cookie {
        let cookie = PbCookie {
            name: cookie.name.clone(),
            ttl: Some(parts::duration(cookie.ttl.unwrap_or_default().0)),
            path: cookie.path.clone().unwrap_or_else(|| "/".into()),
            ..PbCookie::default()
        };
        let state = CookieBasedSessionState { cookie: Some(cookie) };
        ("envoy.http.stateful_session.cookie", parts::pack(&state))
    } else {
        let state = HeaderBasedSessionState { name: session.header.clone()? };
        ("envoy.http.stateful_session.header", parts::pack(&state))
    };
    Some(StatefulSession {
        session_state: Some(TypedExtensionConfig { name: name.into(), typed_config: Some(state) }),
        strict: session.strict,
        ..StatefulSession::default()
    })
}
