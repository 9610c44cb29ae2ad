//! The tokens of one bucket: who wants how many, who holds how many, and until when. Pure: `now` is an argument.
//!
//! What a holder may be using at a moment is the largest of the shares that it was sent and that are not over yet. The sum of these
//! over all holders never exceeds the limit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Limit;

/// Of a share, as its holder is told.
pub const TTL: Duration = Duration::from_secs(2);
/// A share is counted for so much longer: the time that it may take to its holder.
pub const GRACE: Duration = Duration::from_millis(500);
/// Holders of one bucket.
pub const MOST: usize = 10_000;

/// Shares of one holder that are counted one by one.
const COUNTED: usize = 16;
/// How often it is decided what everybody should have.
const PLAN_EVERY: Duration = Duration::from_millis(50);
/// Demand is not measured over less.
const MEASURED: Duration = Duration::from_millis(100);
/// A holder without requests for so long is told to forget the bucket; its next request brings it back.
const IDLE: Duration = Duration::from_secs(10);

/// Number of a holder.
pub type Id = u64;

/// Requests of a holder since its last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Whether they were let through or not.
    pub requests: u64,
    /// The time in which they came.
    pub elapsed: Duration,
}

/// What a holder is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has this from now on.
    Use(Share),
    /// It is to forget the bucket until it has a request again.
    Abandon,
}

/// What a holder may use for [`TTL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Tokens in each interval of the limit; with 0 every request is refused.
    pub tokens: u32,
    /// The interval.
    pub per: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    limit: Limit,
    /// Shares of an earlier owner are over then.
    opens: Instant,
    holders: BTreeMap<Id, Holder>,
    /// The first end of a share of each holder that has any.
    ends: BTreeSet<(Instant, Id)>,
    /// The sum of what holders may be using.
    committed: u64,
    planned: Option<Instant>,
    /// Who is first among those that take turns.
    turn: u64,
}

#[derive(Debug, Default)]
struct Holder {
    /// Tokens in an interval that it would use; None before its demand was measured.
    wanted: Option<u64>,
    /// What it should have, by the last plan.
    target: Option<u64>,
    /// Reported, and too short to be measured.
    pending: Demand,
    /// How long there was no request.
    idle: Duration,
    /// It was sent these and may be using any of them; a later one is smaller and ends later.
    shares: VecDeque<(u64, Instant)>,
    /// It will not report again.
    left: bool,
}

impl Holder {
    fn in_use(&self) -> u64 {
        self.shares.front().map_or(0, |(tokens, _)| *tokens)
    }

    fn first_end(&self) -> Option<Instant> {
        self.shares.front().map(|(_, end)| *end)
    }

    /// A share that is sent now. Those that are no larger end earlier and count no more.
    fn add(&mut self, tokens: u64, end: Instant) {
        while self.shares.back().is_some_and(|(older, _)| *older <= tokens) {
            self.shares.pop_back();
        }
        let full = self.shares.len() >= COUNTED;
        match self.shares.back_mut() {
            // It is counted as more than it is.
            Some(last) if full => last.1 = end,
            _ => self.shares.push_back((tokens, end)),
        }
    }

    /// Rises at once, falls by half of the way.
    fn measure(&mut self, demand: Demand, limit: Limit) {
        self.left = false;
        self.idle =
            if demand.requests == 0 { self.idle.saturating_add(demand.elapsed) } else { Duration::ZERO };
        self.pending.requests = self.pending.requests.saturating_add(demand.requests);
        self.pending.elapsed = self.pending.elapsed.saturating_add(demand.elapsed);
        if self.pending.elapsed < MEASURED {
            return;
        }
        let Demand { requests, elapsed } = std::mem::take(&mut self.pending);
        let most = u64::from(limit.requests);
        let rate = u128::from(requests) * limit.per.as_nanos() / elapsed.as_nanos().max(1);
        let rate = u64::try_from(rate).unwrap_or(most).min(most);
        let headroom = if requests == 0 { 0 } else { rounded(rate + rate / 4 + 1).min(most) };
        let old = self.wanted.unwrap_or(headroom).min(most);
        self.wanted = Some(headroom.max(headroom.midpoint(old)));
    }
}

impl Pool {
    /// All of `limit` is there from `opens` on.
    #[must_use]
    pub const fn new(limit: Limit, opens: Instant) -> Self {
        Self {
            limit,
            opens,
            holders: BTreeMap::new(),
            ends: BTreeSet::new(),
            committed: 0,
            planned: None,
            turn: 0,
        }
    }

    /// From when on it gives shares.
    #[must_use]
    pub const fn opens(&self) -> Instant {
        self.opens
    }

