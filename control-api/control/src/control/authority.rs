//! The tasks that keep the authority going: whom nodes are to trust reaches them, and what they answered moves it on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use remora_proxy::tls::identity::SpiffeId;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::votes::Votes;
use crate::board::Board;
use crate::ca::authority::{Authority, Barred};
use crate::ca::service::Shown;
use crate::ca::{Ca, Log, Refused, Tokens};
use crate::publish::Publisher;
use crate::quota;

/// Between looks at what is due.
const LOOK: Duration = Duration::from_millis(500);

/// What is looked at.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) ca: Arc<Ca>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) log: Arc<Log>,
    pub(super) board: Arc<Board>,
    pub(super) votes: Votes,
}

/// Keeps it going for ever.
pub(super) async fn keep(mut parts: Parts, publisher: Arc<Publisher>, quotas: quota::Service) {
    let ca = Arc::clone(&parts.ca);
    let mut changes = ca.changes();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Vec::new();
    loop {
        tokio::select! {
            more = changes.next() => {
                if !more {
                    return;
                }
            }
            _ = looks.tick() => {
                let failed = parts.look().await;
                if !failed.is_empty() && failed != told {
                    warn!(errors = ?failed, "the certificate authority does not move on; tried again");
                }
                told = failed;
            }
        }
        if let Ok(secret) = ca.secret() {
            publisher.trust(&secret);
        }
        let out = ca.read(|authority| {
            let serials: HashSet<_> = authority.revoked().iter().map(|r| r.serial.clone()).collect();
            let identities: HashSet<_> = authority.barred().iter().map(|b| b.identity.clone()).collect();
            (serials, identities)
        });
        let (serials, identities) = out.unwrap_or_default();
        if !serials.is_empty() || !identities.is_empty() {
            let is_out = |shown: &Shown| {
                let barred = |id: &SpiffeId| identities.contains(id.as_str());
                serials.contains(&shown.serial) || shown.identity.as_ref().is_some_and(barred)
            };
            publisher.expel(is_out);
            quotas.expel(is_out);
        }
    }
}

impl Parts {
    /// What went wrong. One thing that does not go on is no reason for another not to.
    async fn look(&mut self) -> Vec<String> {
        let done = [self.revoke_barred().await, self.advance().await, self.tokens.sweep().await];
        done.into_iter().filter_map(|done| done.err().map(|error| error.to_string())).collect()
    }

    async fn advance(&mut self) -> Result<(), Refused> {
        let secret = self.ca.secret()?;
        let own = self.board.laggards(&secret);
        let laggards = self.votes.laggards(secret.version(), own).await?;
        self.ca.advance(&secret, &laggards).await
    }

    /// Who is barred is so everywhere; which certificates it has only those know that signed them.
    async fn revoke_barred(&self) -> Result<(), Refused> {
        let barred = self.ca.read(|authority| authority.barred().to_vec())?;
        for Barred { identity, reason, .. } in barred {
            let living = self.log.living(|entry| entry.identity == identity);
            let is_new =
                |authority: &Authority| living.iter().any(|(serial, _)| !authority.is_revoked(serial));
            if self.ca.read(is_new)? {
                self.ca.revoke_as_many_as_fit(living, reason).await?;
            }
        }
        Ok(())
    }
}
