//! `envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig`: requests belong to buckets, and a quota service
//! leases this proxy a share of each. Pure: workers take from a [`Meter`], the control runtime tells it what holds ([`Tracker`]).

mod tracker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::HashMap;
use http::HeaderMap;
use http::header::HeaderName;
use remora_xds::pb::envoy::r#type::v3 as pb;
use remora_xds::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, RequestsPerTimeUnit};
use remora_xds::pb::envoy::r#type::v3::{RateLimitStrategy, RateLimitUnit};
use tokio::sync::Notify;
use tokio::time::Instant;

pub use tracker::{Tracker, Usage};

use super::Refusal;
use super::bucket::{Bucket, BucketSpec};
use crate::config::names::{ClusterId, PolicyId};
use crate::route::header::HeaderMutations;
use crate::route::matcher::Fraction;

/// A compiled filter.
#[derive(Debug)]
pub struct QuotaFilter {
    /// `rlqs_server`.
    pub cluster: ClusterId,
    /// `bucket_matchers`.
    pub matcher: Matcher,
    /// `filter_enabled`; None is every request.
    pub enabled: Option<Fraction>,
    /// `filter_enforced`; None is every request.
    pub enforced: Option<Fraction>,
    /// `request_headers_to_add_when_not_enforced`.
    pub request_headers: HeaderMutations,
    /// `domain`: the name under which decisions are counted.
    pub stat_prefix: Arc<str>,
    /// The number under which decisions are counted.
    pub id: PolicyId,
}

/// `xds.type.matcher.v3.Matcher`: a header's values, and what they lead to.
#[derive(Debug)]
pub struct Matcher {
    /// `matcher_tree`: `HttpRequestHeaderMatchInput` and `exact_match_map`.
    pub tree: Option<(HeaderName, HashMap<Box<str>, QuotaBucket>)>,
    /// `on_no_match`.
    pub otherwise: Option<QuotaBucket>,
}

impl Matcher {
    /// The bucket of a request. Without one it is not limited.
    #[must_use]
    pub fn find(&self, headers: &HeaderMap) -> Option<&QuotaBucket> {
        let found = self.tree.as_ref().and_then(|(name, map)| {
            let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            let first = values.next()?;
            match values.next() {
                None => map.get(first),
                // As in Envoy several are one text.
                Some(second) => {
                    let all: Vec<&str> = [first, second].into_iter().chain(values).collect();
                    map.get(&*all.join(","))
                }
            }
        });
        found.or(self.otherwise.as_ref())
    }

    /// All buckets.
    pub fn buckets(&self) -> impl Iterator<Item = &QuotaBucket> {
        self.tree.iter().flat_map(|(_, map)| map.values()).chain(&self.otherwise)
    }
}

/// `RateLimitQuotaBucketSettings`.
#[derive(Debug)]
pub struct QuotaBucket {
    /// Takes its requests.
    pub meter: Arc<Meter>,
    /// How the meter is led.
    pub lead: Arc<Lead>,
    /// `deny_response_settings` for clients of HTTP.
    pub refusal: Refusal,
    /// `http_body`.
    pub body: Bytes,
    /// The same for clients of gRPC.
    pub grpc_refusal: Refusal,
    /// `grpc_status.message`.
    pub grpc_message: Bytes,
}

/// Which bucket of which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterKey {
    /// The cluster of the service.
    pub cluster: Arc<str>,
    /// Its `:authority`.
    pub authority: Arc<str>,
    /// `domain`.
    pub domain: Arc<str>,
    /// `bucket_id_builder`.
    pub bucket: BTreeMap<String, String>,
}

/// What holds for a bucket besides what the service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// `reporting_interval`.
    pub interval: Duration,
    /// `no_assignment_behavior`, default all requests.
    pub unassigned: Strategy,
    /// `expired_assignment_behavior`; without, the bucket is abandoned.
    pub expired: Option<Expired>,
}

/// `ExpiredAssignmentBehavior`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// `fallback_rate_limit`; None: `reuse_last_assignment`.
    pub strategy: Option<Strategy>,
    /// `expired_assignment_behavior_timeout`.
    pub lasts: Duration,
}

/// `envoy.type.v3.RateLimitStrategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// `ALLOW_ALL`.
    AllowAll,
    /// `DENY_ALL`.
    DenyAll,
    /// `token_bucket`, `requests_per_time_unit`.
    Tokens(BucketSpec),
}

