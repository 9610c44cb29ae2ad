//! The one task that writes: commits what waits in one transaction, and lets leases expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::blocking;
use super::file::{File, Write};
use crate::store::lease::Leases;
use crate::store::{LeaseId, Revision, StoreError};

/// Most writes of one transaction.
const BATCH: usize = 256;
/// When an expired lease could not be removed.
const RETRY: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<u64, StoreError>>;

pub(super) enum Command {
    Write(Write, Answer),
    KeepAlive(LeaseId, oneshot::Sender<Result<(), StoreError>>),
}

pub(super) struct Writer {
    file: Arc<File>,
    tell: watch::Sender<Revision>,
    leases: Leases<LeaseId>,
}

impl Writer {
    /// `leases` are those of the file: while nobody wrote, nobody could renew them, so that each has its whole time again.
    pub(super) fn new(
        file: Arc<File>,
        tell: watch::Sender<Revision>,
        leases: Vec<(LeaseId, Duration)>,
    ) -> Self {
        let (now, mut held) = (Instant::now(), Leases::default());
        for (id, ttl) in leases {
            held.grant(id, ttl, now);
        }
        Self { file, tell, leases: held }
    }

    /// Until the store is dropped.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            let mut batch = Vec::new();
            let end = self.leases.next_end();
            tokio::select! {
                received = queue.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    self.serve(batch).await;
                }
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => self.expire().await,
            }
        }
    }

    async fn serve(&mut self, batch: Vec<Command>) {
        let (mut writes, mut answers) = (Vec::new(), Vec::new());
        for command in batch {
            match command {
                Command::Write(write, answer) => {
                    writes.push(write);
                    answers.push(answer);
                }
                Command::KeepAlive(lease, answer) => {
                    let renewed = self.leases.renew(&lease, Instant::now());
                    // Who asked may have gone.
                    let _ = answer.send(if renewed { Ok(()) } else { Err(StoreError::NoLease(lease)) });
                }
            }
        }
        if writes.is_empty() {
            return;
        }
        let results = self.commit(writes).await;
        for (answer, result) in answers.into_iter().zip(results) {
            let _ = answer.send(result);
        }
    }

    async fn commit(&mut self, writes: Vec<Write>) -> Vec<Result<u64, StoreError>> {
        let writes = Arc::new(writes);
        let shared = Arc::clone(&writes);
        match blocking(&self.file, move |file| file.write(&shared)).await {
            Ok((results, revision)) => {
                self.follow(&writes, &results);
                self.tell.send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
                results
            }
            Err(error) => vec![Err(error); writes.len()],
        }
    }

    /// Leases that came and went with these writes.
    fn follow(&mut self, writes: &[Write], results: &[Result<u64, StoreError>]) {
        for (write, result) in writes.iter().zip(results) {
            match (write, result) {
                (Write::Grant(ttl), Ok(id)) => self.leases.grant(LeaseId(*id), *ttl, Instant::now()),
                (Write::Revoke(lease), Ok(_)) => drop(self.leases.revoke(lease)),
                _ => {}
            }
        }
    }

    async fn expire(&mut self) {
        let over = self.leases.expire(Instant::now());
        let results = self.commit(over.iter().map(|lease| Write::Revoke(*lease)).collect()).await;
        for (lease, result) in over.into_iter().zip(results) {
            if let Err(StoreError::Full(_) | StoreError::Unavailable(_) | StoreError::Corrupt(_)) = result {
                self.leases.grant(lease, RETRY, Instant::now());
            }
        }
    }
}
