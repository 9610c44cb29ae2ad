//! The ring of RING_HASH (ketama): every endpoint stands at many points of a circle of hashes and serves the keys up to the next point.

use super::consistent::Entry;
use super::hash::{murmur2, xx};

/// `RingHashLbConfig.hash_function`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HashFunction {
    /// XX_HASH.
    #[default]
    Xx,
    /// MURMUR_HASH_2.
    Murmur2,
}

/// `RingHashLbConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSpec {
    /// `minimum_ring_size`, default 1024.
    pub min: u64,
    /// `maximum_ring_size`, default and limit 8 Mi.
    pub max: u64,
    /// `hash_function`.
    pub function: HashFunction,
}

impl RingSpec {
    /// The most points that a ring may have.
    pub const LIMIT: u64 = 8 * 1024 * 1024;
}

impl Default for RingSpec {
    fn default() -> Self {
        Self { min: 1024, max: Self::LIMIT, function: HashFunction::Xx }
    }
}

/// The points in the order of their hashes.
#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[(u64, u32)]>,
    /// Where the n-th part of the circle begins in `points`: hashes spread evenly, so that the point of a key is near.
    guide: Box<[u32]>,
}

impl Ring {
    /// The ring of `entries`, which are not empty. The least of them gets a whole number of points; where the others' shares are no whole
    /// numbers, the sum is kept.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn build(spec: &RingSpec, entries: &[Entry<'_>]) -> Self {
        let least = entries.iter().map(|e| e.weight).fold(1.0, f64::min);
        let scale = ((least * spec.min as f64).ceil() / least).min(spec.max as f64);
        let mut points: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize + 1);
        let mut key = String::new();
        let mut target = 0.0;
        for (owner, entry) in (0_u32..).zip(entries) {
            target += scale * entry.weight;
            let mut i = 0_u64;
            while (points.len() as f64) < target {
                key.clear();
                key.push_str(&entry.key);
                key.push('_');
                key.push_str(&i.to_string());
                let hash = match spec.function {
                    HashFunction::Xx => xx(key.as_bytes()),
                    HashFunction::Murmur2 => murmur2(key.as_bytes()),
                };
                points.push((hash, owner));
                i += 1;
            }
        }
        points.sort_by_key(|(hash, _)| *hash);
        let guide = guide(&points);
        Self { points: points.into(), guide }
    }

    /// The owner of the first point at or after `hash`, or of one `further` on.
    pub(super) fn at(&self, hash: u64, further: u32) -> u32 {
        let part = usize::try_from((u128::from(hash) * self.guide.len() as u128) >> 64).unwrap_or(0);
        let start = self.guide.get(part).map_or(0, |at| *at as usize);
        let rest = self.points.get(start..).unwrap_or_default();
        let at = start + rest.iter().take_while(|(point, _)| *point < hash).count() + further as usize;
        self.points.get(at % self.points.len().max(1)).map_or(0, |(_, owner)| *owner)
    }

    #[cfg(test)]
    pub(super) fn points(&self) -> &[(u64, u32)] {
        &self.points
    }
}

fn guide(points: &[(u64, u32)]) -> Box<[u32]> {
    let parts = points.len() as u64;
    let mut at = 0;
    (0..parts)
        .map(|part| {
            // The least hash that belongs to this part.
            let start = ((u128::from(part) << 64).div_ceil(u128::from(parts))) as u64;
            while points.get(at).is_some_and(|(hash, _)| *hash < start) {
                at += 1;
            }
            u32::try_from(at).unwrap_or(u32::MAX)
        })
        .collect()
}