impl Strategy {
    /// What a service sent. None: it is nothing that can be counted.
    #[must_use]
    pub fn of(pb: Option<&RateLimitStrategy>) -> Option<Self> {
        use pb::rate_limit_strategy::Strategy as Sent;
        match pb.and_then(|pb| pb.strategy.as_ref()) {
            None => Some(Self::AllowAll),
            Some(Sent::BlanketRule(rule)) => match BlanketRule::try_from(*rule).ok()? {
                BlanketRule::AllowAll => Some(Self::AllowAll),
                BlanketRule::DenyAll => Some(Self::DenyAll),
            },
            Some(Sent::RequestsPerTimeUnit(per)) => Self::per_unit(per),
            Some(Sent::TokenBucket(pb::TokenBucket { max_tokens: 0, .. })) => Some(Self::DenyAll),
            Some(Sent::TokenBucket(pb::TokenBucket { max_tokens, tokens_per_fill, fill_interval })) => {
                let interval = fill_interval.as_ref()?;
                let (seconds, nanos) = (interval.seconds.try_into().ok()?, interval.nanos.try_into().ok()?);
                let per_fill = tokens_per_fill.as_ref().map_or(1, |n| n.value);
                Self::tokens(BucketSpec {
                    max: *max_tokens,
                    per_fill,
                    interval: Duration::new(seconds, nanos),
                })
            }
        }
    }

    /// `requests_per_time_unit` as a bucket that holds what one unit gives. None: the unit is none that has a length, or the number is
    /// too large.
    #[must_use]
    pub fn per_unit(pb: &RequestsPerTimeUnit) -> Option<Self> {
        let RequestsPerTimeUnit { requests_per_time_unit: requests, time_unit } = pb;
        if *requests == 0 {
            return Some(Self::DenyAll);
        }
        let seconds = match RateLimitUnit::try_from(*time_unit).ok()? {
            RateLimitUnit::Second => 1,
            RateLimitUnit::Minute => 60,
            RateLimitUnit::Hour => 3600,
            RateLimitUnit::Day => 86_400,
            _ => return None,
        };
        let requests = u32::try_from(*requests).ok()?;
        let interval = Duration::from_secs(seconds);
        Self::tokens(BucketSpec { max: requests, per_fill: requests, interval })
    }

    fn tokens(spec: BucketSpec) -> Option<Self> {
        let countable = !spec.interval.is_zero() && spec.per_fill > 0 && spec.is_countable();
        countable.then_some(Self::Tokens(spec))
    }
}

/// What holds at the moment.
#[derive(Debug)]
enum Rule {
    AllowAll,
    DenyAll,
    Tokens(Bucket),
}

impl Rule {
    /// The rule after `self`: what is in a bucket now is in the next one, so that a change brings nothing. A bucket after no limit is full.
    fn next(&self, strategy: Strategy, now: Instant) -> Self {
        match (strategy, self) {
            (Strategy::AllowAll, _) => Self::AllowAll,
            (Strategy::DenyAll, _) => Self::DenyAll,
            (Strategy::Tokens(spec), Self::AllowAll) => Self::Tokens(Bucket::new(spec, now)),
            (Strategy::Tokens(spec), Self::DenyAll) => Self::Tokens(Bucket::empty(spec, now)),
            (Strategy::Tokens(spec), Self::Tokens(bucket)) => Self::Tokens(Bucket::after(bucket, spec, now)),
        }
    }
}

/// A bucket as workers see it.
#[derive(Debug)]
pub struct Meter {
    key: MeterKey,
    rule: ArcSwap<Rule>,
    allowed: AtomicU64,
    denied: AtomicU64,
    /// A request came since the bucket was abandoned.
    asked: AtomicBool,
    /// Told of the first one.
    first: Notify,
}

impl Meter {
    /// A bucket of which no service has said anything.
    #[must_use]
    pub fn new(key: MeterKey, lead: &Lead, now: Instant) -> Self {
        Self {
            key,
            rule: ArcSwap::from_pointee(Rule::AllowAll.next(lead.unassigned, now)),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            first: Notify::new(),
        }
    }

    /// Which one it is.
    #[must_use]
    pub const fn key(&self) -> &MeterKey {
        &self.key
    }

    /// Whether one more request may go on. It is counted either way.
    pub fn take(&self, now: Instant) -> bool {
        let allowed = match &**self.rule.load() {
            Rule::AllowAll => true,
            Rule::DenyAll => false,
            Rule::Tokens(bucket) => bucket.take(1, now),
        };
        let count = if allowed { &self.allowed } else { &self.denied };
        count.fetch_add(1, Ordering::Relaxed);
        // Read first: a write of each request would take the line from all other workers.
        if !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::AcqRel) {
            self.first.notify_one();
        }
        allowed
    }

    /// Until there is the first request since the bucket was abandoned.
    pub async fn asked(&self) {
        while !self.asked.load(Ordering::Acquire) {
            self.first.notified().await;
        }
    }

    fn set(&self, strategy: Strategy, now: Instant) {
        self.rule.store(Arc::new(self.rule.load().next(strategy, now)));
    }
}

/// Meters by their keys. They outlive an edit, and one bucket in several filters has one.
#[derive(Debug, Default)]
pub struct MeterStore(HashMap<MeterKey, Weak<Meter>>);

impl MeterStore {
    /// The meter of `key`.
    pub fn of(&mut self, key: MeterKey, lead: &Lead, now: Instant) -> Arc<Meter> {
        if let Some(known) = self.0.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        self.0.retain(|_, meter| meter.strong_count() > 0);
        let meter = Arc::new(Meter::new(key.clone(), lead, now));
        self.0.insert(key, Arc::downgrade(&meter));
        meter
    }
}

#[cfg(test)]
mod tests;
