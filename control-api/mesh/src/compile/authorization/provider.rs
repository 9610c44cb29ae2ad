//! `Custom`: rules that choose requests, and the filter that asks about them.
//!
//! As Istio does it: shadow rules leave the name of the rule that matched in the metadata of RBAC, and `ext_authz` asks when there is one.

use std::collections::BTreeSet;
use std::time::Duration;

use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use remora_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use remora_xds::pb::envoy::config::core::v3::{ApiVersion, GrpcService, HttpUri};
use remora_xds::pb::envoy::config::rbac::v3::rbac::Action as RbacAction;
use remora_xds::pb::envoy::config::rbac::v3::{Policy, Rbac};
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationResponse, BufferSettings, ExtAuthz, HttpService,
};
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::PathSegment;
use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::path_segment::Segment;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{ListStringMatcher, MetadataMatcher, ValueMatcher};
use remora_xds::pb::google::protobuf::Duration as PbDuration;

use super::matchers::text;
use super::{RBAC, http_filter, parts};
use crate::compile::names;
use crate::document::{
    Action, AuthorizationPolicySpec, Document, HttpAuth, Provider, ProviderProtocol, ServiceSpec,
};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};

/// How long an answer may take when nobody says.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A policy with the port that is asked.
pub(super) struct Asked<'a> {
    policy: Name,
    provider: &'a Provider,
    to: (Name, u16),
}

/// Whom a `Custom` asks; None when nobody can be asked: the Service is not there, no grant lets it be asked, or it speaks something
/// else.
pub(super) fn of<'a>(mesh: &Mesh, policy: &'a Document<AuthorizationPolicySpec>) -> Option<Asked<'a>> {
    let AuthorizationPolicySpec { action: Action::Custom, dry_run: false, provider: Some(provider), .. } =
        &policy.spec
    else {
        return None;
    };
    let key = Key::new(Kind::AuthorizationPolicy, policy.name());
    let to = mesh.backend(&key, provider.backend_ref.to())?;
    let service = mesh.service(&to.0.namespace, &to.0.name)?;
    let port = service.spec.ports.iter().find(|port| port.port == to.1)?;
    provider.protocol.is_spoken(port.speaks()).then_some(Asked { policy: key.name, provider, to })
}

/// The ports that the sidecars of `services` ask.
pub(in crate::compile) fn ports(mesh: &Mesh, services: &[&Document<ServiceSpec>]) -> BTreeSet<(Name, u16)> {
    let policies = services.iter().flat_map(|service| super::of(mesh, service));
    policies.filter_map(|policy| Some(of(mesh, policy)?.to)).collect()
}

impl Asked<'_> {
    /// The filters that ask about what one of `rules` matches, or about everything.
    pub(super) fn filters(&self, rules: Option<Vec<(String, Policy)>>) -> Vec<HttpFilter> {
        let Some(rules) = rules else { return vec![self.asking(None)] };
        let prefix = format!("custom_{}_{}_", self.policy.namespace, self.policy.name);
        let key = format!("{prefix}shadow_effective_policy_id");
        let choosing = HttpRbac {
            shadow_rules: Some(Rbac {
                action: RbacAction::Deny.into(),
                policies: rules.into_iter().collect(),
                ..Rbac::default()
            }),
            shadow_rules_stat_prefix: prefix,
            ..HttpRbac::default()
        };
        let name = MatchPattern::Prefix(format!("{}:", self.policy));
        let chosen = MetadataMatcher {
            filter: RBAC.into(),
            path: vec![PathSegment { segment: Some(Segment::Key(key)) }],
            value: Some(ValueMatcher { match_pattern: Some(ValuePattern::StringMatch(text(name))) }),
            ..MetadataMatcher::default()
        };
        vec![http_filter(RBAC, parts::pack(&choosing)), self.asking(Some(chosen))]
    }

    fn asking(&self, chosen: Option<MetadataMatcher>) -> HttpFilter {
        let Provider { protocol, fail_open, .. } = self.provider;
        let (grpc, http) = (self.provider.grpc.as_ref(), self.provider.http.as_ref());
        let (services, told) = match protocol {
            ProviderProtocol::Grpc => {
                (Services::GrpcService(self.grpc()), grpc.and_then(|grpc| names_of(&grpc.allowed_headers)))
            }
            ProviderProtocol::Http => {
                let http = http.cloned().unwrap_or_default();
                let told = names_of(&http.allowed_headers);
                (Services::HttpService(self.http(&http)), told)
            }
        };
        let body = self.provider.forward_body.filter(|body| body.max_size > 0);
        let config = ExtAuthz {
            services: Some(services),
            transport_api_version: ApiVersion::V3.into(),
            failure_mode_allow: *fail_open,
            with_request_body: body.map(|body| BufferSettings {
                max_request_bytes: body.max_size,
                allow_partial_message: true,
                ..BufferSettings::default()
            }),
            validate_mutations: true,
            filter_enabled_metadata: chosen,
            allowed_headers: told,
            stat_prefix: "custom".into(),
            ..ExtAuthz::default()
        };
        http_filter(&self.policy.to_string(), parts::pack(&config))
    }

    fn cluster(&self) -> String {
        let (service, port) = &self.to;
        names::cluster(&service.namespace, &service.name, *port)
    }

    fn timeout(&self) -> PbDuration {
        parts::duration(self.provider.timeout.map_or(TIMEOUT, |timeout| timeout.0))
    }

    fn grpc(&self) -> GrpcService {
        let service = &self.to.0;
        GrpcService {
            timeout: Some(self.timeout()),
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: self.cluster(),
                authority: names::host(&service.namespace, &service.name),
                ..EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        }
    }

    fn http(&self, http: &HttpAuth) -> HttpService {
        let (service, port) = &self.to;
        HttpService {
            server_uri: Some(HttpUri {
                uri: format!("http://{}:{port}", names::host(&service.namespace, &service.name)),
                timeout: Some(self.timeout()),
                http_upstream_type: Some(HttpUpstreamType::Cluster(self.cluster())),
            }),
            path_prefix: http.path.trim_end_matches('/').to_owned(),
            authorization_response: Some(AuthorizationResponse {
                allowed_upstream_headers: names_of(&http.allowed_response_headers),
                ..AuthorizationResponse::default()
            }),
            ..HttpService::default()
        }
    }
}

/// Headers of these names; None when there are none.
fn names_of(list: &[String]) -> Option<ListStringMatcher> {
    let exact = |name: &String| text(MatchPattern::Exact(name.to_ascii_lowercase()));
    (!list.is_empty()).then(|| ListStringMatcher { patterns: list.iter().map(exact).collect() })
}
