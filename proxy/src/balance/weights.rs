//! Weighted choice in constant time, in turn or by a random number, without state beyond one position.

/// In which order a rotation visits its entries.
#[derive(Debug)]
pub(super) enum Schedule {
    /// Equal weights: one after the other.
    Equal(u32),
    /// One full turn, written down: each entry as often as its weight, evenly spread.
    Turn(Box<[u32]>),
    /// A turn would be too long to write down: the multiples of the golden ratio, which hit every interval of the number line
    /// in proportion to its length with the least clustering.
    Spread(Weights),
}

/// Turns up to this length are written down.
const MAX_TURN: u64 = 4096;
/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Default for Schedule {
    fn default() -> Self {
        Self::Equal(1)
    }
}

impl Schedule {
    /// A rotation over entries of these weights. A weight of 0 counts as 1.
    pub(super) fn rotation(weights: &[u32]) -> Self {
        let len = u32::try_from(weights.len()).unwrap_or(u32::MAX);
        let common = weights.iter().map(|w| (*w).max(1)).fold(0, gcd);
        if weights.iter().all(|w| (*w).max(1) == common) {
            return Self::Equal(len.max(1));
        }
        let total: u64 = weights.iter().map(|w| u64::from((*w).max(1) / common)).sum();
        if total <= MAX_TURN.max(4 * u64::from(len)) {
            return Self::Turn(turn(weights, common));
        }
        Self::Spread(Weights::new(weights))
    }

    /// The entry at `position`.
    pub(super) fn at(&self, position: u32) -> u32 {
        match self {
            Self::Equal(n) => position % n,
            Self::Turn(turn) => turn[position as usize % turn.len()],
            Self::Spread(weights) => weights.at(u64::from(position).wrapping_mul(GOLDEN)),
        }
    }

    /// After how many positions every entry has come up. For a spread: none, as its order does not repeat.
    pub(super) fn period(&self) -> Option<u32> {
        match self {
            Self::Equal(n) => Some(*n),
            Self::Turn(turn) => u32::try_from(turn.len()).ok(),
            Self::Spread(_) => None,
        }
    }
}

/// The k-th visit of an entry of weight w is due at (2k + 1) / 2w of the turn.
fn turn(weights: &[u32], common: u32) -> Box<[u32]> {
    let mut visits: Vec<(u64, u64, u32)> = Vec::new();
    for (entry, weight) in (0_u32..).zip(weights) {
        let weight = u64::from((*weight).max(1) / common);
        visits.extend((0..weight).map(|k| (2 * k + 1, weight, entry)));
    }
    visits.sort_by(|a, b| {
        let (left, right) = (u128::from(a.0) * u128::from(b.1), u128::from(b.0) * u128::from(a.1));
        left.cmp(&right).then(a.2.cmp(&b.2))
    });
    visits.into_iter().map(|(_, _, entry)| entry).collect()
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A number line on which every entry has an interval as long as its weight, with a guide that leads near the
/// interval of a point.
#[derive(Debug)]
pub(super) struct Weights {
    ends: Box<[u64]>,
    guide: Box<[u32]>,
    total: u64,
}

impl Weights {
    /// The line of these weights. A weight of 0 counts as 1.
    pub(super) fn new(weights: &[u32]) -> Self {
        let mut total = 0;
        let ends: Box<[u64]> = weights
            .iter()
            .map(|w| {
                total += u64::from((*w).max(1));
                total
            })
            .collect();
        let n = ends.len() as u64;
        let mut entry = 0_u32;
        let guide = (0..n)
            .map(|mark| {
                let point = scale(mark, total, n);
                while ends.get(entry as usize).is_some_and(|end| *end <= point) {
                    entry += 1;
                }
                entry
            })
            .collect();
        Self { ends, guide, total }
    }

    /// The entry under `fraction` / 2^64 of the line.
    pub(super) fn at(&self, fraction: u64) -> u32 {
        let part = |of: u64| u64::try_from((u128::from(fraction) * u128::from(of)) >> 64).unwrap_or(0);
        let point = part(self.total);
        let mark = usize::try_from(part(self.guide.len() as u64)).unwrap_or(0);
        let low = self.guide.get(mark).map_or(0, |g| *g as usize);
        // The interval of a point lies between the guide's answers for the marks around it.
        let high = self.guide.get(mark + 1).map_or(self.ends.len(), |g| *g as usize + 1);
        let near = self.ends.get(low..high).unwrap_or_default();
        let found = low + near.partition_point(|end| *end <= point);
        u32::try_from(found.min(self.ends.len().saturating_sub(1))).unwrap_or(0)
    }
}

/// Draws entries at random in proportion to their weights, with one look at one cell (Walker's alias method, built as Vose
/// does): a cell belongs to its entry up to `own` / 2^32, above that to `other`.
#[derive(Debug)]
pub(super) struct Alias(Box<[Cell]>);

#[derive(Debug, Clone, Copy)]
struct Cell {
    own: u32,
    other: u32,
}

impl Alias {
    /// The table of these weights. A weight of 0 counts as 1.
    pub(super) fn new(weights: &[u32]) -> Self {
        let n = weights.len() as u128;
        let total: u128 = weights.iter().map(|w| u128::from((*w).max(1))).sum();
        // What each entry has left to place, where a cell holds `total`.
        let mut left: Vec<u128> = weights.iter().map(|w| u128::from((*w).max(1)) * n).collect();
        let mut cells: Vec<Cell> =
            (0_u32..).zip(weights).map(|(other, _)| Cell { own: u32::MAX, other }).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0_u32..).zip(&left).map(|(i, _)| i).partition(|i| left[*i as usize] < total);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            let rest = left[less as usize];
            let own = u32::try_from((rest << 32) / total).unwrap_or(u32::MAX);
            cells[less as usize] = Cell { own, other: more };
            left[more as usize] -= total - rest;
            if left[more as usize] < total {
                large.pop();
                small.push(more);
            }
        }
        Self(cells.into())
    }

    /// The entry that a random number picks.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    pub(super) fn draw(&self, random: u64) -> u32 {
        let cell = ((random >> 32) * self.0.len() as u64) >> 32;
        match self.0.get(cell as usize) {
            Some(Cell { own, other }) => {
                if (random as u32) < *own {
                    cell as u32
                } else {
                    *other
                }
            }
            None => 0,
        }
    }
}

