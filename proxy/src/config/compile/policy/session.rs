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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::names::Names;
    use remora_xds::diag::{Errors, SourceMap};
    use remora_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
    use remora_xds::pb::google::protobuf::Duration as PbDuration;
    use std::time::Duration;

    fn with(state: Any) -> StatefulSession {
        let session_state = TypedExtensionConfig { name: "s".into(), typed_config: Some(state) };
        StatefulSession { session_state: Some(session_state), ..StatefulSession::default() }
    }

    fn by_cookie(cookie: Option<Cookie>) -> StatefulSession {
        with(remora_xds::any::pack(&CookieBasedSessionState { cookie }))
    }

    fn by_header(name: &str) -> StatefulSession {
        with(remora_xds::any::pack(&HeaderBasedSessionState { name: name.into() }))
    }

    fn compile(pb: &StatefulSession) -> Result<SessionFilter, Vec<String>> {
        let (mut errors, mut names) = (Errors::new("test", SourceMap::default()), Names::default());
        let done = session_filter(pb, &At::root(), &mut Scope { errors: &mut errors, names: &mut names });
        let list: Vec<String> =
            errors.into_list().iter().map(|e| format!("{}: {}", e.path, e.message)).collect();
        if list.is_empty() { Ok(done.unwrap()) } else { Err(list) }
    }

    fn cookie(name: &str, path: &str) -> Option<Cookie> {
        let ttl = Some(PbDuration { seconds: 9, nanos: 0 });
        let attributes = vec![CookieAttribute { name: "Secure".into(), value: String::new() }];
        Some(Cookie { name: name.into(), ttl, path: path.into(), attributes })
    }

    #[test]
    fn a_cookie_and_a_header() {
        let SessionFilter { state, strict } =
            compile(&StatefulSession { strict: true, ..by_cookie(cookie("s", "/p")) }).unwrap();
        let ttl = Duration::from_secs(9);
        let attributes = [("Secure".into(), "".into())].into();
        let want = NewCookie { ttl, path: "/p".into(), attributes };
        assert_eq!(state, SessionState::Cookie { name: "s".into(), cookie: want });
        assert!(strict);
        let header = http::HeaderName::from_static("x-session");
        assert_eq!(compile(&by_header("x-session")).unwrap().state, SessionState::Header(header));
    }

    #[test]
    fn mistakes_have_their_path() {
        let text = "must not hold control characters, quotes, semicolons or what is not ASCII";
        let at = "session_state.typed_config";
        for (wrong, said) in [
            (StatefulSession::default(), "session_state: is required".to_owned()),
            (by_cookie(None), format!("{at}.cookie: is required")),
            (by_cookie(cookie("", "/")), format!("{at}.cookie.name: must not be empty")),
            (by_cookie(cookie("s", "/; Secure")), format!("{at}.cookie.path: {text}")),
            (by_header("a b"), format!("{at}.name: \"a b\" is not a header name")),
            (
                StatefulSession { status_on_strict_destination_not_found: 404, ..by_header("x") },
                "status_on_strict_destination_not_found: must be 503".to_owned(),
            ),
        ] {
            assert_eq!(compile(&wrong).unwrap_err(), [said]);
        }
        assert_eq!(compile(&with(remora_xds::any::pack(&Cookie::default()))).unwrap_err().len(), 1);
        let prefixed = StatefulSession { stat_prefix: "s".into(), ..by_header("x") };
        assert_eq!(compile(&prefixed).unwrap_err().len(), 1);
    }
}
