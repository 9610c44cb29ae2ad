//! `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz` and what routes say about it.

use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, StatusCode};
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use remora_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use remora_xds::pb::envoy::config::core::v3::{ApiVersion, GrpcService as GrpcPb, HeaderValue, HttpUri};
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override as RoutePb;
use remora_xds::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::metadata::condition;
use crate::config::compile::Scope;
use crate::config::compile::common::{
    header_name, positive_duration, runtime_fraction, string_match, value_template,
};
use crate::config::compile::fields::refuse;
use crate::config::names::ClusterId;
use crate::policy::authz::grpc::GrpcService;
use crate::policy::authz::web::WebService;
use crate::policy::authz::{
    AuthzFilter, Buffer, CheckSettings, MAX_BUFFER, MAX_DENIED_BODY, OnFailure, Service, Told,
};
use crate::policy::overrides::Override;
use crate::route::header::ValueTemplate;
use crate::route::text::StringMatch;

/// Envoy's limit of a gRPC check without `timeout`.
const GRPC_TIMEOUT: Duration = Duration::from_millis(200);

/// Compiles the filter `name`. None when it has mistakes, which are in `scope.errors`.
pub fn authz_filter(
    name: &str,
    pb: &pb::ExtAuthz,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<AuthzFilter> {
    let before = scope.errors.len();
    let pb::ExtAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        validate_mutations: _, // always
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        emit_client_span,
        services,
    } = pb;
    refuse!(
        scope, at;
        typed_metadata_context_namespaces, route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces, include_peer_certificate,
        bootstrap_metadata_labels_key, charge_cluster_response_stats, decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion, filter_metadata, emit_filter_state_stats,
        enforce_response_header_limits, shadow_mode, emit_client_span,
    );
    let mut told = Told {
        allowed: allowed_headers
            .as_ref()
            .map(|list| matchers(Some(list), &at.field("allowed_headers"), scope)),
        disallowed: matchers(disallowed_headers.as_ref(), &at.field("disallowed_headers"), scope),
        raw_headers: *encode_raw_headers,
        tls_session: *include_tls_session,
        claims: claims(metadata_context_namespaces, &at.field("metadata_context_namespaces"), scope),
    };
    let asked = service(services.as_ref(), *transport_api_version, &mut told, at, scope);
    let enabled_at = at.field("filter_enabled");
    let condition_at = at.field("filter_enabled_metadata");
    let filter = AuthzFilter {
        enabled: filter_enabled.as_ref().and_then(|pb| runtime_fraction(pb, &enabled_at, scope)),
        condition: filter_enabled_metadata.as_ref().and_then(|pb| condition(pb, &condition_at, scope)),
        deny_disabled: deny_at_disable.as_ref().and_then(|pb| pb.default_value).is_some_and(|v| v.value),
        buffer: with_request_body.as_ref().and_then(|pb| buffer(pb, &at.field("with_request_body"), scope)),
        on_failure: OnFailure {
            allow: *failure_mode_allow,
            mark: *failure_mode_allow_header_add,
            status: status_on_error.as_ref().map_or(StatusCode::FORBIDDEN, |pb| {
                status(pb.code, &at.field("status_on_error").field("code"), scope)
            }),
        },
        clear_route_cache: *clear_route_cache,
        max_denied_body: denied_body(*max_denied_response_body_bytes, at, scope),
        stat_prefix: stat_prefix.as_str().into(),
        id: scope.names.policies.intern(&format!("{stat_prefix}\n{name}")),
        told,
        cluster: asked.as_ref()?.cluster,
        timeout: asked.as_ref()?.timeout,
        service: asked?.service,
    };
    (scope.errors.len() == before).then_some(filter)
}

