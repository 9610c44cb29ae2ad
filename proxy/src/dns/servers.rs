//! The machine's name servers, as its files say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
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

/// `nameserver` lines of a resolv.conf(5). What is no address, such as one with a zone, is left out.
fn name_servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(server).take(MOST).collect()
}

/// Whom to ask: those of `resolv_conf`; where these are stubs on this machine, those behind the stub, whose own questions would be
/// led to us.
fn choose(resolv_conf: &str, behind_stub: &str) -> Vec<IpAddr> {
    let own = name_servers(resolv_conf);
    if own.iter().any(|ip| !ip.is_loopback()) {
        return own;
    }
    let behind: Vec<_> = name_servers(behind_stub).into_iter().filter(|ip| !ip.is_loopback()).collect();
    match (behind.is_empty(), own.is_empty()) {
        (false, _) => behind,
        (true, false) => own,
        // Without any, the server is on this host, as with libc.
        (true, true) => vec![Ipv4Addr::LOCALHOST.into()],
    }
}

#[derive(Debug, Default)]
struct Known {
    files: [Option<SystemTime>; 2],
    checked: Option<Instant>,
    servers: Vec<SocketAddr>,
}

/// The servers of the files, read again when those change.
#[derive(Debug, Default)]
pub struct SystemServers(Mutex<Known>);

impl SystemServers {
    /// Whom to ask.
    #[must_use]
    pub fn get(&self) -> Vec<SocketAddr> {
        let mut known = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        if known.checked.is_none_or(|at| now.duration_since(at) >= CHECK) {
            known.checked = Some(now);
            let paths = [RESOLV_CONF, BEHIND_STUB].map(Path::new);
            let files = paths.map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok());
            if files != known.files || known.servers.is_empty() {
                known.files = files;
                let [own, behind] = paths.map(|path| std::fs::read_to_string(path).unwrap_or_default());
                let servers = choose(&own, &behind).into_iter().map(|ip| SocketAddr::new(ip, PORT));
                known.servers = servers.collect();
            }
        }
        known.servers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn lines_of_resolv_conf_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
            nameserver fe80::1%eth0\nnameserver\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        assert_eq!(name_servers(text), ips(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]));
    }

    #[test]
    fn a_stub_is_not_asked_when_it_says_who_is_behind_it() {
        let stub = "nameserver 127.0.0.53\n";
        assert_eq!(choose(stub, "nameserver 192.0.2.1\n"), ips(&["192.0.2.1"]));
        assert_eq!(choose(stub, ""), ips(&["127.0.0.53"]));
        assert_eq!(choose(stub, stub), ips(&["127.0.0.53"]));
        assert_eq!(choose("nameserver 192.0.2.7\n", "nameserver 192.0.2.1\n"), ips(&["192.0.2.7"]));
        assert_eq!(choose("", ""), ips(&["127.0.0.1"]));
    }
}
