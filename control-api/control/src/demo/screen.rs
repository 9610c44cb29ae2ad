//! What a person sees: a table that is drawn anew on a terminal, lines everywhere else.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use super::metrics::View;
use super::stage::Stage;
use super::visitors::Tally;

pub(super) struct Screen {
    live: bool,
    colour: bool,
    /// Lines of the table that is on the screen.
    drawn: usize,
}

/// What is shown at one moment.
pub(super) struct Moment<'a> {
    pub(super) elapsed: Duration,
    pub(super) total: Option<Duration>,
    pub(super) view: &'a View,
    pub(super) tally: &'a Tally,
    pub(super) note: &'a str,
}

impl Screen {
    pub(super) fn new(plain: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let quiet = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self { live: terminal && !dumb && !plain, colour: terminal && !dumb && !quiet, drawn: 0 }
    }

    /// How often something new is worth being shown.
    pub(super) const fn period(&self) -> Duration {
        Duration::from_millis(if self.live { 500 } else { 1000 })
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn bad(&self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub(super) fn faint(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Prints lines that stay.
    pub(super) fn say(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A reader that went away is no reason to stop.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Says what has just happened; a table shows it by itself.
    pub(super) fn note(&self, text: &str) {
        if !self.live {
            self.say(text);
        }
    }

    /// What runs where.
    pub(super) fn introduce(&self, stage: &Stage) {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{}",
            self.bold(
                "remora demo: visitors -> shop (2 instances) -> stock (v1, v2), mTLS between the sidecars"
            )
        );
        let _ = writeln!(out, "stock v2 misbehaves on purpose: one request in four fails at the first try");
        if let Ok(address) = stage.outbound("visitors", "shop") {
            let _ = writeln!(out, "\n  try it        curl http://{address}/");
        }
        let _ = writeln!(out, "  ask           remora status --server {}", stage.server());
        let _ = writeln!(out, "  look at       {}", self.faint("the admin page of each sidecar"));
        for sidecar in &stage.sidecars {
            let _ = writeln!(out, "    {:<10}  http://{}/", sidecar.name, sidecar.admin);
        }
        self.say(&out);
    }

    /// Shows the moment.
    pub(super) fn show(&mut self, moment: &Moment<'_>) {
        if !self.live {
            self.say(&line(moment));
            return;
        }
        let table = self.table(moment);
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        // A line that wraps would count as two.
        let _ = write!(out, "\x1b[?7l{table}\x1b[?7h");
        self.drawn = table.lines().count();
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
    }

    fn table(&self, moment: &Moment<'_>) -> String {
        let Moment { elapsed, total, view, tally, note } = moment;
        let mut out = String::new();
        let time = total.map_or_else(|| "Ctrl-C ends it".into(), |t| format!("of {:.0} s", t.as_secs_f64()));
        let _ =
            writeln!(out, "{} {}", self.bold(&format!("{:5.1} s", elapsed.as_secs_f64())), self.faint(&time));
        out.push_str(&self.edges(view, *elapsed));
        let failed = format!("{} failed", tally.failed);
        let failed = if tally.failed == 0 { self.good(&failed) } else { self.bad(&failed) };
        let _ = writeln!(
            out,
            "\n  visitors   {} requests, {failed}   p50 {:.1} ms   p99 {:.1} ms   {} retries",
            tally.done,
            tally.millis(0.5),
            tally.millis(0.99),
            view.retries
        );
        if let Some(phase) = tally.phases.last() {
            let (wide, share) = (40, phase.share());
            let filled = (share / 100.0 * f64::from(wide)).round() as usize;
            let bar =
                format!("{}{}", "█".repeat(filled), "░".repeat(wide as usize - filled.min(wide as usize)));
            let _ = writeln!(
                out,
                "  route      v1 {share:3.0} % {bar} {:3.0} % v2   {}",
                100.0 - share,
                self.faint(&format!("the document says {}/{}", phase.wanted, 100 - phase.wanted))
            );
        }
        let _ = writeln!(out, "  {note}");
        out
    }

    /// Who talks to whom.
    pub(super) fn edges(&self, view: &View, elapsed: Duration) -> String {
        let mut out = String::new();
        let head = format!(
            "  {:<10} {:<10} {:>9} {:>8} {:>15} {:>14}",
            "FROM", "TO", "REQUESTS", "PER S", "OK BEFORE RETRY", "OK AFTER RETRY"
        );
        let _ = writeln!(out, "{}", self.faint(&head));
        for (edge, counts) in &view.edges {
            let before = format!("{:>15}", percent(counts.tries_succeeded, counts.tries));
            let after = format!("{:>14}", percent(counts.succeeded, counts.requests));
            let paint = |text: &str, ok: bool| if ok { self.good(text) } else { self.bad(text) };
            let _ = writeln!(
                out,
                "  {:<10} {:<10} {:>9} {:>8.1} {} {}",
                edge.from,
                edge.to,
                counts.requests,
                counts.requests as f64 / elapsed.as_secs_f64().max(0.001),
                paint(&before, counts.tries_succeeded == counts.tries),
                paint(&after, counts.succeeded == counts.requests),
            );
        }
        out
    }
}

/// One moment as one line.
fn line(moment: &Moment<'_>) -> String {
    let Moment { elapsed, view, tally, .. } = moment;
    let stock = view.towards("stock");
    let split = tally.phases.last().map_or_else(String::new, |p| {
        let (wanted, other) = (p.wanted, 100 - p.wanted);
        format!("  v1 {:.0} % v2 {:.0} % (document {wanted}/{other})", p.share(), 100.0 - p.share())
    });
    format!(
        "{:5.1} s  requests {}  failed {}  stock ok {} before retries, {} after{split}  p50 {:.1} ms  p99 {:.1} ms",
        elapsed.as_secs_f64(),
        tally.done,
        tally.failed,
        percent(stock.tries_succeeded, stock.tries),
        percent(stock.succeeded, stock.requests),
        tally.millis(0.5),
        tally.millis(0.99),
    )
}

/// `99.87 %`, never rounded up to 100.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let hundredths = part.saturating_mul(10_000) / whole;
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_never_disappears_in_rounding() {
        assert_eq!(percent(99_999, 100_000), "99.99 %");
        assert_eq!(percent(5, 5), "100.00 %");
        assert_eq!(percent(0, 0), "-");
    }
}
