//! `RedirectAction`.

use http::StatusCode;
use http::uri::Scheme;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};

use super::action::{authority, path_text};
use super::non_empty;
use crate::config::compile::Scope;
use crate::config::compile::common::{enumeration, substitution, value_template};
use crate::route::action::{Redirect, RedirectPath};
use crate::route::rewrite::PathRewrite;

/// Compiles a `RedirectAction`.
pub(super) fn redirect(pb: &pb::RedirectAction, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Redirect> {
    let pb::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = pb;
    let status = enumeration(*response_code, &at.field("response_code"), scope).map(|code| match code {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    });
    let port = u16::try_from(*port_redirect);
    if port.is_err() {
        scope.errors.report(&at.field("port_redirect"), "must be at most 65535");
    }
    let host = match non_empty(host_redirect) {
        Some(host) => Some(authority(host, &at.field("host_redirect"), scope)?.as_str().into()),
        None => None,
    };
    Some(Redirect {
        scheme: scheme(scheme_rewrite_specifier.as_ref(), at, scope),
        host,
        port: port.ok()?,
        path: redirect_path(path_rewrite_specifier.as_ref(), at, scope),
        strip_query: *strip_query,
        status: status?,
    })
}

fn scheme(pb: Option<&SchemeRewriteSpecifier>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Scheme> {
    match pb? {
        SchemeRewriteSpecifier::HttpsRedirect(on) => on.then_some(Scheme::HTTPS),
        SchemeRewriteSpecifier::SchemeRedirect(text) => {
            let scheme = text.parse().ok();
            if scheme.is_none() {
                scope.errors.report(&at.field("scheme_redirect"), format!("{text:?} is not a scheme"));
            }
            scheme
        }
    }
}

fn redirect_path(pb: Option<&PathRewriteSpecifier>, at: &At<'_>, scope: &mut Scope<'_>) -> RedirectPath {
    let path = match pb {
        Some(PathRewriteSpecifier::PathRedirect(text)) if !text.is_empty() => {
            path_text(text, &at.field("path_redirect"), scope).map(RedirectPath::Replace)
        }
        Some(PathRewriteSpecifier::PrefixRewrite(text)) if !text.is_empty() => {
            path_text(text, &at.field("prefix_rewrite"), scope)
                .map(|t| RedirectPath::Rewrite(PathRewrite::Prefix(t)))
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            substitution(regex, &at.field("regex_rewrite"), scope)
                .map(|s| RedirectPath::Rewrite(PathRewrite::Regex(s)))
        }
        Some(PathRewriteSpecifier::PathRewrite(text)) if !text.is_empty() => {
            value_template(text, &at.field("path_rewrite"), scope)
                .map(|t| RedirectPath::Rewrite(PathRewrite::Whole(t)))
        }
        _ => None,
    };
    path.unwrap_or(RedirectPath::Keep)
}
