//! `typed_per_filter_config`: what routes say about filters.

use std::collections::HashMap;
use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3::FilterConfig;
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthzPerRoute;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::PerRouteConfig;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::RbacPerRoute;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSessionPerRoute;
use remora_xds::pb::google::protobuf::Any;

use super::authz::authz_override;
use super::rbac::http_filter;
use super::session::session_override;
use crate::config::compile::Scope;
use crate::config::compile::fields::{holds, unpack};
use crate::config::compile::traffic::traffic_override;
use crate::policy::overrides::{Override, Overrides};

/// Compiles `typed_per_filter_config` of one level; `above` is what the next level says.
pub fn overrides(
    map: &HashMap<String, Any>,
    above: &Overrides,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Overrides {
    let at = at.field("typed_per_filter_config");
    let mut list: Vec<_> = map.iter().collect();
    list.sort_by_key(|(name, _)| *name);
    let own = list.into_iter().filter_map(|(name, any)| {
        let said = filter_override(name, any, &at.field(name), scope)?;
        Some((Arc::from(name.as_str()), said))
    });
    Overrides::new(own.collect(), above)
}

fn filter_override(name: &str, any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Override> {
    if holds::<FilterConfig>(any) {
        let FilterConfig { config, is_optional: _, disabled } = unpack(any, at, scope)?;
        return match (config, disabled) {
            (_, true) => Some(Override::Disabled),
            (Some(config), false) => filter_override(name, &config, &at.field("config"), scope),
            (None, false) => {
                scope.errors.report(at, "says nothing").fix("set config, or disabled: true");
                None
            }
        };
    }
    if holds::<RbacPerRoute>(any) {
        let RbacPerRoute { rbac } = unpack(any, at, scope)?;
        return Some(match rbac {
            None => Override::Disabled,
            Some(rbac) => Override::Rbac(Arc::new(http_filter(&rbac, &at.field("rbac"), scope))),
        });
    }
    if holds::<PerRouteConfig>(any) {
        let PerRouteConfig { requirement_specifier } = unpack(any, at, scope)?;
        return match requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => Some(Override::Disabled),
            Some(RequirementSpecifier::RequirementName(name)) => Some(Override::Jwt(name.into())),
            Some(RequirementSpecifier::Disabled(false)) | None => {
                scope.errors.report(at, "says nothing").fix("set requirement_name, or disabled: true");
                None
            }
        };
    }
    if holds::<StatefulSessionPerRoute>(any) {
        return session_override(&unpack(any, at, scope)?, at, scope);
    }
    if holds::<ExtAuthzPerRoute>(any) {
        return authz_override(&unpack(any, at, scope)?, at, scope);
    }
    if let Some(said) = traffic_override(name, any, at, scope) {
        return said;
    }
    let message = format!("`{}` is no setting of a filter that is supported here", any.type_url);
    let fix = "use a message of a filter that is there for routes, or FilterConfig";
    scope.errors.report(at, message).fix(fix);
    None
}
