//! The machine's name servers, as its files say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// The addresses at which systemd-resolved is a stub.
const RESOLVED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
/// As many as libc looks at (resolv.conf(5)), and as many are asked here.
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

/// Whether who is asked there is on this machine: on loopback, or at an address of it. The kernel takes the address itself as the source
/// of what goes there, and nothing is sent to find out.
fn is_here(server: &SocketAddr) -> bool {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = || {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(server)?;
        socket.local_addr()
    };
    let ip = server.ip();
    // Who asks no address asks this machine.
    ip.is_loopback() || ip.is_unspecified() || source().is_ok_and(|source| source.ip() == server.ip())
}

/// Whom to ask: those of `resolv_conf`, stubs on this machine after all others; where there is nobody else, those behind the stub.
/// What a stub asks itself may be led to us.
fn choose(
    resolv_conf: &[SocketAddr],
    behind_stub: &[SocketAddr],
    is_here: &impl Fn(&SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let resolv_conf = &resolv_conf[..resolv_conf.len().min(MOST)];
    let (stubs, others): (Vec<_>, Vec<_>) = resolv_conf.iter().copied().partition(is_here);
    if !others.is_empty() {
        return [others, stubs].concat();
    }
    let behind: Vec<_> = behind_stub.iter().copied().filter(|server| !is_here(server)).take(MOST).collect();
    match (behind.is_empty(), stubs.is_empty()) {
        (false, _) => behind,
        (true, false) => stubs,
        // Without any, the server is on this host, as with libc.
        (true, true) => vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)],
    }
}

/// Where questions of programs leave this machine. None: anywhere, since who answers them is on this machine, and nobody says whom that
/// one asks; or since a line says nothing that can be captured.
fn leaves(
    resolv_conf: &str,
    behind_stub: &str,
    is_here: &impl Fn(&SocketAddr) -> bool,
) -> Option<Vec<IpAddr>> {
    // For a rule an address is enough, whichever interface it is on.
    let address = |word: &str| word.split('%').next().unwrap_or_default().parse().ok();
    let named = |text: &str| -> Option<Vec<IpAddr>> {
        let all: Vec<_> = words(text).map(address).collect::<Option<_>>()?;
        (!all.is_empty()).then_some(all)
    };
    let elsewhere = |all: &Vec<IpAddr>| !all.iter().any(|ip| is_here(&SocketAddr::new(*ip, PORT)));
    let own = named(resolv_conf)?;
    if own.iter().all(|ip| RESOLVED.contains(ip)) {
        return named(behind_stub).filter(elsewhere);
    }
    Some(own).filter(elsewhere)
}

/// Where questions of this machine's programs leave it, by the files as they are now, for rules that capture them. All that are named count,
/// as with systemd-resolved and others than libc. None: anywhere.
#[must_use]
pub fn to_capture() -> Option<Vec<IpAddr>> {
    let [own, behind] =
        [RESOLV_CONF, BEHIND_STUB].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    leaves(&own, &behind, &is_here)
}

/// Whether the proxy, too, has nobody to ask but who is on this machine. What that one asks may be led to the proxy, which asks it again.
#[must_use]
pub fn asks_only_here() -> bool {
    let system = SystemServers::default();
    let _others = system.check(Instant::now());
    system.get().iter().all(is_here)
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
        let servers = choose(&own.servers, &behind.servers, &is_here);
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
        let all = at(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(read(text), all);
        assert_eq!(choose(&all, &[], &is_here), all[..MOST], "as libc");
    }

    #[test]
    fn link_local_servers_have_their_zone() {
        assert_eq!(read("nameserver fe80::1%eth0\nnameserver fe80::1%3\n"), [scoped(7), scoped(3)]);
        assert!(read("nameserver fe80::1%gone\nnameserver 192.0.2.1%eth0\nnameserver fe80::1%\n").is_empty());
        assert_eq!(index_of(Path::new(INTERFACES), "../net/lo"), None);
    }

    #[test]
    fn a_stub_is_not_asked_when_it_says_who_is_behind_it() {
        let is_here = |server: &SocketAddr| server.ip().is_loopback() || *server == at(&["192.0.2.99"])[0];
        let choose = |own: &str, behind: &str| choose(&read(own), &read(behind), &is_here);
        let stub = "nameserver 127.0.0.53\n";
        assert_eq!(choose(stub, "nameserver 192.0.2.1\n"), at(&["192.0.2.1"]));
        assert_eq!(choose(stub, ""), at(&["127.0.0.53"]));
        assert_eq!(choose(stub, stub), at(&["127.0.0.53"]));
        assert_eq!(choose("nameserver 192.0.2.7\n", "nameserver 192.0.2.1\n"), at(&["192.0.2.7"]));
        assert_eq!(choose("", ""), at(&["127.0.0.1"]));
        // What it asks may come back to us.
        let mixed = "nameserver 127.0.0.53\nnameserver 192.0.2.7\nnameserver 192.0.2.8\n";
        assert_eq!(choose(mixed, ""), at(&["192.0.2.7", "192.0.2.8", "127.0.0.53"]));
        let own_address = "nameserver 192.0.2.99\nnameserver 192.0.2.7\n";
        assert_eq!(choose(own_address, ""), at(&["192.0.2.7", "192.0.2.99"]));
        assert_eq!(choose("nameserver 192.0.2.99\n", "nameserver 192.0.2.1\n"), at(&["192.0.2.1"]));
    }

    #[test]
    fn what_a_stub_asks_is_captured_anywhere_unless_it_says_whom() {
        let is_here = |server: &SocketAddr| server.ip().is_loopback() || *server == at(&["192.0.2.99"])[0];
        let file =
            |all: &str| all.split_whitespace().map(|ip| format!("nameserver {ip}\n")).collect::<String>();
        let leaves = |own: &str, behind: &str| {
            let all = leaves(&file(own), &file(behind), &is_here)?;
            Some(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let only = |all: &str| Some(all.to_owned());
        assert_eq!(leaves("192.0.2.1", "192.0.2.7"), only("192.0.2.1"));
        // Not only those that libc asks.
        let five = "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 2001:db8::1";
        for own in [five, "127.0.0.53", "127.0.0.53 127.0.0.54"] {
            assert_eq!(leaves(own, five), only(five), "{own}");
        }
        assert_eq!(leaves("fe80::1%gone", ""), only("fe80::1"));
        // A stub of others, beside another server, at an own address; one that does not say whom it asks; none at all.
        for own in
            ["127.0.0.1", "127.0.0.1 192.0.2.1", "127.0.0.53 192.0.2.1", "192.0.2.99", "192.0.2.1 ::1", ""]
        {
            assert_eq!(leaves(own, "192.0.2.7"), None, "{own}");
        }
        for behind in ["", "127.0.0.53", "192.0.2.7 192.0.2.99"] {
            assert_eq!(leaves("127.0.0.53", behind), None, "{behind}");
        }
    }

    #[test]
    fn who_is_on_this_machine_is_known() {
        let here = |ip: &str| is_here(&SocketAddr::new(ip.parse().unwrap(), PORT));
        assert!(here("127.0.0.1") && here("127.8.0.1") && here("::1"));
        assert!(here("0.0.0.0") && here("::"));
        assert!(!here("192.0.2.1") && !here("2001:db8::1"));
        // An address of this machine, if it has a route.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:53").is_ok() {
            assert!(here(&socket.local_addr().unwrap().ip().to_string()));
        }
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
