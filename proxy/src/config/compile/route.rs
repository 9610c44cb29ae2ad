//! `RouteConfiguration` -> [`RouteTable`].
//!
//! Every message is taken apart field by field, without `..`: a field that a newer API adds does not compile until it is
//! decided what it means here.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use http::StatusCode;
use http::header::HeaderName;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3 as pb;
use remora_xds::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use remora_xds::pb::google::protobuf::{Any, UInt32Value, UInt64Value};

use self::headers::Levels;
use super::common::{data_source, enumeration, header_key, header_name, unsupported};
use super::{Scope, circuit};
use crate::config::compile::policy::filters::overrides;
use crate::config::compile::traffic::{compile_legacy_cors, compile_rules};
use crate::config::names::ClusterId;
use crate::policy::overrides::{Override, Overrides};
use crate::resilience::circuit::CircuitSpec;
use crate::resilience::retry::RetryPolicy;
use crate::route::action::{Action, DirectResponse, MirrorPolicy, Route};
use crate::route::matcher::HeaderKey;
use crate::route::table::{ClusterUse, RequireTls, RouteTable, TableRules, VirtualHost};
use crate::traffic::limit::descriptor::Rule;

mod action;
mod hash;
mod headers;
mod matches;
mod mirror;
mod redirect;
mod retry;

pub(super) use hash::cookie_text;

pub(super) use headers::additions;
pub(super) use matches::query_match;
pub use matches::route_match as compile_route_match;
pub use retry::{compile_hedge_policy, compile_retry_policy};

/// Envoy's limit of a direct response's body, bytes.
const DIRECT_BODY: u32 = 4096;

/// Compiles a route configuration. Mistakes go into `scope.errors`; when there are any, the table is incomplete and
/// must not be used. Cluster names get a number here; whether they exist is asked by [`check_clusters`].
pub fn compile_route_table(pb: &pb::RouteConfiguration, at: &At<'_>, scope: &mut Scope<'_>) -> RouteTable {
    let pb::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _, // Read by nothing that is supported.
        route_specifiers,
    } = pb;
    unsupported(vhds.is_some(), &at.field("vhds"), scope);
    unsupported(!cluster_specifier_plugins.is_empty(), &at.field("cluster_specifier_plugins"), scope);
    unsupported(!route_specifiers.is_empty(), &at.field("route_specifiers"), scope);
    let overrides = overrides(typed_per_filter_config, &Overrides::default(), at, scope);
    let rules = TableRules {
        ignore_port: *ignore_port_in_host_matching,
        vhost_header: non_empty(vhost_header)
            .and_then(|name| host_header(name, &at.field("vhost_header"), scope)),
        ignore_path_parameters: *ignore_path_parameters_in_path_matching,
        internal_only_headers: names(internal_only_headers, &at.field("internal_only_headers"), scope),
        validate_clusters: validate_clusters.as_ref().map(|v| v.value),
    };
    let levels = Levels::compile(
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
        at,
        scope,
    );
    let mut table = TableContext {
        name: name.as_str().into(),
        levels,
        overrides,
        most_specific_wins: *most_specific_header_mutations_wins,
        max_body: max_direct_response_body_size_bytes.as_ref().map_or(DIRECT_BODY, |v| v.value) as usize,
        domains: HashMap::new(),
        mirrors: Arc::default(),
        clusters: Vec::new(),
        seen: HashMap::new(),
    };
    table.mirrors = table.mirrors(request_mirror_policies, &Arc::default(), at, scope);
    let hosts_at = at.field("virtual_hosts");
    let hosts = virtual_hosts
        .iter()
        .enumerate()
        .map(|(i, h)| table.virtual_host(h, &hosts_at.index(i), scope))
        .collect();
    RouteTable::new(name.as_str().into(), hosts, rules, table.clusters)
}

/// Reports every cluster of `table` that `exists` does not know. Envoy's rule is to ask that of an inline table, and of
/// one by RDS only with `validate_clusters: true`.
pub fn check_clusters(table: &RouteTable, scope: &mut Scope<'_>, exists: impl Fn(ClusterId) -> bool) {
    for cluster in table.clusters.iter().filter(|c| !exists(c.id)) {
        let name = scope.names.clusters.name(cluster.id).cloned().unwrap_or_default();
        let message = format!("cluster {name:?} does not exist");
        scope
            .errors
            .report(&At::root().field(&cluster.path), message)
            .fix("add the cluster, or set validate_clusters: false");
    }
}

