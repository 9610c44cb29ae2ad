//! Rate limits of the whole mesh: each sidecar reports its demand and is leased a share of the limit for some seconds
//! (docs/decisions/0013).
//!
//! - [`owner`][]: which domains this control plane shares, of several with one store.
//! - [`pool`][]: one bucket's tokens, who holds how many of them and until when. Pure.
//! - [`Table`][]: which limits there are.
//! - [`service`][]: `envoy.service.rate_limit_quota.v3.RateLimitQuotaService` made of them.

pub mod owner;
pub mod pool;
pub mod service;

use std::collections::BTreeMap;
use std::time::Duration;

use remora_mesh::Lease;

#[cfg(test)]
mod tests;

pub use owner::Owner;
pub use service::Service;

/// A limit of the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// So many requests…
    pub requests: u32,
    /// …in so long a time, at least 50 ms.
    pub per: Duration,
}

/// Key and value pairs of a `BucketId`, in the order of their keys.
pub type BucketKey = BTreeMap<String, String>;

/// Limits by domain and bucket.
#[derive(Debug, Clone, Default)]
pub struct Table(BTreeMap<(String, BucketKey), Limit>);

impl FromIterator<Lease> for Table {
    fn from_iter<T: IntoIterator<Item = Lease>>(leases: T) -> Self {
        let mut table = Self::default();
        for Lease { domain, bucket, requests, per } in leases {
            table.set(&domain, [bucket].into(), Limit { requests, per });
        }
        table
    }
}

impl Table {
    /// Sets the limit of a bucket.
    pub fn set(&mut self, domain: &str, bucket: BucketKey, limit: Limit) {
        self.0.insert((domain.to_owned(), bucket), limit);
    }

    /// Whether any bucket of the domain has one.
    #[must_use]
    pub fn has(&self, domain: &str) -> bool {
        let from = (domain.to_owned(), BucketKey::new());
        self.0.range(from..).next().is_some_and(|((first, _), _)| first == domain)
    }

    /// The limit of a bucket, if it has one.
    #[must_use]
    pub fn get(&self, domain: &str, bucket: &BucketKey) -> Option<Limit> {
        self.0.get(&(domain.to_owned(), bucket.clone())).copied()
    }
}
