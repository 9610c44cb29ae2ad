//! `envoy.filters.http.stateful_session`.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override as Pb;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use remora_xds::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use remora_xds::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use remora_xds::pb::envoy::r#type::http::v3::{Cookie, CookieAttribute};
use remora_xds::pb::google::protobuf::Any;

use crate::config::compile::Scope;
use crate::config::compile::common::{duration, header_name};
use crate::config::compile::fields::{holds, refuse, unpack};
use crate::config::compile::route::cookie_text;
use crate::http::session::{SessionFilter, SessionState};
use crate::policy::overrides::Override;
use crate::route::hash_policy::NewCookie;

/// Compiles the filter. None: with mistakes, which are reported.
pub fn session_filter(pb: &StatefulSession, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SessionFilter> {
    let StatefulSession { session_state, strict, stat_prefix, status_on_strict_destination_not_found } = pb;
    refuse!(scope, at; stat_prefix);
    if !matches!(status_on_strict_destination_not_found, 0 | 503) {
        scope.errors.report(&at.field("status_on_strict_destination_not_found"), "must be 503");
    }
    let at = at.field("session_state");
    let Some(any) = session_state.as_ref().and_then(|state| state.typed_config.as_ref()) else {
        scope.errors.report(&at, "is required").fix("name a cookie or a header");
        return None;
    };
    let state = state(any, &at.field("typed_config"), scope)?;
    Some(SessionFilter { state, strict: *strict })
}

fn state(any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SessionState> {
    if holds::<CookieBasedSessionState>(any) {
        let CookieBasedSessionState { cookie } = unpack(any, at, scope)?;
        let at = at.field("cookie");
        let Some(Cookie { name, ttl, path, attributes }) = cookie else {
            scope.errors.report(&at, "is required");
            return None;
        };
        let named = |a: &CookieAttribute| (a.name.as_str().into(), a.value.as_str().into());
        let cookie = NewCookie {
            ttl: duration(ttl.as_ref(), &at.field("ttl"), scope).unwrap_or_default(),
            path: path.as_str().into(),
            attributes: attributes.iter().map(named).collect(),
        };
        cookie_text(&name, &cookie, &at, scope);
        return Some(SessionState::Cookie { name: name.into(), cookie });
    }
    if holds::<HeaderBasedSessionState>(any) {
        let HeaderBasedSessionState { name } = unpack(any, at, scope)?;
        return Some(SessionState::Header(header_name(&name, &at.field("name"), scope)?));
    }
    scope.errors.report(at, format!("the session state `{}` is not supported", any.type_url));
    None
}

/// `StatefulSessionPerRoute`.
pub(super) fn session_override(
    pb: &StatefulSessionPerRoute,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Override> {
    match &pb.r#override {
        Some(Pb::Disabled(true)) => Some(Override::Disabled),
        Some(Pb::StatefulSession(own)) => {
            let filter = session_filter(own, &at.field("stateful_session"), scope)?;
            Some(Override::Session(Arc::new(filter)))
        }
        Some(Pb::Disabled(false)) | None => {
            scope.errors.report(at, "says nothing").fix("set stateful_session, or disabled: true");
            None
        }
    }
}
