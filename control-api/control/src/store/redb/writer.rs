//! The one task that writes: commits what waits in one transaction, and lets leases expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::blocking;
use super::file::{File, Work};
use crate::store::lease::Leases;
use crate::store::{LeaseId, Revision, StoreError};

/// Most writes of one transaction.
const BATCH: usize = 256;
/// When an expired lease could not be removed.
const RETRY: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<u64, StoreError>>;

pub(super) enum Command {
    Do(Work, Answer),
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
        let (mut work, mut answers) = (Vec::new(), Vec::new());
        for command in batch {
            match command {
                Command::Do(item, answer) => {
                    work.push(item);
                    answers.push(answer);
                }
                Command::KeepAlive(lease, answer) => {
                    let renewed = self.leases.renew(&lease, Instant::now());
                    // Who asked may have gone.
                    let _ = answer.send(if renewed { Ok(()) } else { Err(StoreError::NoLease(lease)) });
                }
            }
        }
        if work.is_empty() {
            return;
        }
        let results = self.commit(work).await;
        for (answer, result) in answers.into_iter().zip(results) {
            let _ = answer.send(result);
        }
    }

    async fn commit(&mut self, work: Vec<Work>) -> Vec<Result<u64, StoreError>> {
        let work = Arc::new(work);
        let shared = Arc::clone(&work);
        match blocking(&self.file, move |file| file.write(&shared)).await {
            Ok((results, revision)) => {
                self.follow(&work, &results);
                self.tell.send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
                results
            }
            Err(error) => vec![Err(error); work.len()],
        }
    }

    /// Leases that came and went with it.
    fn follow(&mut self, work: &[Work], results: &[Result<u64, StoreError>]) {
        for (item, result) in work.iter().zip(results) {
            match (item, result) {
                (Work::Grant(ttl), Ok(id)) => self.leases.grant(LeaseId(*id), *ttl, Instant::now()),
                (Work::Revoke(lease), Ok(_)) => drop(self.leases.revoke(lease)),
                _ => {}
            }
        }
    }

    async fn expire(&mut self) {
        let over = self.leases.expire(Instant::now());
        let results = self.commit(over.iter().map(|lease| Work::Revoke(*lease)).collect()).await;
        for (lease, result) in over.into_iter().zip(results) {
            if let Err(StoreError::Full(_) | StoreError::Unavailable(_) | StoreError::Corrupt(_)) = result {
                self.leases.grant(lease, RETRY, Instant::now());
            }
        }
    }
}
