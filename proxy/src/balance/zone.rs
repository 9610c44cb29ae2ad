//! Zone aware routing: requests stay in the zone of this proxy as far as the zones' shares of endpoints allow.
//!
//! The shares are compared with those of the *local cluster*, the cluster of proxies like this one: if this zone has at least as many
//! endpoints as proxies, in percent, everything stays; otherwise as much as its endpoints can take, and the rest goes to zones with more
//! endpoints than proxies. The arithmetic is Envoy's
//! (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/zone_aware>).

use crate::upstream::endpoint::{EndpointSet, Health, Locality};

/// `zone_aware_lb_config`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZoneAware {
    /// `routing_enabled` in percent, default 100: the share of requests that it is for.
    pub enabled: f64,
    /// `min_cluster_size`, default 6: with fewer healthy endpoints all zones are used alike.
    pub min_endpoints: u64,
}

/// Where this proxy is, and how many like it there are in each zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalZones {
    own: Locality,
    /// Healthy members of the local cluster.
    members: Vec<(Locality, u64)>,
}

impl LocalZones {
    /// The zones of the local cluster. None when it is in panic mode or empty: then nothing is known.
    #[must_use]
    pub fn new(own: Locality, local: &EndpointSet) -> Option<Self> {
        let mut members: Vec<(Locality, u64)> = Vec::new();
        let first = local.endpoints().iter().filter(|e| e.spec.group.priority == 0);
        for endpoint in first.filter(|e| e.health() == Health::Healthy) {
            let zone = &endpoint.spec.group.locality;
            match members.iter_mut().find(|(known, _)| known == zone) {
                Some((_, count)) => *count += 1,
                None => members.push((zone.clone(), 1)),
            }
        }
        (!members.is_empty() && !local.in_panic()).then_some(Self { own, members })
    }

    fn share_of(&self, zone: &Locality) -> u64 {
        let total: u64 = self.members.iter().map(|(_, count)| count).sum();
        let own = self.members.iter().find(|(known, _)| known == zone);
        own.map_or(0, |(_, count)| WHOLE * count / total.max(1))
    }
}

/// Shares are counted in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// The weights of zones with that many healthy endpoints; one that gets nothing has 0. None: all endpoints are used alike.
pub(super) fn weights(spec: &ZoneAware, local: &LocalZones, zones: &[(&Locality, u64)]) -> Option<Vec<u32>> {
    let total: u64 = zones.iter().map(|(_, count)| count).sum();
    let own = zones.iter().position(|(zone, count)| **zone == local.own && *count > 0)?;
    if total < spec.min_endpoints || zones.iter().filter(|(_, count)| *count > 0).count() < 2 {
        return None;
    }
    let shares: Vec<u64> = zones.iter().map(|(_, count)| WHOLE * count / total).collect();
    let wanted: Vec<u64> = zones.iter().map(|(zone, _)| local.share_of(zone)).collect();
    let stays = if shares[own] >= wanted[own] { WHOLE } else { shares[own] * WHOLE / wanted[own] };
    let spare = |zone: usize| if zone == own { 0 } else { shares[zone].saturating_sub(wanted[zone]) };
    let all_spare: u64 = (0..zones.len()).map(spare).sum();
    let aware = |zone: usize| match zone {
        zone if zone == own => share(stays, WHOLE),
        zone => share(WHOLE - stays, WHOLE) * share(spare(zone), all_spare),
    };
    // Without spare capacity anywhere the rest stays, too.
    let kept = if all_spare == 0 { 1.0 } else { 0.0 };
    let enabled = spec.enabled / 100.0;
    let weight = |zone: usize| {
        let aware = if zone == own { f64::max(aware(zone), kept) } else { aware(zone) };
        let alike = share(zones[zone].1, total);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 10,000")]
        let weight = ((enabled * aware + (1.0 - enabled) * alike) * 10_000.0).round() as u32;
        weight
    };
    Some((0..zones.len()).map(weight).collect())
}

