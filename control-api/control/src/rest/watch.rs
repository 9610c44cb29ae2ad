//! `?watch=1`: changes as lines of JSON, until the client has enough.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::documents::shown;
use super::failure::Failure;
use super::selector::Selector;
use crate::board::Standing;
use crate::connections::Lasts;
use crate::kinds::Kind;
use crate::registry::{Change, Position};
use crate::store::{Revision, Scope};

/// Lines that wait for a slow client before it is the changes that wait.
const QUEUE: usize = 16;
/// How long a client may take for one line.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(10);
/// Longest watch.
const AT_MOST: u64 = 3600;

/// What a client wants to see.
pub(super) struct Asked {
    pub(super) kind: &'static Kind,
    pub(super) scope: Scope,
    pub(super) selector: Selector,
    /// Changes after this revision; None: everything there is, and what changes then.
    pub(super) from: Option<Revision>,
    pub(super) bookmarks: bool,
    pub(super) seconds: Option<u64>,
}

/// The answer, which goes on.
pub(super) fn start(app: App, asked: Asked) -> Response {
    let lasts = Lasts(asked.lasts() + PATIENCE);
    let (send, lines) = mpsc::channel::<Result<Bytes, Infallible>>(QUEUE);
    tokio::spawn(async move {
        let mut watch = Watch { app, asked, send };
        // An end is an end: the client went away or is too slow, or the time is over.
        let _ = watch.run().await;
    });
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = (kind, Body::from_stream(ReceiverStream::new(lines))).into_response();
    response.extensions_mut().insert(lasts);
    response
}

impl Asked {
    /// How long the watch goes on.
    fn lasts(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(AT_MOST).min(AT_MOST))
    }
}

struct Watch {
    app: App,
    asked: Asked,
    send: mpsc::Sender<Result<Bytes, Infallible>>,
}

/// The client does not read any more.
struct Left;

impl Watch {
    async fn run(&mut self) -> Result<(), Left> {
        let end = Instant::now() + self.asked.lasts();
        let mut progress = self.app.registry.progress();
        let Some(mut position) = self.begin().await? else { return Ok(()) };
        let mut bookmark = Instant::now() + BOOKMARK;
        loop {
            progress.borrow_and_update();
            let Ok(changes) = self.app.registry.changes(position, 1000) else {
                return self.line("ERROR", Failure::gone().status()).await;
            };
            if !changes.is_empty() {
                let standing = self.app.board.standing();
                for change in &changes {
                    self.tell(change, &standing).await?;
                }
            }
            if let Some(last) = changes.last() {
                position = last.position;
                continue;
            }
            tokio::select! {
                moved = progress.changed() => moved.map_err(|_| Left)?,
                () = sleep_until(bookmark) => {
                    bookmark = Instant::now() + BOOKMARK;
                    self.bookmark().await?;
                }
                () = sleep_until(end) => return Ok(()),
                () = self.send.closed() => return Err(Left),
            }
        }
    }

    /// What there is, if that is asked for, and the position after it.
    async fn begin(&self) -> Result<Option<Position>, Left> {
        let Some(revision) = self.asked.from else {
            let (position, _, all) = self.app.registry.all();
            let standing = self.app.board.standing();
            for record in
                all.iter().filter(|r| self.asked.scope.contains(&r.key) && self.asked.selector.matches(r))
            {
                self.line("ADDED", shown(&standing, record)).await?;
            }
            return Ok(Some(position));
        };
        match self.app.registry.position_after(revision) {
            Ok(position) => Ok(Some(position)),
            Err(_) => {
                self.line("ERROR", Failure::gone().status()).await?;
                Ok(None)
            }
        }
    }

    async fn tell(&self, change: &Change, standing: &Standing) -> Result<(), Left> {
        if !self.asked.scope.contains(&change.key) {
            return Ok(());
        }
        // What no longer fits the selector is gone, for this client.
        let old = change.old.as_deref().filter(|record| self.asked.selector.matches(record));
        let new = change.new.as_deref().filter(|record| self.asked.selector.matches(record));
        match (old, new) {
            (None, None) => Ok(()),
            (None, Some(new)) => self.line("ADDED", shown(standing, new)).await,
            (Some(_), Some(new)) => self.line("MODIFIED", shown(standing, new)).await,
            (Some(old), None) => {
                let mut object = old.to_value(None);
                object["metadata"]["resourceVersion"] = change.revision.to_string().into();
                self.line("DELETED", object).await
            }
        }
    }

    async fn bookmark(&self) -> Result<(), Left> {
        if !self.asked.bookmarks {
            return Ok(());
        }
        let revision = self.app.registry.revision();
        let object = json!({
            "apiVersion": self.asked.kind.api_version(), "kind": self.asked.kind.name,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        self.line("BOOKMARK", object).await
    }

    async fn line(&self, what: &str, object: Value) -> Result<(), Left> {
        let line = format!("{}\n", json!({"type": what, "object": object}));
        let sent = timeout(PATIENCE, self.send.send(Ok(line.into()))).await;
        sent.map_err(|_| Left)?.map_err(|_| Left)
    }
}
