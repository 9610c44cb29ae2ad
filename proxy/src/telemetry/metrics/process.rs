//! The process itself, under Prometheus' usual names, and what was built.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{MetricFamily, counters, gauges};

/// Kernel ticks in a second as `/proc` shows them: USER_HZ, 100 on every architecture that we build for.
const TICKS: f64 = 100.0;

/// Appends process metrics; those that `/proc` does not give are left out.
pub(super) fn collect(started: SystemTime, out: &mut Vec<MetricFamily>) {
    let labels = vec![("version", env!("CARGO_PKG_VERSION"))];
    out.push(gauges("remora_build_info", "Version of this proxy; always 1.", [(labels, 1.0)]));
    let started = started.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut gauge = |name, help, value: Option<f64>| {
        out.push(gauges(name, help, value.map(|v| (Vec::new(), v))));
    };
    gauge("process_start_time_seconds", "Start of the process since the epoch.", Some(started));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name| field(&status, name).map(|kb| kb * 1024.0);
    gauge("process_resident_memory_bytes", "Resident memory.", kilobytes("VmRSS:"));
    gauge("process_virtual_memory_bytes", "Virtual memory.", kilobytes("VmSize:"));
    gauge("process_threads", "Threads.", field(&status, "Threads:"));
    let fds = std::fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64);
    gauge("process_open_fds", "Open file descriptors.", fds);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    gauge("process_max_fds", "Limit of open file descriptors.", field(&limits, "Max open files"));
    if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|s| cpu_seconds(&s)) {
        let mut family =
            counters("process_cpu_seconds_total", "User and system CPU time.", [(Vec::new(), 0)]);
        for metric in family.mut_metric() {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(seconds);
            metric.set_counter(counter);
        }
        out.push(family);
    }
}

/// The first number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// utime + stime of `/proc/[pid]/stat` (proc(5)): fields 14 and 15, counted after the name, which may hold spaces.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 9 1 2";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("rubbish"), None);
        assert_eq!(field("VmSize: 1 kB\nVmRSS:\t  42 kB\n", "VmRSS:"), Some(42.0));
        assert_eq!(field("Max open files   1024   2048   files", "Max open files"), Some(1024.0));
        assert_eq!(field("Max open files   unlimited", "Max open files"), None);
    }
}
