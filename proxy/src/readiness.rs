//! Whether this proxy should get traffic: `/ready` of the admin server and the readiness port.
//!
//! Each part that must be there before traffic may come holds a [`ReadyGuard`] with its name; the proxy is ready
//! when the last guard is dropped. It stays ready when the control plane goes away later. It fails again for good
//! when draining begins, and for a while by `POST /healthcheck/fail`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Name of the reason that `POST /healthcheck/fail` gives.
const FAILED: &str = "healthcheck/fail";

/// State as `/ready` and `/server_info` name it (`envoy.admin.v3.ServerInfo.State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Traffic may come.
    Live,
    /// Draining, or failed on purpose.
    Draining,
    /// A part is not there yet.
    Initializing,
}

impl State {
    /// Envoy's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "PRE_INITIALIZING",
        }
    }
}

/// The readiness of the process. A clone is the same readiness.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Mutex<Parts>,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct Parts {
    /// Names of the guards that are held, in the order in which they were made.
    waiting: Vec<Arc<str>>,
    failed: bool,
    draining: bool,
}

impl Parts {
    fn state(&self) -> State {
        if self.failed || self.draining {
            State::Draining
        } else if self.waiting.is_empty() {
            State::Live
        } else {
            State::Initializing
        }
    }
}

/// Keeps the proxy unready until it is dropped.
#[derive(Debug)]
#[must_use = "the proxy is ready as soon as the guard is dropped"]
pub struct ReadyGuard {
    name: Arc<str>,
    readiness: Readiness,
}

impl Readiness {
    /// An unready process, and the guard of its start: to be dropped when all other guards have been made.
    pub fn new() -> (Self, ReadyGuard) {
        let state = watch::Sender::new(State::Initializing);
        let readiness = Self(Arc::new(Shared { parts: Mutex::default(), state }));
        let guard = readiness.guard("startup");
        (readiness, guard)
    }

    /// The proxy is not ready before the guard is dropped. `name` tells a person what it waits for.
    pub fn guard(&self, name: &str) -> ReadyGuard {
        let name: Arc<str> = name.into();
        self.change(|parts| parts.waiting.push(Arc::clone(&name)));
        ReadyGuard { name, readiness: self.clone() }
    }

    /// Fails from now on: shutting down.
    pub fn drain(&self) {
        self.change(|parts| parts.draining = true);
    }

    /// Fails, or no longer fails, because somebody asked for it (`/healthcheck/fail`, `/healthcheck/ok`).
    pub fn set_failed(&self, failed: bool) {
        self.change(|parts| parts.failed = failed);
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        *self.0.state.borrow()
    }

    /// What keeps the proxy from being ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let parts = self.lock();
        let fixed = [(parts.draining, "draining"), (parts.failed, FAILED)];
        let fixed = fixed.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned());
        fixed.chain(parts.waiting.iter().map(|name| name.to_string())).collect()
    }

    /// Follows the state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        // The lock is held while the state is published: two changes cannot be published in the wrong order.
        let mut parts = self.lock();
        change(&mut parts);
        let state = parts.state();
        self.0.state.send_if_modified(|old| std::mem::replace(old, state) != state);
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.readiness.change(|parts| {
            if let Some(at) = parts.waiting.iter().position(|name| Arc::ptr_eq(name, &self.name)) {
                parts.waiting.remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_guard_is_gone() {
        let (readiness, startup) = Readiness::new();
        let (a, b) = (readiness.guard("xds"), readiness.guard("xds"));
        drop(startup);
        assert_eq!(readiness.state(), State::Initializing);
        assert_eq!(readiness.reasons(), ["xds", "xds"]);
        drop(a);
        assert_eq!(readiness.reasons(), ["xds"]);
        drop(b);
        assert_eq!(readiness.state(), State::Live);
        assert!(readiness.reasons().is_empty());
    }

    #[tokio::test]
    async fn failing_passes_and_draining_does_not() {
        let (readiness, startup) = Readiness::new();
        let mut watch = readiness.watch();
        drop(startup);
        assert_eq!(*watch.wait_for(|s| *s == State::Live).await.unwrap(), State::Live);
        readiness.set_failed(true);
        assert_eq!((readiness.state(), readiness.reasons()), (State::Draining, vec![FAILED.to_owned()]));
        readiness.set_failed(false);
        assert_eq!(readiness.state(), State::Live);
        readiness.drain();
        readiness.set_failed(false);
        assert_eq!((readiness.state(), readiness.reasons()), (State::Draining, vec!["draining".to_owned()]));
    }
}
