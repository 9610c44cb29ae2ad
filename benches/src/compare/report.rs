//! What a run found, as one table and as JSON.

use serde::Serialize;

use super::measure::Plan;
use super::procfs::Machine;
use super::proxies::{Proxy, Scenario, name};
use super::spawn::Placement;
use super::stats::Round;

/// One proxy in one scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was carried.
    pub scenario: Scenario,
    /// By whom.
    pub proxy: Proxy,
    /// Medians of the rounds; counts of errors are sums.
    pub median: Round,
    /// Every round.
    pub rounds: Vec<Round>,
    /// Why there are no (more) rounds.
    pub failure: Option<String>,
}

impl Row {
    pub(super) fn new(scenario: Scenario, proxy: Proxy) -> Self {
        Self { scenario, proxy, median: Round::default(), rounds: Vec::new(), failure: None }
    }
}

/// How the run was made.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// Rounds per proxy and scenario.
    pub rounds: usize,
    /// Requests per second at the fixed rate.
    pub rate: f64,
    /// Handshakes per second at the fixed rate.
    pub handshake_rate: f64,
    /// Requests that were due together.
    pub burst: u32,
    /// Seconds of the fixed-rate window.
    pub seconds: f64,
    /// HTTP/1 connections.
    pub connections: usize,
    /// HTTP/2 connections.
    pub h2_connections: usize,
    /// Most requests in flight on one of them.
    pub h2_streams: usize,
    /// Connections of the bulk run.
    pub bulk_connections: usize,
    /// The path of every request.
    pub path: String,
    /// Where the proxies ran at the fixed rate.
    pub placement: Placement,
}

/// Everything that a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// What the machine is.
    pub machine: Machine,
    /// What the programs say about themselves.
    pub versions: Vec<(Proxy, String)>,
    /// How the run was made.
    pub setting: Setting,
    /// By scenario, then by proxy in the order of the plan.
    pub rows: Vec<Row>,
}

impl Results {
    pub(super) fn new(plan: &Plan, machine: Machine, versions: Vec<(Proxy, String)>, rows: Vec<Row>) -> Self {
        let setting = Setting {
            rounds: plan.rounds,
            rate: plan.rate,
            handshake_rate: plan.handshake_rate,
            burst: plan.burst,
            seconds: plan.window.as_secs_f64(),
            connections: plan.connections,
            h2_connections: plan.h2_connections,
            h2_streams: plan.h2_streams,
            bulk_connections: plan.bulk_connections,
            path: plan.path.clone(),
            placement: plan.placement,
        };
        Self { machine, versions, setting, rows }
    }

    /// The medians of one proxy in one scenario, if every round of it succeeded.
    #[must_use]
    pub fn of(&self, scenario: Scenario, proxy: Proxy) -> Option<&Round> {
        let row = self.rows.iter().find(|row| row.scenario == scenario && row.proxy == proxy)?;
        (row.failure.is_none() && !row.rounds.is_empty()).then_some(&row.median)
    }

    /// CPU of one proxy over that of another.
    #[must_use]
    pub fn ratio(&self, scenario: Scenario, proxy: Proxy, to: Proxy) -> Option<f64> {
        let other = self.of(scenario, to)?.cpu_us;
        let value = self.of(scenario, proxy)?.cpu_us;
        (other > 0.0 && value > 0.0).then(|| value / other)
    }
}

const HEAD: [&str; 15] = [
    "scenario",
    "proxy",
    "CPU",
    "user",
    "system",
    "x HAProxy",
    "x Envoy",
    "p50",
    "p99",
    "ceiling",
    "CPU there",
    "cores",
    "RSS idle",
    "loaded",
    "ready",
];

/// The table, aligned, with a line for everything that makes a row doubtful.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut lines: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).into()];
    let mut notes = Vec::new();
    for row in &results.rows {
        let title = format!("{} {}", name(&row.scenario), name(&row.proxy));
        if let Some(failure) = &row.failure {
            notes.push(format!("{title}: FAILED: {failure}"));
        }
        if row.rounds.is_empty() {
            continue;
        }
        if row.median.errors > 0 {
            let first = row.median.first_error.as_deref().unwrap_or("requests could not be sent in time");
            notes.push(format!("{title}: {} errors: {first}", row.median.errors));
        }
        let Setting { rate, handshake_rate, .. } = &results.setting;
        let wanted = if row.scenario.handshake().is_some() { *handshake_rate } else { *rate };
        let behind = row.scenario != Scenario::Tcp && row.median.rate < wanted * 0.99;
        if behind {
            notes.push(format!(
                "{title}: only {:.0} requests/s of the fixed rate were answered",
                row.median.rate
            ));
        }
        if row.median.noise > 0.05 {
            let part = row.median.noise * 100.0;
            notes.push(format!(
                "{title}: others used {part:.0} % of the machine meanwhile; measure on a quiet one"
            ));
        }
        lines.push(cells(results, row));
    }
    let mut text = align(&lines);
    text.push_str("\nCPU of the proxy per request at the fixed rate (per gigabyte for tcp), both processes of a pair together.\n");
    text.push_str("A handshake's is that of a connection with one small request.\n");
    text.push_str("CPU there and cores: per request, and in all, at the ceiling; below 1.0 core the load generator was the limit.\n");
    for note in notes {
        text.push_str("! ");
        text.push_str(&note);
        text.push('\n');
    }
    text
}