/// The only metadata that there is.
fn claims(namespaces: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> bool {
    for (i, name) in namespaces.iter().enumerate() {
        if name != "envoy.filters.http.jwt_authn" {
            scope.errors.report(&at.index(i), format!("`{name}` leaves no metadata here"));
        }
    }
    !namespaces.is_empty()
}

fn denied_body(bytes: u32, at: &At<'_>, scope: &mut Scope<'_>) -> usize {
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
    if wanted > MAX_DENIED_BODY {
        let at = at.field("max_denied_response_body_bytes");
        scope.errors.report(&at, format!("{bytes} is more than {MAX_DENIED_BODY}"));
    }
    if wanted == 0 { MAX_DENIED_BODY } else { wanted }
}

fn status(code: i32, at: &At<'_>, scope: &mut Scope<'_>) -> StatusCode {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| (200..600).contains(&status.as_u16()));
    if status.is_none() {
        scope.errors.report(at, format!("{code} is no status of an answer"));
    }
    status.unwrap_or(StatusCode::FORBIDDEN)
}

fn buffer(pb: &pb::BufferSettings, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Buffer> {
    let pb::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = *pb;
    if max_request_bytes == 0 || max_request_bytes > MAX_BUFFER {
        let message = format!("{max_request_bytes} is not between 1 and {MAX_BUFFER}");
        scope.errors.report(&at.field("max_request_bytes"), message);
        return None;
    }
    let limit = usize::try_from(max_request_bytes).ok()?;
    Some(Buffer { limit, partial: allow_partial_message, as_bytes: pack_as_bytes })
}

fn matchers(list: Option<&ListStringMatcher>, at: &At<'_>, scope: &mut Scope<'_>) -> Box<[StringMatch]> {
    let at = at.field("patterns");
    let patterns = list.into_iter().flat_map(|list| &list.patterns).enumerate();
    patterns.filter_map(|(i, pb)| string_match(pb, &at.index(i), scope)).collect()
}

/// Where and how to ask.
struct Asked {
    cluster: ClusterId,
    timeout: Duration,
    service: Service,
}

fn service(
    services: Option<&Services>,
    version: i32,
    told: &mut Told,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Asked> {
    match services {
        Some(Services::GrpcService(pb)) => {
            if ApiVersion::try_from(version) != Ok(ApiVersion::V3) {
                scope.errors.report(&at.field("transport_api_version"), "must be V3");
            }
            grpc(pb, &at.field("grpc_service"), scope)
        }
        Some(Services::HttpService(pb)) => web(pb, told, &at.field("http_service"), scope),
        None => {
            scope.errors.report(at, "asks nobody").fix("add grpc_service or http_service");
            None
        }
    }
}

/// The cluster that a `grpc_service` names, and how it is asked. Its `timeout` says nothing.
pub fn asked_by_grpc(pb: &GrpcPb, at: &At<'_>, scope: &mut Scope<'_>) -> Option<(ClusterId, GrpcService)> {
    match grpc(pb, at, scope)? {
        Asked { cluster, service: Service::Grpc(service), .. } => Some((cluster, service)),
        Asked { service: Service::Web(_), .. } => None,
    }
}

fn grpc(pb: &GrpcPb, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Asked> {
    let GrpcPb { timeout, initial_metadata, retry_policy, target_specifier } = pb;
    refuse!(scope, at; retry_policy);
    let limit = positive_duration(timeout.as_ref(), &at.field("timeout"), scope);
    let metadata = added(initial_metadata, &at.field("initial_metadata"), scope);
    let Some(TargetSpecifier::EnvoyGrpc(pb)) = target_specifier else {
        scope.errors.report(at, "names no cluster").fix("envoy_grpc: {cluster_name: …}");
        return None;
    };
    let at = at.field("envoy_grpc");
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        skip_envoy_headers: _,
    } = pb;
    refuse!(scope, &at; retry_policy, max_receive_message_length);
    let authority = if authority.is_empty() {
        // A cluster may have a name that is no host name, and a server that cares about its own has it in `authority`.
        cluster_name.parse().unwrap_or_else(|_| Authority::from_static("localhost"))
    } else if let Ok(authority) = authority.parse() {
        authority
    } else {
        scope.errors.report(&at.field("authority"), format!("{authority:?} is no host name to ask for"));
        return None;
    };
    Some(Asked {
        cluster: scope.names.clusters.intern(cluster_name),
        timeout: limit.unwrap_or(GRPC_TIMEOUT),
        service: Service::Grpc(GrpcService { authority, metadata }),
    })
}

fn web(pb: &pb::HttpService, told: &mut Told, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Asked> {
    let pb::HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = pb;
    refuse!(scope, at; path_override, retry_policy);
    let request_at = at.field("authorization_request");
    let request = authorization_request.clone().unwrap_or_default();
    #[expect(deprecated, reason = "old files have the list here")]
    let pb::AuthorizationRequest { allowed_headers, headers_to_add } = &request;
    if let Some(list) = allowed_headers {
        let list_at = request_at.field("allowed_headers");
        if told.allowed.is_some() {
            scope.errors.report(&list_at, "the filter has allowed_headers, too").fix("remove it");
        }
        told.allowed = Some(matchers(Some(list), &list_at, scope));
    }
    let headers_to_add = added(headers_to_add, &request_at.field("headers_to_add"), scope);
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        scope.errors.report(&at.field("path_prefix"), "must begin with /");
    }
    let at_answer = at.field("authorization_response");
    let answer = authorization_response.clone().unwrap_or_default();
    let pb::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = &answer;
    refuse!(scope, &at_answer; dynamic_metadata_from_headers);
    let mut list = |list: &Option<_>, field| matchers(list.as_ref(), &at_answer.field(field), scope);
    let service = WebService {
        path_prefix: path_prefix.as_str().into(),
        headers_to_add,
        upstream: list(allowed_upstream_headers, "allowed_upstream_headers"),
        upstream_append: list(allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append"),
        client: list(allowed_client_headers, "allowed_client_headers"),
        client_on_success: list(allowed_client_headers_on_success, "allowed_client_headers_on_success"),
    };
    let (cluster, timeout) = server(server_uri.as_ref(), &at.field("server_uri"), scope)?;
    Some(Asked { cluster, timeout, service: Service::Web(service) })
}

/// The cluster and the limit. The host that the service is asked for is the request's own, as in Envoy, so that `uri` says nothing.
fn server(pb: Option<&HttpUri>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<(ClusterId, Duration)> {
    let Some(HttpUri { uri: _, timeout, http_upstream_type }) = pb else {
        scope.errors.report(at, "is required");
        return None;
    };
    let limit = positive_duration(timeout.as_ref(), &at.field("timeout"), scope);
    let Some(HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        scope.errors.report(&at.field("cluster"), "is required");
        return None;
    };
    Some((scope.names.clusters.intern(cluster), limit?))
}

/// Headers that every check has.
fn added(list: &[HeaderValue], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[(HeaderName, ValueTemplate)]> {
    let mut one = |i: usize, pb: &HeaderValue| {
        let at = at.index(i);
        let HeaderValue { key, value, raw_value } = pb;
        refuse!(scope, &at; raw_value);
        let name = header_name(key, &at.field("key"), scope)?;
        if !crate::policy::authz::answer::is_changeable(&name) {
            scope.errors.report(&at.field("key"), format!("{name} may not be set here"));
        }
        Some((name, value_template(value, &at.field("value"), scope)?))
    };
    list.iter().enumerate().filter_map(|(i, pb)| one(i, pb)).collect()
}

/// `ExtAuthzPerRoute`.
pub(super) fn authz_override(
    pb: &pb::ExtAuthzPerRoute,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Override> {
    let settings = match &pb.r#override {
        Some(RoutePb::Disabled(true)) => return Some(Override::Disabled),
        Some(RoutePb::CheckSettings(settings)) => settings,
        Some(RoutePb::Disabled(false)) | None => {
            scope.errors.report(at, "says nothing").fix("set check_settings, or disabled: true");
            return None;
        }
    };
    let at = at.field("check_settings");
    let pb::CheckSettings {
        context_extensions,
        disable_request_body_buffering,
        with_request_body,
        emit_client_span,
        service_override,
    } = settings;
    refuse!(scope, &at; emit_client_span, service_override);
    let body_at = at.field("with_request_body");
    if *disable_request_body_buffering && with_request_body.is_some() {
        scope.errors.report(&body_at, "contradicts disable_request_body_buffering").fix("remove either");
    }
    let buffer = match with_request_body {
        Some(pb) => Some(Some(buffer(pb, &body_at, scope)?)),
        None => disable_request_body_buffering.then_some(None),
    };
    let context = context_extensions.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Some(Override::Authz(std::sync::Arc::new(CheckSettings { context, buffer })))
}
