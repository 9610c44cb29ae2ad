//! Sockets that follow the listeners in force.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use super::{App, StartError};
use crate::config::spec::ListenerSpec;
use crate::listener::accept::Newcomers;
use crate::listener::socket;
use crate::restart::Place;
use crate::telemetry::metrics::ResourceKind;
use crate::worker::run::Command;

/// A listener whose sockets cannot be had.
#[derive(Debug)]
pub(super) struct Unbound {
    pub(super) name: Arc<str>,
    pub(super) error: std::io::Error,
    /// Where it listens instead: where it did before.
    pub(super) old: Vec<SocketAddr>,
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

/// Sockets of one address: one for each worker, or more if a predecessor had more workers.
struct Bound {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
    /// How many of them, the first ones, are a predecessor's.
    inherited: usize,
}

/// What a listener says about addresses that are not its own. Sockets that were opened without it are of no use with it: the kernel drops
/// what TPROXY would give them; and it needs a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transparency {
    /// `transparent`.
    takes: bool,
    /// The listener filter `original_src`.
    poses: bool,
}

impl Transparency {
    const fn of(spec: &ListenerSpec) -> Self {
        Self { takes: spec.socket.transparent, poses: spec.original_src.is_some() }
    }
}

/// Sockets of one listener that nobody accepts on yet.
struct Opened {
    name: Arc<str>,
    bound: Vec<Bound>,
    transparency: Transparency,
}

impl App {
    /// Opens the first listeners. One of the control plane that cannot be had must not keep the others from serving, but keeps a successor from
    /// taking over. Of another one, nothing is accepted on any.
    pub(super) async fn open_first(&mut self) -> Result<(), StartError> {
        let (opened, failed) = self.bind_wanted().await;
        for unbound in failed {
            // What runs has this one, and goes on.
            if self.restart.succeeds() || !self.manager.is_from_control_plane(&unbound.name) {
                let resource = format!("listener {}", unbound.name);
                return Err(StartError::Resource(resource, unbound.error.to_string()));
            }
            self.shared.registry.control.config_rejected(ResourceKind::Listener, 1);
            tracing::error!(listener = &*unbound.name, "{unbound}");
        }
        self.accept_on(opened).await;
        Ok(())
    }

    /// Opens what is new and closes what is gone. Connections of a closed listener go on. What cannot be had is answered, and what
    /// was there before stays.
    pub(super) async fn sync_listeners(&mut self) -> Vec<Unbound> {
        let (opened, failed) = self.bind_wanted().await;
        self.accept_on(opened).await;
        failed
    }

    /// Closes what is gone, and binds what is new.
    async fn bind_wanted(&mut self) -> (Vec<Opened>, Vec<Unbound>) {
        let snapshot = self.shared.config.load_full();
        let mut bound = BTreeMap::clone(&self.shared.bound.load());
        let wanted: BTreeMap<&Arc<str>, &Arc<ListenerSpec>> =
            snapshot.listeners.iter().filter(|l| l.bind && l.dns.is_none()).map(|l| (&l.name, l)).collect();
        self.dns_listeners.close_gone(&snapshot, &mut bound);
        let gone = |name: &&Arc<str>| !wanted.contains_key(name) && !self.dns_listeners.has(name);
        let gone: Vec<_> = bound.keys().filter(gone).cloned().collect();
        for name in gone {
            let at = bound.remove(&name).unwrap_or_default();
            self.transparency.remove(&name);
            self.close_listener(&name, &at).await;
        }
        let (mut opened, mut failed) = (Vec::new(), self.dns_listeners.follow(&snapshot, &mut bound));
        for (name, spec) in wanted {
            let (old, transparency) = (bound.get(name).cloned().unwrap_or_default(), Transparency::of(spec));
            let stays = same_addresses(&old, spec);
            if stays && self.transparency.get(name) == Some(&transparency) {
                continue;
            }
            // What was any port stays the one that it is.
            let at = if stays { old.clone() } else { addresses(spec).collect() };
            // The new sockets before the old ones go: SO_REUSEPORT lets both be open at one address.
            match self.bind(spec, &at) {
                Ok(bound) => opened.push(Opened { name: Arc::clone(name), bound, transparency }),
                Err(error) => failed.push(Unbound { name: Arc::clone(name), error, old }),
            }
        }
        self.shared.bound.store(Arc::new(bound));
        (opened, failed)
    }

