//! RateLimitPolicies -> rate limit filters of the listener in front of a program.
//!
//! A limit is a rule that makes a descriptor of a request, `limit` with its name and what it is `by`, and a bucket for that descriptor,
//! which is one for each value. A request that lacks a header or parameter has the value [`ABSENT`]: nobody gets around a limit by leaving
//! something out.

use std::collections::BTreeMap;
use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use remora_xds::pb::envoy::config::core::v3::{ApiVersion, GrpcService, RuntimeFractionalPercent};
use remora_xds::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use remora_xds::pb::envoy::config::route::v3::rate_limit::action::{
    ActionSpecifier, GenericKey, HeaderValueMatch, QueryParameterValueMatch, QueryParameters, RequestHeaders,
};
use remora_xds::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RateLimit, rate_limit};
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry as PbEntry;
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, XRateLimitHeadersRfcVersion,
};
use remora_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3 as global;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::r#type::v3::TokenBucket;

use super::http::http_filter;
use super::route::conditions;
use super::{lease, names, parts};
use crate::document::{
    AppProtocol, Descriptor, Document, Entry, GlobalLimits, HttpMatch, Limit, LimitBy, LimitScope,
    RateLimitPolicySpec, ServiceSpec,
};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

/// The value of what a request does not have.
const ABSENT: &str = "(none)";
/// Who called, which the sidecar writes and nobody else can.
const CLIENT: &str = "x-forwarded-client-cert";
/// How long the answer of a service may take.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Buckets of single values.
const BUCKETS: u32 = 10_000;

/// The policies of Services that lead to one port, each once, by name.
fn policies<'m>(
    mesh: &'m Mesh,
    services: &[&Document<ServiceSpec>],
) -> BTreeMap<Name, &'m Document<RateLimitPolicySpec>> {
    let found = services.iter().filter_map(|service| mesh.rate_limits(service));
    found.map(|policy| (policy.name(), &**policy)).collect()
}

/// The filters of a port that `services` lead to.
pub(super) fn filters(mesh: &Mesh, services: &[&Document<ServiceSpec>]) -> Vec<HttpFilter> {
    let each = policies(mesh, services).into_iter().flat_map(|(name, policy)| {
        let own = policy.spec.limits.iter().any(|limit| limit.scope == LimitScope::Sidecar);
        let local = own.then(|| local(&name, &policy.spec));
        let global = policy.spec.global.as_ref().and_then(|said| asking(mesh, policy, said));
        local.into_iter().chain(lease::filters(mesh, policy)).chain(global)
    });
    each.collect()
}

/// The ports that the sidecars of `services` ask.
pub(super) fn asked<'m>(
    mesh: &'m Mesh,
    services: &[&Document<ServiceSpec>],
) -> impl Iterator<Item = (Name, u16)> + use<'m> {
    let policies = policies(mesh, services).into_values();
    policies.filter_map(|policy| counter(mesh, policy, policy.spec.global.as_ref()?))
}

/// The port of the service that counts; None when it is not there, no grant lets it be asked, or it does not speak gRPC.
fn counter(mesh: &Mesh, policy: &Document<RateLimitPolicySpec>, said: &GlobalLimits) -> Option<(Name, u16)> {
    let key = Key::new(Kind::RateLimitPolicy, policy.name());
    let (name, number) = mesh.backend(&key, said.backend_ref.to())?;
    let service = mesh.service(&name.namespace, &name.name)?;
    let port = service.spec.ports.iter().find(|port| port.port == number)?;
    matches!(port.speaks(), AppProtocol::Grpc | AppProtocol::Http2).then_some((name, number))
}

/// Of a request, all of them or none.
pub(super) fn share(yes: bool) -> Option<RuntimeFractionalPercent> {
    let default_value = Some(parts::percent(u32::from(yes) * 1_000_000));
    Some(RuntimeFractionalPercent { default_value, ..RuntimeFractionalPercent::default() })
}