/// What the compiler knows while it goes through a table.
struct TableContext {
    name: Arc<str>,
    levels: Levels,
    overrides: Overrides,
    most_specific_wins: bool,
    max_body: usize,
    mirrors: Arc<[MirrorPolicy]>,
    /// Domain -> virtual host that has it.
    domains: HashMap<Box<str>, Arc<str>>,
    clusters: Vec<ClusterUse>,
    seen: HashMap<ClusterId, ()>,
}

/// What routes take from their virtual host.
struct HostContext {
    name: Arc<str>,
    levels: Levels,
    overrides: Overrides,
    limits: Arc<[Rule]>,
    mirrors: Arc<[MirrorPolicy]>,
    retry: Option<Arc<RetryPolicy>>,
    hedge: bool,
    buffer_limit: Option<u64>,
    attempt_count_in_request: bool,
    attempt_count_in_response: bool,
    is_timeout_retry_header: bool,
}

impl TableContext {
    fn virtual_host(&mut self, pb: &pb::VirtualHost, at: &At<'_>, scope: &mut Scope<'_>) -> VirtualHost {
        #[expect(deprecated, reason = "the fields are read so that they can be refused")]
        let pb::VirtualHost {
            name,
            domains,
            routes,
            matcher,
            require_tls,
            virtual_clusters,
            rate_limits,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cors,
            typed_per_filter_config,
            include_request_attempt_count,
            include_attempt_count_in_response,
            retry_policy,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header,
            per_request_buffer_limit_bytes,
            request_body_buffer_limit,
            request_mirror_policies,
            metadata: _,
            route_specifiers,
        } = pb;
        unsupported(matcher.is_some(), &at.field("matcher"), scope);
        unsupported(!virtual_clusters.is_empty(), &at.field("virtual_clusters"), scope);
        unsupported(retry_policy_typed_config.is_some(), &at.field("retry_policy_typed_config"), scope);
        unsupported(!route_specifiers.is_empty(), &at.field("route_specifiers"), scope);
        let overrides = overrides(typed_per_filter_config, &self.overrides, at, scope);
        let overrides = with_cors(cors.as_ref(), overrides, at, scope);
        let name: Arc<str> = name.as_str().into();
        if name.is_empty() {
            scope.errors.report(&at.field("name"), "must not be empty");
        }
        let host = HostContext {
            name: Arc::clone(&name),
            levels: Levels::compile(
                (request_headers_to_add, request_headers_to_remove),
                (response_headers_to_add, response_headers_to_remove),
                at,
                scope,
            ),
            overrides,
            limits: compile_rules(rate_limits, &at.field("rate_limits"), scope).into(),
            mirrors: self.mirrors(request_mirror_policies, &Arc::clone(&self.mirrors), at, scope),
            retry: retry_policy
                .as_ref()
                .map(|p| Arc::new(compile_retry_policy(p, &at.field("retry_policy"), scope))),
            hedge: hedge_policy
                .as_ref()
                .is_some_and(|p| compile_hedge_policy(p, &at.field("hedge_policy"), scope)),
            buffer_limit: buffer_limit(
                *per_request_buffer_limit_bytes,
                *request_body_buffer_limit,
                at,
                scope,
            ),
            attempt_count_in_request: *include_request_attempt_count,
            attempt_count_in_response: *include_attempt_count_in_response,
            is_timeout_retry_header: *include_is_timeout_retry_header,
        };
        let domains = self.domains(domains, &name, &at.field("domains"), scope);
        let require_tls = match enumeration(*require_tls, &at.field("require_tls"), scope) {
            Some(TlsRequirementType::ExternalOnly) => RequireTls::External,
            Some(TlsRequirementType::All) => RequireTls::All,
            Some(TlsRequirementType::None) | None => RequireTls::None,
        };
        let routes_at = at.field("routes");
        let compiled = routes.iter().enumerate();
        let routes = compiled.filter_map(|(i, r)| self.route(r, &host, &routes_at.index(i), scope)).collect();
        VirtualHost::new(name, domains, require_tls, routes)
    }

