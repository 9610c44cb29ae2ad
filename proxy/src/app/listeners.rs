//! Sockets that follow the listeners in force.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{App, StartError};
use crate::config::spec::ListenerSpec;
use crate::listener::socket;
use crate::telemetry::metrics::ResourceKind;
use crate::worker::run::Command;

/// A listener whose sockets cannot be had.
#[derive(Debug)]
pub(super) struct Unbound {
    pub(super) name: Arc<str>,
    error: std::io::Error,
    /// Where it listens instead: where it did before.
    old: Vec<SocketAddr>,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen: {}", self.error)?;
        if !self.old.is_empty() {
            let old: Vec<_> = self.old.iter().map(ToString::to_string).collect();
            write!(f, "; it still listens on {}", old.join(", "))?;
        }
        Ok(())
    }
}

/// Sockets of one listener, by address: one for each worker.
type Sockets = Vec<(SocketAddr, Vec<std::net::TcpListener>)>;

impl App {
    /// Opens the first listeners. One of the control plane that cannot be had must not keep the others from serving.
    pub(super) async fn open_first(&mut self) -> Result<(), StartError> {
        for unbound in self.sync_listeners().await {
            if !self.manager.is_from_control_plane(&unbound.name) {
                let resource = format!("listener {}", unbound.name);
                return Err(StartError::Resource(resource, unbound.error.to_string()));
            }
            self.shared.registry.control.config_rejected(ResourceKind::Listener, 1);
            tracing::error!(listener = &*unbound.name, "{unbound}");
        }
        Ok(())
    }

    /// Opens what is new and closes what is gone. Connections of a closed listener go on. What cannot be had is answered, and what
    /// was there before stays.
    pub(super) async fn sync_listeners(&mut self) -> Vec<Unbound> {
        let snapshot = self.shared.config.load_full();
        let mut bound = BTreeMap::clone(&self.shared.bound.load());
        let wanted: BTreeMap<&Arc<str>, &Arc<ListenerSpec>> =
            snapshot.listeners.iter().filter(|l| l.bind).map(|l| (&l.name, l)).collect();
        let gone: Vec<_> = bound.keys().filter(|name| !wanted.contains_key(name)).cloned().collect();
        for name in gone {
            bound.remove(&name);
            self.tell(|| Command::Close(Arc::clone(&name))).await;
        }
        let mut failed = Vec::new();
        for (name, spec) in wanted {
            if bound.get(name).is_some_and(|at| same_addresses(at, spec)) {
                continue;
            }
            // The new sockets before the old ones go: SO_REUSEPORT lets both be open at one address.
            match bind(spec, self.workers.len()) {
                Ok(sockets) => {
                    if bound.contains_key(name) {
                        self.tell(|| Command::Close(Arc::clone(name))).await;
                    }
                    bound.insert(Arc::clone(name), self.hand_out(name, sockets).await);
                }
                Err(error) => {
                    let old = bound.get(name).cloned().unwrap_or_default();
                    failed.push(Unbound { name: Arc::clone(name), error, old });
                }
            }
        }
        self.shared.bound.store(Arc::new(bound));
        failed
    }

    /// Gives each worker its sockets. The addresses that they are bound to.
    async fn hand_out(&self, name: &Arc<str>, sockets: Sockets) -> Vec<SocketAddr> {
        let mut addresses = Vec::with_capacity(sockets.len());
        for (address, sockets) in sockets {
            addresses.push(address);
            for (worker, socket) in self.workers.iter().zip(sockets) {
                // A worker that is gone has nothing to be told.
                let _ = worker.send(Command::Listen(Arc::clone(name), socket)).await;
            }
        }
        addresses
    }
}

fn bind(spec: &ListenerSpec, workers: usize) -> std::io::Result<Sockets> {
    let one = |address: SocketAddr| {
        let sockets = socket::listen(address, &spec.socket, workers)?;
        Ok((sockets[0].local_addr()?, sockets))
    };
    std::iter::once(spec.address).chain(spec.additional.iter().copied()).map(one).collect()
}

/// A wanted port 0 is any port.
fn same_addresses(bound: &[SocketAddr], spec: &ListenerSpec) -> bool {
    let wanted: Vec<_> = std::iter::once(spec.address).chain(spec.additional.iter().copied()).collect();
    let same =
        |(b, w): (&SocketAddr, &SocketAddr)| b.ip() == w.ip() && (w.port() == 0 || b.port() == w.port());
    bound.len() == wanted.len() && bound.iter().zip(&wanted).all(same)
}
