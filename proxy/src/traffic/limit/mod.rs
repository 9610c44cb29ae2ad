//! Rate limits: buckets, what a request counts as, and `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`.

pub mod bucket;
pub mod descriptor;
pub mod global;
pub mod quota;
pub mod recent;

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;
use http::StatusCode;
use tokio::time::Instant;

use self::bucket::{Bucket, BucketSpec};
use self::descriptor::{Descriptor, Entry, Rule, digest, key};
use self::recent::Recent;
use crate::config::names::PolicyId;
use crate::route::header::HeaderMutations;
use crate::route::matcher::Fraction;

/// The longest key of a descriptor that is kept as it is, bytes.
const LONG_KEY: usize = 256;

/// A compiled `LocalRateLimit`.
#[derive(Debug)]
pub struct LocalLimit {
    /// `filter_enabled`, default none of the requests.
    pub enabled: Fraction,
    /// `filter_enforced`, default none of the requests.
    pub enforced: Fraction,
    /// The buckets of all connections together.
    pub limits: Arc<Limits>,
    /// `local_rate_limit_per_downstream_connection`: each connection has its own.
    pub per_connection: bool,
    /// `stage`.
    pub stage: u32,
    /// `rate_limits`: instead of the route's.
    pub rules: Box<[Rule]>,
    /// `vh_rate_limits`.
    pub host_rules: HostRules,
    /// How tokens are taken, and what of it is shown.
    pub take: Take,
    /// How a request is refused.
    pub refusal: Refusal,
    /// `request_headers_to_add_when_not_enforced`.
    pub request_headers: HeaderMutations,
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// The number under which decisions are counted.
    pub id: PolicyId,
}

/// The answer when there are too many requests.
#[derive(Debug)]
pub struct Refusal {
    /// `status`, default 429.
    pub status: StatusCode,
    /// `response_headers_to_add`.
    pub headers: HeaderMutations,
    /// `rate_limited_as_resource_exhausted`: for clients of gRPC.
    pub resource_exhausted: bool,
}

/// `VhRateLimitsOptions`: whether the rules of the virtual host count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostRules {
    /// OVERRIDE: when the route has none.
    #[default]
    WithoutOwn,
    /// INCLUDE.
    Always,
    /// IGNORE.
    Never,
}

/// `rate_limits` of a route and its virtual host.
#[derive(Debug, Clone, Default)]
pub struct RouteRules {
    /// Of the route.
    pub own: Arc<[Rule]>,
    /// Of the virtual host.
    pub host: Arc<[Rule]>,
    /// `include_vh_rate_limits`.
    pub include_host: bool,
}

impl RouteRules {
    /// The rules that count.
    pub fn of(&self, host: HostRules) -> impl Iterator<Item = &Rule> {
        let host = match host {
            _ if self.include_host => true,
            HostRules::Always => true,
            HostRules::Never => false,
            HostRules::WithoutOwn => self.own.is_empty(),
        };
        self.own.iter().chain(self.host.iter().filter(move |_| host))
    }
}

/// What [`Limits`] are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsSpec {
    /// `token_bucket`.
    pub default: Option<BucketSpec>,
    /// `descriptors`; an empty value stands for any, each of which has a bucket.
    pub descriptors: Vec<(Vec<Entry>, BucketSpec)>,
    /// `max_dynamic_descriptors`: buckets that an entry with an empty value has at most; the least recently used one goes.
    pub max_dynamic: usize,
}

/// The buckets of a filter.
#[derive(Debug)]
pub struct Limits {
    spec: LimitsSpec,
    default: Option<Bucket>,
    fixed: HashMap<String, Bucket>,
    dynamic: Vec<Dynamic>,
}

/// Buckets of an entry with an empty value.
#[derive(Debug)]
struct Dynamic {
    pattern: Vec<Entry>,
    spec: BucketSpec,
    /// Held for a look into the list, and only where a limit is for each client or the like.
    recent: Mutex<Recent>,
}

/// How tokens are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// `always_consume_default_token_bucket`, default true.
    pub always_default: bool,
    /// `enable_x_ratelimit_headers`: the answer says what the bucket holds.
    pub show: bool,
}

