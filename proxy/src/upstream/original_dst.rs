//! ORIGINAL_DST: the endpoint of a request is where its connection wanted to go, or what a header names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::time::Instant;

use super::endpoint::{Endpoint, EndpointSpec};

/// How to find the destination (`OriginalDstLbConfig`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalDstSpec {
    /// `use_http_header` and `http_header_name`, default `x-envoy-original-dst-host`: `ip:port` in this header wins.
    pub header: Option<http::HeaderName>,
    /// `upstream_port_override`.
    pub port: Option<u16>,
    /// `cleanup_interval`, default 5 s: a destination unused this long is forgotten.
    pub cleanup: Duration,
}

impl OriginalDstSpec {
    /// The destination of a request: the header when it is used and names an address, else the original destination of
    /// the connection; with the port overridden. None when there is neither.
    #[must_use]
    pub fn destination(
        &self,
        headers: Option<&http::HeaderMap>,
        connection: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let named = self
            .header
            .as_ref()
            .and_then(|name| headers?.get(name)?.to_str().ok()?.trim().parse::<SocketAddr>().ok());
        let mut address = named.or(connection)?;
        if let Some(port) = self.port {
            address.set_port(port);
        }
        (address.port() != 0).then_some(address)
    }
}

/// The destinations that one worker has seen lately. Bounded: when full, the one used longest ago makes room.
///
/// Each is one cluster's: an endpoint has connections, and those of another cluster have another peer identity, server name or no TLS.
#[derive(Debug)]
pub struct OriginalDstTable {
    limit: usize,
    known: HashMap<(Arc<str>, SocketAddr), Destination>,
    /// One made room since [`Self::expire`] looked.
    left: bool,
}

#[derive(Debug)]
struct Destination {
    endpoint: Arc<Endpoint>,
    used: Instant,
    /// How long it may be unused.
    cleanup: Duration,
}

impl OriginalDstTable {
    /// A table of at most `limit` destinations.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), known: HashMap::new(), left: false }
    }

    /// The endpoint for `address` of the cluster of this name, which is forgotten when it was unused for `cleanup`.
    pub fn endpoint(
        &mut self,
        cluster: &Arc<str>,
        address: SocketAddr,
        cleanup: Duration,
        now: Instant,
    ) -> Arc<Endpoint> {
        let key = (Arc::clone(cluster), address);
        if let Some(known) = self.known.get_mut(&key) {
            (known.used, known.cleanup) = (now, cleanup);
            return Arc::clone(&known.endpoint);
        }
        if self.known.len() >= self.limit {
            self.expire(now);
        }
        if self.known.len() >= self.limit {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.and_then(|key| self.known.remove(&key)) {
                oldest.endpoint.state.leave();
                self.left = true;
            }
        }
        let endpoint = Arc::new(Endpoint::new(EndpointSpec::new(address)));
        self.known.insert(key, Destination { endpoint: Arc::clone(&endpoint), used: now, cleanup });
        endpoint
    }

    /// Forgets destinations that were unused long enough, and that no request uses now.
    pub fn expire(&mut self, now: Instant) {
        let left = &mut self.left;
        self.known.retain(|_, known| {
            let lately = now.saturating_duration_since(known.used) < known.cleanup;
            let stays = lately || known.endpoint.state.active() > 0;
            if !stays {
                known.endpoint.state.leave();
                *left = true;
            }
            stays
        });
    }

    /// Whether destinations were forgotten since this was asked last: their pools are to be given up.
    pub const fn take_left(&mut self) -> bool {
        std::mem::replace(&mut self.left, false)
    }

    /// Number of destinations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName};

    const CLEANUP: Duration = Duration::from_secs(5);

    fn spec(header: bool, port: Option<u16>) -> OriginalDstSpec {
        let header = header.then(|| HeaderName::from_static("x-envoy-original-dst-host"));
        OriginalDstSpec { header, port, cleanup: CLEANUP }
    }

    #[test]
    fn the_header_wins_only_when_it_names_an_address() {
        let connection = Some("10.0.0.1:80".parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert("x-envoy-original-dst-host", "10.0.0.9:8080".parse().unwrap());
        let find = |s: &OriginalDstSpec, h: &HeaderMap, c| s.destination(Some(h), c).map(|a| a.to_string());
        assert_eq!(find(&spec(true, None), &headers, connection).as_deref(), Some("10.0.0.9:8080"));
        assert_eq!(find(&spec(false, None), &headers, connection).as_deref(), Some("10.0.0.1:80"));
        assert_eq!(find(&spec(true, Some(99)), &headers, None).as_deref(), Some("10.0.0.9:99"));
        headers.insert("x-envoy-original-dst-host", "db.example:80".parse().unwrap());
        assert_eq!(find(&spec(true, None), &headers, connection).as_deref(), Some("10.0.0.1:80"));
        assert_eq!(find(&spec(true, None), &headers, None), None);
        assert_eq!(find(&spec(true, None), &headers, Some("10.0.0.1:0".parse().unwrap())), None);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_in_use() {
        let now = Instant::now();
        let mut table = OriginalDstTable::new(2);
        let one = Arc::from("one");
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
        let at = |seconds| now + Duration::from_secs(seconds);
        let endpoint =
            |table: &mut OriginalDstTable, n, seconds| table.endpoint(&one, address(n), CLEANUP, at(seconds));
        let first = endpoint(&mut table, 1, 0);
        let second = endpoint(&mut table, 2, 1);
        assert_eq!(endpoint(&mut table, 1, 2).key, first.key);
        assert!(!table.take_left());
        let third = endpoint(&mut table, 3, 3);
        assert!(table.take_left() && !table.take_left());
        assert_eq!(table.len(), 2);
        assert_ne!(endpoint(&mut table, 2, 4).key, second.key);
        let _busy = third.begin();
        table.expire(at(60));
        assert!(table.take_left());
        assert_eq!(table.len(), 1);
        assert_eq!(endpoint(&mut table, 3, 60).key, third.key);
        assert_eq!([&first, &second, &third].map(|endpoint| endpoint.state.is_gone()), [true, true, false]);
    }

    #[test]
    fn each_is_forgotten_by_the_interval_of_its_cluster() {
        let now = Instant::now();
        let mut table = OriginalDstTable::new(9);
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let soon = table.endpoint(&Arc::from("soon"), address, Duration::from_secs(1), now);
        let late = table.endpoint(&Arc::from("late"), address, CLEANUP, now);
        let gone = || [&soon, &late].map(|endpoint| endpoint.state.is_gone());
        for (millis, expected) in [(999, [false, false]), (1000, [true, false]), (5000, [true, true])] {
            table.expire(now + Duration::from_millis(millis));
            assert_eq!(gone(), expected, "{millis}");
        }
        assert!(table.is_empty());
    }

    /// Two Services of one pod: their clusters lead to one port of its sidecar, and differ in server name and identity.
    #[test]
    fn an_endpoint_is_of_one_cluster() {
        let now = Instant::now();
        let mut table = OriginalDstTable::new(9);
        let address = SocketAddr::from(([10, 0, 0, 1], 15_006));
        let [one, other] = ["one", "other"].map(Arc::from);
        let first = table.endpoint(&one, address, CLEANUP, now);
        assert_ne!(table.endpoint(&other, address, CLEANUP, now).key, first.key);
        assert_eq!(table.endpoint(&one, address, CLEANUP, now).key, first.key);
    }
}
