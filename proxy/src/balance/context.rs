//! What one pick depends on beside the endpoints.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use super::subset::LbMetadata;
use crate::upstream::endpoint::EndpointKey;

/// A moment in milliseconds since the process began to balance. It wraps after 49 days, so only differences mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick at `now`.
    #[must_use]
    pub fn at(now: Instant) -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let since = now.saturating_duration_since(*START).as_millis();
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        Self(since as u32)
    }

    /// The time since `earlier`, in milliseconds. Zero when `earlier` is the later one, by up to a minute: two workers read the clock in
    /// one order and write in the other.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u32 {
        const RACE: u32 = 60_000;
        let passed = self.0.wrapping_sub(earlier.0);
        if passed > u32::MAX - RACE { 0 } else { passed }
    }

    /// The tick that much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        Self(self.0.wrapping_add(ms))
    }
}

/// Envoy's `LoadBalancerContext`: what a request says about where it should go.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// Endpoints that this request failed on: picked only if there is no other.
    pub exclude: &'a [EndpointKey],
    /// The time of the pick, for policies that depend on it.
    pub now: Tick,
    /// What the `hash_policy` made of the request. Without one, consistent hashing picks at random.
    pub hash: Option<u64>,
    /// `metadata_match`: the subset that it goes to.
    pub subset: Option<&'a LbMetadata>,
    /// The endpoint of its session.
    pub host: Option<OverrideHost>,
    /// Requests in flight in the whole cluster, this one included, for bounded loads.
    pub active: u32,
}

/// Envoy's `overrideHostToSelect`: an endpoint that goes before what the policy picks, if it is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideHost {
    /// Its address.
    pub address: SocketAddr,
    /// No other will do.
    pub strict: bool,
}

impl<'a> LbContext<'a> {
    /// A request that avoids `exclude` and asks for nothing else.
    #[must_use]
    pub fn avoiding(exclude: &'a [EndpointKey]) -> Self {
        Self { exclude, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weeks_are_no_race() {
        const DAY: u32 = 86_400_000;
        let known = Tick(u32::MAX - 5);
        let later = |ms: u32| Tick(known.0.wrapping_add(ms));
        assert_eq!(
            [0, 7, DAY, 30 * DAY, 49 * DAY].map(|ms| later(ms).since(known)),
            [0, 7, DAY, 30 * DAY, 49 * DAY]
        );
        assert_eq!(known.since(later(20)), 0, "read before, asked after");
    }
}
