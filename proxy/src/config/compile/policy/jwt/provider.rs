//! `JwtProvider`.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::HttpUri;
use remora_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;

use crate::config::compile::Scope;
use crate::config::compile::common::{data_source, header_name, positive_duration, string_match};
use crate::config::compile::fields::refuse;
use crate::policy::jwt::extract::{Location, default_locations};
use crate::policy::jwt::keys::{KeySet, Keys, MAX_KEY_SET, RemoteKeys};
use crate::policy::jwt::provider::{ClaimPath, Provider, audience};

pub(super) fn compile(
    name: &str,
    pb: &pb::JwtProvider,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Provider> {
    let pb::JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        jwt_cache_config,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = pb;
    refuse!(
        scope, at;
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        jwt_cache_config,
        clear_route_cache,
    );
    let keys = keys(jwks_source_specifier.as_ref(), at, scope);
    let payload_header = (!forward_payload_header.is_empty())
        .then(|| own_header(forward_payload_header, &at.field("forward_payload_header"), scope))
        .flatten();
    let claims_at = at.field("claim_to_headers");
    let claims = claim_to_headers.iter().enumerate();
    Some(Provider {
        name: name.into(),
        issuer: (!issuer.is_empty()).then(|| issuer.as_str().into()),
        audiences: audience_list(audiences),
        subjects: match subjects {
            Some(text) => Some(string_match(text, &at.field("subjects"), scope)?),
            None => None,
        },
        require_expiration: *require_expiration,
        max_lifetime: positive_duration(max_lifetime.as_ref(), &at.field("max_lifetime"), scope),
        skew: if *clock_skew_seconds == 0 { 60 } else { u64::from(*clock_skew_seconds) },
        locations: locations(from_headers, from_params, from_cookies, &at.field("from_headers"), scope),
        forward: *forward,
        payload_header: payload_header.map(|name| (name, *pad_forward_payload_header)),
        claim_headers: claims.filter_map(|(i, pb)| claim(pb, &claims_at.index(i), scope)).collect(),
        metadata: (!payload_in_metadata.is_empty()).then(|| payload_in_metadata.as_str().into()),
        keys: keys?,
    })
}

pub(super) fn audience_list(list: &[String]) -> Box<[Box<str>]> {
    list.iter().map(|text| audience(text).into()).collect()
}

fn locations(
    headers: &[pb::JwtHeader],
    params: &[String],
    cookies: &[String],
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Box<[Location]> {
    let mut list = Vec::new();
    for (i, pb::JwtHeader { name, value_prefix }) in headers.iter().enumerate() {
        if let Some(name) = header_name(name, &at.index(i).field("name"), scope) {
            list.push(Location::Header { name, prefix: value_prefix.as_str().into() });
        }
    }
    list.extend(params.iter().map(|name| Location::Param(name.as_str().into())));
    list.extend(cookies.iter().map(|name| Location::Cookie(name.as_str().into())));
    if list.is_empty() { default_locations() } else { list.into() }
}

/// A header that the filter takes from clients and writes itself.
fn own_header(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderName> {
    use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
    let name = header_name(name, at, scope)?;
    if [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE].contains(&name) {
        scope.errors.report(at, format!("{name} may not be changed here"));
        return None;
    }
    if name == AUTHORIZATION || name == COOKIE {
        let error = scope.errors.report(at, format!("{name} is taken from clients: tokens stand there"));
        error.fix("use another header");
        return None;
    }
    Some(name)
}

/// A claim inside of others is written with dots.
fn claim(pb: &pb::JwtClaimToHeader, at: &At<'_>, scope: &mut Scope<'_>) -> Option<(HeaderName, ClaimPath)> {
    let pb::JwtClaimToHeader { header_name, claim_name, claim_path } = pb;
    refuse!(scope, at; claim_path);
    let name = own_header(header_name, &at.field("header_name"), scope)?;
    if claim_name.split('.').any(str::is_empty) {
        scope.errors.report(&at.field("claim_name"), "must be a name, or names with dots between them");
        return None;
    }
    Some((name, claim_name.split('.').map(Into::into).collect()))
}

fn keys(source: Option<&JwksSourceSpecifier>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Keys> {
    match source {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            let at = at.field("local_jwks");
            let text = data_source(source, MAX_KEY_SET, &at, scope)?;
            match KeySet::parse(&text) {
                Ok(set) => Some(Keys::Local(set)),
                Err(message) => {
                    scope.errors.report(&at, message).fix("write a JSON Web Key Set (RFC 7517)");
                    None
                }
            }
        }
        Some(JwksSourceSpecifier::RemoteJwks(pb)) => {
            remote(pb, &at.field("remote_jwks"), scope).map(|remote| Keys::Remote(Arc::new(remote)))
        }
        None => {
            scope.errors.report(at, "has no keys").fix("add local_jwks or remote_jwks");
            None
        }
    }
}

fn remote(pb: &pb::RemoteJwks, at: &At<'_>, scope: &mut Scope<'_>) -> Option<RemoteKeys> {
    let pb::RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = pb;
    refuse!(scope, at; retry_policy);
    let cache = positive_duration(cache_duration.as_ref(), &at.field("cache_duration"), scope);
    let fetch_at = at.field("async_fetch");
    // Keys are always fetched before they are needed. Listeners open without waiting for them, whatever `fast_listener` says:
    // requests wait instead.
    let retry =
        async_fetch.as_ref().and_then(|pb::JwksAsyncFetch { fast_listener: _, failed_refetch_duration }| {
            let at = fetch_at.field("failed_refetch_duration");
            positive_duration(failed_refetch_duration.as_ref(), &at, scope)
        });
    let at = at.field("http_uri");
    let Some(HttpUri { uri, timeout, http_upstream_type }) = http_uri else {
        scope.errors.report(&at, "is required");
        return None;
    };
    let parsed = uri.parse::<http::Uri>().ok().filter(|uri| uri.authority().is_some());
    if parsed.is_none() {
        scope.errors.report(&at.field("uri"), "is no absolute URI").fix("https://issuer.example/jwks.json");
    }
    let Some(HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        scope.errors.report(&at.field("cluster"), "is required");
        return None;
    };
    scope.names.clusters.intern(cluster);
    let timeout = positive_duration(timeout.as_ref(), &at.field("timeout"), scope);
    Some(RemoteKeys {
        uri: parsed?,
        cluster: cluster.as_str().into(),
        timeout: timeout?,
        cache: cache.unwrap_or(Duration::from_secs(600)),
        retry: retry.unwrap_or(Duration::from_secs(1)),
        state: Default::default(),
    })
}
