//! What was found: one table, and the checks against the targets.

use serde::Serialize;

use super::{Part, Plan};
use crate::compare::Check;
use crate::compare::procfs::{self, Machine};
use crate::compare::report::align;

/// Part of the machine that others may use before the table says so.
const QUIET: f64 = 0.05;

/// One number.
#[derive(Debug, Clone, Serialize)]
pub struct Number {
    /// What was measured.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// How much it was, mostly the median of `samples`; `None` if it could not be measured.
    pub value: Option<f64>,
    /// The most that is allowed.
    pub limit: Option<f64>,
    /// Every single measurement, in their order.
    pub samples: Vec<f64>,
}

impl Number {
    /// One that was measured once.
    #[must_use]
    pub fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { what: what.into(), unit, value: Some(value), limit: None, samples: Vec::new() }
    }

    /// The median of many.
    #[must_use]
    pub fn median(what: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self { value: median(&samples), samples, ..Self::new(what, unit, 0.0) }
    }

    /// One that could not be measured.
    #[must_use]
    pub fn missing(target: &Target) -> Self {
        Self { value: None, limit: Some(target.limit), ..Self::new(target.what, target.unit, 0.0) }
    }

    /// With a target.
    #[must_use]
    pub fn at_most(self, target: &Target) -> Self {
        Self { what: target.what.to_owned(), unit: target.unit, limit: Some(target.limit), ..self }
    }

    /// Its check, if it has a target.
    #[must_use]
    pub fn check(&self) -> Option<Check> {
        let what = format!("{}, {}", self.what, self.unit);
        Some(Check { what, value: self.value, limit: self.limit? })
    }

    fn line(&self) -> Vec<String> {
        let holds = |check: Check| if check.passed() { "yes" } else { "MISS" };
        let range =
            self.samples.iter().copied().reduce(f64::min).zip(self.samples.iter().copied().reduce(f64::max));
        vec![
            self.what.clone(),
            self.unit.to_owned(),
            self.value.map_or_else(|| "-".to_owned(), digits),
            range.map_or_else(String::new, |(low, high)| format!("{}..{}", digits(low), digits(high))),
            self.limit.map_or_else(String::new, digits),
            self.check().map_or("", holds).to_owned(),
        ]
    }
}

/// A number that must not be above a limit.
#[derive(Debug)]
pub struct Target {
    /// What is measured.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The most that is allowed.
    pub limit: f64,
}

/// What one part of the run found.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// Which part.
    pub part: Part,
    /// The numbers.
    pub numbers: Vec<Number>,
    /// Why it ended early, if so.
    pub failure: Option<String>,
    /// Part of the machine that neither this run nor what it started used meanwhile.
    pub noise: f64,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// On what.
    pub machine: Machine,
    /// Services of the mesh.
    pub services: usize,
    /// Those of them that the sidecar has.
    pub called: usize,
    /// The parts, in their order.
    pub sections: Vec<Section>,
}

impl Results {
    /// The results of a run on this machine.
    #[must_use]
    pub fn new(plan: &Plan, sections: Vec<Section>) -> Self {
        let (services, called) = (plan.services, plan.egress.unwrap_or(plan.services));
        Self { machine: procfs::machine(), services, called, sections }
    }

    /// One check for each target of the parts that were run.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        self.sections.iter().flat_map(|section| &section.numbers).filter_map(Number::check).collect()
    }

    /// Whether every part came to its end.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.sections.iter().all(|section| section.failure.is_none())
    }

    /// The table, with a note for everything that makes it doubtful.
    #[must_use]
    pub fn table(&self) -> String {
        let Machine { cpu, cores, kernel } = &self.machine;
        let mut lines = vec![["", "", "median", "all", "at most", "holds"].map(str::to_owned).to_vec()];
        lines.extend(self.sections.iter().flat_map(|section| &section.numbers).map(Number::line));
        let (called, services) = (self.called, self.services);
        let title = format!(
            "{cpu}, {cores} cores, Linux {kernel}; a sidecar that has {called} of {services} Services"
        );
        let mut text = format!("{title}\n{}", align(&lines));
        for Section { part, failure, noise, .. } in &self.sections {
            if let Some(failure) = failure {
                text.push_str(&format!("! {}: {failure}\n", part.name()));
            }
            if *noise > QUIET {
                let percent = noise * 100.0;
                text.push_str(&format!(
                    "! {}: others used {percent:.0} % of the machine meanwhile; measure on a quiet one\n",
                    part.name()
                ));
            }
        }
        text
    }
}

/// The middle one; the mean of the middle two of an even number.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let above = *sorted.get(sorted.len() / 2)?;
    let below = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(below, above))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Target = Target { what: "ready", unit: "ms", limit: 100.0 };
    const LOST: Target = Target { what: "lost", unit: "requests", limit: 0.0 };

    fn results(numbers: Vec<Number>) -> Results {
        let section = Section { part: Part::Start, numbers, failure: Some("it ended".into()), noise: 0.25 };
        let machine = Machine { cpu: "test".into(), cores: 2, kernel: "test".into() };
        Results { machine, services: 10, called: 10, sections: vec![section] }
    }

    #[test]
    fn a_limit_is_met_exactly_and_what_was_not_measured_is_missed() {
        let ready = Number::median("", "", vec![300.0, 100.0, 20.0]).at_most(&TIME);
        let all = results(vec![ready, Number::missing(&LOST), Number::new("CPU", "s", 1.5)]);
        assert_eq!(all.checks().iter().map(Check::passed).collect::<Vec<_>>(), [true, false]);
        assert!(!all.complete());
    }

    #[test]
    fn the_table_says_what_is_missed_and_what_is_doubtful() {
        let over = Number::median("", "", vec![90.0, 101.0, 250.5]).at_most(&TIME);
        let text = results(vec![over, Number::missing(&LOST)]).table();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        for line in ["ready ms 101 90..250 100 MISS", "lost requests - 0 MISS"] {
            assert!(lines.iter().any(|found| found == line), "{text}");
        }
        assert!(text.contains("! start: it ended\n! start: others used 25 %"), "{text}");
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[3.0, 1.0, 9.0, 4.0]), Some(3.5));
    }
}
