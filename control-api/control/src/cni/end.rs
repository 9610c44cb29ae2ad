//! What becomes of the plugin at the end of its installer, by what the API server says. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::chain::Standing;

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// Longer than anybody waits.
const MOST: Duration = Duration::from_secs(3600);
/// So many of them at least, where there is less time.
const QUESTIONS: u32 = 5;

/// The question whether the DaemonSet stands. A refusal is asked again for: rights that went with the DaemonSet do not come back, but an API
/// server that starts, or loses its authenticator for a moment, refuses, too.
#[derive(Debug)]
pub(super) struct End {
    until: Instant,
    pause: Duration,
    refused: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Decided(Standing),
    /// To ask again, then.
    Again(Instant),
}

impl End {
    /// `within`: so long a refusal decides nothing.
    pub(super) fn new(now: Instant, within: Duration) -> Self {
        let within = within.min(MOST);
        Self { until: now + within, pause: PAUSE.min(within / QUESTIONS), refused: false }
    }

    /// `said`: an answer, or why whoever asked may not.
    pub(super) fn heard(&mut self, said: Result<Standing, String>, now: Instant) -> Next {
        let again = now + self.pause;
        let is_time = again < self.until;
        match said {
            Err(_) if is_time => {
                self.refused = true;
                Next::Again(again)
            }
            Err(_) => Next::Decided(Standing::Gone),
            Ok(Standing::Unknown(_)) if self.refused && is_time => Next::Again(again),
            Ok(standing) => Next::Decided(standing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(15);

    fn unknown() -> Standing {
        Standing::Unknown("500".into())
    }

    fn refused() -> Result<Standing, String> {
        Err("401".into())
    }

    #[test]
    fn an_answer_decides_at_once() {
        let now = Instant::now();
        for said in [Standing::Stands, Standing::Gone, unknown()] {
            assert_eq!(End::new(now, WITHIN).heard(Ok(said.clone()), now), Next::Decided(said));
        }
    }

    #[test]
    fn a_refusal_decides_when_it_stays() {
        let (mut now, mut asked) = (Instant::now(), 1);
        let (mut end, start) = (End::new(now, WITHIN), now);
        while let Next::Again(at) = end.heard(refused(), now) {
            assert!(at > now && at < start + WITHIN);
            (now, asked) = (at, asked + 1);
        }
        assert_eq!(asked, 8);
        assert_eq!(end.heard(refused(), now), Next::Decided(Standing::Gone));
    }

    #[test]
    fn a_refusal_that_passes_decides_nothing() {
        let now = Instant::now();
        for said in [Standing::Stands, Standing::Gone] {
            let mut end = End::new(now, WITHIN);
            assert_eq!(end.heard(refused(), now), Next::Again(now + PAUSE));
            // Nobody says for a moment.
            assert_eq!(end.heard(Ok(unknown()), now + PAUSE), Next::Again(now + 2 * PAUSE));
            assert_eq!(end.heard(Ok(said.clone()), now + 2 * PAUSE), Next::Decided(said));
        }
        let mut end = End::new(now, WITHIN);
        assert_eq!(end.heard(refused(), now), Next::Again(now + PAUSE));
        assert_eq!(end.heard(Ok(unknown()), now + WITHIN), Next::Decided(unknown()), "all stays");
    }

    #[test]
    fn a_short_time_is_enough_for_some_questions() {
        let now = Instant::now();
        let within = Duration::from_millis(500);
        assert_eq!(End::new(now, within).heard(refused(), now), Next::Again(now + within / 5));
        assert_eq!(End::new(now, Duration::ZERO).heard(refused(), now), Next::Decided(Standing::Gone));
    }
}
