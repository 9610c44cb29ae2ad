//! The tasks that keep the authority going: whom nodes are to trust reaches them, and what they answered moves it on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::votes::Votes;
use crate::board::Board;
use crate::ca::authority::{Authority, Barred};
use crate::ca::{Ca, Log, Refused, Tokens};
use crate::publish::Publisher;

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
pub(super) async fn keep(mut parts: Parts, publisher: Arc<Publisher>) {
    let ca = Arc::clone(&parts.ca);
    let mut changes = ca.changes();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            more = changes.next() => {
                if !more {
                    return;
                }
            }
            _ = looks.tick() => {
                let done = parts.look().await.map_err(|error| error.to_string()).err();
                if done.is_some() && done != told {
                    warn!(error = done, "the certificate authority does not move on; tried again");
                }
                told = done;
            }
        }
        if let Ok(secret) = ca.secret() {
            publisher.trust(&secret);
        }
        let revoked = ca.read(|authority| authority.revoked().iter().map(|r| r.serial.clone()).collect());
        publisher.expel(&revoked.unwrap_or_default());
    }
}

impl Parts {
    async fn look(&mut self) -> Result<(), Refused> {
        self.revoke_barred().await?;
        let secret = self.ca.secret()?;
        let own = self.board.laggards(&secret);
        let laggards = self.votes.laggards(secret.version(), own).await?;
        self.ca.advance(&secret, &laggards).await?;
        self.tokens.sweep().await
    }

    /// Who is barred is so everywhere; which certificates it has only those know that signed them.
    async fn revoke_barred(&self) -> Result<(), Refused> {
        let barred = self.ca.read(|authority| authority.barred().to_vec())?;
        for Barred { identity, reason, .. } in barred {
            let living = self.log.living(|entry| entry.identity == identity);
            let is_new =
                |authority: &Authority| living.iter().any(|(serial, _)| !authority.is_revoked(serial));
            if self.ca.read(is_new)? {
                self.ca.revoke(&living, reason).await?;
            }
        }
        Ok(())
    }
}