/// What the buckets say of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether there were tokens.
    pub allowed: bool,
    /// What `x-ratelimit-…` headers show.
    pub shown: Option<Shown>,
}

/// The state of the bucket that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// `x-ratelimit-limit`.
    pub limit: u32,
    /// `x-ratelimit-remaining`.
    pub remaining: u64,
    /// `x-ratelimit-reset`, seconds.
    pub reset: u64,
}

/// A bucket of either kind.
enum Found<'l> {
    Fixed(&'l Bucket),
    Dynamic(Arc<Bucket>),
}

impl std::ops::Deref for Found<'_> {
    type Target = Bucket;
    fn deref(&self) -> &Bucket {
        match self {
            Self::Fixed(bucket) => bucket,
            Self::Dynamic(bucket) => bucket,
        }
    }
}

impl Limits {
    /// Full buckets.
    #[must_use]
    pub fn new(spec: LimitsSpec, now: Instant) -> Self {
        let mut fixed = HashMap::default();
        let mut dynamic = Vec::new();
        for (entries, bucket) in &spec.descriptors {
            if entries.iter().any(|(_, value)| value.is_empty()) {
                let recent = Mutex::new(Recent::new(spec.max_dynamic));
                dynamic.push(Dynamic { pattern: entries.clone(), spec: *bucket, recent });
            } else {
                let text = key(entries.iter().map(|(key, value)| (&**key, &**value)));
                fixed.insert(text, Bucket::new(*bucket, now));
            }
        }
        Self { default: spec.default.map(|bucket| Bucket::new(bucket, now)), fixed, dynamic, spec }
    }

    /// What they were made of.
    #[must_use]
    pub const fn spec(&self) -> &LimitsSpec {
        &self.spec
    }

    /// Whether descriptors matter.
    #[must_use]
    pub fn asks_descriptors(&self) -> bool {
        !self.spec.descriptors.is_empty()
    }

    fn find(&self, descriptor: &Descriptor, now: Instant) -> Option<Found<'_>> {
        let text = key(descriptor.entries.iter().map(|(key, value)| (&**key, &**value)));
        if let Some(bucket) = self.fixed.get(&text) {
            return Some(Found::Fixed(bucket));
        }
        let dynamic = self.dynamic.iter().find(|dynamic| dynamic.fits(descriptor))?;
        // What clients send may be as long as a header; what is kept of it is not.
        let text = if text.len() > LONG_KEY { digest(&text) } else { text };
        let mut recent = dynamic.recent.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Found::Dynamic(recent.get(&text, || Bucket::new(dynamic.spec, now))))
    }

    /// Takes tokens of every bucket that a request belongs to, the slowest first. A bucket behind the one that refuses loses none.
    pub fn take(&self, descriptors: &[Descriptor], settings: &Take, now: Instant) -> Outcome {
        let found = descriptors.iter().filter_map(|one| Some((self.find(one, now)?, one.hits)));
        let mut found: Vec<_> = found.collect();
        found.sort_by(|(a, _), (b, _)| a.spec().rate().total_cmp(&b.spec().rate()));
        let shown = |bucket: &Bucket| settings.show.then(|| Shown::of(bucket, now));
        for (bucket, hits) in &found {
            if !bucket.take(*hits, now) {
                return Outcome { allowed: false, shown: shown(bucket) };
            }
        }
        let first = found.first().map(|(bucket, _)| &**bucket);
        if let Some(default) = self.default.as_ref().filter(|_| found.is_empty() || settings.always_default) {
            if !default.take(1, now) {
                return Outcome { allowed: false, shown: shown(default) };
            }
            return Outcome { allowed: true, shown: shown(first.unwrap_or(default)) };
        }
        Outcome { allowed: true, shown: first.and_then(shown) }
    }
}

impl Dynamic {
    fn fits(&self, descriptor: &Descriptor) -> bool {
        let same = |((wanted, value), (key, found)): (&Entry, &Entry)| {
            wanted == key && (value.is_empty() || value == found)
        };
        self.pattern.len() == descriptor.entries.len()
            && self.pattern.iter().zip(&descriptor.entries).all(same)
    }
}