fn scale(mark: u64, total: u64, n: u64) -> u64 {
    u64::try_from(u128::from(mark) * u128::from(total) / u128::from(n.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn visits(schedule: &Schedule, entries: usize, from: u32, picks: u32) -> Vec<u32> {
        let mut seen = vec![0; entries];
        for i in 0..picks {
            seen[schedule.at(from.wrapping_add(i)) as usize] += 1;
        }
        seen
    }

    #[test]
    fn a_turn_is_evenly_spread() {
        let Schedule::Turn(turn) = Schedule::rotation(&[50, 10, 10]) else { panic!("a turn") };
        assert_eq!(&*turn, [0, 0, 0, 1, 2, 0, 0]);
        assert!(matches!(Schedule::rotation(&[7, 7]), Schedule::Equal(2)));
        assert!(matches!(Schedule::rotation(&[1, u32::MAX]), Schedule::Spread(_)));
    }

    proptest! {
        #[test]
        fn one_turn_gives_every_entry_its_weight(weights in prop::collection::vec(1_u32..50, 1..40), from: u16) {
            let schedule = Schedule::rotation(&weights);
            let period = schedule.period().expect("small weights repeat");
            let seen = visits(&schedule, weights.len(), u32::from(from) * period, period);
            let scale = weights[0] / seen[0];
            prop_assert_eq!(seen.iter().map(|s| s * scale).collect::<Vec<_>>(), weights);
        }

        #[test]
        fn a_spread_stays_near_the_weights(
            weights in prop::collection::vec(1_000_000_u32..2_000_000_000, 2..20), from in 0_u32..u32::MAX / 2
        ) {
            let schedule = Schedule::Spread(Weights::new(&weights));
            let picks = 10_000;
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (seen, weight) in visits(&schedule, weights.len(), from, picks).into_iter().zip(&weights) {
                let want = f64::from(*weight) / total * f64::from(picks);
                prop_assert!((f64::from(seen) - want).abs() < 6.0, "{} of {}", seen, want);
            }
        }

        /// What the cells of the table give to an entry is its weight, but for rounding.
        #[test]
        fn an_alias_table_holds_the_weights(weights in prop::collection::vec(prop_oneof![1_u32..9, any::<u32>()], 1..200)) {
            let table = Alias::new(&weights);
            let mut got = vec![0.0; weights.len()];
            for (entry, cell) in table.0.iter().enumerate() {
                let own = if cell.own == u32::MAX { 1.0 } else { f64::from(cell.own) / 4_294_967_296.0 };
                got[entry] += own;
                got[cell.other as usize] += 1.0 - own;
            }
            let total: f64 = weights.iter().map(|w| f64::from((*w).max(1))).sum();
            for (got, weight) in got.iter().zip(&weights) {
                let want = f64::from((*weight).max(1)) / total * weights.len() as f64;
                prop_assert!((got - want).abs() < 1e-6, "{got} for {want}");
            }
        }

        #[test]
        fn every_point_is_in_its_interval(weights in prop::collection::vec(prop_oneof![1_u32..4, any::<u32>()], 1..200), points: [u64; 16]) {
            let line = Weights::new(&weights);
            for fraction in points.into_iter().chain([0, u64::MAX]) {
                let point = ((u128::from(fraction) * u128::from(line.total)) >> 64) as u64;
                let entry = line.at(fraction) as usize;
                let start = if entry == 0 { 0 } else { line.ends[entry - 1] };
                prop_assert!((start..line.ends[entry]).contains(&point));
            }
        }
    }
}
