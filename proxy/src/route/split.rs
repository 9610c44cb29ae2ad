//! Weighted clusters (`envoy.config.route.v3.WeightedCluster`).

use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;
use http::uri::Authority;

use super::action::ClusterRef;
use super::header::HeaderMutations;
use crate::balance::subset::LbMetadata;

/// One entry of [`WeightedClusters`].
#[derive(Debug)]
pub struct WeightedCluster {
    /// `name` or `cluster_header`.
    pub cluster: ClusterRef,
    /// The sum of the weights up to and with this one.
    pub until: u32,
    /// All request mutations: this cluster's, then those of the route and above.
    pub request_headers: HeaderMutations,
    /// All response mutations.
    pub response_headers: HeaderMutations,
    /// `host_rewrite_literal`; counts when the route itself rewrites no host.
    pub host_rewrite: Option<Authority>,
    /// `metadata_match` of this cluster and of the route.
    pub subset: Option<Arc<LbMetadata>>,
}

/// A compiled `WeightedCluster`.
#[derive(Debug)]
pub struct WeightedClusters {
    clusters: Box<[WeightedCluster]>,
    total: u32,
    /// `header_name`: a request may bring its own random number, so that several proxies choose alike.
    pub random_header: Option<HeaderName>,
}

impl WeightedClusters {
    /// `clusters` with cumulative weights. None when they sum up to zero.
    #[must_use]
    pub fn new(clusters: Vec<WeightedCluster>, random_header: Option<HeaderName>) -> Option<Self> {
        let total = clusters.last().map_or(0, |c| c.until);
        (total > 0).then(|| Self { clusters: clusters.into(), total, random_header })
    }

    /// All entries, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[WeightedCluster] {
        &self.clusters
    }

    /// The cluster for `random`: every value below the sum of the weights stands for one share.
    #[must_use]
    pub fn pick(&self, random: u64, headers: &HeaderMap) -> &WeightedCluster {
        let random = self.random_header.as_ref().and_then(|name| number(headers, name)).unwrap_or(random);
        let share = random % u64::from(self.total);
        let index = self.clusters.partition_point(|c| u64::from(c.until) <= share);
        // `share` is below the last `until`, so that the index is one of the list's.
        &self.clusters[index.min(self.clusters.len() - 1)]
    }
}

/// A single-valued header that is an unsigned number.
fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let only = values.next()?;
    if values.next().is_some() {
        return None;
    }
    only.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::names::ClusterId;
    use proptest::prelude::*;

    fn split(weights: &[u32], header: Option<&str>) -> Option<WeightedClusters> {
        let mut until = 0;
        let clusters = weights
            .iter()
            .enumerate()
            .map(|(i, w)| {
                until += w;
                WeightedCluster {
                    cluster: ClusterRef::Id(ClusterId::from_index(u32::try_from(i).unwrap())),
                    until,
                    request_headers: HeaderMutations::default(),
                    response_headers: HeaderMutations::default(),
                    host_rewrite: None,
                    subset: None,
                }
            })
            .collect();
        WeightedClusters::new(clusters, header.map(|h| h.parse().unwrap()))
    }

    fn index(s: &WeightedClusters, random: u64, headers: &HeaderMap) -> usize {
        match &s.pick(random, headers).cluster {
            ClusterRef::Id(id) => id.index(),
            ClusterRef::Header(_) => unreachable!("no test has one"),
        }
    }

    #[test]
    fn no_weight_no_split() {
        assert!(split(&[0, 0], None).is_none());
        assert!(split(&[], None).is_none());
    }

    #[test]
    fn a_single_valued_number_in_the_header_decides() {
        let s = split(&[50, 50], Some("x-random")).unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(index(&s, 99, &headers), 1);
        headers.insert("x-random", "10".parse().unwrap());
        assert_eq!(index(&s, 99, &headers), 0);
        headers.append("x-random", "10".parse().unwrap());
        assert_eq!(index(&s, 99, &headers), 1, "two values are no number");
        headers.insert("x-random", "-3".parse().unwrap());
        assert_eq!(index(&s, 99, &headers), 1);
    }

    proptest! {
        #[test]
        fn every_share_goes_where_its_weight_says(weights in proptest::collection::vec(0u32..20, 1..6), offset in any::<u32>()) {
            if let Some(s) = split(&weights, None) {
                let total: u32 = weights.iter().sum();
                let mut seen = vec![0u32; weights.len()];
                let start = u64::from(offset) * u64::from(total);
                for share in 0..u64::from(total) {
                    seen[index(&s, start + share, &HeaderMap::new())] += 1;
                }
                prop_assert_eq!(seen, weights);
            }
        }

        #[test]
        fn random_numbers_spread_by_weight(seed in any::<u64>(), a in 1u32..100, b in 1u32..100) {
            let s = split(&[a, b], None).unwrap();
            let mut rng = fastrand::Rng::with_seed(seed);
            let n = 4000;
            let hits = (0..n).filter(|_| index(&s, rng.u64(..), &HeaderMap::new()) == 0).count();
            let want = f64::from(a) / f64::from(a + b);
            let got = f64::from(u32::try_from(hits).unwrap()) / f64::from(n);
            // Six standard deviations of a fair split of 4000.
            prop_assert!((got - want).abs() < 0.048, "{got} instead of {want}");
        }
    }
}