impl Shown {
    fn of(bucket: &Bucket, now: Instant) -> Self {
        Self {
            limit: bucket.spec().max,
            remaining: bucket.remaining(now),
            reset: bucket.until_next(now).as_nanos().div_ceil(1_000_000_000).try_into().unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SLOW: BucketSpec = BucketSpec { max: 1, per_fill: 1, interval: Duration::from_secs(60) };
    const ALL: Take = Take { always_default: true, show: true };
    const FAST: BucketSpec = BucketSpec { max: 3, per_fill: 3, interval: Duration::from_secs(60) };

    fn limits(
        default: Option<BucketSpec>,
        descriptors: &[(&[(&str, &str)], BucketSpec)],
        now: Instant,
    ) -> Limits {
        let entries = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let descriptors = descriptors.iter().map(|(list, spec)| (entries(list), *spec)).collect();
        Limits::new(LimitsSpec { default, descriptors, max_dynamic: 2 }, now)
    }

    fn asked(list: &[(&str, &str)]) -> Descriptor {
        Descriptor { entries: list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(), hits: 1 }
    }

    #[test]
    fn each_client_has_its_bucket_and_the_least_recent_one_goes() {
        let now = Instant::now();
        let limits = limits(None, &[(&[("client", "")], SLOW)], now);
        let take = |client: &str| limits.take(&[asked(&[("client", client)])], &ALL, now).allowed;
        assert!(take("a") && take("b"));
        assert!(!take("a") && !take("b"));
        assert!(take("c"), "a goes");
        assert!(!take("b"));
        assert!(take("a"), "a new one");
    }

    #[test]
    fn all_that_match_must_agree_and_the_slowest_is_asked_first() {
        let now = Instant::now();
        let limits = limits(Some(FAST), &[(&[("k", "slow")], SLOW), (&[("k", "fast")], FAST)], now);
        let both = [asked(&[("k", "fast")]), asked(&[("k", "slow")])];
        let first = limits.take(&both, &ALL, now);
        assert_eq!(
            first,
            Outcome { allowed: true, shown: Some(Shown { limit: 1, remaining: 0, reset: 60 }) }
        );
        assert!(!limits.take(&both, &ALL, now).allowed);
        let fast = [asked(&[("k", "fast")])];
        assert!(limits.take(&fast, &ALL, now).allowed && limits.take(&fast, &ALL, now).allowed);
        assert!(!limits.take(&fast, &ALL, now).allowed, "three in all: the one that slow refused took none");
        assert!(!limits.take(&[], &ALL, now).allowed, "and three of the default");
    }

    #[test]
    fn what_nobody_shows_is_not_worked_out() {
        let now = Instant::now();
        let limits = limits(Some(SLOW), &[], now);
        let quiet = Take { show: false, ..ALL };
        for allowed in [true, false] {
            assert_eq!(limits.take(&[], &quiet, now), Outcome { allowed, shown: None });
        }
    }

    #[test]
    fn the_default_is_left_alone_when_told_so() {
        let now = Instant::now();
        let limits = limits(Some(SLOW), &[(&[("k", "v")], FAST)], now);
        let own = Take { always_default: false, ..ALL };
        for _ in 0..3 {
            assert!(limits.take(&[asked(&[("k", "v")])], &own, now).allowed);
        }
        assert!(limits.take(&[asked(&[("k", "other")])], &own, now).allowed, "no bucket of its own");
        assert!(!limits.take(&[], &own, now).allowed);
    }

    #[test]
    fn rules_of_the_virtual_host() {
        let rule = |stage| Rule { stage, actions: Box::default(), hits: 1 };
        let count = |own: &[Rule], include_host, host| {
            let rules = RouteRules { own: own.into(), host: [rule(1)].into(), include_host };
            rules.of(host).count()
        };
        assert_eq!(count(&[], false, HostRules::WithoutOwn), 1);
        assert_eq!(count(&[rule(0)], false, HostRules::WithoutOwn), 1);
        assert_eq!(count(&[rule(0)], true, HostRules::Never), 2);
        assert_eq!(count(&[rule(0)], false, HostRules::Always), 2);
        assert_eq!(count(&[], false, HostRules::Never), 0);
    }
}
