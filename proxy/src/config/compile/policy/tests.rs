use std::collections::HashMap;

use prost::{Message, Name};
use remora_xds::diag::{At, Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use remora_xds::pb::envoy::config::core::v3::{DataSource, HttpUri};
use remora_xds::pb::envoy::config::rbac::v3 as rbac_pb;
use remora_xds::pb::envoy::config::rbac::v3::permission::Rule as Permission;
use remora_xds::pb::envoy::config::rbac::v3::principal::Identifier as Principal;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{FilterConfig, HeaderMatcher, RouteMatch};
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as jwt_pb;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
use remora_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use remora_xds::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute};
use remora_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use remora_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use remora_xds::pb::envoy::r#type::matcher::v3::MetadataMatcher;
use remora_xds::pb::envoy::r#type::v3::Int32Range;
use remora_xds::pb::google::protobuf::{Any, Duration};

use super::*;
use crate::config::compile::Scope;
use crate::config::names::Names;
use crate::policy::overrides::{Override, Overrides};

/// What `compile` makes, and its mistakes.
fn compiled<T>(compile: impl FnOnce(&At<'_>, &mut Scope<'_>) -> T) -> (T, Vec<String>) {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let made = compile(&At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    let list = errors.into_list();
    (made, list.iter().map(|e| format!("{}: {}", e.path, e.message)).collect())
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn rules(action: i32, permissions: Vec<Permission>, principals: Vec<Principal>) -> rbac_pb::Rbac {
    let policy = rbac_pb::Policy {
        permissions: permissions.into_iter().map(|rule| rbac_pb::Permission { rule: Some(rule) }).collect(),
        principals: principals
            .into_iter()
            .map(|identifier| rbac_pb::Principal { identifier: Some(identifier) })
            .collect(),
        ..Default::default()
    };
    rbac_pb::Rbac { action, policies: HashMap::from([("p".into(), policy)]), ..Default::default() }
}

#[test]
fn what_rules_cannot_say_is_refused_with_its_path() {
    let header = HeaderMatcher { name: "x".into(), ..Default::default() };
    let metadata = MetadataMatcher { filter: "envoy.lb".into(), ..Default::default() };
    let range = Int32Range { start: 5, end: 5 };
    let not = rbac_pb::Permission { rule: Some(Permission::DestinationPortRange(range)) };
    let permissions = vec![
        Permission::Any(false),
        Permission::Matcher(Default::default()),
        Permission::UriTemplate(Default::default()),
        Permission::NotRule(Box::new(not)),
    ];
    let sourced = rbac_pb::SourcedMetadata { metadata_matcher: Some(metadata.clone()), metadata_source: 1 };
    let principals = vec![
        Principal::FilterState(Default::default()),
        Principal::Custom(Default::default()),
        Principal::SourcedMetadata(sourced),
        #[expect(deprecated, reason = "old files have it")]
        Principal::Metadata(metadata),
    ];
    let filter = HttpRbac { rules: Some(rules(0, permissions, principals)), ..Default::default() };
    let (_, errors) = compiled(|at, scope| compile_http_rbac(&filter, at, scope));
    assert_eq!(
        errors,
        [
            "rules.policies.p.permissions[0]: says nothing",
            "rules.policies.p.permissions[1].matcher: this field is not supported",
            "rules.policies.p.permissions[2].uri_template: this field is not supported",
            "rules.policies.p.permissions[3].not_rule.destination_port_range: is no range of ports",
            "rules.policies.p.principals[0].filter_state: this field is not supported",
            "rules.policies.p.principals[1].custom: this field is not supported",
            "rules.policies.p.principals[2].sourced_metadata.metadata_source: is not supported",
            "rules.policies.p.principals[3].metadata.filter: `envoy.lb` leaves no metadata here",
        ]
    );
    // Audit by itself is no policy; shadow rules are.
    let log = HttpRbac { shadow_rules: Some(rules(2, vec![], vec![])), ..Default::default() };
    assert_eq!(
        compiled(|at, scope| compile_http_rbac(&log, at, scope)).1,
        ["shadow_rules.action: is not supported"]
    );
    // A connection has no headers: the rule would never hold, and below a negation always.
    let network = NetworkRbac {
        rules: Some(rules(1, vec![Permission::Header(header)], vec![])),
        delay_deny: Some(Duration::default()),
        ..Default::default()
    };
    assert_eq!(
        compiled(|at, scope| compile_network_rbac(&network, at, scope)).1,
        [
            "delay_deny: this field is not supported",
            "rules.policies.p.permissions[0].header: a connection has no headers and no path",
            "rules.policies.p.principals: must not be empty",
        ]
    );
}

#[test]
fn the_most_specific_setting_of_a_filter_is_the_whole_one() {
    let off = any(&FilterConfig { disabled: true, ..Default::default() });
    let named = jwt_pb::PerRouteConfig {
        requirement_specifier: Some(RequirementSpecifier::RequirementName("strict".into())),
    };
    let wrapped = any(&FilterConfig { config: Some(any(&named)), ..Default::default() });
    let table = HashMap::from([("rbac".to_owned(), off.clone()), ("jwt".to_owned(), off)]);
    let route =
        HashMap::from([("jwt".to_owned(), wrapped), ("more".to_owned(), any(&RbacPerRoute::default()))]);
    let ((above, own), errors) = compiled(|at, scope| {
        let above = filters::overrides(&table, &Overrides::default(), at, scope);
        (above.clone(), filters::overrides(&route, &above, at, scope))
    });
    assert_eq!(errors, Vec::<String>::new());
    assert!(matches!(above.of("jwt"), Some(Override::Disabled)));
    assert!(matches!(own.of("jwt"), Some(Override::Jwt(name)) if **name == *"strict"));
    assert!(matches!(own.of("rbac"), Some(Override::Disabled)), "inherited");
    assert!(matches!(own.of("more"), Some(Override::Disabled)), "RBACPerRoute without rules");
    assert!(own.of("other").is_none());
}

#[test]
fn settings_of_filters_that_are_none_are_refused() {
    let map = HashMap::from([
        ("a".to_owned(), any(&Router::default())),
        ("b".to_owned(), any(&FilterConfig::default())),
        ("c".to_owned(), any(&jwt_pb::PerRouteConfig::default())),
    ]);
    let (_, errors) = compiled(|at, scope| filters::overrides(&map, &Overrides::default(), at, scope));
    let paths: Vec<&str> = errors.iter().map(|e| e.split(": ").next().unwrap()).collect();
    assert_eq!(
        paths,
        ["typed_per_filter_config.a", "typed_per_filter_config.b", "typed_per_filter_config.c"]
    );
}

fn keys(text: &str) -> Option<JwksSourceSpecifier> {
    let specifier = Some(Specifier::InlineString(text.into()));
    Some(JwksSourceSpecifier::LocalJwks(DataSource { specifier, ..Default::default() }))
}

#[test]
fn mistakes_in_providers_and_requirements() {
    let claim = |header: &str, name: &str| jwt_pb::JwtClaimToHeader {
        header_name: header.into(),
        claim_name: name.into(),
        ..Default::default()
    };
    let local = jwt_pb::JwtProvider {
        claim_to_headers: vec![
            claim("host", "sub"),
            claim("x-a", "a..b"),
            claim("x a", "c"),
            claim("Authorization", "d"),
        ],
        forward_payload_header: "content-length".into(),
        jwks_source_specifier: keys("{}"),
        jwt_cache_config: Some(Default::default()),
        ..Default::default()
    };
    let uri = HttpUri {
        uri: "/keys".into(),
        http_upstream_type: Some(HttpUpstreamType::Cluster("c".into())),
        timeout: Some(Duration { seconds: 0, nanos: 0 }),
    };
    let remote = jwt_pb::RemoteJwks { http_uri: Some(uri), ..Default::default() };
    let remote = jwt_pb::JwtProvider {
        jwks_source_specifier: Some(JwksSourceSpecifier::RemoteJwks(remote)),
        ..Default::default()
    };
    let rule = |requirement_type| jwt_pb::RequirementRule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        requirement_type,
    };
    let named = RequirementType::RequirementName("nowhere".into());
    let provider =
        jwt_pb::JwtRequirement { requires_type: Some(RequiresType::ProviderName("nobody".into())) };
    let filter = jwt_pb::JwtAuthentication {
        providers: HashMap::from([
            ("a".to_owned(), local),
            ("b".to_owned(), remote),
            ("c".to_owned(), Default::default()),
        ]),
        rules: vec![
            rule(Some(named)),
            rule(Some(RequirementType::Requires(provider))),
            jwt_pb::RequirementRule::default(),
        ],
        strip_failure_response: true,
        ..Default::default()
    };
    let (made, errors) = compiled(|at, scope| compile_jwt(&filter, at, scope));
    assert!(made.is_none());
    assert_eq!(
        errors,
        [
            "strip_failure_response: this field is not supported",
            "providers.a.jwt_cache_config: this field is not supported",
            "providers.a.local_jwks: has no list `keys`",
            "providers.a.forward_payload_header: content-length may not be changed here",
            "providers.a.claim_to_headers[0].header_name: host may not be changed here",
            "providers.a.claim_to_headers[1].claim_name: must be a name, or names with dots between them",
            "providers.a.claim_to_headers[2].header_name: \"x a\" is not a header name",
            "providers.a.claim_to_headers[3].header_name: authorization is taken from clients: tokens stand there",
            "providers.b.remote_jwks.http_uri.uri: is no absolute URI",
            "providers.b.remote_jwks.http_uri.timeout: must be more than zero",
            "providers.c: has no keys",
            "rules[0].requirement_name: `nowhere` is not in requirement_map",
            "rules[1].requires.provider_name: `nobody` is not in providers",
            "rules[2].match: is required",
        ]
    );
}

#[test]
fn what_checks_cannot_do_is_refused_with_its_path() {
    use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use remora_xds::pb::envoy::config::core::v3::{GrpcService, HeaderValue};
    use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as authz_pb;
    use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
    use remora_xds::pb::envoy::r#type::v3::HttpStatus;

    let errors = |pb: &authz_pb::ExtAuthz| compiled(|at, scope| compile_authz("a", pb, at, scope)).1;
    let host = HeaderValue { key: "host".into(), value: "b".into(), ..Default::default() };
    let target = EnvoyGrpc { cluster_name: "outbound|80||a b".into(), ..Default::default() };
    let service = |target| GrpcService {
        timeout: Some(Duration::default()),
        initial_metadata: vec![host.clone()],
        target_specifier: target,
        ..Default::default()
    };
    let grpc = authz_pb::ExtAuthz {
        include_peer_certificate: true,
        shadow_mode: true,
        metadata_context_namespaces: vec!["envoy.lb".into()],
        with_request_body: Some(authz_pb::BufferSettings {
            max_request_bytes: 1 << 21,
            ..Default::default()
        }),
        max_denied_response_body_bytes: 1 << 20,
        status_on_error: Some(HttpStatus { code: 100 }),
        services: Some(Services::GrpcService(service(Some(TargetSpecifier::EnvoyGrpc(target))))),
        ..Default::default()
    };
    assert_eq!(
        errors(&grpc),
        [
            "include_peer_certificate: this field is not supported",
            "shadow_mode: this field is not supported",
            "metadata_context_namespaces[0]: `envoy.lb` leaves no metadata here",
            "transport_api_version: must be V3",
            "grpc_service.timeout: must be more than zero",
            "grpc_service.initial_metadata[0].key: host may not be set here",
            "with_request_body.max_request_bytes: 2097152 is not between 1 and 1048576",
            "status_on_error.code: 100 is no status of an answer",
            "max_denied_response_body_bytes: 1048576 is more than 65536",
        ]
    );
    let web = authz_pb::ExtAuthz {
        services: Some(Services::HttpService(authz_pb::HttpService {
            path_prefix: "check".into(),
            path_override: "/x".into(),
            server_uri: Some(HttpUri { uri: "http://a".into(), ..Default::default() }),
            ..Default::default()
        })),
        ..Default::default()
    };
    assert_eq!(
        errors(&web),
        [
            "http_service.path_override: this field is not supported",
            "http_service.path_prefix: must begin with /",
            "http_service.server_uri.cluster: is required",
        ]
    );
    assert_eq!(errors(&authz_pb::ExtAuthz::default()), [": asks nobody"]);
}

#[test]
fn what_chooses_requests_is_something_that_filters_leave() {
    use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz;
    use remora_xds::pb::envoy::r#type::matcher::v3::ValueMatcher;
    use remora_xds::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
    use remora_xds::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;

    let errors_of = |filter: &str, path: &[&str], present| {
        let segment = |key: &&str| PathSegment { segment: Some(Segment::Key((*key).into())) };
        let matcher = MetadataMatcher {
            filter: filter.into(),
            path: path.iter().map(segment).collect(),
            value: Some(ValueMatcher { match_pattern: Some(MatchPattern::PresentMatch(present)) }),
            ..Default::default()
        };
        let filter = ExtAuthz { filter_enabled_metadata: Some(matcher), ..Default::default() };
        let errors = compiled(|at, scope| compile_authz("a", &filter, at, scope)).1;
        errors.into_iter().filter(|error| error != ": asks nobody").collect::<Vec<_>>()
    };
    let errors = |filter: &str, path: &[&str]| errors_of(filter, path, true);
    let (rbac, jwt) = ("envoy.filters.http.rbac", "envoy.filters.http.jwt_authn");
    for end in ["shadow_effective_policy_id", "shadow_engine_result", "enforced_engine_result"] {
        assert_eq!(errors(rbac, &[&format!("p_{end}")]), [""; 0]);
    }
    assert_eq!(errors(jwt, &["payload", "sub"]), [""; 0]);
    let nothing = ["filter_enabled_metadata.path: is nothing that the filter leaves"];
    assert_eq!(errors(rbac, &["p_shadow_policy"]), nothing);
    assert_eq!(errors(rbac, &["shadow_engine_result", "more"]), nothing);
    assert_eq!(errors(rbac, &[]), ["filter_enabled_metadata.path: has no key, or one that is empty"]);
    assert_eq!(
        errors("envoy.lb", &["canary"]),
        ["filter_enabled_metadata.filter: `envoy.lb` leaves no metadata here"]
    );
    assert_eq!(
        errors_of(jwt, &["payload", "sub"], false),
        ["filter_enabled_metadata.value.present_match: matches nothing, nor does it in Envoy"]
    );
}

#[test]
fn contexts_of_all_levels_are_merged() {
    use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as authz_pb;
    use remora_xds::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override as Setting;

    let settings = |pairs: &[(&str, &str)], off| {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let settings = authz_pb::CheckSettings {
            context_extensions: pairs.collect(),
            disable_request_body_buffering: off,
            ..Default::default()
        };
        any(&authz_pb::ExtAuthzPerRoute { r#override: Some(Setting::CheckSettings(settings)) })
    };
    let level = |any| HashMap::from([("a".to_owned(), any)]);
    let (own, errors) = compiled(|at, scope| {
        let host = level(settings(&[("x", "host"), ("y", "host")], true));
        let host = filters::overrides(&host, &Overrides::default(), at, scope);
        filters::overrides(&level(settings(&[("x", "route")], false)), &host, at, scope)
    });
    assert_eq!(errors, Vec::<String>::new());
    let Some(Override::Authz(settings)) = own.of("a") else { panic!("{own:?}") };
    let pairs: Vec<_> = settings.context.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!((pairs, settings.buffer), (vec!["x=route".to_owned(), "y=host".to_owned()], None));
}
