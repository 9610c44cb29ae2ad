//! What has to hold for the demo to have been one.

use std::time::Duration;

use super::metrics::View;
use super::screen::{Screen, percent};
use super::stage::{Authority, LIFE};
use super::streams::{Seen, WATCHERS};
use super::visitors::{Phase, Tally};

/// A check and what was found.
pub(super) struct Check {
    pub(super) what: String,
    pub(super) found: String,
    pub(super) held: bool,
}

/// What is known when everything has run.
pub(super) struct Outcome<'a> {
    pub(super) tally: &'a Tally,
    pub(super) view: &'a View,
    /// Sidecars that ended before they were told to.
    pub(super) dead: &'a [String],
    pub(super) sidecars: usize,
    /// For each edit, how long the sidecars took.
    pub(super) edits: &'a [Duration],
    /// Why an edit did not arrive.
    pub(super) lost: Option<&'a str>,
    /// Streams that were to last.
    pub(super) streams: &'a Seen,
    pub(super) elapsed: Duration,
    pub(super) authority: &'a Authority,
    /// The root that signed before another one was announced.
    pub(super) old_root: Option<&'a str>,
}

/// Fewer answers say nothing about a split.
const ENOUGH: u64 = 50;

/// How far a share may be from what is wanted: 4.5 standard deviations, which chance exceeds once in 150,000 runs.
fn tolerance(phase: &Phase) -> f64 {
    let p = f64::from(phase.wanted) / 100.0;
    450.0 * (p * (1.0 - p) / phase.answers().max(1) as f64).sqrt()
}

pub(super) fn checks(outcome: &Outcome<'_>) -> Vec<Check> {
    let Outcome { tally, view, dead, sidecars, edits, lost, .. } = outcome;
    let mut list = Vec::new();
    let mut add = |what: &str, held: bool, found: String| list.push(Check { what: what.into(), found, held });
    let missing = tally.sent - tally.done + tally.skipped;
    let mut found = format!("{} of {} succeeded", tally.done - tally.failed, tally.sent + tally.skipped);
    for failure in &tally.failures {
        found.push_str("; ");
        found.push_str(failure);
    }
    add("no request of a visitor failed", tally.failed == 0 && missing == 0 && tally.done > 0, found);
    let stock = view.towards("stock");
    let failed = stock.tries - stock.tries_succeeded;
    add(
        "tries failed before retries",
        failed > 0 && view.retries > 0,
        format!("{failed} of {} tries at stock failed, {} retries", stock.tries, view.retries),
    );
    add(
        "no call failed after retries",
        stock.requests > 0 && stock.succeeded == stock.requests,
        format!("{} of {} calls to stock", percent(stock.succeeded, stock.requests), stock.requests),
    );
    let all = view.towards("");
    add(
        "everything between sidecars is mTLS",
        all.tries > 0 && all.mutual_tls == all.tries,
        format!("{} of {} requests", all.mutual_tls, all.tries),
    );
    for phase in &tally.phases {
        let (wanted, other) = (phase.wanted, 100 - phase.wanted);
        let off = (phase.share() - f64::from(wanted)).abs();
        let few = phase.answers() < ENOUGH;
        let found =
            format!("v1 {:.1} % of {} answers, ± {:.1}", phase.share(), phase.answers(), tolerance(phase));
        add(&format!("split {wanted}/{other}"), !few && off <= tolerance(phase), found);
    }
    if let Some(before) = tally.failed_before_edit {
        let slowest = edits.iter().max().map_or(0, Duration::as_millis);
        add(
            "the edit of the route failed nothing",
            tally.failed == before && view.refused == 0,
            format!("in force after {slowest} ms, {} requests failed since", tally.failed - before),
        );
    }
    if let Some(why) = lost {
        add("every sidecar takes the edit", false, (*why).to_owned());
    }
    list.extend(identity(outcome));
    let held = dead.is_empty();
    let found = if held { format!("{sidecars} of {sidecars} running") } else { dead.join("; ") };
    list.push(Check { what: "no sidecar ended".into(), found, held });
    list
}

/// Certificates change, and nobody notices.
fn identity(outcome: &Outcome<'_>) -> Vec<Check> {
    let Outcome { view, sidecars, streams, elapsed, authority, old_root, .. } = outcome;
    let mut list = Vec::new();
    let mut add = |what: &str, held: bool, found: String| list.push(Check { what: what.into(), found, held });
    let least = view.certificates.iter().min().map_or(0, |n| n.saturating_sub(1));
    // Each is renewed at half of its life, a tenth later at most.
    let due = (elapsed.as_secs_f64() / (LIFE.as_secs_f64() * 0.56)).floor();
    add(
        "every certificate was renewed in time",
        view.certificates.len() == *sidecars && least as f64 >= due && view.certificates_refused == 0,
        format!("{least} times at least, with {} s of life", LIFE.as_secs()),
    );
    let mut found = format!("{} streams, {} events", streams.opened, streams.events);
    for why in &streams.closed {
        found.push_str(&format!("; one was closed: {why}"));
    }
    let held = streams.opened == WATCHERS && streams.closed.is_empty() && streams.events > 0;
    add("no stream was closed", held, found);
    if let Some(old) = old_root {
        add(
            "a new root took over",
            authority.root != *old && authority.certificates >= *sidecars,
            format!(
                "it signed {} certificates of {} identities",
                authority.certificates, authority.identities
            ),
        );
    }
    list
}

/// The report as text.
pub(super) fn text(screen: &Screen, outcome: &Outcome<'_>, checks: &[Check]) -> String {
    let (tally, elapsed) = (outcome.tally, outcome.elapsed);
    let mut out = format!(
        "\n{}\n{}\n  latency as visitors see it: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n\n",
        screen.bold(&format!("report after {:.1} s", elapsed.as_secs_f64())),
        screen.edges(outcome.view, elapsed),
        tally.millis(0.5),
        tally.millis(0.9),
        tally.millis(0.99),
        tally.latency.max() as f64 / 1000.0,
    );
    for check in checks {
        let mark = if check.held { screen.good("ok    ") } else { screen.bad("FAILED") };
        out.push_str(&format!("  {mark}  {:<38} {}\n", check.what, screen.faint(&check.found)));
    }
    let failed = checks.iter().filter(|c| !c.held).count();
    let last = if failed == 0 {
        screen.good("every check held")
    } else {
        screen.bad(&format!("{failed} check(s) failed"))
    };
    out.push_str(&format!("\n  {last}"));
    out
}
