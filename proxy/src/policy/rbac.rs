//! Role-based access control (`envoy.config.rbac.v3.RBAC`): the rules, and their verdict.

use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use super::index::Index;
use super::view::View;
use crate::config::names::PolicyId;
use crate::route::matcher::HeaderMatch;
use crate::route::text::StringMatch;

pub use claim::{ClaimMatch, ValueMatch};
pub use metadata::Engine;

mod claim;
mod metadata;

/// Policies that [`Rules::blame`] names.
const BLAMED: usize = 8;

/// What a match means (`RBAC.Action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// What no policy matches is refused.
    Allow,
    /// What a policy matches is refused.
    Deny,
}

/// A compiled `envoy.config.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct Rules {
    action: Action,
    /// Sorted by name: the first that matches gives its name to the verdict.
    policies: Box<[Policy]>,
    stat_prefix: Arc<str>,
    /// Counts where no policy matched.
    none: PolicyId,
    index: Index,
}

/// A compiled `Policy`.
#[derive(Debug)]
pub struct Policy {
    /// Its key in `policies`.
    pub name: Arc<str>,
    /// Its number in metrics.
    pub id: PolicyId,
    /// `permissions`: one of them must hold.
    pub permissions: Box<[Rule]>,
    /// `principals`: one of them must hold, too.
    pub principals: Box<[Rule]>,
}

/// A compiled `Permission` or `Principal`.
#[derive(Debug, Clone)]
pub enum Rule {
    /// `any`.
    Any,
    /// `and_rules`, `and_ids`.
    And(Box<[Self]>),
    /// `or_rules`, `or_ids`.
    Or(Box<[Self]>),
    /// `not_rule`, `not_id`.
    Not(Box<Self>),
    /// `header`.
    Header {
        /// The matcher.
        matcher: HeaderMatch,
        /// Where a match leads to access: then every value of a header must match, otherwise one is enough
        /// (CVE-2026-26308).
        grants: bool,
    },
    /// `url_path`: the path without its query.
    Path(StringMatch),
    /// `destination_ip`.
    DestinationIp(IpNet),
    /// `destination_port`, `destination_port_range`.
    DestinationPort(Range<u32>),
    /// `requested_server_name`.
    ServerName(StringMatch),
    /// `authenticated.principal_name`: one of the names of a verified peer.
    Authenticated(StringMatch),
    /// `authenticated: {}`. Where it leads to access, a certificate that was verified; otherwise TLS is enough, which is what
    /// Envoy makes of it in both cases.
    AnyPeer {
        /// Where a match leads to access.
        grants: bool,
    },
    /// `direct_remote_ip`, `source_ip`.
    DirectRemoteIp(IpNet),
    /// `remote_ip`.
    RemoteIp(IpNet),
    /// `metadata`, `sourced_metadata`: a claim of a verified token.
    Claim(ClaimMatch),
}

/// What the rules say.
#[derive(Debug, Clone, Copy)]
pub struct Verdict<'r> {
    /// Whether there is access.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'r Arc<str>>,
    /// Where it is counted.
    pub stat_prefix: &'r Arc<str>,
    /// The number under which it is counted.
    pub id: PolicyId,
}

impl Rules {
    /// Rules of `policies`, counted under `stat_prefix`. `none` counts verdicts without a policy.
    #[must_use]
    pub fn new(action: Action, mut policies: Vec<Policy>, stat_prefix: Arc<str>, none: PolicyId) -> Self {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let index = Index::new(&policies);
        Self { action, policies: policies.into(), stat_prefix, none, index }
    }

    /// How many policies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The verdict about `view`.
    #[must_use]
    pub fn judge(&self, view: &View<'_>) -> Verdict<'_> {
        self.verdict(self.index.first(view, |at| self.policies.get(at).is_some_and(|p| p.is_match(view))))
    }

    /// What refused, for the operator: the policy, or `none of a, b` when one of these would have given access.
    #[must_use]
    pub fn blame(&self, policy: Option<&Arc<str>>) -> String {
        if let Some(policy) = policy {
            return policy.to_string();
        }
        let mut text = String::from("none of");
        for (i, policy) in self.policies.iter().enumerate() {
            if i == BLAMED {
                return format!("{text} and {} more", self.policies.len() - i);
            }
            text.push_str(if i == 0 { " " } else { ", " });
            text.push_str(&policy.name);
        }
        if self.is_empty() { "none: there is no policy".to_owned() } else { text }
    }

    fn verdict(&self, at: Option<usize>) -> Verdict<'_> {
        let policy = at.and_then(|at| self.policies.get(at));
        Verdict {
            allowed: policy.is_some() == (self.action == Action::Allow),
            policy: policy.map(|p| &p.name),
            stat_prefix: &self.stat_prefix,
            id: policy.map_or(self.none, |p| p.id),
        }
    }
}

impl Policy {
    /// Whether the policy applies.
    #[must_use]
    pub fn is_match(&self, view: &View<'_>) -> bool {
        self.permissions.iter().any(|r| r.is_match(view)) && self.principals.iter().any(|r| r.is_match(view))
    }
}

impl Rule {
    /// Whether the rule holds. What asks for a request does not hold for a connection.
    #[must_use]
    pub fn is_match(&self, view: &View<'_>) -> bool {
        let connection = &view.connection;
        match self {
            Self::Any => true,
            Self::And(rules) => rules.iter().all(|r| r.is_match(view)),
            Self::Or(rules) => rules.iter().any(|r| r.is_match(view)),
            Self::Not(rule) => !rule.is_match(view),
            Self::Header { matcher, grants: true } => {
                view.request.is_some_and(|head| matcher.is_match_every(&head))
            }
            Self::Header { matcher, grants: false } => {
                view.request.is_some_and(|head| matcher.is_match_some(&head))
            }
            Self::Path(text) => view.request.is_some_and(|head| text.is_match(head.path.path().as_bytes())),
            Self::DestinationIp(net) => net.contains(&connection.destination.ip()),
            Self::DestinationPort(range) => range.contains(&u32::from(connection.destination.port())),
            Self::ServerName(text) => text.is_match(connection.server_name.as_bytes()),
            Self::Authenticated(text) => {
                connection.peer.is_some_and(|peer| peer.names().any(|name| text.is_match(name.as_bytes())))
            }
            Self::AnyPeer { grants } => connection.peer.is_some() || (connection.secure && !grants),
            Self::DirectRemoteIp(net) => net.contains(&connection.direct_remote),
            Self::RemoteIp(net) => net.contains(&connection.remote),
            Self::Claim(claim) => claim.is_match(view.claims),
        }
    }
}

/// How [`details`] begin.
const DETAILS: &str = "rbac_access_denied_matched_policy[";

/// The text of `%RESPONSE_CODE_DETAILS%` for a refusal, in Envoy's words. White space would break a log line.
#[must_use]
pub fn details(policy: Option<&Arc<str>>) -> String {
    let name = policy.map_or("none", |name| name).replace(char::is_whitespace, "_");
    format!("{DETAILS}{name}]")
}

/// The way back from [`details`]: the policy that they name.
#[must_use]
pub fn policy_in(details: &str) -> Option<&str> {
    details.strip_prefix(DETAILS)?.strip_suffix(']')
}

/// A compiled filter `envoy.filters.http.rbac` or `envoy.filters.network.rbac`.
#[derive(Debug, Default)]
pub struct RbacFilter {
    /// `rules`; None enforces nothing.
    pub rules: Option<Rules>,
    /// `shadow_rules`: judged, counted and logged, never enforced.
    pub shadow: Option<Rules>,
}

#[cfg(test)]
mod tests;
