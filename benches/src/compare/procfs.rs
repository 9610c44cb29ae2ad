//! What the kernel says about processes: CPU, memory, children.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::ops::{Add, Sub};

use serde::Serialize;

/// CPU time of processes, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// Time on a core as the scheduler counted it, in nanosecond grain.
    pub total: f64,
    /// The part in user space, in the grain of the clock tick (10 ms).
    pub user: f64,
    /// The part in the kernel, in the same grain.
    pub system: f64,
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            user: self.user + other.user,
            system: self.system + other.system,
        }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            total: self.total - other.total,
            user: self.user - other.user,
            system: self.system - other.system,
        }
    }
}

/// Seconds per clock tick.
fn tick() -> f64 {
    1.0 / rustix::param::clock_ticks_per_second() as f64
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold spaces and parentheses (proc(5)).
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

/// `utime` and `stime` of a stat line, in ticks: fields 14 and 15 of proc(5).
fn times(stat: &str) -> Option<(u64, u64)> {
    let fields = fields(stat);
    Some((fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?))
}

/// The parent of a stat line: field 4.
fn parent(stat: &str) -> Option<u32> {
    fields(stat).get(1)?.parse().ok()
}

/// Nanoseconds on a core of every thread that the process has now. Nothing without CONFIG_SCHED_INFO.
pub(crate) fn threads(pid: u32) -> BTreeMap<OsString, u64> {
    let all = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    all.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name(), text.split(' ').next()?.parse().ok()?))
    })
    .collect()
}

/// CPU of one process, all of its threads. Zero for a process that is gone.
fn cpu_of(pid: u32) -> Cpu {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (user, system) = times(&stat).unwrap_or_default();
    let (user, system) = (user as f64 * tick(), system as f64 * tick());
    let nanoseconds: u64 = threads(pid).values().sum();
    // Without CONFIG_SCHED_INFO there is no schedstat: the ticks have to do.
    let total = if nanoseconds == 0 { user + system } else { nanoseconds as f64 / 1e9 };
    Cpu { total, user, system }
}

/// CPU of the processes together; their children are [`family`]'s to find.
pub(crate) fn cpu(pids: &[u32]) -> Cpu {
    pids.iter().map(|pid| cpu_of(*pid)).fold(Cpu::default(), Add::add)
}

/// CPU seconds of the processes and of all children that have ended and were waited for: fields 14 to 17 of proc(5), in the grain of the clock
/// tick.
pub(crate) fn with_ended_children(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        fields(&stat).iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
    };
    pids.iter().map(ticks).sum::<u64>() as f64 * tick()
}

/// The processes with all of their descendants.
pub(crate) fn family(pids: &[u32]) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            parents.push((pid, parent));
        }
    }
    let mut family = pids.to_vec();
    let mut next = 0;
    while let Some(current) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, parent)| *parent == current).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

/// Memory of the processes with their children, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Resident now (`VmRSS`). Pages that a master shares with its worker count twice.
    pub resident: u64,
    /// Resident at most so far (`VmHWM`).
    pub peak: u64,
}

/// A `kB` line of `/proc/PID/status`, in bytes.
fn line(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

pub(crate) fn memory(pids: &[u32]) -> Memory {
    family(pids).into_iter().fold(Memory::default(), |sum, pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Memory { resident: sum.resident + line(&status, "VmRSS"), peak: sum.peak + line(&status, "VmHWM") }
    })
}

/// Memory of one process now, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resident {
    /// `VmRSS`.
    pub(crate) all: u64,
    /// The part of it that no file has (`RssAnon`).
    pub(crate) anonymous: u64,
    /// The part that files have, such as the program's code (`RssFile`).
    pub(crate) file: u64,
}

/// Zero for a process that is gone.
pub(crate) fn resident(pid: u32) -> Resident {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Resident {
        all: line(&status, "VmRSS"),
        anonymous: line(&status, "RssAnon"),
        file: line(&status, "RssFile"),
    }
}

/// Seconds that the cores of this machine were busy since it started, for whomever: everything in the first line of
/// `/proc/stat` but idle and iowait.
fn busy(stat: &str) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system [idle iowait] irq softirq steal; guest time is part of user time.
    let all: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    all.saturating_sub(idle) as f64 * tick()
}

/// See [`busy`].
pub(crate) fn machine_busy() -> f64 {
    busy(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// What the machine is, for the report.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model of the first core.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
}

pub(crate) fn machine() -> Machine {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    Machine {
        cpu: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_survive_strange_names() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(times(stat), Some((250, 50)));
        assert_eq!(parent(stat), Some(3));
        assert_eq!(times("gone"), None);
    }

    #[test]
    fn busy_leaves_idle_and_guest_out() {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let stat = format!("cpu  {t} 0 {t} 900 900 0 0 {t} 500 500\ncpu0 1 1\n", t = ticks_per_second);
        assert!((busy(&stat) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn memory_lines_are_kilobytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(
            (line(status, "VmHWM"), line(status, "VmRSS"), line(status, "VmNo")),
            (2048 << 10, 1024 << 10, 0)
        );
    }

    #[test]
    fn this_process_is_measured() {
        let me = std::process::id();
        assert!(memory(&[me]).resident > 0);
        assert!(family(&[me]).contains(&me));
    }
}
