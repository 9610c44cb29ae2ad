//! Consistent hashing: the same key goes to the same endpoint, and a change of the endpoints moves few keys.
//!
//! Both tables are built as Envoy builds them, so that a proxy of either kind sends a key to the same endpoint.

use std::borrow::Cow;
use std::sync::Arc;

use super::maglev::Maglev;
use super::ring::{Ring, RingSpec};
use crate::upstream::endpoint::Endpoint;

/// RING_HASH or MAGLEV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsistentHash {
    /// The table.
    pub table: HashTable,
    /// `use_hostname_for_hashing`: endpoints are placed by their host name instead of their address.
    pub use_hostname: bool,
    /// `hash_balance_factor` in percent, at least 100: no endpoint gets more than that share of the average load, by its weight.
    pub balance_factor: Option<u32>,
}

/// How keys are spread over endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTable {
    /// RING_HASH.
    Ring(RingSpec),
    /// MAGLEV, with the number of slots (`table_size`).
    Maglev(u64),
}

/// An endpoint in the making of a table.
#[derive(Debug)]
pub(super) struct Entry<'e> {
    /// What it is placed by.
    pub(super) key: Cow<'e, str>,
    /// Its share of all weights.
    pub(super) weight: f64,
}

impl<'e> Entry<'e> {
    /// The key of an endpoint: `hash_key` of its metadata under `envoy.lb`, its host name when that is asked for, or its address.
    pub(super) fn new(endpoint: &'e Endpoint, weight: f64, use_hostname: bool) -> Self {
        let spec = &endpoint.spec;
        let named = || spec.hostname.as_deref().filter(|_| use_hostname);
        let key = spec.metadata.as_ref().and_then(|m| m.text("hash_key")).or_else(named);
        Self { key: key.map_or_else(|| spec.address.to_string().into(), Cow::Borrowed), weight }
    }
}

/// A table over the members of a bucket.
#[derive(Debug)]
pub(super) struct HashIndex {
    table: Table,
    /// Shares of the members, when the load is bounded.
    bound: Option<(u32, Box<[f64]>)>,
}

#[derive(Debug)]
enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

/// How often the table is asked for another endpoint before they are tried in an order of the key's own.
const TRIES: u32 = 4;

impl HashIndex {
    /// The table for `entries`, which are not empty.
    pub(super) fn build(spec: &ConsistentHash, entries: &[Entry<'_>]) -> Self {
        let table = match &spec.table {
            HashTable::Ring(ring) => Table::Ring(Ring::build(ring, entries)),
            HashTable::Maglev(size) => Table::Maglev(Maglev::build(*size, entries)),
        };
        let bound = spec.balance_factor.map(|factor| (factor, entries.iter().map(|e| e.weight).collect()));
        Self { table, bound }
    }

    /// The member for `hash` that `allowed` lets through and that has room. When nobody has, the one that is least over its bound.
    /// `active` are the requests of the whole cluster, this one included.
    pub(super) fn pick<'e>(
        &self,
        hash: u64,
        active: u32,
        len: u32,
        allowed: impl Fn(u32) -> Option<&'e Arc<Endpoint>>,
    ) -> Option<&'e Arc<Endpoint>> {
        let fill = |entry: u32, endpoint: &Endpoint| match &self.bound {
            None => 0.0,
            Some((factor, weights)) => {
                let weight = weights.get(entry as usize).copied().unwrap_or(0.0);
                f64::from(endpoint.state.active()) / slots(active, *factor, weight)
            }
        };
        for attempt in 0..TRIES {
            let entry = self.at(hash, attempt);
            if let Some(endpoint) = allowed(entry) {
                if fill(entry, endpoint) < 1.0 {
                    return Some(endpoint);
                }
                break;
            }
        }
        // The order is the key's own: what one endpoint is too full for does not all go to the same other one.
        let mut least: Option<(f64, &Arc<Endpoint>)> = None;
        for entry in order(hash, len) {
            let Some(endpoint) = allowed(entry) else { continue };
            let fill = fill(entry, endpoint);
            if fill < 1.0 {
                return Some(endpoint);
            }
            if least.is_none_or(|(best, _)| fill < best) {
                least = Some((fill, endpoint));
            }
        }
        least.map(|(_, endpoint)| endpoint)
    }

    fn at(&self, hash: u64, attempt: u32) -> u32 {
        match &self.table {
            Table::Ring(ring) => ring.at(hash, attempt),
            Table::Maglev(table) => table.at(hash, attempt),
        }
    }

    #[cfg(test)]
    pub(super) fn owner(&self, hash: u64) -> u32 {
        self.at(hash, 0)
    }
}

/// How many requests an endpoint with this share may have at a time (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded
/// Loads", 2016), of `active` in all.
pub(super) fn slots(active: u32, factor: u32, weight: f64) -> f64 {
    let total = (u64::from(active.max(1)) * u64::from(factor)).div_ceil(100);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let slots = (total as f64 * weight).ceil();
    slots.max(1.0)
}

/// All numbers below `len` in an order that `hash` decides.
fn order(hash: u64, len: u32) -> impl Iterator<Item = u32> {
    let len = u64::from(len.max(1));
    let start = hash.rotate_left(32) % len;
    let wished = hash.rotate_left(17) % len;
    // A step without a common divisor comes past every number.
    let step = (wished.max(1)..).find(|step| gcd(*step, len) == 1).unwrap_or(1);
    (0..len).map(move |i| u32::try_from((start + i * step) % len).unwrap_or(0))
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
#[path = "tests/consistent.rs"]
mod tests;