    fn domains(
        &mut self,
        list: &[String],
        host: &Arc<str>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Vec<Box<str>> {
        if list.is_empty() {
            scope.errors.report(at, "a virtual host needs a domain").fix("[\"*\"] is every domain");
        }
        let mut out = Vec::with_capacity(list.len());
        for (i, domain) in list.iter().enumerate() {
            let at = at.index(i);
            let domain: Box<str> = domain.to_ascii_lowercase().into();
            if let Some(problem) = bad_domain(&domain) {
                scope.errors.report(&at, problem);
            } else if let Some(other) = self.domains.get(&domain) {
                let message = format!("domain {domain:?} is already one of virtual host {other:?}");
                scope.errors.report(&at, message);
            } else {
                self.domains.insert(domain.clone(), Arc::clone(host));
                out.push(domain);
            }
        }
        out
    }

    fn route(
        &mut self,
        pb: &pb::Route,
        host: &HostContext,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<Route> {
        #[expect(deprecated, reason = "still in use; newer files have request_body_buffer_limit")]
        let pb::Route {
            name,
            r#match,
            metadata,
            decorator,
            typed_per_filter_config,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            tracing,
            per_request_buffer_limit_bytes,
            stat_prefix,
            request_body_buffer_limit,
            route_specifiers,
            action,
        } = pb;
        unsupported(decorator.is_some(), &at.field("decorator"), scope);
        unsupported(tracing.is_some(), &at.field("tracing"), scope);
        unsupported(!stat_prefix.is_empty(), &at.field("stat_prefix"), scope);
        unsupported(!route_specifiers.is_empty(), &at.field("route_specifiers"), scope);
        let overrides = overrides(typed_per_filter_config, &host.overrides, at, scope);
        let overrides = with_cors(route_cors(action.as_ref()), overrides, &at.field("route"), scope);
        let levels = Levels::compile(
            (request_headers_to_add, request_headers_to_remove),
            (response_headers_to_add, response_headers_to_remove),
            at,
            scope,
        );
        let own_limit = buffer_limit(*per_request_buffer_limit_bytes, *request_body_buffer_limit, at, scope);
        let matcher = matches::route_match(r#match.as_ref(), &at.field("match"), scope);
        let buffer_limit = own_limit.or(host.buffer_limit);
        let parents = action::Parents { route: &levels, host, buffer_limit, subset: None };
        let mut action = self.action(action.as_ref(), &parents, at, scope);
        if let Some(spec) = circuit::compile(metadata.as_ref(), &at.field("metadata"), scope) {
            self.put_circuit(spec, (host, name), action.as_mut(), (at, scope));
        }
        let (request_headers, response_headers) = self.merge(None, &levels, host);
        Some(Route {
            name: non_empty(name).map(Into::into),
            matcher: matcher?,
            action: action?,
            request_headers,
            response_headers,
            overrides,
        })
    }

    /// Gives a route its circuit breaker, whose state has the name of the route.
    fn put_circuit(
        &self,
        spec: CircuitSpec,
        (host, name): (&HostContext, &str),
        action: Option<&mut Action>,
        (at, scope): (&At<'_>, &mut Scope<'_>),
    ) {
        let of = at.field("metadata");
        let of = of.field("filter_metadata");
        let of = of.field(circuit::NAME);
        if name.is_empty() {
            scope.errors.report(&of, "needs a name of the route, under which its state is kept");
        }
        match action {
            Some(Action::Forward(forward)) => {
                let name = format!("route/{}/{}/{name}", self.name, host.name);
                forward.circuit = Some(scope.names.circuits.put(&name, spec));
            }
            Some(_) => drop(scope.errors.report(&of, "has no effect on a route that forwards nothing")),
            None => {}
        }
    }

    fn action(
        &mut self,
        pb: Option<&pb::route::Action>,
        parents: &action::Parents<'_>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<Action> {
        match pb {
            Some(pb::route::Action::Route(route)) => {
                self.forward(route, parents, &at.field("route"), scope).map(|r| Action::Forward(Box::new(r)))
            }
            Some(pb::route::Action::Redirect(redirect)) => {
                redirect::redirect(redirect, &at.field("redirect"), scope)
                    .map(|r| Action::Redirect(Box::new(r)))
            }
            Some(pb::route::Action::DirectResponse(direct)) => {
                self.direct_response(direct, &at.field("direct_response"), scope).map(Action::Direct)
            }
            Some(pb::route::Action::FilterAction(_)) => {
                unsupported(true, &at.field("filter_action"), scope);
                None
            }
            Some(pb::route::Action::NonForwardingAction(_)) => {
                unsupported(true, &at.field("non_forwarding_action"), scope);
                None
            }
            None => {
                scope.errors.report(at, "needs route, redirect or direct_response");
                None
            }
        }
    }

    fn direct_response(
        &self,
        pb: &pb::DirectResponseAction,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<DirectResponse> {
        let pb::DirectResponseAction { status, body, body_format } = pb;
        unsupported(body_format.is_some(), &at.field("body_format"), scope);
        let code = u16::try_from(*status).ok().filter(|s| (200..600).contains(s));
        let code = code.and_then(|s| StatusCode::from_u16(s).ok());
        if code.is_none() {
            scope.errors.report(&at.field("status"), "must be from 200 to 599");
        }
        let body = match body {
            Some(source) => data_source(source, self.max_body, &at.field("body"), scope),
            None => Some(Default::default()),
        };
        Some(DirectResponse { status: code?, body: body? })
    }

    /// The number of a cluster name, and a note that the table uses it.
    fn cluster(&mut self, name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> ClusterId {
        let id = scope.names.clusters.intern(name);
        if self.seen.insert(id, ()).is_none() {
            self.clusters.push(ClusterUse { id, path: at.to_string().into() });
        }
        id
    }
}

#[expect(deprecated, reason = "old files have cors here")]
const fn route_cors(action: Option<&pb::route::Action>) -> Option<&pb::CorsPolicy> {
    match action {
        Some(pb::route::Action::Route(route)) => route.cors.as_ref(),
        _ => None,
    }
}

/// What the older field `cors` says: the same as `typed_per_filter_config` of the filter with Envoy's name.
fn with_cors(
    pb: Option<&pb::CorsPolicy>,
    overrides: Overrides,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Overrides {
    let Some(pb) = pb else { return overrides };
    let policy = compile_legacy_cors(pb, &at.field("cors"), scope);
    Overrides::new(vec![("envoy.filters.http.cors".into(), Override::Cors(Arc::new(policy)))], &overrides)
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn names(list: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Box<[HeaderName]> {
    list.iter().enumerate().filter_map(|(i, n)| header_name(n, &at.index(i), scope)).collect()
}

/// The header that stands for Host; None is Host itself.
fn host_header(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderName> {
    match header_key(name, at, scope)? {
        HeaderKey::Name(name) => Some(name),
        HeaderKey::Authority => None,
        _ => {
            scope.errors.report(at, "only a header can hold the name of a host");
            None
        }
    }
}

/// `typed_per_filter_config` of a weighted cluster: filters run before it is chosen.
fn no_per_filter_config(map: &std::collections::HashMap<String, Any>, at: &At<'_>, scope: &mut Scope<'_>) {
    let at = at.field("typed_per_filter_config");
    let mut filters: Vec<_> = map.keys().collect();
    filters.sort();
    for filter in filters {
        unsupported(true, &at.field(filter), scope);
    }
}

fn buffer_limit(
    old: Option<UInt32Value>,
    new: Option<UInt64Value>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<u64> {
    if old.is_some() && new.is_some() {
        let message = "only one of request_body_buffer_limit and per_request_buffer_limit_bytes may be set";
        scope.errors.report(&at.field("per_request_buffer_limit_bytes"), message);
    }
    new.map(|v| v.value).or_else(|| old.map(|v| u64::from(v.value)))
}

fn bad_domain(domain: &str) -> Option<&'static str> {
    let inner = domain.strip_prefix('*').unwrap_or_else(|| domain.strip_suffix('*').unwrap_or(domain));
    if domain.is_empty() {
        Some("must not be empty")
    } else if inner.contains('*') {
        Some("a domain has at most one *, at its beginning or its end")
    } else if domain.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        Some("must not hold spaces or control characters")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
