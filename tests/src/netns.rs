//! Network namespaces as machines and pods, and programs in them. Needs root.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// Says aloud why nothing is tested here, if so: without root, one of `tools`, or network namespaces.
pub fn skipped(test: &str, tools: &[&str]) -> bool {
    let why = if rustix::process::geteuid().as_raw() != 0 {
        Some("needs root".to_owned())
    } else {
        tools.iter().find(|tool| !installed(tool)).map(|tool| format!("needs {tool}")).or_else(|| {
            let name = unique("try");
            let possible = runs(Command::new("ip").args(["netns", "add", &name]));
            let _gone = runs(Command::new("ip").args(["netns", "del", &name]));
            (!possible).then(|| "this machine makes no network namespaces".to_owned())
        })
    };
    if let Some(why) = &why {
        // Not captured by the test runner.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    }
    why.is_some()
}

fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

/// Whether a command works.
pub fn runs(command: &mut Command) -> bool {
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ended.is_ok_and(|status| status.success())
}

fn unique(role: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("remora-{}-{number}-{role}", std::process::id())
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit status; -1 when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    /// A fresh one, whose name has the process id in it, with loopback up.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(role: &str) -> Self {
        let name = unique(role);
        assert!(runs(Command::new("ip").args(["netns", "add", &name])), "ip netns add {name}");
        let new = Self(name);
        new.must("ip link set lo up");
        new
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// What names mean to programs in it (`/etc/hosts`). There is no name server: they are told so at once.
    ///
    /// # Panics
    /// When files cannot be written.
    pub fn names(&self, hosts: &str) {
        let folder = self.settings();
        std::fs::create_dir_all(&folder).expect("/etc/netns");
        std::fs::write(folder.join("hosts"), hosts).expect("hosts");
        std::fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\n").expect("resolv.conf");
    }

    /// What `ip netns exec` mounts over /etc.
    fn settings(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.0)
    }

    /// A command in this namespace, to be started.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When there is no `ip`.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Said {
        self.command(words).output().expect("ip netns exec").into()
    }

    /// Runs a shell script to its end.
    #[must_use]
    pub fn shell(&self, script: &str) -> Said {
        self.run(&["sh", "-c", script])
    }

    /// A shell script that works; gives what it printed.
    ///
    /// # Panics
    /// When it does not.
    pub fn must(&self, script: &str) -> String {
        let said = self.shell(script);
        assert_eq!(said.status, 0, "{script}: {}{}", said.out, said.err);
        said.out
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whatever programs of it have left running, too.
        let left = Command::new("ip").args(["netns", "pids", &self.0]).output();
        let left = left.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let pids = left.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok());
        for pid in pids.filter_map(Pid::from_raw) {
            let _gone = kill_process(pid, Signal::KILL);
        }
        let _gone = std::fs::remove_dir_all(self.settings());
        let _gone = runs(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

/// A process that ends with its owner.
#[derive(Debug)]
pub struct Running(Child);

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended, and how.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().expect("wait")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on; `what` names it.
    pub async fn end(&mut self, what: &str) -> std::process::ExitStatus {
        eventually(&format!("the end of {what}"), || self.ended().is_some()).await;
        self.ended().expect("waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}