    fn bind(&mut self, spec: &ListenerSpec, at: &[SocketAddr]) -> std::io::Result<Vec<Bound>> {
        let (workers, mut all) = (self.workers.len(), Vec::new());
        for address in at.iter().copied() {
            // A predecessor's sockets are taken as they are, and get their options later, where this would only be a warning.
            if spec.socket.transparent {
                socket::may_be_transparent(address, "transparent")?;
            }
            if spec.original_src.is_some() {
                socket::may_be_transparent(address, "original_src")?;
            }
            let inherited = self.restart.inherit(&Place::of(&spec.name, address));
            let mut sockets = socket::adopt(inherited, &spec.socket)?;
            let inherited = sockets.len();
            let address = sockets.first().map_or(Ok(address), TcpListener::local_addr)?;
            sockets.extend(socket::listen(address, &spec.socket, workers.saturating_sub(inherited))?);
            all.push(Bound { address: sockets[0].local_addr()?, sockets, inherited });
        }
        Ok(all)
    }

    /// Closes the sockets of a listener at these addresses. Its connections go on.
    pub(super) async fn close_listener(&mut self, name: &Arc<str>, at: &[SocketAddr]) {
        let shared = self.restart.closing(&places(name, at)).await;
        // Not refused: another listener may be about to have its address.
        let newcomers = if shared { Newcomers::Wait } else { Newcomers::Ignored };
        self.tell(|| Command::Close { name: Arc::clone(name), newcomers }).await;
    }

    /// Closes the sockets of a listener at these addresses, because it is about to get others.
    async fn renew_listener(&mut self, name: &Arc<str>, at: &[SocketAddr]) {
        if self.restart.closing(&places(name, at)).await {
            self.tell(|| Command::Renew(Arc::clone(name))).await;
        } else {
            let newcomers = Newcomers::Ignored;
            self.tell(|| Command::Close { name: Arc::clone(name), newcomers }).await;
        }
    }

    /// Gives each worker its sockets.
    async fn accept_on(&mut self, opened: Vec<Opened>) {
        let mut all = BTreeMap::clone(&self.shared.bound.load());
        for Opened { name, bound, transparency } in opened {
            if let Some(old) = all.remove(&name) {
                self.renew_listener(&name, &old).await;
            }
            let addresses = bound.iter().map(|bound| bound.address).collect();
            for Bound { address, sockets, inherited } in bound {
                self.restart.opened(&Place::of(&name, address), &sockets, inherited).await;
                for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
                    // A worker that is gone has nothing to be told.
                    let _ = worker.send(Command::Listen(Arc::clone(&name), socket)).await;
                }
            }
            self.transparency.insert(Arc::clone(&name), transparency);
            all.insert(name, addresses);
        }
        self.shared.bound.store(Arc::new(all));
    }
}

fn places(name: &str, at: &[SocketAddr]) -> Vec<Place> {
    at.iter().map(|at| Place::of(name, *at)).collect()
}

fn addresses(spec: &ListenerSpec) -> impl Iterator<Item = SocketAddr> {
    std::iter::once(spec.address).chain(spec.additional.iter().copied())
}

/// A wanted port 0 is any port.
pub(super) fn same_addresses(bound: &[SocketAddr], spec: &ListenerSpec) -> bool {
    let wanted: Vec<_> = addresses(spec).collect();
    let same =
        |(b, w): (&SocketAddr, &SocketAddr)| b.ip() == w.ip() && (w.port() == 0 || b.port() == w.port());
    bound.len() == wanted.len() && bound.iter().zip(&wanted).all(same)
}
