//! The life of one stream.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::{Client, Settings, Shared, SnapshotWatch, Snapshots};
use crate::stream::{Event, Refusal, Stream};

/// Serves one client until one of the two has had enough.
pub(super) async fn run<M, S>(
    shared: &Arc<Shared<S>>,
    mut client: Client,
    requests: Streaming<M::Request>,
    out: mpsc::Sender<Result<M::Response, Status>>,
) where
    M: Stream,
    S: Snapshots,
{
    let ended = match begin::<M, S>(shared, &mut client, requests).await {
        Ok(mut session) => session.serve(&out).await,
        Err(status) => Ended::Refused(status),
    };
    let reason = ended.reason();
    tracing::debug!(stream = client.stream, node = client.node.id, reason, "stream ended");
    if !client.node.id.is_empty() {
        shared.snapshots.closed(&client, &reason);
    }
    if let Ended::Refused(status) = ended {
        // A client that is gone need not be told, and one that does not read is not waited for.
        let _ = timeout(shared.settings.keepalive_timeout, out.send(Err(status))).await;
    }
}

/// Why a stream is over.
enum Ended {
    /// The client closed it.
    ByClient,
    /// The connection broke, or carried something that is no request.
    Broken(Status),
    /// We end it, with this status.
    Refused(Status),
}

impl Ended {
    fn reason(&self) -> String {
        match self {
            Self::ByClient => "closed by the client".into(),
            Self::Broken(status) | Self::Refused(status) => status.message().into(),
        }
    }
}

struct Session<'s, M: Stream, S> {
    shared: &'s Arc<Shared<S>>,
    client: Client,
    requests: Streaming<M::Request>,
    machine: M,
    snapshots: SnapshotWatch,
    debounce: Debounce,
    ends_at: Instant,
}

/// Reads the first request, which says who the client is.
async fn begin<'s, M, S>(
    shared: &'s Arc<Shared<S>>,
    client: &mut Client,
    mut requests: Streaming<M::Request>,
) -> Result<Session<'s, M, S>, Status>
where
    M: Stream,
    S: Snapshots,
{
    let settings = &shared.settings;
    let first = timeout(settings.first_request, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let first = first.ok_or_else(|| Status::cancelled("closed before the first request"))?;
    client.node = M::node(&first).cloned().unwrap_or_default();
    let mut machine = M::new(client.stream, settings.limits.clone());
    machine.request(first).map_err(refused)?;
    let mut snapshots = shared.snapshots.watch(client)?;
    if let Some(snapshot) = snapshots.borrow_and_update().clone() {
        machine.snapshot(snapshot);
    }
    let jitter = 1.0 - settings.stream_age_jitter * fastrand::f64();
    let ends_at = Instant::now() + settings.stream_age.mul_f64(jitter.clamp(0.0, 1.0));
    let debounce = Debounce::default();
    Ok(Session { shared, client: client.clone(), requests, machine, snapshots, debounce, ends_at })
}

fn refused(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Subscriptions { .. } => Status::resource_exhausted(text),
        Refusal::Type(_) => Status::unimplemented(text),
        Refusal::NoNode | Refusal::Name { .. } | Refusal::Locators => Status::invalid_argument(text),
    }
}

impl<M: Stream, S: Snapshots> Session<'_, M, S> {
    async fn serve(&mut self, out: &mpsc::Sender<Result<M::Response, Status>>) -> Ended {
        // Whether there may be something to send.
        let mut lively = true;
        loop {
            let now = Instant::now();
            let alarm = [self.machine.deadline(now), self.debounce.due(), Some(self.ends_at)];
            let alarm = alarm.into_iter().flatten().min().unwrap_or(self.ends_at);
            tokio::select! {
                biased;
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(refusal) = self.machine.request(request) {
                            return Ended::Refused(refused(refusal));
                        }
                        lively = true;
                    }
                    Ok(None) => return Ended::ByClient,
                    Err(status) => return Ended::Broken(status),
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => self.debounce.note(Instant::now(), &self.shared.settings),
                    Err(_) => return Ended::Refused(Status::unavailable("the node was moved; connect again")),
                },
                () = sleep_until(alarm) => {
                    let now = Instant::now();
                    if now >= self.ends_at {
                        return Ended::Refused(Status::unavailable("the stream has reached its age; connect again"));
                    }
                    if self.debounce.take_due(now) {
                        self.take_snapshot();
                    }
                    lively = true;
                }
                // Only when the client has taken the last response is the next one made: of what is newest then.
                permit = out.reserve(), if lively => match (permit, self.machine.next(Instant::now())) {
                    (Err(_), _) => return Ended::ByClient,
                    (Ok(permit), Some(response)) => permit.send(Ok(response)),
                    (Ok(_), None) => lively = false,
                },
            }
            self.report();
        }
    }

    fn take_snapshot(&mut self) {
        let snapshot = self.snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            self.machine.snapshot(snapshot);
        }
    }

    fn report(&mut self) {
        let (snapshots, client) = (&self.shared.snapshots, &self.client);
        for event in self.machine.take_events() {
            match event {
                Event::Accepted(resource) => snapshots.accepted(client, &resource),
                Event::Refused(resource, detail) => snapshots.refused(client, &resource, &detail),
                Event::Wanted(kind, names) => snapshots.wanted(client, kind, &names),
                Event::Stale(kind, nonce) | Event::Foreign(kind, nonce) => {
                    tracing::debug!(node = client.node.id, %kind, nonce, "an answer to no response in flight");
                }
            }
        }
    }
}

/// Waits for the end of a burst of changes.
#[derive(Debug, Default)]
struct Debounce {
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    quiet_at: Instant,
    latest: Instant,
}

impl Debounce {
    fn note(&mut self, now: Instant, settings: &Settings) {
        let latest = self.pending.map_or(now + settings.at_most, |pending| pending.latest);
        self.pending = Some(Pending { quiet_at: now + settings.quiet, latest });
    }

    fn due(&self) -> Option<Instant> {
        self.pending.map(|pending| pending.quiet_at.min(pending.latest))
    }

    fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.pending = None;
        }
        due
    }
}
