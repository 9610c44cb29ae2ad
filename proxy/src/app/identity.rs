//! The identity agent's part of the wiring.

use std::future::pending;

use tokio::sync::mpsc;

use super::App;
use super::control_plane::ControlPlane;
use crate::config::manager::{Changes, OWN, ROOTS};
use crate::config::secrets::Material;
use crate::identity::{self, Event, Identity, Options};

/// Starts the agent, if there is to be one.
pub(super) fn start(options: Option<&Options>) -> Option<mpsc::Receiver<Event>> {
    let (send, events) = mpsc::channel(1);
    tokio::spawn(identity::run(options?.clone(), send, fastrand::Rng::new()));
    Some(events)
}

/// The next event; never, without an agent.
pub(super) async fn next_event(identity: &mut Option<mpsc::Receiver<Event>>) -> Event {
    match identity {
        Some(events) => match events.recv().await {
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
            Event::Renewed(Identity { certificate, trust, .. }) => {
                control.identity_renewed(certificate.not_after);
                tracing::info!(identity = certificate.uri.as_deref(), "a new certificate");
                self.manager.put_own(OWN, Material::Certificate(certificate));
                self.manager.put_own(ROOTS, Material::Trust(trust));
                self.start_control_plane();
                self.follow_promoted(Changes::default()).await;
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

    /// Opens the stream to the control plane, as soon as there are the secrets that the connection needs.
    pub(super) fn start_control_plane(&mut self) {
        if self.control_plane.is_none() && self.manager.can_reach_control_plane() {
            let last_good = self.last_good.take();
            self.control_plane = ControlPlane::start(&self.manager, &self.shared.config.load(), last_good);
        }
    }
}
