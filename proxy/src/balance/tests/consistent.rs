use super::*;
use crate::balance::maglev::DEFAULT_TABLE;
use crate::balance::ring::HashFunction;
use crate::upstream::endpoint::{ActiveRequest, EndpointSpec};
use proptest::prelude::*;
use std::net::SocketAddr;

fn entries(weights: &[u32]) -> Vec<Entry<'static>> {
    let total: u32 = weights.iter().sum();
    let entry = |(i, w): (usize, &u32)| Entry {
        key: format!("10.0.{}.{}:80", i / 250, i % 250).into(),
        weight: f64::from(*w) / f64::from(total),
    };
    weights.iter().enumerate().map(entry).collect()
}

fn spec(table: HashTable) -> ConsistentHash {
    ConsistentHash { table, use_hostname: false, balance_factor: None }
}

const RING: HashTable =
    HashTable::Ring(RingSpec { min: 1024, max: RingSpec::LIMIT, function: HashFunction::Xx });
const MURMUR: HashTable =
    HashTable::Ring(RingSpec { min: 1024, max: RingSpec::LIMIT, function: HashFunction::Murmur2 });
const MAGLEV: HashTable = HashTable::Maglev(DEFAULT_TABLE);

fn key(n: u64) -> u64 {
    crate::balance::hash::xx(&n.to_le_bytes())
}

/// Share of every owner of 50,000 keys.
fn shares(index: &HashIndex, owners: usize) -> Vec<f64> {
    let mut seen = vec![0_u32; owners];
    (0..50_000).for_each(|n| seen[index.owner(key(n)) as usize] += 1);
    seen.into_iter().map(|n| f64::from(n) / 50_000.0).collect()
}

/// The paper's own bound for a table of 65,537 slots and up to a hundred endpoints: the fullest has at most a hundredth more
/// slots than the emptiest. Keys add their own variance.
#[test]
fn maglev_is_even() {
    for n in [2_usize, 3, 10, 100] {
        let index = HashIndex::build(&spec(MAGLEV), &entries(&vec![1; n]));
        let Table::Maglev(Maglev::Narrow(table)) = &index.table else { panic!("a narrow table") };
        let mut slots = vec![0_u32; n];
        table.iter().for_each(|owner| slots[usize::from(*owner)] += 1);
        let (least, most) = (slots.iter().min().unwrap(), slots.iter().max().unwrap());
        assert!(most - least <= 1, "{n}: {least} to {most}");
    }
}

/// What leaves takes its own keys along; of the others few move. A Maglev table of 65,537 slots moves a few percent, a ring nothing.
#[test]
fn few_keys_move_when_an_endpoint_leaves() {
    for (table, most) in [(MAGLEV, 0.05), (RING, 0.005), (MURMUR, 0.005)] {
        let mut all = entries(&[1; 16]);
        let before = HashIndex::build(&spec(table), &all);
        let gone = 5;
        // The ring is as large as before, so that every other point stays.
        all.remove(gone);
        let same = |t| match t {
            HashTable::Ring(ring) => HashTable::Ring(RingSpec { min: 64 * 15 - 1, ..ring }),
            other => other,
        };
        all.iter_mut().for_each(|e| e.weight = 1.0 / 15.0);
        let after = HashIndex::build(&spec(same(table)), &all);
        let (mut stayed, mut moved) = (0_u32, 0_u32);
        for n in 0..50_000 {
            let old = before.owner(key(n)) as usize;
            if old == gone {
                continue;
            }
            let old = if old > gone { old - 1 } else { old };
            if after.owner(key(n)) as usize == old { stayed += 1 } else { moved += 1 }
        }
        let share = f64::from(moved) / f64::from(moved + stayed);
        assert!(share <= most, "{table:?}: {share}");
    }
}

