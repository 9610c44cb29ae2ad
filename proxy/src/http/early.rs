//! An answer that overtook its request: while it is passed on, the upload goes on in a task of its own, because neither may wait for
//! the other.
//!
//! The upload ends with whoever gives the answer up (a retry, a client that has gone), and a moment after an answer that was passed on whole:
//! a program that answers first and reads afterwards gets what is on its way, and nothing is held for a client that stalls.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};

use super::body::Body;
use super::pump::{Pump, PumpError};

/// How long an upload goes on behind its answer.
pub const LINGER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct EarlyBody {
    body: Body,
    upload: JoinHandle<Result<(), PumpError>>,
}

impl EarlyBody {
    /// `body` while `upload` goes on.
    #[must_use]
    pub fn new(body: Body, mut upload: Pump) -> Self {
        let upload = spawn_local(async move { poll_fn(|cx| upload.poll(cx)).await });
        Self { body, upload }
    }

    /// The answer's own body.
    #[must_use]
    pub const fn inner(&self) -> &Body {
        &self.body
    }

    pub(super) const fn inner_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// Has the task of `cx` woken when the upload ends.
    pub fn watch_upload(&mut self, cx: &mut Context<'_>) {
        if !self.upload.is_finished() {
            // How it ended is seen in the request's progress.
            let _ended = Pin::new(&mut self.upload).poll(cx);
        }
    }

    /// Nobody will have the answer.
    pub fn give_up(&self) {
        self.upload.abort();
    }
}

impl Drop for EarlyBody {
    fn drop(&mut self) {
        if self.upload.is_finished() {
            return;
        }
        if !self.body.is_end() {
            return self.upload.abort();
        }
        let upload = self.upload.abort_handle();
        spawn_local(async move {
            tokio::time::sleep(LINGER).await;
            upload.abort();
        });
    }
}
