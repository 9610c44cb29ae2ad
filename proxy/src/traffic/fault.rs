//! `envoy.extensions.filters.http.fault.v3.HTTPFault`: which fault a request gets. Delays, aborts and slow answers are drawn
//! independently of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::config::names::ClusterId;
use crate::http::head::RequestHead;
use crate::route::matcher::{Fraction, HeaderMatch};

static DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
static DELAY_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
static ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
static ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
static ABORT_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
static RATE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
static RATE_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response-percentage");
static NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");

/// A compiled `HTTPFault`.
#[derive(Debug, Default)]
pub struct FaultFilter {
    /// `delay`.
    pub delay: Option<Fault<Duration>>,
    /// `abort`.
    pub abort: Option<Fault<Aborted>>,
    /// `response_rate_limit`, KiB/s.
    pub rate: Option<Fault<u64>>,
    /// `upstream_cluster`: only requests to it.
    pub upstream_cluster: Option<ClusterId>,
    /// `downstream_nodes`: only requests that name one of them.
    pub downstream_nodes: Box<[Box<str>]>,
    /// `headers`: only requests that match all of them.
    pub headers: Box<[HeaderMatch]>,
    /// `max_active_faults`.
    pub max_active: Option<u32>,
    /// Requests with a fault now, on all workers.
    pub active: Arc<AtomicU32>,
}

/// One kind of fault: how often, and which.
#[derive(Debug, Clone, Copy)]
pub struct Fault<T> {
    /// `percentage`; none is never.
    pub share: Fraction,
    /// The fault; None: headers of the request name it.
    pub fixed: Option<T>,
}

/// The answer of a request that is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aborted {
    /// `http_status`.
    Status(StatusCode),
    /// `grpc_status`.
    Grpc(u32),
}

impl<T: Copy> Fault<T> {
    /// The fault for a request that drew `random`, with what its headers say. The percentage of a header can only be lower than the
    /// configured one.
    fn draw(
        &self,
        headers: &HeaderMap,
        share: &HeaderName,
        random: u64,
        named: impl FnOnce(&HeaderMap) -> Option<T>,
    ) -> Option<T> {
        let Some(fixed) = self.fixed else {
            let wanted = number::<u32>(headers, share).unwrap_or(u32::MAX);
            let share = Fraction { numerator: self.share.numerator.min(wanted), ..self.share };
            return named(headers).filter(|_| share.contains(random));
        };
        self.share.contains(random).then_some(fixed)
    }
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl FaultFilter {
    /// Whether a request to `cluster` is one of those that faults are for.
    #[must_use]
    pub fn applies(&self, head: &RequestHead, cluster: impl FnOnce() -> Option<ClusterId>) -> bool {
        let node = |node: &str| self.downstream_nodes.iter().any(|wanted| **wanted == *node);
        let by_node = || head.headers.get(&NODE).and_then(|v| v.to_str().ok()).is_some_and(node);
        self.headers.iter().all(|header| header.is_match(head))
            && (self.downstream_nodes.is_empty() || by_node())
            && self.upstream_cluster.is_none_or(|wanted| cluster() == Some(wanted))
    }

    /// How long a request that drew `random` waits.
    #[must_use]
    pub fn delay(&self, headers: &HeaderMap, random: u64) -> Option<Duration> {
        let named = |headers: &HeaderMap| number(headers, &DELAY).map(Duration::from_millis);
        self.delay?.draw(headers, &DELAY_SHARE, random, named)
    }

    /// How a request that drew `random` is answered instead.
    #[must_use]
    pub fn abort(&self, headers: &HeaderMap, random: u64) -> Option<Aborted> {
        let status = |code: &u16| (200..600).contains(code);
        let named = |headers: &HeaderMap| {
            let http = number::<u16>(headers, &ABORT).filter(status);
            match http.and_then(|code| StatusCode::from_u16(code).ok()) {
                Some(status) => Some(Aborted::Status(status)),
                None => number(headers, &ABORT_GRPC).map(Aborted::Grpc),
            }
        };
        self.abort?.draw(headers, &ABORT_SHARE, random, named)
    }

    /// Bytes a second of the answer to a request that drew `random`.
    #[must_use]
    pub fn rate(&self, headers: &HeaderMap, random: u64) -> Option<u64> {
        let named = |headers: &HeaderMap| number(headers, &RATE).filter(|rate| *rate > 0);
        let rate: u64 = self.rate?.draw(headers, &RATE_SHARE, random, named)?;
        Some(rate.saturating_mul(1024))
    }

    /// Counts a request with a fault; None when there are as many as may be.
    #[must_use]
    pub fn begin(&self) -> Option<ActiveFault> {
        let most = self.max_active.unwrap_or(u32::MAX);
        let more = |n: u32| (n < most).then_some(n + 1);
        let counted = self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| ActiveFault(Arc::clone(&self.active)))
    }
}

/// A request has a fault until this is dropped.
#[derive(Debug)]
pub struct ActiveFault(Arc<AtomicU32>);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Fraction = Fraction { numerator: 100, denominator: 100 };

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_percentage_is_met_and_a_header_can_only_lower_it() {
        let half = Fraction { numerator: 50, denominator: 100 };
        let filter = FaultFilter { delay: Some(Fault { share: half, fixed: None }), ..Default::default() };
        let count = |headers: &HeaderMap| (0..100).filter(|n| filter.delay(headers, *n).is_some()).count();
        assert_eq!(count(&HeaderMap::new()), 0, "nobody asks for one");
        assert_eq!(count(&headers(&[("x-envoy-fault-delay-request", "20")])), 50);
        let name = "x-envoy-fault-delay-request-percentage";
        assert_eq!(count(&headers(&[("x-envoy-fault-delay-request", "20"), (name, "10")])), 10);
        assert_eq!(count(&headers(&[("x-envoy-fault-delay-request", "20"), (name, "90")])), 50);
        assert_eq!(count(&headers(&[("x-envoy-fault-delay-request", "-1")])), 0);
    }

    #[test]
    fn a_header_names_the_status() {
        let filter = FaultFilter { abort: Some(Fault { share: ALWAYS, fixed: None }), ..Default::default() };
        let abort = |list: &[(&'static str, &str)]| filter.abort(&headers(list), 0);
        assert_eq!(
            abort(&[("x-envoy-fault-abort-request", "418")]),
            Some(Aborted::Status(StatusCode::IM_A_TEAPOT))
        );
        assert_eq!(abort(&[("x-envoy-fault-abort-grpc-request", "14")]), Some(Aborted::Grpc(14)));
        assert_eq!(abort(&[("x-envoy-fault-abort-request", "99")]), None);
        assert_eq!(abort(&[("x-envoy-fault-abort-request", "600")]), None);
        assert_eq!(abort(&[]), None);
    }

    #[test]
    fn no_more_faults_than_allowed_at_a_time() {
        let filter = FaultFilter { max_active: Some(2), ..Default::default() };
        let (first, second) = (filter.begin(), filter.begin());
        assert!(first.is_some() && second.is_some());
        assert!(filter.begin().is_none());
        drop(first);
        assert!(filter.begin().is_some());
    }
}
