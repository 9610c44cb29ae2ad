//! What a route says about the filters of its listener (`typed_per_filter_config`).

use std::sync::Arc;

use super::authz::CheckSettings;
use super::rbac::RbacFilter;
use crate::http::session::SessionFilter;
use crate::traffic::cors::CorsPolicy;
use crate::traffic::fault::FaultFilter;
use crate::traffic::limit::LocalLimit;
use crate::traffic::limit::global::GlobalRoute;

/// The settings of a route, its virtual host and its table for filters, by their names. The most specific one is the whole
/// setting of a filter, as in Envoy; only contexts of checks and cross-origin rules are merged.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Arc<[(Arc<str>, Override)]>);

/// What a filter does instead of what the listener says.
#[derive(Debug, Clone)]
pub enum Override {
    /// `FilterConfig.disabled`; for RBAC a `RBACPerRoute` without `rbac`.
    Disabled,
    /// `RBACPerRoute.rbac`.
    Rbac(Arc<RbacFilter>),
    /// `PerRouteConfig.requirement_name` of `jwt_authn`.
    Jwt(Arc<str>),
    /// `ExtAuthzPerRoute.check_settings`.
    Authz(Arc<CheckSettings>),
    /// `StatefulSessionPerRoute.stateful_session`.
    Session(Arc<SessionFilter>),
    /// `CorsPolicy`.
    Cors(Arc<CorsPolicy>),
    /// `HTTPFault`.
    Fault(Arc<FaultFilter>),
    /// `BufferPerRoute.buffer`, bytes.
    Buffer(usize),
    /// `LocalRateLimit`.
    LocalLimit(Arc<LocalLimit>),
    /// `CompressorPerRoute.overrides`: `remove_accept_encoding_header`.
    Compressor(Option<bool>),
    /// `RateLimitPerRoute`.
    GlobalLimit(Arc<GlobalRoute>),
}

impl Overrides {
    /// `own`, and what the level above says about other filters.
    #[must_use]
    pub fn new(own: Vec<(Arc<str>, Override)>, above: &Self) -> Self {
        if own.is_empty() {
            return above.clone();
        }
        let inherited = above.0.iter().filter(|(name, _)| own.iter().all(|(own, _)| own != name)).cloned();
        let inherited: Vec<_> = inherited.collect();
        let own = own.into_iter().map(|(name, said)| match (&said, above.of(&name)) {
            (Override::Authz(own), Some(Override::Authz(above))) => {
                let merged = Override::Authz(Arc::new(own.below(above)));
                (name, merged)
            }
            (Override::Cors(own), Some(Override::Cors(above))) => {
                let merged = Override::Cors(Arc::new(own.below(above)));
                (name, merged)
            }
            _ => (name, said),
        });
        Self(own.chain(inherited).collect())
    }

    /// What is said about the filter `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&Override> {
        self.0.iter().find(|(filter, _)| **filter == *name).map(|(_, said)| said)
    }

    /// Everything that is said.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<str>, Override)> {
        self.0.iter()
    }
}
