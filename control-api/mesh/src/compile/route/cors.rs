//! The filter `CORS` of a rule.

use remora_xds::pb::envoy::extensions::filters::http::cors::v3 as pb;
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use remora_xds::pb::envoy::r#type::matcher::v3::StringMatcher;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::google::protobuf::Any;

use super::super::http::http_filter;
use super::super::parts;
use super::matches::{quoted, regex};
use crate::document::Cors;

/// The filter's name, also where routes say something to it.
pub(super) const NAME: &str = "envoy.filters.http.cors";

/// For how many seconds a browser believes an answer (the Gateway API's default).
const MAX_AGE: u32 = 5;

/// The filter itself says nothing.
pub(super) fn filter() -> HttpFilter {
    http_filter(NAME, parts::pack(&pb::Cors {}))
}

/// What a route says to it.
pub(super) fn of_route(said: &Cors) -> Any {
    let list = |names: &[String]| names.join(", ");
    parts::pack(&pb::CorsPolicy {
        allow_origin_string_match: said.allow_origins.iter().map(|origin| matching(origin)).collect(),
        allow_methods: list(&said.allow_methods),
        allow_headers: list(&said.allow_headers),
        expose_headers: list(&said.expose_headers),
        max_age: said.max_age.unwrap_or(MAX_AGE).to_string(),
        allow_credentials: parts::flag(said.allow_credentials),
        ..pb::CorsPolicy::default()
    })
}

/// `*` is every origin, and in a host any labels.
fn matching(origin: &str) -> StringMatcher {
    let pattern = match origin.split_once('*') {
        Some(("", "")) => MatchPattern::SafeRegex(regex(".*")),
        Some((before, after)) => {
            MatchPattern::SafeRegex(regex(&format!("{}[^/:]+{}", quoted(before), quoted(after))))
        }
        None => MatchPattern::Exact(origin.to_owned()),
    };
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}
