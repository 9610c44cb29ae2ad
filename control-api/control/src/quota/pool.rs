//! The tokens of one bucket: who wants how many, who holds how many, and until when. Pure: `now` is an argument.
//!
//! What a holder may be using at a moment is the largest of the shares that it was sent and that are not over yet. The sum of these
//! over all holders never exceeds the limit.
//!
//! It counts in parts of a token: a limit has at least one for every holder, so that fewer tokens than holders are shared, too.

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

/// No share has tokens that come more slowly.
const SLOWEST: Duration = Duration::from_secs(365 * 24 * 3600);
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

/// What a holder may use for [`TTL`]: a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Tokens that it holds; with 0 every request is refused.
    pub max: u32,
    /// So many come…
    pub per_fill: u32,
    /// …in so long a time.
    pub interval: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    limit: Limit,
    /// Of one token.
    parts: u64,
    /// Shares of an earlier owner are over then.
    opens: Instant,
    holders: BTreeMap<Id, Holder>,
    /// The first end of a share of each holder that has any.
    ends: BTreeSet<(Instant, Id)>,
    /// The sum of what holders may be using.
    committed: u64,
    planned: Option<Instant>,
}

#[derive(Debug)]
struct Holder {
    /// Its last report.
    reported: Instant,
    /// Parts in an interval that it would use; None before its demand was measured.
    wanted: Option<u64>,
    /// Parts that it should have, by the last plan.
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
    const fn new(now: Instant) -> Self {
        Self {
            reported: now,
            wanted: None,
            target: None,
            pending: Demand { requests: 0, elapsed: Duration::ZERO },
            idle: Duration::ZERO,
            shares: VecDeque::new(),
            left: false,
        }
    }

    fn in_use(&self) -> u64 {
        self.shares.front().map_or(0, |(parts, _)| *parts)
    }

    fn first_end(&self) -> Option<Instant> {
        self.shares.front().map(|(_, end)| *end)
    }

    /// A share that is sent now. Those that are no larger end earlier and count no more.
    fn add(&mut self, parts: u64, end: Instant) {
        while self.shares.back().is_some_and(|(older, _)| *older <= parts) {
            self.shares.pop_back();
        }
        let full = self.shares.len() >= COUNTED;
        match self.shares.back_mut() {
            // It is counted as more than it is.
            Some(last) if full => last.1 = end,
            _ => self.shares.push_back((parts, end)),
        }
    }

    /// Rises at once, falls by half of the way.
    fn measure(&mut self, demand: Demand, (limit, parts): (Limit, u64)) {
        self.left = false;
        self.idle =
            if demand.requests == 0 { self.idle.saturating_add(demand.elapsed) } else { Duration::ZERO };
        self.pending.requests = self.pending.requests.saturating_add(demand.requests);
        self.pending.elapsed = self.pending.elapsed.saturating_add(demand.elapsed);
        if self.pending.elapsed < MEASURED {
            return;
        }
        let Demand { requests, elapsed } = std::mem::take(&mut self.pending);
        let most = u64::from(limit.requests) * parts;
        let rate =
            u128::from(requests) * u128::from(parts) * limit.per.as_nanos() / elapsed.as_nanos().max(1);
        let rate = u64::try_from(rate).unwrap_or(most).min(most);
        let headroom = if requests == 0 { 0 } else { rounded(rate + rate / 4 + parts).min(most) };
        let old = self.wanted.unwrap_or(headroom).min(most);
        self.wanted = Some(headroom.max(headroom.midpoint(old)));
    }

    /// All that is counted becomes `scaled`.
    fn rescale(&mut self, scaled: impl Fn(u64) -> u64) {
        self.wanted = self.wanted.map(&scaled);
        self.target = None;
        self.shares.iter_mut().for_each(|(parts, _)| *parts = scaled(*parts));
    }
}

/// Of one token of `limit`.
fn parts(limit: Limit) -> u64 {
    (MOST as u64).div_ceil(u64::from(limit.requests.max(1)))
}

impl Pool {
    /// All of `limit` is there from `opens` on.
    #[must_use]
    pub fn new(limit: Limit, opens: Instant) -> Self {
        let (holders, ends) = (BTreeMap::new(), BTreeSet::new());
        Self { limit, parts: parts(limit), opens, holders, ends, committed: 0, planned: None }
    }

    /// From when on it gives shares.
    #[must_use]
    pub const fn opens(&self) -> Instant {
        self.opens
    }

