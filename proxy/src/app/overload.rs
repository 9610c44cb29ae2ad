//! The overload manager's part of the wiring: what is read of the process and its cgroup, and who is told.

use std::fs::{File, read_to_string};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::snapshot::Snapshot;
use crate::limits::{Room, room};
use crate::resilience::overload::{Action, Effects, Memory, Monitor, Overload, Readings};
use crate::telemetry::metrics::{Collect, MetricFamily, gauges};
use crate::upstream::connect;

/// While files run out they are looked at as often.
const CROWDED: Duration = Duration::from_millis(100);

/// Looks at the process now, before anybody is let in, and then for as long as it lives.
pub(super) fn watch(overload: Arc<Overload>) -> impl Future<Output = ()> {
    let (mut effects, mut crowded) = look(&overload, [0.0; 3]);
    async move {
        loop {
            let interval = overload.spec().interval;
            if crowded {
                tokio::time::sleep(interval.min(CROWDED)).await;
            } else {
                // Whoever finds that files run out wakes us: it is for us to say when they do not any more.
                let _ = tokio::time::timeout(interval, overload.crowded()).await;
            }
            (effects, crowded) = look(&overload, effects);
        }
    }
}

/// What is given up from now on, and whether files run out.
fn look(overload: &Overload, before: Effects) -> (Effects, bool) {
    let readings = read();
    let effects = overload.spec().effects(&readings);
    overload.set(&effects);
    for (action, (was, is)) in Action::ALL.iter().zip(before.iter().zip(effects)) {
        match (*was > 0.0, is > 0.0) {
            (false, true) => tracing::warn!(action = action.name(), ?readings, "overload: begins"),
            (true, false) => tracing::warn!(action = action.name(), ?readings, "overload: ends"),
            _ => {}
        }
    }
    (effects, readings.crowded)
}

fn read() -> Readings {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let [own, nearest] = cgroup(&read_to_string("/proc/self/cgroup").unwrap_or_default());
    Readings {
        heap: number_after(&status, "VmRSS:").map(|kilobytes| kilobytes.saturating_mul(1024)),
        own,
        nearest,
        // Without one more there are none.
        crowded: match File::open("/dev/null") {
            Ok(file) => room(&file) != Room::Enough,
            // Where it cannot be opened for another reason, that says nothing.
            Err(error) => connect::lacks_files(&error),
        },
    }
}

/// The memory of the process's cgroup, and of that one or one above it that is nearest to its limit. `list` is `/proc/self/cgroup`
/// (cgroups(7)).
fn cgroup(list: &str) -> [Option<Memory>; 2] {
    let Some((root, own, files)) = list.lines().find_map(controller) else { return [None; 2] };
    // Inside a container the path may be the host's, of which the container sees the end alone, as the root.
    let levels: Vec<Memory> =
        own.ancestors().filter_map(|level| memory(&root.join(below(level)), files)).collect();
    let nearer = |one: Memory, above: Memory| if above.share() > one.share() { above } else { one };
    [levels.first().copied(), levels.into_iter().reduce(nearer)]
}

fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Limit, use, and what of the use the kernel takes back when it needs it, in `memory.stat`: files, whether they were read once or more
/// often, and its own caches.
type Files = (&'static str, &'static str, &'static [&'static str]);

/// Where the memory of the process is counted: version 1 when it has it, or else version 2.
fn controller(line: &str) -> Option<(&'static Path, PathBuf, Files)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, own) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, files): (_, Files) = match controllers {
        "" if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => (
            "/sys/fs/cgroup",
            ("memory.max", "memory.current", &["inactive_file", "active_file", "slab_reclaimable"]),
        ),
        "memory" => (
            "/sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", &["total_inactive_file", "total_active_file"]),
        ),
        _ => return None,
    };
    Some((Path::new(root), own.into(), files))
}

fn memory(level: &Path, (limit, used, spare): Files) -> Option<Memory> {
    let number = |name: &str| read_to_string(level.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number; version 1 says "no limit" by one that no machine has.
    let limit = number(limit).filter(|limit| *limit < 1 << 60);
    let stat = read_to_string(level.join("memory.stat")).unwrap_or_default();
    let spare: u64 = spare.iter().filter_map(|name| number_after(&stat, &format!("{name} "))).sum();
    Some(Memory { used: number(used)?.saturating_sub(spare), limit })
}

/// The number after `name` at the start of a line.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is exposed of it.
pub(super) struct OverloadMetrics(pub(super) Arc<ArcSwap<Snapshot>>);

impl Collect for OverloadMetrics {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let overload = Arc::clone(&self.0.load().overload);
        let readings = read();
        let pressure = Monitor::ALL.into_iter().filter_map(|monitor| {
            let pressure = overload.spec().pressure(monitor, &readings)?;
            Some((vec![("monitor", monitor.name())], pressure))
        });
        let help = "Share of what is watched that is used.";
        out.push(gauges("remora_overload_pressure", help, pressure));
        let actions = Action::ALL.into_iter();
        let actions = actions.map(|action| (vec![("action", action.name())], overload.share(action)));
        out.push(gauges("remora_overload_action", "How much of an action is taken, 0 to 1.", actions));
        let late: Vec<_> =
            overload.late().iter().enumerate().map(|(i, late)| (i.to_string(), *late)).collect();
        let late = late.iter().map(|(worker, late)| (vec![("worker", &**worker)], late.as_secs_f64()));
        let help = "How late a worker came to what was due, the last time that it was looked at.";
        out.push(gauges("remora_worker_lag_seconds", help, late));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let stat = "cache 5\ninactive_file 11\ntotal_inactive_file 7\n";
        assert_eq!(number_after(stat, "inactive_file "), Some(11));
        assert_eq!(number_after(stat, "total_inactive_file "), Some(7));
        assert_eq!(number_after("VmRSS:\t  42 kB\n", "VmRSS:"), Some(42));
        let memory = controller("4:memory:/a/b").unwrap();
        assert_eq!((memory.0, &*memory.1), (Path::new("/sys/fs/cgroup/memory"), Path::new("/a/b")));
        assert!(controller("3:cpuset:/").is_none() && controller("rubbish").is_none());
        assert!(read().heap.is_some_and(|bytes| bytes > 1 << 20));
        assert!(!read().crowded);
    }

    #[test]
    fn a_cgroup_says_what_it_uses_and_may_use() {
        let folder = tempfile::tempdir().unwrap();
        let files: Files = ("memory.max", "memory.current", &["inactive_file", "active_file"]);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let memory = || memory(folder.path(), files);
        assert_eq!(memory(), None);
        write("memory.max", "max\n");
        write("memory.current", "1000\n");
        assert_eq!(memory(), Some(Memory { used: 1000, limit: None }));
        write("memory.max", "4000\n");
        assert_eq!(memory(), Some(Memory { used: 1000, limit: Some(4000) }));
        write("memory.stat", "anon 1\ninactive_file 300\nactive_file 100\n");
        assert_eq!(memory(), Some(Memory { used: 600, limit: Some(4000) }));
    }
}
