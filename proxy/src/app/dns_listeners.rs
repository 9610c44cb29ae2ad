//! Listeners that answer DNS: they run on this runtime, and follow the configuration in force.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::listeners::{Unbound, same_addresses};
use crate::config::snapshot::Snapshot;
use crate::config::spec::ListenerSpec;
use crate::dns::DnsFilterSpec;
use crate::dns::server::{Service, serve_tcp, serve_udp};
use crate::dns::stats::AllStats;
use crate::listener::socket;
use crate::telemetry::metrics::Registry;

/// Addresses of listeners by name, as the admin pages show them.
type Bound = BTreeMap<Arc<str>, Vec<SocketAddr>>;

/// Those that run, by name.
#[derive(Debug)]
pub(super) struct DnsListeners {
    running: BTreeMap<Arc<str>, Running>,
    stats: Arc<AllStats>,
}

#[derive(Debug)]
struct Running {
    service: Arc<Service>,
    prefix: Arc<str>,
    /// They end when this is dropped.
    _sockets: JoinSet<()>,
}

impl DnsListeners {
    pub(super) fn new(registry: &Registry) -> Self {
        let stats = Arc::<AllStats>::default();
        registry.add(Arc::<AllStats>::clone(&stats));
        Self { running: BTreeMap::new(), stats }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// Closes those that are there no longer.
    pub(super) fn close_gone(&mut self, snapshot: &Snapshot, bound: &mut Bound) {
        self.running.retain(|name, _| {
            let stays = snapshot.listener(name).is_some_and(|listener| listener.dns.is_some());
            if !stays {
                bound.remove(name);
            }
            stays
        });
    }

    /// Opens those that are new; the others get their new tables, and keep what they have cached. Answers those whose sockets cannot be had.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, bound: &mut Bound) -> Vec<Unbound> {
        let mut failed = Vec::new();
        for listener in &snapshot.listeners {
            let Some(spec) = &listener.dns else { continue };
            let at = bound.get(&listener.name).filter(|at| same_addresses(at, listener));
            if let Some(running) = self.running.get(&listener.name)
                && running.prefix == spec.stat_prefix
                && at.is_some()
            {
                running.service.follow(spec);
                continue;
            }
            match self.open(listener, spec) {
                Ok((addresses, running)) => {
                    self.running.insert(Arc::clone(&listener.name), running);
                    bound.insert(Arc::clone(&listener.name), addresses);
                }
                Err(error) => {
                    // Where it was it goes on, with what it has to say now.
                    if let Some(running) = self.running.get(&listener.name) {
                        running.service.follow(spec);
                    }
                    let (name, old) = (Arc::clone(&listener.name), bound.get(&listener.name).cloned());
                    failed.push(Unbound { name, error, old: old.unwrap_or_default() });
                }
            }
        }
        failed
    }

    /// What was refused was followed, too: those that run have the tables of `snapshot` again.
    pub(super) fn follow_tables(&self, snapshot: &Snapshot) {
        for (name, running) in &self.running {
            if let Some(spec) = snapshot.listener(name).and_then(|listener| listener.dns.as_ref()) {
                running.service.follow(spec);
            }
        }
    }

    /// The new sockets before the old ones go: both may be open at one address.
    fn open(
        &self,
        listener: &ListenerSpec,
        spec: &Arc<DnsFilterSpec>,
    ) -> io::Result<(Vec<SocketAddr>, Running)> {
        let wanted = std::iter::once(listener.address).chain(listener.additional.iter().copied());
        let sockets = wanted.map(|address| socket::listen_both(address, &listener.socket));
        let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        let addresses = sockets.iter().map(|(udp, _)| udp.local_addr()).collect::<io::Result<Vec<_>>>()?;
        let stats = self.stats.of(&spec.stat_prefix);
        let service = Service::new(Arc::clone(spec), stats, addresses.clone());
        let mut tasks = JoinSet::new();
        for (udp, tcp) in sockets {
            let udp = tokio::net::UdpSocket::from_std(udp)?;
            let tcp = tokio::net::TcpListener::from_std(tcp)?;
            tasks.spawn(serve_udp(Arc::clone(&service), udp));
            tasks.spawn(serve_tcp(Arc::clone(&service), tcp));
        }
        let prefix = Arc::clone(&spec.stat_prefix);
        Ok((addresses, Running { service, prefix, _sockets: tasks }))
    }
}
