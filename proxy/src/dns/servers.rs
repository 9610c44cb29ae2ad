//! The machine's name servers, as its files say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
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
/// Where the kernel has an interface's number.
const INTERFACES: &str = "/sys/class/net";

/// What a resolv.conf(5) says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    servers: Vec<SocketAddr>,
    /// What stands in the place of a server and cannot be asked, as it stands there.
    wrong: Vec<String>,
    /// A zone is an interface's name: who that is changes without the file.
    zones: bool,
}

/// The words behind `nameserver` in a resolv.conf(5).
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

/// `nameserver` lines of a resolv.conf(5).
fn name_servers(text: &str, index: &impl Fn(&str) -> Option<u32>) -> Lines {
    let mut lines = Lines::default();
    for word in words(text) {
        lines.zones |= word.split_once('%').is_some_and(|(_, zone)| zone.parse::<u32>().is_err());
        match server(word, index) {
            Some(server) => lines.servers.push(server),
            None => lines.wrong.push(word.to_owned()),
        }
    }
    lines.servers.truncate(MOST);
    lines
}

/// `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0`: a zone is the name of an interface or its number (RFC 4007 §11.2).
fn server(text: &str, index: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((ip, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = zone.parse().ok().or_else(|| index(zone))?;
    Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope).into())
}

/// The number of an interface, by those in a folder as [`INTERFACES`].
fn index_of(interfaces: &Path, name: &str) -> Option<u32> {
    if name.contains('/') {
        return None;
    }
    std::fs::read_to_string(interfaces.join(name).join("ifindex")).ok()?.trim().parse().ok()
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
    /// When they were written, as far as they need not be read again before they change.
    files: [Option<SystemTime>; 2],
    /// What was warned of.
    wrong: Vec<String>,
    checked: Option<Instant>,
    servers: Vec<SocketAddr>,
}

impl Known {
    /// Those of `wrong` that were not there before: the files are read again and again, and each is warned of once.
    fn newly_wrong(&mut self, wrong: Vec<String>) -> Vec<String> {
        let before = std::mem::replace(&mut self.wrong, wrong);
        self.wrong.iter().filter(|word| !before.contains(word)).cloned().collect()
    }
}

/// The servers of the files, read again when those change.
#[derive(Debug)]
pub struct SystemServers {
    paths: [PathBuf; 2],
    interfaces: PathBuf,
    known: Mutex<Known>,
}

impl Default for SystemServers {
    fn default() -> Self {
        let paths = [RESOLV_CONF, BEHIND_STUB].map(PathBuf::from);
        Self { paths, interfaces: INTERFACES.into(), known: Mutex::default() }
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
            name_servers(&text, &|zone: &str| index_of(&self.interfaces, zone))
        });
        for word in known.newly_wrong([&own.wrong[..], &behind.wrong].concat()) {
            tracing::warn!(word, "the name server in a resolv.conf is no address that can be asked");
        }
        let had_some = !known.servers.is_empty();
        if had_some && own.servers.is_empty() {
            // It is being written. What was known is better than a guess, and is looked at again.
            return false;
        }
        let servers = choose(&own.servers, &behind.servers);
        let are_others = had_some && servers != known.servers;
        // An interface may come, or come back with another number.
        let zones = own.zones || behind.zones;
        known.files = if zones { [None; 2] } else { files };
        known.servers = servers;
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
        name_servers(text, &|name: &str| (name == "eth0").then_some(7)).servers
    }

    fn scoped(scope: u32) -> SocketAddr {
        SocketAddrV6::new("fe80::1".parse().unwrap(), PORT, 0, scope).into()
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
        assert_eq!(read("nameserver fe80::1%eth0\nnameserver fe80::1%3\n"), [scoped(7), scoped(3)]);
        assert!(read("nameserver fe80::1%gone\nnameserver 192.0.2.1%eth0\nnameserver fe80::1%\n").is_empty());
        assert_eq!(index_of(Path::new(INTERFACES), "../net/lo"), None);
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
        let system = SystemServers { paths, ..SystemServers::default() };
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

    /// Such a server is known when its interface is, though the file stays as it is.
    #[test]
    fn an_interface_that_comes_later_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let interfaces = folder.path().join("net");
        let paths = ["own", "behind"].map(|name| folder.path().join(name));
        let own = paths[0].clone();
        let system = SystemServers { paths, interfaces: interfaces.clone(), known: Mutex::default() };
        let number = |number: &str| {
            std::fs::create_dir_all(interfaces.join("eth0")).unwrap();
            std::fs::write(interfaces.join("eth0/ifindex"), number).unwrap();
        };
        let mut now = Instant::now();
        let mut check = || {
            now += CHECK;
            system.check(now)
        };
        std::fs::write(&own, "nameserver fe80::1%eth0\n").unwrap();
        assert!(!check());
        assert_eq!(system.get(), at(&["127.0.0.1"]));
        number("7\n");
        assert!(check());
        assert_eq!(system.get(), [scoped(7)]);
        number("8\n");
        assert!(check(), "a new one of this name");
        assert_eq!(system.get(), [scoped(8)]);
        assert!(!check());
    }

    #[test]
    fn a_wrong_word_is_told_once_as_long_as_it_stands_there() {
        let mut known = Known::default();
        let mut told = |wrong: &[&str]| {
            let wrong = wrong.iter().map(|word| (*word).to_owned()).collect();
            known.newly_wrong(wrong).join(" ")
        };
        assert_eq!(told(&["a.test", "b.test"]), "a.test b.test");
        assert_eq!(told(&["b.test", "c.test", "a.test"]), "c.test");
        assert_eq!(told(&[]), "");
        assert_eq!(told(&["a.test"]), "a.test");
    }
}
