//! Many checks of one mesh: all are made, and all that fail are named.

/// What was checked so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    failed: Vec<String>,
    made: usize,
}

impl Checks {
    /// `what` holds; `saw` is what was seen instead.
    pub(crate) fn that(&mut self, what: &str, holds: bool, saw: &str) {
        self.made += 1;
        if holds {
            eprintln!("ok    {what}");
        } else {
            eprintln!("FAIL  {what}: {saw}");
            self.failed.push(format!("{what}: {saw}"));
        }
    }

    /// An answer begins with this and has all of those in it.
    pub(crate) fn answer(&mut self, what: &str, answer: &str, begins: &str, has: &[&str]) {
        let holds = answer.starts_with(begins) && has.iter().all(|part| answer.contains(part));
        self.that(what, holds, answer.trim_end());
    }

    /// Curl gave up at once: it got a refusal, not silence (28 is curl's time limit).
    pub(crate) fn refused(&mut self, what: &str, answer: &str) {
        self.that(what, answer.starts_with("error ") && answer != "error 28", answer.trim_end());
    }

    /// # Panics
    /// When a check failed.
    pub(crate) fn end(self) {
        let failed = self.failed.len();
        assert!(failed == 0, "{failed} of {} checks failed:\n{}", self.made, self.failed.join("\n"));
        eprintln!("{} checks", self.made);
    }
}
