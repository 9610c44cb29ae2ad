//! Streams that are opened once and are to last: certificates change under them, and routes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tokio::time::{Interval, interval};

use super::client::Client;

/// How many visitors watch.
pub(super) const WATCHERS: usize = 4;
/// Between two events.
const TICK: Duration = Duration::from_millis(250);

/// What a program streams: an event at every tick, without an end.
pub(super) struct Ticks {
    clock: Interval,
    sent: u64,
}

impl Ticks {
    pub(super) fn new() -> Self {
        Self { clock: interval(TICK), sent: 0 }
    }
}

impl Body for Ticks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        ready!(self.clock.poll_tick(cx));
        self.sent += 1;
        Poll::Ready(Some(Ok(Frame::data(format!("data: {}\n\n", self.sent).into()))))
    }
}

/// What became of the streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) opened: usize,
    pub(super) events: u64,
    /// Those that ended, and why.
    pub(super) closed: Vec<String>,
}

/// The watchers. They stop when this is dropped.
pub(super) struct Streams {
    seen: Arc<Mutex<Seen>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Streams {
    /// Opens them all.
    pub(super) fn open(client: &Client) -> Self {
        let mut streams = Self { seen: Arc::default(), tasks: tokio::task::JoinSet::new() };
        for _ in 0..WATCHERS {
            streams.tasks.spawn(watch(client.clone(), Arc::clone(&streams.seen)));
        }
        streams
    }

    /// So far.
    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch(client: Client, seen: Arc<Mutex<Seen>>) {
    let why = match client.open("shop", "/events").await {
        Ok(body) => {
            lock(&seen).opened += 1;
            follow(body, &seen).await
        }
        Err(error) => format!("{error:#}"),
    };
    lock(&seen).closed.push(why);
}

/// Until it ends, which it should not.
async fn follow(mut body: Incoming, seen: &Mutex<Seen>) -> String {
    loop {
        match body.frame().await {
            Some(Ok(_)) => lock(seen).events += 1,
            Some(Err(error)) => return error.to_string(),
            None => return "it ended".into(),
        }
    }
}
