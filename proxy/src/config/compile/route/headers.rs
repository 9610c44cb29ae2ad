//! Header mutations of the four levels, and their order.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};

use super::{HostContext, TableContext};
use crate::config::compile::Scope;
use crate::config::compile::common::{enumeration, header_name, value_template};
use crate::route::header::{AppendAction, HeaderMutations, HeaderSet, MutationLevel};

/// What one direction of one level says: headers to add, headers to remove.
type Lists<'a> = (&'a [HeaderValueOption], &'a [String]);

/// The mutations of one level, both directions.
pub(super) struct Levels {
    request: Arc<MutationLevel>,
    response: Arc<MutationLevel>,
}

impl Levels {
    pub(super) fn compile(
        (request_add, request_remove): (&Vec<HeaderValueOption>, &Vec<String>),
        (response_add, response_remove): (&Vec<HeaderValueOption>, &Vec<String>),
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Self {
        let request = ("request_headers_to_add", "request_headers_to_remove");
        let response = ("response_headers_to_add", "response_headers_to_remove");
        Self {
            request: level((request_add, request_remove), request, at, scope),
            response: level((response_add, response_remove), response, at, scope),
        }
    }
}

impl TableContext {
    /// All mutations of a route, or of a weighted cluster of it, in the order in which they apply. Without
    /// `most_specific_header_mutations_wins` the table comes last and has the last word. The weighted cluster is first
    /// either way, as in Envoy.
    pub(super) fn merge(
        &self,
        cluster: Option<&Levels>,
        route: &Levels,
        host: &HostContext,
    ) -> (HeaderMutations, HeaderMutations) {
        let mut order = [route, &host.levels, &self.levels];
        if self.most_specific_wins {
            order.reverse();
        }
        let levels = || cluster.into_iter().chain(order);
        (
            HeaderMutations::new(levels().map(|l| Arc::clone(&l.request))),
            HeaderMutations::new(levels().map(|l| Arc::clone(&l.response))),
        )
    }
}

fn level(
    (add, remove): Lists<'_>,
    (add_field, remove_field): (&str, &str),
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Arc<MutationLevel> {
    let add_at = at.field(add_field);
    let remove_at = at.field(remove_field);
    let set = add.iter().enumerate().filter_map(|(i, h)| header_set(h, &add_at.index(i), scope)).collect();
    let remove =
        remove.iter().enumerate().filter_map(|(i, n)| mutable(n, &remove_at.index(i), scope)).collect();
    Arc::new(MutationLevel::new(remove, set))
}

/// Headers that a filter adds.
pub(in crate::config::compile) fn additions(
    add: &[HeaderValueOption],
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> HeaderMutations {
    let set = add.iter().enumerate().filter_map(|(i, h)| header_set(h, &at.index(i), scope)).collect();
    HeaderMutations::new([Arc::new(MutationLevel::new(Vec::new(), set))])
}

fn header_set(pb: &HeaderValueOption, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderSet> {
    #[expect(deprecated, reason = "old files have append")]
    let HeaderValueOption { header, append, append_action, keep_empty_value } = pb;
    let header_at = at.field("header");
    let Some(HeaderValue { key, value, raw_value }) = header else {
        scope.errors.report(&header_at, "is required");
        return None;
    };
    let name = mutable(key, &header_at.field("key"), scope);
    let value = if raw_value.is_empty() {
        value_template(value, &header_at.field("value"), scope)
    } else {
        scope.errors.report(&header_at.field("raw_value"), "is not supported here").fix("use value");
        None
    };
    let action_at = at.field("append_action");
    let action = enumeration(*append_action, &action_at, scope).map(|a| match a {
        HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::Append,
        HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::Overwrite,
        HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
    })?;
    let action = match append {
        None => action,
        Some(_) if action != AppendAction::Append => {
            scope
                .errors
                .report(&at.field("append"), "may not be set beside append_action")
                .fix("remove append");
            return None;
        }
        Some(append) if append.value => AppendAction::Append,
        Some(_) => AppendAction::Overwrite,
    };
    Some(HeaderSet { name: name?, value: value?, action, keep_empty: *keep_empty_value })
}

/// The name of a header that a mutation may touch.
fn mutable(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case(HOST.as_str()) {
        let message = "headers that begin with : and host may not be changed here";
        scope.errors.report(at, message).fix("use a rewrite of the route");
        return None;
    }
    let name = header_name(name, at, scope)?;
    if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
        scope.errors.report(at, format!("{name} frames the message and may not be changed"));
        return None;
    }
    Some(name)
}
