//! JSON Web Tokens (RFC 7519) of requests, as `envoy.extensions.filters.http.jwt_authn.v3` asks for them. Pure but for the keys of a
//! remote set, which are put into their place from outside.
//!
//! - [`extract`]: where a token may stand in a request.
//! - [`token`]: its three parts, read strictly. What is in a token never decides how it is verified.
//! - [`keys`]: key sets (RFC 7517). Each key has its algorithms; a token only says which of them it used.
//! - [`provider`]: an issuer: what its tokens must say, and what is passed on of them.
//! - [`requirement`]: which tokens a request needs.

pub mod extract;
pub mod keys;
pub mod provider;
pub mod requirement;
pub mod token;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, Method, header};

use self::keys::Keys;
use self::provider::Provider;
use self::requirement::Requirement;
use crate::http::head::RequestHead;
use crate::route::matcher::{RouteMatch, Subject};

/// A compiled `JwtAuthentication`.
#[derive(Debug)]
pub struct JwtFilter {
    /// `providers`, by name.
    pub providers: Box<[Provider]>,
    /// `rules`: the first whose match holds counts.
    pub rules: Box<[Rule]>,
    /// `requirement_map`: what routes refer to.
    pub named: BTreeMap<Box<str>, Requirement>,
    /// `bypass_cors_preflight`.
    pub bypass_cors_preflight: bool,
    /// Headers that only this filter may write: they are removed from every request.
    pub own_headers: Box<[HeaderName]>,
}

/// A compiled `RequirementRule`.
#[derive(Debug)]
pub struct Rule {
    /// `match`.
    pub matcher: RouteMatch,
    /// `requires` or `requirement_name`; None asks for nothing.
    pub requirement: Option<Requirement>,
}

impl JwtFilter {
    /// What the rules ask of a request. `random` is for `runtime_fraction`.
    #[must_use]
    pub fn requirement(&self, head: &RequestHead, random: u64) -> Option<&Requirement> {
        let subject = Subject::new(head, false, random);
        self.rules.iter().find(|rule| rule.matcher.is_match(&subject))?.requirement.as_ref()
    }

    /// Whether the request only asks what another one may do, and this filter is to let such pass.
    #[must_use]
    pub fn lets_pass(&self, head: &RequestHead) -> bool {
        self.bypass_cors_preflight
            && head.method == Method::OPTIONS
            && head.headers.contains_key(header::ORIGIN)
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Waits until every remote key set was asked for once: the first requests after a start need not be refused.
    pub async fn keys_ready(&self) {
        for provider in &self.providers {
            if let Keys::Remote(remote) = &provider.keys
                && !remote.state.is_ready()
            {
                // Longer than one attempt takes nobody has to wait.
                let _ = tokio::time::timeout(remote.timeout, remote.state.ready()).await;
            }
        }
    }

    /// Removes what only this filter may say.
    pub fn sanitize(&self, headers: &mut HeaderMap) {
        for name in &self.own_headers {
            headers.remove(name);
        }
    }
}