#[expect(clippy::cast_precision_loss, reason = "numbers of endpoints are far below 2^53")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: ZoneAware = ZoneAware { enabled: 100.0, min_endpoints: 6 };

    fn zone(name: &str) -> Locality {
        Locality { zone: name.into(), ..Locality::default() }
    }

    /// Weights for the zones a, b, c, … with those numbers of endpoints and of proxies; this proxy is in a.
    fn run(spec: &ZoneAware, endpoints: &[u64], proxies: &[u64]) -> Option<Vec<u32>> {
        let names: Vec<Locality> =
            (b'a'..).take(endpoints.len()).map(|n| zone(&char::from(n).to_string())).collect();
        let members = names.iter().cloned().zip(proxies.iter().copied()).filter(|(_, n)| *n > 0).collect();
        let zones: Vec<(&Locality, u64)> = names.iter().zip(endpoints.iter().copied()).collect();
        weights(spec, &LocalZones { own: zone("a"), members }, &zones)
    }

    #[test]
    fn everything_stays_where_there_are_enough_endpoints() {
        assert_eq!(run(&SPEC, &[4, 4], &[2, 2]), Some(vec![10_000, 0]));
        assert_eq!(run(&SPEC, &[6, 2], &[1, 3]), Some(vec![10_000, 0]));
    }

    #[test]
    fn the_rest_goes_where_there_are_more_endpoints_than_proxies() {
        // Half of the proxies, a quarter of the endpoints: half of what they have stays.
        assert_eq!(run(&SPEC, &[2, 6], &[2, 2]), Some(vec![5_000, 5_000]));
        // b has as many as its proxies need, c has the spare ones.
        assert_eq!(run(&SPEC, &[2, 2, 4], &[4, 2, 2]), Some(vec![5_000, 0, 5_000]));
    }

    #[test]
    fn small_clusters_and_unknown_zones_are_used_alike() {
        assert_eq!(run(&SPEC, &[2, 3], &[1, 1]), None, "fewer than six");
        assert_eq!(run(&SPEC, &[0, 8], &[1, 1]), None, "nobody in this zone");
        assert_eq!(run(&SPEC, &[8], &[1]), None, "one zone");
    }

    #[test]
    fn a_share_of_the_requests_can_be_left_out() {
        let half = ZoneAware { enabled: 50.0, ..SPEC };
        assert_eq!(run(&half, &[4, 4], &[1, 1]), Some(vec![7_500, 2_500]));
        assert_eq!(run(&ZoneAware { enabled: 0.0, ..SPEC }, &[2, 6], &[1, 1]), Some(vec![2_500, 7_500]));
    }

    proptest! {
        /// Every proxy of every zone does this: no endpoint gets much more than its share of all requests.
        #[test]
        fn no_zone_is_overloaded(zones in prop::collection::vec((2_u64..30, 1_u64..30), 2..6)) {
            let (endpoints, proxies): (Vec<u64>, Vec<u64>) = zones.into_iter().unzip();
            let names: Vec<Locality> = (b'a'..).take(endpoints.len()).map(|n| zone(&char::from(n).to_string())).collect();
            let members: Vec<(Locality, u64)> = names.iter().cloned().zip(proxies.iter().copied()).collect();
            let listed: Vec<(&Locality, u64)> = names.iter().zip(endpoints.iter().copied()).collect();
            let (all_endpoints, all_proxies) = (endpoints.iter().sum::<u64>(), proxies.iter().sum::<u64>());
            let mut load = vec![0.0; names.len()];
            for (own, count) in names.iter().zip(&proxies) {
                let local = LocalZones { own: own.clone(), members: members.clone() };
                let alike = || listed.iter().map(|(_, n)| u32::try_from(10_000 * n / all_endpoints).unwrap()).collect();
                let weights: Vec<u32> = weights(&SPEC, &local, &listed).unwrap_or_else(alike);
                let total: u32 = weights.iter().sum();
                for (at, weight) in weights.iter().enumerate() {
                    load[at] += *count as f64 / all_proxies as f64 * f64::from(*weight) / f64::from(total);
                }
            }
            for (at, load) in load.iter().enumerate() {
                let fair = endpoints[at] as f64 / all_endpoints as f64;
                prop_assert!(*load <= fair + 0.01, "zone {at} gets {load}, fair is {fair}");
            }
        }
    }
}
