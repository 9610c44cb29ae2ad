//! Hedging: a try that is late is not given up. Another one begins beside it, the first good answer goes to the client, and the
//! others are cancelled (Envoy `HedgePolicy.hedge_on_per_try_timeout`).
//!
//! A hedge is a retry that did not wait: whether there may be one is asked of the policy ([`super::retry::RetryState::hedge`]), of the
//! budget and of the request's time. Each try has at most one successor, so that they form a line: only the last one can still get one.

use std::time::Duration;

use tokio::time::Instant;

/// How long a try may be alone.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    after: Duration,
    due: Option<Instant>,
    over: bool,
}

impl Patience {
    /// Ends `after` the try began, or the request was complete, whichever is later.
    #[must_use]
    pub const fn new(after: Duration) -> Self {
        Self { after, due: None, over: false }
    }

    /// When it ends. None while the request is not `complete`, and when it is over.
    pub fn due(&mut self, complete: bool, now: Instant) -> Option<Instant> {
        if self.over || !complete {
            return None;
        }
        self.due = self.due.or_else(|| now.checked_add(self.after));
        self.due
    }

    /// Whether it ends now. True once.
    pub fn ends(&mut self, now: Instant) -> bool {
        let ends = !self.over && self.due.is_some_and(|due| due <= now);
        self.over |= ends;
        ends
    }
}

/// How a try among several ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// With no answer, or with one that the policy would try again.
    pub bad: bool,
    /// Another try followed it already, or is about to.
    pub followed: bool,
    /// Others have no answer yet, or are about to begin.
    pub others: bool,
}

/// What follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This is the answer; the others are cancelled.
    Answer,
    /// It is forgotten: another one may do better.
    Wait,
    /// The policy and the budget are asked for a retry. If there is none, [`Ended::settled`] holds.
    Retry,
}

impl Ended {
    /// What follows.
    #[must_use]
    pub const fn next(self) -> Next {
        match self {
            Self { bad: false, .. } => Next::Answer,
            Self { followed: false, .. } => Next::Retry,
            _ => self.settled(),
        }
    }

    /// What follows when there is no retry.
    #[must_use]
    pub const fn settled(self) -> Next {
        if self.bad && self.others { Next::Wait } else { Next::Answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn patience_begins_with_the_complete_request_and_ends_once() {
        let start = Instant::now();
        let mut patience = Patience::new(ms(100));
        assert_eq!(patience.due(false, start), None);
        assert!(!patience.ends(start + ms(500)), "the client is still sending");
        assert_eq!(patience.due(true, start + ms(500)), Some(start + ms(600)));
        assert_eq!(patience.due(true, start + ms(550)), Some(start + ms(600)), "it goes on");
        assert!(!patience.ends(start + ms(599)));
        assert!(patience.ends(start + ms(600)));
        assert!(!patience.ends(start + ms(700)));
        assert_eq!(patience.due(true, start + ms(700)), None);
    }

    #[test]
    fn without_an_end_there_is_no_hedge() {
        let now = Instant::now();
        let mut patience = Patience::new(Duration::MAX);
        assert_eq!(patience.due(true, now), None);
        assert!(!patience.ends(now + ms(1)));
    }

    #[test]
    fn the_first_good_answer_counts_and_a_bad_one_waits_for_the_others() {
        for (followed, others) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(Ended { bad: false, followed, others }.next(), Next::Answer);
        }
        let bad = |followed, others| Ended { bad: true, followed, others };
        assert_eq!(bad(true, true).next(), Next::Wait);
        assert_eq!(bad(true, false).next(), Next::Answer, "it was the last one");
        assert_eq!(bad(false, true).next(), Next::Retry);
        assert_eq!(bad(false, true).settled(), Next::Wait);
        assert_eq!(bad(false, false).next(), Next::Retry);
        assert_eq!(bad(false, false).settled(), Next::Answer);
    }
}
