//! The table of MAGLEV (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4): the endpoints take
//! turns in taking the next free slot of an order of their own.

use super::consistent::Entry;
use super::hash::{xx, xx_seeded};

/// The most slots that a table may have.
pub const MAX_TABLE: u64 = 5_000_011;
/// The default number of slots.
pub const DEFAULT_TABLE: u64 = 65_537;

/// Whose slot it is. As narrow as the number of endpoints allows: every cluster has a table.
#[derive(Debug)]
pub(super) enum Maglev {
    Narrow(Box<[u8]>),
    Medium(Box<[u16]>),
    Wide(Box<[u32]>),
}

const FREE: u32 = u32::MAX;

impl Maglev {
    /// The table with `size` slots, a prime, for `entries`, which are not empty.
    pub(super) fn build(size: u64, entries: &[Entry<'_>]) -> Self {
        let table = fill(size, entries);
        match entries.len() {
            0..=0x100 => Self::Narrow(table.iter().map(|owner| *owner as u8).collect()),
            0x101..=0x1_0000 => Self::Medium(table.iter().map(|owner| *owner as u16).collect()),
            _ => Self::Wide(table.into()),
        }
    }

    /// The owner of the slot of `hash`; for another `attempt` than the first that of some other slot.
    pub(super) fn at(&self, hash: u64, attempt: u32) -> u32 {
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let slot = |len: usize| usize::try_from(hash % len.max(1) as u64).unwrap_or(0);
        match self {
            Self::Narrow(table) => table.get(slot(table.len())).map_or(0, |owner| u32::from(*owner)),
            Self::Medium(table) => table.get(slot(table.len())).map_or(0, |owner| u32::from(*owner)),
            Self::Wide(table) => table.get(slot(table.len())).copied().unwrap_or(0),
        }
    }
}

/// One endpoint while the table is filled.
struct Builder {
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    /// It takes its next turn when the turns times its weight have come to this.
    due: f64,
}

/// The owner of every slot. An endpoint of the greatest weight takes a slot in every turn, one of a third of it in every third.
fn fill(size: u64, entries: &[Entry<'_>]) -> Vec<u32> {
    let greatest = entries.iter().map(|e| e.weight).fold(0.0, f64::max);
    let mut builders: Vec<Builder> = entries
        .iter()
        .map(|entry| Builder {
            offset: xx(entry.key.as_bytes()) % size,
            skip: xx_seeded(1, entry.key.as_bytes()) % (size - 1).max(1) + 1,
            next: 0,
            weight: entry.weight,
            due: 0.0,
        })
        .collect();
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(usize::MAX)];
    let mut taken = 0;
    let mut turn = 0.0;
    while taken < table.len() && !builders.is_empty() {
        turn += 1.0;
        for (owner, builder) in (0_u32..).zip(&mut builders) {
            if taken == table.len() {
                break;
            }
            if turn * builder.weight < builder.due {
                continue;
            }
            builder.due += greatest;
            loop {
                let slot = (builder.offset + builder.skip.wrapping_mul(builder.next)) % size;
                builder.next += 1;
                if let Some(slot) = usize::try_from(slot).ok().and_then(|slot| table.get_mut(slot))
                    && *slot == FREE
                {
                    *slot = owner;
                    break;
                }
            }
            taken += 1;
        }
    }
    table
}