#[test]
fn a_ring_is_roughly_even_and_has_the_points_that_were_asked_for() {
    for table in [RING, MURMUR] {
        let index = HashIndex::build(&spec(table), &entries(&[1; 10]));
        let Table::Ring(ring) = &index.table else { panic!("a ring") };
        // ceil(102.4) points each.
        assert_eq!(ring.points().len(), 1030);
        for share in shares(&index, 10) {
            assert!((0.06..0.14).contains(&share), "{share}");
        }
    }
    let small = HashTable::Ring(RingSpec { min: 1, max: 4, function: HashFunction::Xx });
    let index = HashIndex::build(&spec(small), &entries(&[1; 10]));
    let Table::Ring(ring) = &index.table else { panic!("a ring") };
    assert!((4..=5).contains(&ring.points().len()), "the maximum holds, but for rounding");
}

#[test]
fn another_attempt_asks_for_another_place() {
    for table in [RING, MAGLEV] {
        let index = HashIndex::build(&spec(table), &entries(&[1; 10]));
        let moved = (0..1000).filter(|n| index.at(key(*n), 1) != index.at(key(*n), 0)).count();
        assert!(moved > 800, "{table:?}: {moved}");
    }
}

struct Cluster {
    index: HashIndex,
    endpoints: Vec<Arc<Endpoint>>,
}

fn cluster(table: HashTable, factor: u32, weights: &[u32]) -> Cluster {
    let spec = ConsistentHash { balance_factor: Some(factor), ..spec(table) };
    let index = HashIndex::build(&spec, &entries(weights));
    let address = |i: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(i + 1).unwrap()));
    let endpoint = |(i, w): (usize, &u32)| {
        Arc::new(Endpoint::new(EndpointSpec { weight: *w, ..EndpointSpec::new(address(i)) }))
    };
    Cluster { index, endpoints: weights.iter().enumerate().map(endpoint).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the keys and the order in which requests end: nobody has more than its bound when it gets a request.
    #[test]
    fn a_bounded_load_never_exceeds_its_bound(
        weights in prop::collection::vec(1_u32..10, 1..20), factor in 100_u32..300, maglev: bool, seed: u64
    ) {
        let table = if maglev { HashTable::Maglev(1031) } else { RING };
        let Cluster { index, endpoints } = cluster(table, factor, &weights);
        let len = u32::try_from(endpoints.len()).unwrap();
        let total: u32 = weights.iter().sum();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut running: Vec<ActiveRequest> = Vec::new();
        for _ in 0..300 {
            let active = u32::try_from(running.len()).unwrap() + 1;
            // Few keys, so that they collide.
            let hash = key(rng.u64(0..3));
            let picked = index.pick(hash, active, len, |entry| endpoints.get(entry as usize)).unwrap();
            running.push(picked.begin());
            let share = f64::from(picked.spec.weight) / f64::from(total);
            let most = slots(active, factor, share);
            prop_assert!(f64::from(picked.state.active()) <= most, "{} of {}", picked.state.active(), most);
            if rng.u8(0..3) == 0 {
                running.swap_remove(rng.usize(0..running.len()));
            }
        }
    }

    #[test]
    fn every_order_visits_everybody(hash: u64, len in 1_u32..500) {
        let mut seen: Vec<u32> = order(hash, len).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
    }

    #[test]
    fn shares_follow_weights(weights in prop::collection::vec(1_u32..10, 2..12)) {
        let index = HashIndex::build(&spec(MAGLEV), &entries(&weights));
        let total: u32 = weights.iter().sum();
        for (share, weight) in shares(&index, weights.len()).into_iter().zip(&weights) {
            let want = f64::from(*weight) / f64::from(total);
            prop_assert!((share - want).abs() < 0.02, "{} for {}", share, want);
        }
    }

    #[test]
    fn a_ring_finds_the_first_point_at_or_after_a_hash(weights in prop::collection::vec(1_u32..6, 1..20), hashes: [u64; 32]) {
        let ring = Ring::build(&RingSpec { min: 16, ..RingSpec::default() }, &entries(&weights));
        let points = ring.points();
        for hash in hashes.into_iter().chain([0, u64::MAX]).chain(points.iter().map(|(hash, _)| *hash)) {
            let want = points.iter().find(|(point, _)| *point >= hash).unwrap_or(&points[0]).1;
            prop_assert_eq!(ring.at(hash, 0), want);
        }
    }
}
