//! The machine's name servers, as its files say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// As many as libc looks at (resolv.conf(5)).
const MOST: usize = 3;
/// How often the files are looked at.
const CHECK: Duration = Duration::from_secs(5);
const PORT: u16 = 53;

/// `nameserver` lines of a resolv.conf(5).
fn name_servers(text: &str, index: &impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let word = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        let server = server(word, index);
        if server.is_none() {
            tracing::warn!(word, "the name server in a resolv.conf is no address that can be asked");
        }
        server
    };
    text.lines().filter_map(server).take(MOST).collect()
}

/// `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0`: a zone is the name of an interface or its number (RFC 4007 §11.2).
fn server(text: &str, index: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((ip, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = zone.parse().ok().or_else(|| index(zone))?;
    Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope).into())
}

/// The number of an interface.
fn index_of(name: &str) -> Option<u32> {
    if name.contains('/') {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

/// Whom to ask: those of `resolv_conf`, stubs on this machine after all others; where there is nobody else, those behind the stub.
/// What a stub asks itself may be led to us.
fn choose(resolv_conf: &[SocketAddr], behind_stub: &[SocketAddr]) -> Vec<SocketAddr> {
    let (stubs, others): (Vec<_>, Vec<_>) =
        resolv_conf.iter().copied().partition(|server| server.ip().is_loopback());
    if !others.is_empty() {
        return [others, stubs].concat();
    }
    let behind: Vec<_> = behind_stub.iter().copied().filter(|server| !server.ip().is_loopback()).collect();
    match (behind.is_empty(), stubs.is_empty()) {
        (false, _) => behind,
        (true, false) => stubs,
        // Without any, the server is on this host, as with libc.
        (true, true) => vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)],
    }
}

/// Those of the files as they are now.
#[must_use]
pub fn of_this_machine() -> Vec<SocketAddr> {
    let system = SystemServers::default();
    let _others = system.check(Instant::now());
    system.get()
}

#[derive(Debug, Default)]
struct Known {
    files: [Option<SystemTime>; 2],
    checked: Option<Instant>,
    servers: Vec<SocketAddr>,
}

/// The servers of the files, read again when those change.
#[derive(Debug)]
pub struct SystemServers {
    paths: [PathBuf; 2],
    known: Mutex<Known>,
}

impl Default for SystemServers {
    fn default() -> Self {
        Self { paths: [RESOLV_CONF, BEHIND_STUB].map(PathBuf::from), known: Mutex::default() }
    }
}

impl SystemServers {
    /// Looks at the files, every few seconds at most. True: the servers are others than those of before.
    pub fn check(&self, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.checked.is_some_and(|at| now.saturating_duration_since(at) < CHECK) {
            return false;
        }
        known.checked = Some(now);
        let files =
            self.paths.each_ref().map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok());
        if files == known.files && !known.servers.is_empty() {
            return false;
        }
        let [own, behind] = self.paths.each_ref().map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            name_servers(&text, &index_of)
        });
        let had_some = !known.servers.is_empty();
        if had_some && own.is_empty() {
            // It is being written. What was known is better than a guess, and is looked at again.
            return false;
        }
        let servers = choose(&own, &behind);
        let are_others = had_some && servers != known.servers;
        (known.files, known.servers) = (files, servers);
        are_others
    }

    /// Whom to ask, as the last [`check`](Self::check) has found.
    #[must_use]
    pub fn get(&self) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).servers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `resolv.conf`, where eth0 is the seventh interface.
    fn read(text: &str) -> Vec<SocketAddr> {
        name_servers(text, &|name: &str| (name == "eth0").then_some(7))
    }

    fn at(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), PORT)).collect()
    }

    #[test]
    fn lines_of_resolv_conf_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
            nameserver name.test\nnameserver\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        assert_eq!(read(text), at(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]));
    }

    #[test]
    fn link_local_servers_have_their_zone() {
        let scoped = |scope| SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), PORT, 0, scope));
        assert_eq!(read("nameserver fe80::1%eth0\nnameserver fe80::1%3\n"), [scoped(7), scoped(3)]);
        assert!(read("nameserver fe80::1%gone\nnameserver 192.0.2.1%eth0\nnameserver fe80::1%\n").is_empty());
        assert_eq!(index_of("../net/lo"), None);
    }

    #[test]
    fn a_stub_is_not_asked_when_it_says_who_is_behind_it() {
        let choose = |own: &str, behind: &str| choose(&read(own), &read(behind));
        let stub = "nameserver 127.0.0.53\n";
        assert_eq!(choose(stub, "nameserver 192.0.2.1\n"), at(&["192.0.2.1"]));
        assert_eq!(choose(stub, ""), at(&["127.0.0.53"]));
        assert_eq!(choose(stub, stub), at(&["127.0.0.53"]));
        assert_eq!(choose("nameserver 192.0.2.7\n", "nameserver 192.0.2.1\n"), at(&["192.0.2.7"]));
        assert_eq!(choose("", ""), at(&["127.0.0.1"]));
        // What it asks may come back to us.
        let mixed = "nameserver 127.0.0.53\nnameserver 192.0.2.7\nnameserver 192.0.2.8\n";
        assert_eq!(choose(mixed, ""), at(&["192.0.2.7", "192.0.2.8", "127.0.0.53"]));
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["own", "behind"].map(|name| folder.path().join(name));
        let (own, mut now, mut written) = (paths[0].clone(), Instant::now(), SystemTime::UNIX_EPOCH);
        let mut write = |text: &str| {
            std::fs::write(&own, text).unwrap();
            written += Duration::from_secs(1);
            std::fs::File::options().write(true).open(&own).unwrap().set_modified(written).unwrap();
        };
        let system = SystemServers { paths, known: Mutex::default() };
        write("nameserver 192.0.2.1\n");
        assert!(!system.check(now), "there were none before");
        assert_eq!(system.get(), at(&["192.0.2.1"]));
        write("nameserver 192.0.2.2\n");
        assert!(!system.check(now + CHECK / 2) && system.get() == at(&["192.0.2.1"]), "not so often");
        now += CHECK;
        assert!(system.check(now));
        assert_eq!(system.get(), at(&["192.0.2.2"]));
        // The same once more, and a file that is just being written.
        for text in ["nameserver 192.0.2.2\noptions ndots:5\n", ""] {
            write(text);
            now += CHECK;
            assert!(!system.check(now) && system.get() == at(&["192.0.2.2"]), "{text:?}");
        }
        std::fs::write(&own, "nameserver 192.0.2.3\n").unwrap();
        assert!(system.check(now + CHECK), "that one is looked at again");
    }
}
