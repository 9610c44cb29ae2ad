//! `jwtRules` of AuthenticationPolicies -> the JWT filter of the listener in front of a program, and clusters of the servers that
//! have key sets.

use std::sync::Arc;
use std::time::Duration;

use remora_xds::pb::envoy::config::cluster::v3::cluster::{DiscoveryType, DnsLookupFamily, LbPolicy};
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use remora_xds::pb::envoy::config::core::v3::{DataSource, HttpUri};
use remora_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use remora_xds::pb::envoy::config::route::v3::RouteMatch;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;

use super::{cluster, http, names, parts, tls};
use crate::document::{AuthenticationPolicySpec, Document, JwtRule, KeyServer, ServiceSpec};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::Key;
use crate::resource::Resource;

/// The filter, by whose name rules find claims.
pub(super) const FILTER: &str = "envoy.filters.http.jwt_authn";
/// Where the claims are in its metadata.
pub(super) const PAYLOAD: &str = "payload";
/// Keys that could not be fetched again for so long are believed no more.
const CACHE: u64 = 300;

/// A rule, and the policy and place where it stands.
#[derive(Clone, Copy)]
struct Placed<'a> {
    policy: &'a Document<AuthenticationPolicySpec>,
    number: usize,
    rule: &'a JwtRule,
}

/// The rules of all of `services`, each once, in the order of the policies' names.
fn rules_of<'a>(mesh: &'a Mesh, services: &[&Document<ServiceSpec>]) -> Vec<Placed<'a>> {
    let mut policies: Vec<_> = services.iter().filter_map(|service| mesh.authentication(service)).collect();
    policies.sort_by_key(|policy| policy.name());
    policies.dedup_by_key(|policy| policy.name());
    let each = policies.into_iter().flat_map(|policy| {
        let rules = policy.spec.jwt_rules.iter().enumerate();
        rules.map(move |(number, rule)| Placed { policy, number, rule })
    });
    each.collect()
}

/// The filter of a port that `services` lead to; None when none of them believes in tokens.
pub(super) fn filter(mesh: &Mesh, services: &[&Document<ServiceSpec>]) -> Option<HttpFilter> {
    let rules = rules_of(mesh, services);
    if rules.is_empty() {
        return None;
    }
    // A token has to be good if there is one, whoever of the issuers made it.
    let requires = pb::JwtRequirement { requires_type: Some(RequiresType::AllowMissing(Default::default())) };
    let everything =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() };
    let config = pb::JwtAuthentication {
        providers: rules.iter().map(|placed| (placed.name(), placed.provider())).collect(),
        rules: vec![pb::RequirementRule {
            r#match: Some(everything),
            requirement_type: Some(RequirementType::Requires(requires)),
        }],
        ..pb::JwtAuthentication::default()
    };
    Some(http::http_filter(FILTER, parts::pack(&config)))
}

/// The clusters of the servers that have the key sets of `services`.
pub(super) fn clusters(mesh: &Mesh, services: &[&Document<ServiceSpec>]) -> Vec<Arc<Resource>> {
    rules_of(mesh, services).into_iter().filter_map(Placed::cluster).collect()
}

impl Placed<'_> {
    /// `namespace/policy:jwtRules[0]`
    fn name(self) -> String {
        format!("{}:jwtRules[{}]", self.policy.name(), self.number)
    }

    /// Where its key set is fetched; None when it is written out, or at no server.
    fn server(&self) -> Option<KeyServer<'_>> {
        KeyServer::parse(self.rule.jwks_uri.as_deref()?)
    }

    fn cluster_name(self, server: KeyServer<'_>) -> String {
        names::keys(server.host, server.port, &self.name())
    }

    fn provider(self) -> pb::JwtProvider {
        let rule = self.rule;
        let header = |header: &crate::document::JwtHeader| pb::JwtHeader {
            name: header.name.clone(),
            value_prefix: header.prefix.clone(),
        };
        let claim = |claim: &crate::document::ClaimToHeader| pb::JwtClaimToHeader {
            header_name: claim.header.clone(),
            claim_name: claim.claim.clone(),
            ..pb::JwtClaimToHeader::default()
        };
        pb::JwtProvider {
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.clone(),
            forward: rule.forward_original_token,
            from_headers: rule.from_headers.iter().map(header).collect(),
            from_params: rule.from_params.clone(),
            from_cookies: rule.from_cookies.clone(),
            forward_payload_header: rule.output_payload_to_header.clone().unwrap_or_default(),
            claim_to_headers: rule.output_claim_to_headers.iter().map(claim).collect(),
            payload_in_metadata: PAYLOAD.into(),
            jwks_source_specifier: Some(self.keys()),
            ..pb::JwtProvider::default()
        }
    }

    fn keys(self) -> JwksSourceSpecifier {
        let (Some(uri), Some(server)) = (&self.rule.jwks_uri, self.server()) else {
            let text = self.rule.jwks.clone().unwrap_or_default();
            let specifier = Some(Specifier::InlineString(text));
            return JwksSourceSpecifier::LocalJwks(DataSource { specifier, ..DataSource::default() });
        };
        let timeout = self.rule.timeout.map_or(Duration::from_secs(5), |timeout| timeout.0);
        JwksSourceSpecifier::RemoteJwks(pb::RemoteJwks {
            http_uri: Some(HttpUri {
                uri: uri.clone(),
                timeout: Some(parts::duration(timeout)),
                http_upstream_type: Some(HttpUpstreamType::Cluster(self.cluster_name(server))),
            }),
            cache_duration: parts::seconds(CACHE),
            // An issuer that is away must not keep the listener from opening.
            async_fetch: Some(pb::JwksAsyncFetch { fast_listener: true, ..pb::JwksAsyncFetch::default() }),
            ..pb::RemoteJwks::default()
        })
    }

    fn cluster(self) -> Option<Arc<Resource>> {
        let server = self.server()?;
        let connect = Duration::from_secs(5);
        let kind = if server.address().is_some() { DiscoveryType::Static } else { DiscoveryType::StrictDns };
        let mut cluster = cluster::base(self.cluster_name(server), kind, connect);
        cluster.dns_lookup_family = DnsLookupFamily::V4Preferred.into();
        let endpoint = cluster::endpoint(parts::host(server.host, server.port), String::new());
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
        cluster.load_assignment = Some(ClusterLoadAssignment {
            cluster_name: cluster.name.clone(),
            endpoints: vec![group],
            ..ClusterLoadAssignment::default()
        });
        cluster.lb_policy = LbPolicy::RoundRobin.into();
        cluster.circuit_breakers = Some(cluster::breakers(None));
        cluster.transport_socket =
            server.tls.then(|| tls::public(server, self.rule.ca_certificates.as_deref()));
        let policy = Key::new(Kind::AuthenticationPolicy, self.policy.name());
        Some(Resource::cluster(&cluster, vec![policy]))
    }
}
