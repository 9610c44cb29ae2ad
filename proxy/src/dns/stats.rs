//! What a DNS listener counts, by Envoy's names where Envoy has one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::metrics::{Collect, MetricFamily, counters};

macro_rules! counts {
    ($($name:ident: $metric:literal, $help:literal;)*) => {
        /// Something that happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count { $(#[doc = $help] $name,)* }

        /// All of them with their metrics' names and help.
        const ALL: &[(Count, &str, &str)] = &[$(
            (Count::$name, concat!("remora_dns_filter_", $metric, "_total"), $help),
        )*];
    };
}

counts! {
    Queries: "downstream_rx_queries", "Questions of clients.";
    Invalid: "downstream_rx_invalid_queries", "Messages of clients that are no question, or malformed.";
    Responses: "downstream_tx_responses", "Answers to clients.";
    Truncated: "downstream_tx_truncated", "Answers that were too long for UDP, so that the client asks by TCP.";
    A: "a_record_queries", "Questions for IPv4 addresses.";
    Aaaa: "aaaa_record_queries", "Questions for IPv6 addresses.";
    Known: "known_domain_queries", "Questions for names in the table.";
    LocalA: "local_a_record_answers", "IPv4 addresses given from the table.";
    LocalAaaa: "local_aaaa_record_answers", "IPv6 addresses given from the table.";
    External: "externally_resolved_queries", "Questions that were answered from the cache or by a name server.";
    CacheHits: "cache_hits", "Of them, from the cache while the answer held.";
    Stale: "stale_answers", "Of them, from the cache after that, because no name server answered in time.";
    Coalesced: "coalesced_queries", "Questions that waited for the answer to another client's.";
    Asked: "upstream_queries", "Questions to name servers, without repeats.";
    Failed: "upstream_failures", "Of them, those that no name server answered.";
    OtherLetters: "upstream_case_changed", "Name servers that changed the case of a question's letters, and did not answer by TCP.";
    FailedAgain: "failures_remembered", "Questions that failed at once: nobody had an answer a moment ago.";
    Overflow: "pending_overflow", "Questions beyond max_pending_lookups.";
    Refused: "tcp_refused", "TCP connections beyond the limit.";
}

/// The counters of a listener.
#[derive(Debug, Default)]
pub struct Stats([AtomicU64; ALL.len()]);

impl Stats {
    /// It happened.
    pub fn count(&self, what: Count) {
        self.add(what, 1);
    }

    /// It happened so often.
    pub fn add(&self, what: Count, times: usize) {
        self.0[what as usize].fetch_add(times as u64, Ordering::Relaxed);
    }

    /// How often it happened.
    #[must_use]
    pub fn get(&self, what: Count) -> u64 {
        self.0[what as usize].load(Ordering::Relaxed)
    }
}

/// So many prefixes are kept without a listener.
const MOST: usize = 64;

/// The counters of all listeners, by `stat_prefix`. They stay when a listener goes, for a counter does not go back; where prefixes become too many,
/// those without one go.
#[derive(Debug, Default)]
pub struct AllStats(Mutex<BTreeMap<Arc<str>, Arc<Stats>>>);

impl AllStats {
    /// Those of a prefix.
    #[must_use]
    pub fn of(&self, prefix: &Arc<str>) -> Arc<Stats> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(prefix) {
            all.retain(|_, stats| Arc::strong_count(stats) > 1);
        }
        Arc::clone(all.entry(Arc::clone(prefix)).or_default())
    }
}

impl Collect for AllStats {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if all.is_empty() {
            return;
        }
        for (count, name, help) in ALL {
            let values =
                all.iter().map(|(prefix, stats)| (vec![("stat_prefix", &**prefix)], stats.get(*count)));
            out.push(counters(name, help, values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_own_place() {
        for (i, (count, ..)) in ALL.iter().enumerate() {
            assert_eq!(*count as usize, i);
        }
    }

    #[test]
    fn listeners_of_one_prefix_count_together() {
        let all = AllStats::default();
        let mut out = Vec::new();
        all.collect(&mut out);
        assert!(out.is_empty());
        all.of(&"dns".into()).count(Count::Stale);
        all.of(&"dns".into()).add(Count::Stale, 2);
        assert_eq!(all.of(&"dns".into()).get(Count::Stale), 3);
        all.collect(&mut out);
        assert_eq!(out.len(), ALL.len());
    }

    #[test]
    fn prefixes_without_a_listener_are_bounded() {
        let all = AllStats::default();
        let kept = all.of(&"kept".into());
        kept.count(Count::Queries);
        for number in 0..MOST * 2 {
            all.of(&format!("{number}").into()).count(Count::Queries);
            assert!(all.0.lock().unwrap().len() <= MOST);
        }
        assert_eq!(all.of(&"kept".into()).get(Count::Queries), 1);
        // A listener each.
        let many: Vec<_> = (0..MOST * 2).map(|number| all.of(&format!("{number}").into())).collect();
        assert!(all.0.lock().unwrap().len() > many.len());
    }
}
