//! Network namespaces of a run. This thread goes into one; the sockets that it opens and the programs that it starts there are inside, and
//! nothing stands between them and the clock, as `ip netns exec` would.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Address of the pod in its namespace.
pub(crate) const POD: &str = "10.77.0.2";
/// Programs that a run needs.
const TOOLS: [&str; 3] = ["ip", "nft", "setpriv"];
/// A pod's network interface, and a way to the world, where nobody is: its other end is here, too, and has no address.
const SETUP: &str = "set -e
    ip link set lo up
    ip link add eth0 type veth peer name world && ip link set world up && ip link set eth0 up
    ip addr add 10.77.0.2/24 dev eth0 && ip route add default via 10.77.0.1
    if [ -e /proc/sys/net/ipv6 ]; then
        ip addr add fd77::2/64 dev eth0 nodad && ip -6 route add default via fd77::1
    fi";

/// Why this machine has no namespaces for a run, if so.
#[must_use]
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &&str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    if let Some(tool) = TOOLS.iter().find(|tool| !there(tool)) {
        return Some(format!("it needs {tool}"));
    }
    Namespace::new("try").err().map(|error| format!("no network namespaces here: {error:#}"))
}

/// A network namespace with loopback and one interface; it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A fresh one, whose name has the id of this process in it.
    pub(crate) fn new(role: &str) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("remora-bench-{}-{number}-{role}", std::process::id());
        command(&["netns", "add", &name])?;
        let made = Self { name };
        command(&["netns", "exec", &made.name, "sh", "-c", SETUP])?;
        Ok(made)
    }

    /// Moves this thread there until what is returned is dropped.
    pub(crate) fn enter(&self) -> anyhow::Result<Inside> {
        let home = File::open("/proc/thread-self/ns/net").context("own network namespace")?.into();
        let there = File::open(Path::new("/var/run/netns").join(&self.name)).context("network namespace")?;
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network)).context("setns")?;
        Ok(Inside { home })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Programs that still end there keep it for as long, without a name.
        let _gone = command(&["netns", "del", &self.name]);
    }
}

/// This thread is in a [`Namespace`].
#[derive(Debug)]
pub(crate) struct Inside {
    home: OwnedFd,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _back = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

/// `ip` with these words.
fn command(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output().context("ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {error}", words.join(" "));
    Ok(())
}