    /// Another limit. When it is lower, it holds as soon as what is too much is over.
    pub fn set_limit(&mut self, limit: Limit) {
        if limit != self.limit {
            self.limit = limit;
            self.planned = None;
        }
    }

    /// A holder says what it needs, and is told what it may use from now on. None: there is nothing for it yet, and it goes on with what
    /// it has.
    pub fn report(&mut self, id: Id, demand: Demand, now: Instant) -> Option<Answer> {
        self.expire(now);
        if !self.holders.contains_key(&id) && self.holders.len() >= MOST {
            return None;
        }
        let holder = self.holders.entry(id).or_default();
        holder.measure(demand, self.limit);
        if holder.idle >= IDLE {
            self.leave(id, now);
            return Some(Answer::Abandon);
        }
        self.plan(now);
        if now < self.opens {
            return None;
        }
        let (limit, everybody) = (u64::from(self.limit.requests), self.holders.len() as u64);
        let holder = self.holders.get_mut(&id)?;
        let target = holder.target.unwrap_or(limit / everybody.max(1));
        let before = holder.in_use();
        let free = limit.saturating_sub(self.committed - before);
        // Less than it has may always be said.
        let tokens = target.min(free.max(before));
        if tokens == 0 && target > 0 {
            return None;
        }
        if let Some(end) = holder.first_end() {
            self.ends.remove(&(end, id));
        }
        if tokens > 0 {
            holder.add(tokens, now + TTL + GRACE);
        }
        self.committed = self.committed - before + holder.in_use();
        if let Some(end) = holder.first_end() {
            self.ends.insert((end, id));
        }
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        Some(Answer::Use(Share { tokens, per: self.limit.per }))
    }

    /// A holder is gone. What it was sent counts until it is over.
    pub fn leave(&mut self, id: Id, now: Instant) {
        self.expire(now);
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.left = true;
            if holder.shares.is_empty() {
                self.holders.remove(&id);
            }
        }
        self.planned = None;
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.holders.is_empty()
    }

    /// Takes back what is over.
    fn expire(&mut self, now: Instant) {
        while let Some(&(end, id)) = self.ends.first()
            && end <= now
        {
            self.ends.pop_first();
            let Some(holder) = self.holders.get_mut(&id) else { continue };
            self.committed -= holder.in_use();
            while holder.first_end().is_some_and(|end| end <= now) {
                holder.shares.pop_front();
            }
            self.committed += holder.in_use();
            if let Some(end) = holder.first_end() {
                self.ends.insert((end, id));
            } else if holder.left {
                self.holders.remove(&id);
            }
        }
    }

    /// Decides what everybody should have: max-min fair, and when more is there than is wanted, an equal part of half of the rest.
    fn plan(&mut self, now: Instant) {
        if self.planned.is_some_and(|planned| now < planned + PLAN_EVERY) {
            return;
        }
        self.planned = Some(now);
        let limit = u64::from(self.limit.requests);
        let present = || self.holders.values().filter(|holder| !holder.left);
        let count = present().count() as u64;
        let equal = limit / count.max(1);
        let mut wants: Vec<u64> = present().map(|holder| holder.wanted.unwrap_or(equal)).collect();
        wants.sort_unstable();
        let (level, rest) = level(&wants, limit);
        let unmet = wants.iter().filter(|wanted| **wanted > level).count() as u64;
        let bonus = if unmet == 0 { rest / 2 / count.max(1) } else { 0 };
        // One token more for as many of those who want it as there are tokens left; in turns when it is the only one.
        if level == 0 {
            self.turn = self.turn.wrapping_add(rest.max(1));
        }
        let mut position = self.turn;
        for holder in self.holders.values_mut().filter(|holder| !holder.left) {
            let wanted = holder.wanted.unwrap_or(equal);
            let mut target = wanted.min(level) + bonus;
            if wanted > level {
                target += u64::from(position % unmet < rest);
                position = position.wrapping_add(1);
            }
            holder.target = Some(target);
        }
    }
}

/// `wanted`, up to an eighth more: what changes a little stays the same.
const fn rounded(wanted: u64) -> u64 {
    wanted.next_multiple_of(match wanted.checked_ilog2() {
        Some(bits @ 4..) => 1 << (bits - 3),
        _ => 1,
    })
}

/// The most that everybody can have who wants it, of `limit`, and what is left then. `wants` is in order.
fn level(wants: &[u64], limit: u64) -> (u64, u64) {
    let mut left = limit;
    for (i, wanted) in wants.iter().enumerate() {
        let others = (wants.len() - i) as u64;
        if wanted.saturating_mul(others) > left {
            return (left / others, left % others);
        }
        left -= wanted;
    }
    (wants.last().copied().unwrap_or(0), left)
}

#[cfg(test)]
mod tests;