fn local(name: &Name, spec: &RateLimitPolicySpec) -> HttpFilter {
    let (mut rules, mut descriptors) = (Vec::new(), Vec::new());
    let limits = spec.limits.iter().enumerate();
    for (i, limit) in limits.filter(|(_, limit)| limit.scope == LimitScope::Sidecar) {
        let found = when("limit", &label(i, limit), limit.matched.as_ref());
        let mut entries: Vec<_> = found.iter().filter_map(made).collect();
        entries.extend(limit.by.iter().map(|by| entry(by.key(), "")));
        descriptors.push(LocalRateLimitDescriptor {
            entries,
            token_bucket: Some(bucket(limit)),
            ..LocalRateLimitDescriptor::default()
        });
        rules.extend(choices(found, &limit.by).into_iter().map(rule));
    }
    let config = LocalRateLimit {
        stat_prefix: name.to_string(),
        filter_enabled: share(true),
        filter_enforced: share(!spec.dry_run),
        descriptors,
        rate_limits: rules,
        enable_x_ratelimit_headers: XRateLimitHeadersRfcVersion::DraftVersion03.into(),
        rate_limited_as_resource_exhausted: true,
        max_dynamic_descriptors: parts::number(spec.max_buckets.unwrap_or(BUCKETS)),
        ..LocalRateLimit::default()
    };
    http_filter(&name.to_string(), parts::pack(&config))
}

/// What the limit in this place of the list is called.
pub(super) fn label(i: usize, limit: &Limit) -> String {
    limit.name.clone().unwrap_or_else(|| format!("limits[{i}]"))
}

fn bucket(limit: &Limit) -> TokenBucket {
    TokenBucket {
        max_tokens: limit.burst.unwrap_or(limit.requests),
        tokens_per_fill: parts::number(limit.requests),
        fill_interval: Some(parts::duration(limit.per.0)),
    }
}

/// The filter that asks a service. A service that is not there is one that does not answer.
fn asking(mesh: &Mesh, policy: &Document<RateLimitPolicySpec>, said: &GlobalLimits) -> Option<HttpFilter> {
    let to = said.backend_ref.to();
    let found = counter(mesh, policy, said);
    if found.is_none() && said.fail_open {
        return None;
    }
    let namespace = to.namespace.unwrap_or(&policy.metadata.namespace);
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: names::cluster(namespace, to.name, to.port),
            authority: names::host(namespace, to.name),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    let name = format!("{}:global", policy.name());
    let config = global::RateLimit {
        domain: said.domain.clone(),
        timeout: Some(parts::duration(said.timeout.map_or(TIMEOUT, |timeout| timeout.0))),
        failure_mode_deny: !said.fail_open,
        rate_limited_as_resource_exhausted: true,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(service),
            transport_api_version: ApiVersion::V3.into(),
        }),
        enable_x_ratelimit_headers: global::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03.into(),
        stat_prefix: name.clone(),
        filter_enabled: share(true),
        filter_enforced: share(!policy.spec.dry_run),
        rate_limits: said.descriptors.iter().map(described).collect(),
        ..global::RateLimit::default()
    };
    Some(http_filter(&name, parts::pack(&config)))
}

fn described(descriptor: &Descriptor) -> RateLimit {
    let of = |said: &Entry| match (&said.header, &said.query_parameter) {
        (Some(name), _) => vec![header(name, &said.key)],
        (None, Some(name)) => vec![parameter(name, &said.key)],
        (None, None) => when(&said.key, said.value.as_deref().unwrap_or_default(), said.matched.as_ref()),
    };
    rule(descriptor.entries.iter().flat_map(of).collect())
}

fn rule(actions: Vec<ActionSpecifier>) -> RateLimit {
    let action = |specifier| rate_limit::Action { action_specifier: Some(specifier) };
    RateLimit { actions: actions.into_iter().map(action).collect(), ..RateLimit::default() }
}

