//! Processes that a test starts and ends.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// A program that `cargo test` built beside the tests; None when it is not there.
///
/// # Panics
/// When the running test has no path.
#[must_use]
pub fn beside(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().expect("path of this test");
    let mut found = test.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    found.find(|path| path.is_file())
}

/// Sends a signal by its name (`TERM`, `INT`, `HUP`, `USR2`, `KILL`, `STOP`, `CONT`).
///
/// # Panics
/// When the name is none of them or the process is gone.
pub fn signal(pid: u32, name: &str) {
    let signal = match name {
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "USR2" => Signal::USR2,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        other => panic!("signal {other}"),
    };
    let pid = Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    kill_process(pid, signal).expect("kill");
}

/// The children of a process, the oldest first.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("process");
    list.split_whitespace().map(|pid| pid.parse().expect("pid")).collect()
}
