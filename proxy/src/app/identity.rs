//! The identity agent's part of the wiring.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::control_plane::ControlPlane;
use super::{App, StartError};
use crate::config::manager::{Changes, OWN, ROOTS};
use crate::config::secrets::Material;
use crate::identity::socket::Socket;
use crate::identity::{self, Event, Identity, Options};
use crate::tls::verify::Trust;

/// The agent that runs.
pub(super) struct Agent {
    events: mpsc::Receiver<Event>,
    /// For the socket.
    newest: watch::Sender<Option<Arc<Identity>>>,
    /// For the agent.
    roots: watch::Sender<Option<Arc<Trust>>>,
    /// Where the socket is to be, until it is open.
    socket: Option<PathBuf>,
}

/// Starts the agent, if there is to be one.
pub(super) fn start(options: Option<&Options>) -> Option<Agent> {
    let options = options?;
    let (send, events) = mpsc::channel(1);
    let (newest, _) = watch::channel(None);
    let (roots, given) = watch::channel(None);
    tokio::spawn(identity::run(options.issuer.clone(), given, send, fastrand::Rng::new()));
    Some(Agent { events, newest, roots, socket: options.socket.clone() })
}

/// The next event; never, without an agent.
pub(super) async fn next_event(agent: &mut Option<Agent>) -> Event {
    match agent {
        Some(agent) => match agent.events.recv().await {
            Some(event) => event,
            None => pending().await,
        },
        None => pending().await,
    }
}

impl App {
    pub(super) async fn identity_said(&mut self, event: Event) {
        let control = &self.shared.registry.control;
        match event {
            Event::Renewed(identity) => {
                control.identity_renewed(identity.certificate.not_after);
                tracing::info!(identity = identity.certificate.uri.as_deref(), "a new certificate");
                self.take_identity(identity).await;
            }
            Event::Trusting(identity) => {
                tracing::info!("other roots");
                self.take_identity(identity).await;
            }
            Event::Failed { reason, held } => {
                control.identity_failed();
                if held {
                    tracing::warn!(reason, "no new certificate; the one that there is serves on");
                } else {
                    tracing::error!(reason, "no certificate");
                }
            }
            Event::Ending { ended: false } => {
                tracing::warn!("a third of the certificate's life is left, and there is no new one");
            }
            Event::Ending { ended: true } => {
                tracing::error!("the certificate has ended: new connections fail until there is a new one");
            }
        }
    }

    async fn take_identity(&mut self, identity: Identity) {
        self.manager.put_own(OWN, Material::Certificate(Arc::clone(&identity.certificate)));
        self.manager.put_own(ROOTS, Material::Trust(Arc::clone(&identity.trust)));
        if let Some(agent) = &self.identity {
            agent.newest.send_replace(Some(Arc::new(identity)));
        }
        self.start_control_plane();
        self.follow_promoted(Changes::default()).await;
    }

    /// Opens the agent's socket, if there is to be one and it is not open.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) fn open_identity_socket(&mut self) -> Result<(), StartError> {
        let Some(agent) = &mut self.identity else { return Ok(()) };
        let Some(path) = agent.socket.take() else { return Ok(()) };
        let failed = |e: std::io::Error| {
            StartError::Resource(format!("--identity-socket {}", path.display()), e.to_string())
        };
        tokio::spawn(Socket::bind(&path).map_err(failed)?.serve(agent.newest.subscribe()));
        Ok(())
    }

    /// Whether there is an agent and no certificate yet.
    pub(super) fn lacks_certificate(&self) -> bool {
        self.identity.as_ref().is_some_and(|agent| agent.newest.borrow().is_none())
    }

    /// Tells the agent which roots the control plane has, after secrets have come.
    pub(super) fn tell_agent_roots(&self) {
        if let Some(agent) = &self.identity
            && let Some(trust) = self.manager.roots_of_control_plane()
        {
            agent.roots.send_if_modified(|old| {
                let modified = old.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &trust));
                *old = Some(trust);
                modified
            });
        }
    }

    /// Opens the stream to the control plane, as soon as there are the secrets that the connection needs.
    pub(super) fn start_control_plane(&mut self) {
        if self.control_plane.is_none() && self.manager.can_reach_control_plane() {
            let last_good = self.last_good.take();
            self.control_plane = ControlPlane::start(&self.manager, &self.shared.config.load(), last_good);
        }
    }
}