    /// Another limit. When it is lower, it holds as soon as what is too much is over.
    pub fn set_limit(&mut self, limit: Limit) {
        if limit == self.limit {
            return;
        }
        let old = u128::from(self.parts) * self.limit.per.as_nanos().max(1);
        let new = u128::from(parts(limit)) * limit.per.as_nanos();
        // The same rate, in parts of the new limit.
        let scaled = |parts: u64| {
            let parts = u128::from(parts).saturating_mul(new).div_ceil(old);
            u64::try_from(parts).unwrap_or(u64::MAX / MOST as u64)
        };
        self.holders.values_mut().for_each(|holder| holder.rescale(scaled));
        self.committed = self.holders.values().map(Holder::in_use).sum();
        (self.limit, self.parts, self.planned) = (limit, parts(limit), None);
    }

    fn all(&self) -> u64 {
        u64::from(self.limit.requests) * self.parts
    }

    /// The token bucket of so many parts. It holds one token at least: otherwise nobody could ever take one.
    fn share(&self, parts: u64) -> Share {
        let whole = parts / self.parts;
        let per = self.limit.per;
        let nothing = Share { max: 0, per_fill: 0, interval: per };
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let interval = per.saturating_mul(narrow(self.parts));
        match parts {
            0 => nothing,
            _ if interval / narrow(parts) > SLOWEST => nothing,
            _ if whole * self.parts == parts => {
                Share { max: narrow(whole), per_fill: narrow(whole), interval: per }
            }
            _ => Share { max: narrow(whole.max(1)), per_fill: narrow(parts), interval },
        }
    }

    /// A holder says what it needs, and is told what it may use from now on. None: there is nothing for it yet, and it goes on with what
    /// it has.
    pub fn report(&mut self, id: Id, demand: Demand, now: Instant) -> Option<Answer> {
        self.expire(now);
        if !self.holders.contains_key(&id) && self.holders.len() >= MOST {
            return None;
        }
        let holder = self.holders.entry(id).or_insert_with(|| Holder::new(now));
        holder.reported = now;
        holder.measure(demand, (self.limit, self.parts));
        if holder.idle >= IDLE {
            self.leave(id, now);
            return Some(Answer::Abandon);
        }
        self.plan(now);
        if now < self.opens {
            return None;
        }
        let (all, everybody) = (self.all(), self.holders.len() as u64);
        let holder = self.holders.get_mut(&id)?;
        let target = holder.target.unwrap_or_else(|| all / everybody.max(1));
        let before = holder.in_use();
        let free = all.saturating_sub(self.committed - before);
        // Less than it has may always be said.
        let parts = target.min(free.max(before));
        if before == 0 && parts < target.min(self.parts) {
            return None;
        }
        if let Some(end) = holder.first_end() {
            self.ends.remove(&(end, id));
        }
        if parts > 0 {
            holder.add(parts, now + TTL + GRACE);
        }
        self.committed = self.committed - before + holder.in_use();
        if let Some(end) = holder.first_end() {
            self.ends.insert((end, id));
        }
        Some(Answer::Use(self.share(parts)))
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

    /// Decides what everybody should have: max-min fair, and when more is there than is wanted, an equal part of half of the rest. Who
    /// wants nothing at the moment keeps a tenth of an equal part: whoever asks seldom would never find anything otherwise.
    fn plan(&mut self, now: Instant) {
        if self.planned.is_some_and(|planned| now < planned + PLAN_EVERY) {
            return;
        }
        self.planned = Some(now);
        // One that has other buckets lives on, and may not need this one any more.
        self.holders.retain(|_, holder| !holder.shares.is_empty() || now < holder.reported + IDLE);
        let all = self.all();
        let present = || self.holders.values().filter(|holder| !holder.left);
        let count = (present().count() as u64).max(1);
        let equal = all / count;
        let wants = |holder: &Holder| holder.wanted.unwrap_or(equal).max(equal / 10);
        let mut sorted: Vec<u64> = present().map(wants).collect();
        sorted.sort_unstable();
        let (level, mut rest) = level(&sorted, all);
        let bonus = if sorted.last().is_some_and(|most| *most > level) { 0 } else { rest / 2 / count };
        for holder in self.holders.values_mut().filter(|holder| !holder.left) {
            let wanted = wants(holder);
            // What cannot be divided is one part more for some.
            let more = u64::from(wanted > level && rest > 0);
            rest -= more;
            holder.target = Some(wanted.min(level) + bonus + more);
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
