//! `http_filters`.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtAuthentication;
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use remora_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use remora_xds::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter as HttpFilterPb;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use remora_xds::pb::google::protobuf::Any;

use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::config::compile::fields::{boolean, holds, refuse, unpack};
use crate::config::compile::policy::{compile_authz, compile_http_rbac, compile_jwt, compile_session};
use crate::config::compile::traffic::traffic_filter;
use crate::config::spec::HttpFilter;
use crate::policy::overrides::Override;
use crate::route::RouteTable;

/// The filters of a connection manager.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) list: Vec<HttpFilter>,
    pub(super) suppress_envoy_headers: bool,
    pub(super) respect_expected_timeout: bool,
}

pub(super) fn compile(list: &[HttpFilterPb], at: &At<'_>, scope: &mut Scope<'_>) -> Option<Filters> {
    let mut filters = Filters::default();
    for (i, pb) in list.iter().enumerate() {
        let at = at.index(i);
        let HttpFilterPb { name, is_optional, disabled, config_type } = pb;
        refuse!(scope, &at; disabled);
        let any = match config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            Some(ConfigType::ConfigDiscovery(_)) => {
                unsupported(true, &at.field("config_discovery"), scope);
                continue;
            }
            None => {
                let message = format!("`{name}` has no typed_config");
                scope.errors.report(&at, message).fix("add typed_config with the filter's @type");
                continue;
            }
        };
        let typed_at = at.field("typed_config");
        if holds::<Router>(any) {
            if i + 1 != list.len() {
                scope.errors.report(&at, "the router must be the last filter").fix("move it to the end");
            }
            let router = unpack(any, &typed_at, scope)?;
            router_options(&router, &mut filters, &typed_at, scope);
            filters.list.push(HttpFilter::Router);
        } else if let Some(filter) = policy(name, any, &typed_at, scope) {
            filters.list.extend(filter);
        } else if *is_optional && !guards(any) {
            // The file says that whoever does not know this filter may leave it out.
            tracing::warn!(path = %at, filter = any.type_url, "an optional filter that is not supported is left out");
        } else {
            scope.errors.report(&typed_at, format!("the HTTP filter `{}` is not supported", any.type_url));
        }
    }
    let routed = filters.list.iter().any(|f| matches!(f, HttpFilter::Router));
    if !routed {
        let error = scope.errors.report(at, "the last filter must be the router");
        error.fix("add envoy.filters.http.router");
    }
    routed.then_some(filters)
}

/// Whether a filter keeps requests out: without it more would pass, whatever `is_optional` says.
fn guards(any: &Any) -> bool {
    const GUARDS: [&str; 4] = ["oauth2", "basic_auth", "api_key_auth", "csrf"];
    GUARDS.iter().any(|guard| any.type_url.contains(&format!(".http.{guard}.")))
}

/// A policy filter; None when `any` is none. With mistakes (reported) it is left out of the list, which is not used then.
fn policy(name: &str, any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Option<HttpFilter>> {
    let name: Arc<str> = name.into();
    if holds::<Rbac>(any) {
        let pb = unpack::<Rbac>(any, at, scope);
        return Some(pb.map(|pb| HttpFilter::Rbac(name, Box::new(compile_http_rbac(&pb, at, scope)))));
    }
    if holds::<JwtAuthentication>(any) {
        let pb = unpack::<JwtAuthentication>(any, at, scope);
        let compiled = pb.and_then(|pb| compile_jwt(&pb, at, scope));
        return Some(compiled.map(|filter| HttpFilter::Jwt(name, Box::new(filter))));
    }
    if let Some(filter) = traffic_filter(&name, any, at, scope) {
        return Some(filter);
    }
    if holds::<ExtAuthz>(any) {
        let pb = unpack::<ExtAuthz>(any, at, scope);
        let compiled = pb.and_then(|pb| compile_authz(&name, &pb, at, scope));
        return Some(compiled.map(|filter| HttpFilter::Authz(name, Box::new(filter))));
    }
    if holds::<StatefulSession>(any) {
        let pb = unpack::<StatefulSession>(any, at, scope);
        let compiled = pb.and_then(|pb| compile_session(&pb, at, scope));
        return Some(compiled.map(|filter| HttpFilter::Session(name, Arc::new(filter))));
    }
    None
}

/// A filter that a table says something about, and that is not there, or cannot do that: it has no effect.
#[must_use]
pub fn stray_override<'t>(table: &'t RouteTable, filters: &[HttpFilter]) -> Option<&'t str> {
    let fits = |name: &str, said: &Override| {
        filters.iter().any(|filter| match (filter, said) {
            (HttpFilter::Rbac(own, _), Override::Rbac(_) | Override::Disabled)
            | (HttpFilter::Jwt(own, _), Override::Disabled)
            | (HttpFilter::Authz(own, _), Override::Authz(_) | Override::Disabled)
            | (HttpFilter::Session(own, _), Override::Session(_) | Override::Disabled)
            | (HttpFilter::Cors(own), Override::Cors(_) | Override::Disabled)
            | (HttpFilter::Fault(own, _), Override::Fault(_) | Override::Disabled)
            | (HttpFilter::Buffer(own, _), Override::Buffer(_) | Override::Disabled)
            | (HttpFilter::Compressor(own, _), Override::Compressor(_) | Override::Disabled)
            | (HttpFilter::GlobalLimit(own, _), Override::GlobalLimit(_) | Override::Disabled)
            | (HttpFilter::Concurrency(own, _), Override::Disabled)
            | (HttpFilter::Quota(own, _), Override::Disabled)
            | (HttpFilter::LocalLimit(own, _), Override::LocalLimit(_) | Override::Disabled) => {
                **own == *name
            }
            (HttpFilter::Jwt(own, jwt), Override::Jwt(wanted)) => {
                **own == *name && jwt.named.contains_key(&**wanted)
            }
            _ => false,
        })
    };
    let routes = table.hosts.iter().flat_map(|host| &host.routes);
    let mut said = routes.flat_map(|route| route.overrides.iter());
    said.find(|(name, said)| !fits(name, said)).map(|(name, _)| &**name)
}

/// Reports what the routes of an inline table say about filters that are not there.
pub(super) fn check_overrides(
    table: &RouteTable,
    filters: &[HttpFilter],
    at: &At<'_>,
    scope: &mut Scope<'_>,
) {
    if let Some(name) = stray_override(table, filters) {
        let message =
            format!("typed_per_filter_config is about the filter `{name}`, which http_filters does not have");
        scope.errors.report(at, message).fix("use the name and type of a filter that is there");
    }
}

fn router_options(pb: &Router, filters: &mut Filters, at: &At<'_>, scope: &mut Scope<'_>) {
    #[expect(deprecated, reason = "start_child_span is refused with the rest")]
    let Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = pb;
    refuse!(
        scope, at;
        start_child_span,
        upstream_log,
        upstream_log_options,
        strict_check_headers,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    );
    if !boolean(dynamic_stats.as_ref(), true) {
        scope.errors.report(&at.field("dynamic_stats"), "false is not supported").fix("remove it");
    }
    filters.suppress_envoy_headers = *suppress_envoy_headers;
    filters.respect_expected_timeout = *respect_expected_rq_timeout;
}