fn cells(results: &Results, row: &Row) -> Vec<String> {
    let median = &row.median;
    let tcp = row.scenario == Scenario::Tcp;
    let measured = row.proxy != Proxy::Direct;
    let dash = || "-".to_owned();
    let cpu = |value: f64| match (measured, tcp) {
        (false, _) => dash(),
        (true, true) => format!("{:.0} ms/GB", value / 1e3),
        (true, false) => format!("{value:.1} us"),
    };
    let ratio =
        |to| results.ratio(row.scenario, row.proxy, to).map_or_else(dash, |ratio| format!("{ratio:.2}"));
    let latency = |value: f64| if tcp { dash() } else { format!("{value:.0} us") };
    let memory = |bytes: u64| if measured { format!("{:.1} MB", bytes as f64 / 1e6) } else { dash() };
    let ceiling = match (median.ceiling > 0.0, tcp) {
        (false, _) => dash(),
        (true, true) => format!("{:.2} GB/s", median.ceiling),
        (true, false) => format!("{:.0}/s", median.ceiling),
    };
    vec![
        name(&row.scenario),
        name(&row.proxy),
        cpu(median.cpu_us),
        cpu(median.user_us),
        cpu(median.system_us),
        ratio(Proxy::Haproxy),
        ratio(Proxy::Envoy),
        latency(median.p50_us),
        latency(median.p99_us),
        ceiling,
        if tcp { dash() } else { cpu(median.full_us) },
        if measured { format!("{:.2}", median.ceiling_cores) } else { dash() },
        memory(median.idle.resident),
        memory(median.loaded.resident),
        if measured { format!("{:.0} ms", median.ready_ms) } else { dash() },
    ]
}

/// Two columns of names to the left, numbers to the right.
pub(crate) fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::procfs::Memory;

    /// Results in which each proxy has the given CPU in every HTTP scenario.
    pub(in crate::compare) fn results(cpu: &[(Proxy, f64)]) -> Results {
        let row = |scenario, &(proxy, cpu_us): &(Proxy, f64)| {
            let idle = Memory { resident: 8_000_000, peak: 9_000_000 };
            let processes = if scenario == Scenario::MtlsPair { 2 } else { 1 };
            let median = Round {
                cpu_us,
                idle,
                processes,
                ready_ms: 12.0,
                rate: 4000.0,
                ceiling: 1.0,
                ..Round::default()
            };
            Row { scenario, proxy, rounds: vec![median.clone()], median, failure: None }
        };
        let scenarios = [Scenario::H1, Scenario::H2, Scenario::MtlsPair];
        let rows = scenarios.iter().flat_map(|s| cpu.iter().map(move |entry| row(*s, entry))).collect();
        Results {
            machine: Machine { cpu: "test".into(), cores: 2, kernel: "test".into() },
            versions: Vec::new(),
            setting: Setting {
                rounds: 1,
                rate: 4000.0,
                handshake_rate: 400.0,
                burst: 1,
                seconds: 1.0,
                connections: 1,
                h2_connections: 1,
                h2_streams: 1,
                bulk_connections: 1,
                path: "/".into(),
                placement: Placement::Together,
            },
            rows,
        }
    }

    #[test]
    fn columns_line_up_and_ratios_are_shown() {
        let results = results(&[(Proxy::Haproxy, 20.0), (Proxy::Envoy, 60.0), (Proxy::Remora, 25.0)]);
        let text = table(&results);
        let lines: Vec<&str> = text.lines().take(4).collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert!(lines[3].contains("1.25") && lines[3].contains("0.42"), "{text}");
    }

    #[test]
    fn a_failed_row_is_named_and_has_no_ratio() {
        let mut results = results(&[(Proxy::Haproxy, 20.0), (Proxy::Remora, 25.0)]);
        results.rows[1].failure = Some("ended".into());
        assert_eq!(results.ratio(Scenario::H1, Proxy::Remora, Proxy::Haproxy), None);
        assert!(table(&results).contains("! h1 remora: FAILED: ended"));
    }
}
