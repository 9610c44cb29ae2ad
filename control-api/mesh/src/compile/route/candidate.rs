//! Every match of every rule of some routes, in the order in which they are tried.

use std::cmp::Reverse;
use std::sync::Arc;

use remora_xds::pb::envoy::config::route::v3::RouteMatch;

use super::{Routes, matches};
use crate::document::{
    BackendRef, Document, GrpcMatch, GrpcRouteSpec, HttpFilter, HttpMatch, HttpRetry, HttpRouteSpec,
    HttpTimeouts, PathMatchType, SessionPersistence,
};
use crate::kinds::AnyDocument;
use crate::name::Key;

/// A rule with one of its matches.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) route: Key,
    /// Its rule.
    pub(crate) rule: usize,
    /// Its match of the rule; 0 also for a rule without matches.
    pub(crate) number: usize,
    pub(crate) matched: RouteMatch,
    /// The path prefix that it matches, which ReplacePrefixMatch replaces.
    pub(crate) prefix: &'a str,
    pub(crate) filters: &'a [HttpFilter],
    pub(crate) backends: &'a [BackendRef],
    pub(crate) timeouts: HttpTimeouts,
    pub(crate) retry: Option<&'a HttpRetry>,
    pub(crate) session: Option<&'a SessionPersistence>,
    order: Order<'a>,
}

/// How specific a match is, larger before smaller; of equals the older route, its name, and the order in it.
type Order<'a> = (Vec<Reverse<usize>>, (bool, Option<&'a str>, &'a str, &'a str), usize);

/// The candidates where HTTP is spoken; None when there are no routes.
pub(crate) fn candidates(routes: &Routes) -> Option<Vec<Candidate<'_>>> {
    let mut list: Vec<Candidate<'_>> = if !routes.grpc.is_empty() {
        routes.grpc.iter().flat_map(of_grpc).collect()
    } else if !routes.http.is_empty() {
        routes.http.iter().flat_map(of_http).collect()
    } else {
        return None;
    };
    list.sort_by(|a, b| a.order.cmp(&b.order));
    Some(list)
}

static EVERY_REQUEST: HttpMatch = HttpMatch::every();
static EVERY_CALL: GrpcMatch = GrpcMatch::every();

fn of_http(document: &Arc<Document<HttpRouteSpec>>) -> impl Iterator<Item = Candidate<'_>> {
    document.spec.rules.iter().enumerate().flat_map(move |(number, rule)| {
        let matches =
            if rule.matches.is_empty() { std::slice::from_ref(&EVERY_REQUEST) } else { &rule.matches };
        matches.iter().enumerate().map(move |(i, matched)| Candidate {
            route: AnyDocument::HttpRoute(Arc::clone(document)).key(),
            rule: number,
            number: i,
            matched: matches::http(matched),
            prefix: &matched.path.value,
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: rule.timeouts,
            retry: rule.retry.as_ref(),
            session: rule.session_persistence.as_ref(),
            order: (http_order(matched), document.age(), number),
        })
    })
}

fn of_grpc(document: &Arc<Document<GrpcRouteSpec>>) -> impl Iterator<Item = Candidate<'_>> {
    document.spec.rules.iter().enumerate().flat_map(move |(number, rule)| {
        let matches = if rule.matches.is_empty() { std::slice::from_ref(&EVERY_CALL) } else { &rule.matches };
        matches.iter().enumerate().map(move |(i, matched)| Candidate {
            route: AnyDocument::GrpcRoute(Arc::clone(document)).key(),
            rule: number,
            number: i,
            matched: matches::grpc(matched),
            prefix: "",
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: HttpTimeouts::default(),
            retry: None,
            session: None,
            order: (grpc_order(matched), document.age(), number),
        })
    })
}

/// HTTPRouteRule.matches: exact path, longer prefix, method, more headers, more query parameters. Regular expressions stand between
/// exact paths and prefixes, as in Istio; the Gateway API leaves that open.
fn http_order(matched: &HttpMatch) -> Vec<Reverse<usize>> {
    let path = &matched.path;
    let kind = match path.kind {
        PathMatchType::Exact => 2,
        PathMatchType::RegularExpression => 1,
        PathMatchType::PathPrefix => 0,
    };
    let length = match path.kind {
        PathMatchType::PathPrefix => path.value.trim_end_matches('/').len(),
        _ => path.value.len(),
    };
    let method = usize::from(matched.method.is_some());
    [kind, length, method, matched.headers.len(), matched.query_params.len()].map(Reverse).into()
}

/// GRPCRouteRule.matches: more characters of the service, of the method, more headers.
fn grpc_order(matched: &GrpcMatch) -> Vec<Reverse<usize>> {
    let length = |text: Option<&String>| text.map_or(0, String::len);
    let method = matched.method.as_ref();
    let (service, name) =
        (length(method.and_then(|m| m.service.as_ref())), length(method.and_then(|m| m.method.as_ref())));
    [service, name, matched.headers.len()].map(Reverse).into()
}
