//! What was found: a table with a column for each program, plain lines for other programs, and checks against the targets.

use serde::Serialize;

use crate::compare::Check;
use crate::compare::procfs::{self, Machine};

/// One number.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// What was measured.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How much it was; `None` if it could not be measured.
    pub value: Option<f64>,
    /// The most that Remora may have.
    pub limit: Option<f64>,
}

impl Found {
    /// Something to know.
    #[must_use]
    pub fn new(what: &'static str, unit: &'static str, value: f64) -> Self {
        Self { what, unit, value: Some(value), limit: None }
    }

    /// With a target.
    #[must_use]
    pub fn at_most(self, limit: f64) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// What was found about one program.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// The program.
    pub program: String,
    /// The numbers, the same ones in the same order for every program.
    pub found: Vec<Found>,
    /// Part of the machine that others used meanwhile.
    pub noise: f64,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// What was run.
    pub title: String,
    /// On what.
    pub machine: Machine,
    /// Remora first.
    pub columns: Vec<Column>,
}

impl Results {
    /// The results of a run on this machine.
    #[must_use]
    pub fn new(title: String, columns: Vec<Column>) -> Self {
        Self { title, machine: procfs::machine(), columns }
    }

    /// The checks of the first program.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let found = self.columns.iter().take(1).flat_map(|column| &column.found);
        found
            .filter_map(|found| {
                let what = format!("{}, {}", found.what, found.unit);
                Some(Check { what, value: found.value, limit: found.limit? })
            })
            .collect()
    }

    /// The table for a terminal, with a note for everything that makes it doubtful.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = vec![["", ""].map(str::to_owned).to_vec()];
        if let Some(head) = lines.first_mut() {
            head.extend(self.columns.iter().map(|column| column.program.clone()));
            head.push("at most".into());
        }
        for (row, first) in self.columns.first().into_iter().flat_map(|c| c.found.iter().enumerate()) {
            let mut line = vec![first.what.to_owned(), first.unit.to_owned()];
            let cells = self.columns.iter().map(|column| column.found.get(row).and_then(|f| f.value));
            line.extend(cells.map(|value| value.map_or_else(|| "-".to_owned(), number)));
            line.push(match first.limit {
                Some(limit) if first.value.is_some_and(|value| value <= limit) => number(limit),
                Some(limit) => format!("{} MISS", number(limit)),
                None => String::new(),
            });
            lines.push(line);
        }
        let mut text = format!("{}\n{}", self.title, crate::compare::report::align(&lines));
        for column in self.columns.iter().filter(|column| column.noise > 0.05) {
            text.push_str(&format!(
                "! {}: others used {:.0} % of the machine meanwhile; measure on a quiet one\n",
                column.program,
                column.noise * 100.0
            ));
        }
        text
    }

    /// One line for each number, for a pipe: program, what, value and unit, with tabs between.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for column in &self.columns {
            for found in &column.found {
                let value = found.value.map_or_else(|| "-".to_owned(), number);
                text.push_str(&format!("{}\t{}\t{value}\t{}\n", column.program, found.what, found.unit));
            }
            text.push_str(&format!("{}\tnoise\t{}\t%\n", column.program, number(column.noise * 100.0)));
        }
        text
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let column = |program: &str, rss: f64| Column {
            program: program.into(),
            found: vec![
                Found::new("RSS", "MB", rss).at_most(45.0),
                Found { value: None, ..Found::new("applied", "ms", 0.0).at_most(5.0) },
                Found::new("CPU", "s", 0.25),
            ],
            noise: 0.5,
        };
        let machine = Machine { cpu: "test".into(), cores: 2, kernel: "test".into() };
        Results {
            title: "a run".into(),
            machine,
            columns: vec![column("remora", 45.0), column("envoy", 418.2)],
        }
    }

    #[test]
    fn the_table_marks_what_is_missed() {
        let text = results().table();
        assert!(text.contains("RSS      MB      45    418       45\n"), "{text}");
        assert!(text.contains("applied  ms       -      -   5 MISS\n"), "{text}");
        assert!(text.contains("! envoy: others used 50 %"), "{text}");
    }

    #[test]
    fn only_the_first_program_has_targets_and_what_was_not_measured_is_missed() {
        let checks = results().checks();
        assert_eq!(checks.iter().map(Check::passed).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_pipe_gets_a_line_for_each_number() {
        assert!(
            results()
                .lines()
                .starts_with("remora\tRSS\t45\tMB\nremora\tapplied\t-\tms\nremora\tCPU\t0.25\ts\n")
        );
    }
}