/// What requests that match have: `key` with `value`, and another entry if their queries are looked at.
fn when(key: &str, value: &str, matched: Option<&HttpMatch>) -> Vec<ActionSpecifier> {
    let (headers, query) = matched.map(conditions).unwrap_or_default();
    let first = if headers.is_empty() {
        ActionSpecifier::GenericKey(GenericKey {
            descriptor_key: key.into(),
            descriptor_value: value.into(),
            ..GenericKey::default()
        })
    } else {
        ActionSpecifier::HeaderValueMatch(HeaderValueMatch {
            descriptor_key: key.into(),
            descriptor_value: value.into(),
            headers,
            ..HeaderValueMatch::default()
        })
    };
    let second = (!query.is_empty()).then(|| {
        ActionSpecifier::QueryParameterValueMatch(QueryParameterValueMatch {
            descriptor_key: format!("{key}.query"),
            descriptor_value: value.into(),
            query_parameters: query,
            ..QueryParameterValueMatch::default()
        })
    });
    std::iter::once(first).chain(second).collect()
}

/// `found` with every choice of what a request has or lacks of `by`: exactly one of them makes a descriptor.
fn choices(found: Vec<ActionSpecifier>, by: &[LimitBy]) -> Vec<Vec<ActionSpecifier>> {
    by.iter().fold(vec![found], |all, by| {
        let both = |actions: Vec<ActionSpecifier>| {
            by.actions().map(|action| actions.iter().cloned().chain([action]).collect())
        };
        all.into_iter().flat_map(both).collect()
    })
}

impl LimitBy {
    /// The key of its entry.
    fn key(&self) -> String {
        match (&self.header, &self.query_parameter) {
            (Some(name), _) => format!("header.{}", name.to_ascii_lowercase()),
            (None, Some(name)) => format!("query.{name}"),
            (None, None) => "client".into(),
        }
    }

    /// The entry of a request that has it, and of one that does not.
    fn actions(&self) -> [ActionSpecifier; 2] {
        let key = self.key();
        if let Some(name) = &self.query_parameter {
            let present = QueryParameterMatcher {
                name: name.clone(),
                query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::PresentMatch(true)),
            };
            let absent = QueryParameterValueMatch {
                descriptor_key: key.clone(),
                descriptor_value: ABSENT.into(),
                expect_match: parts::flag(false),
                query_parameters: vec![present],
                ..QueryParameterValueMatch::default()
            };
            return [parameter(name, &key), ActionSpecifier::QueryParameterValueMatch(absent)];
        }
        let name = self.header.as_deref().unwrap_or(CLIENT);
        let present = HeaderMatcher {
            name: name.into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..HeaderMatcher::default()
        };
        let absent = HeaderValueMatch {
            descriptor_key: key.clone(),
            descriptor_value: ABSENT.into(),
            expect_match: parts::flag(false),
            headers: vec![present],
            ..HeaderValueMatch::default()
        };
        [header(name, &key), ActionSpecifier::HeaderValueMatch(absent)]
    }
}

fn header(name: &str, key: &str) -> ActionSpecifier {
    ActionSpecifier::RequestHeaders(RequestHeaders {
        header_name: name.into(),
        descriptor_key: key.into(),
        skip_if_absent: false,
    })
}

fn parameter(name: &str, key: &str) -> ActionSpecifier {
    ActionSpecifier::QueryParameters(QueryParameters {
        query_parameter_name: name.into(),
        descriptor_key: key.into(),
        skip_if_absent: false,
    })
}

fn entry(key: String, value: &str) -> PbEntry {
    PbEntry { key, value: value.into() }
}

/// The entry that an action of [`when`] makes.
fn made(action: &ActionSpecifier) -> Option<PbEntry> {
    let (key, value) = match action {
        ActionSpecifier::GenericKey(made) => (&made.descriptor_key, &made.descriptor_value),
        ActionSpecifier::HeaderValueMatch(made) => (&made.descriptor_key, &made.descriptor_value),
        ActionSpecifier::QueryParameterValueMatch(made) => (&made.descriptor_key, &made.descriptor_value),
        _ => return None,
    };
    Some(entry(key.clone(), value))
}
