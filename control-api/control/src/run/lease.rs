//! The registration of a program, kept alive.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinHandle;

use super::first;
use crate::client::Server;
use crate::registry::instances::{Registration, Terms};

/// For the last words.
const PATIENCE: Duration = Duration::from_secs(2);

/// A registration that is renewed until it is dropped.
pub(super) struct Lease {
    asks: Arc<Asks>,
    task: JoinHandle<()>,
}

struct Asks {
    server: Server,
    path: String,
    said: Registration,
}

impl Lease {
    /// Registers, and keeps it.
    pub(super) async fn take(
        server: Server,
        namespace: &str,
        name: &str,
        said: Registration,
    ) -> anyhow::Result<Self> {
        first(&server).await?;
        let path = format!("/remora/v1/namespaces/{namespace}/instances/{name}");
        let asks = Arc::new(Asks { server, path, said });
        let terms = asks.register().await?;
        let task = tokio::spawn(keep(Arc::clone(&asks), Duration::from_millis(terms.renew_ms)));
        Ok(Self { asks, task })
    }

    /// It is to get nothing new.
    pub(super) async fn drain(&self) {
        let path = format!("{}/drain", self.asks.path);
        self.last_word(Method::POST, &path).await;
    }

    /// It is no longer there.
    pub(super) async fn end(self) {
        self.task.abort();
        let path = self.asks.path.clone();
        self.last_word(Method::DELETE, &path).await;
    }

    /// A control plane that does not answer now learns it from the silence.
    async fn last_word(&self, method: Method, path: &str) {
        if let Ok(Err(error)) =
            tokio::time::timeout(PATIENCE, self.asks.server.call(method, path, None)).await
        {
            eprintln!("remora run: {error:#}");
        }
    }
}

impl Asks {
    async fn register(&self) -> anyhow::Result<Terms> {
        let answer = self.server.call(Method::PUT, &self.path, Some(&json!(self.said))).await?;
        Ok(serde_json::from_value(answer)?)
    }
}

/// Says that the program is alive. A control plane that is away is asked again; one that does not know the program, because it was
/// started anew or is another one, is told who it is.
async fn keep(asks: Arc<Asks>, every: Duration) {
    let path = format!("{}/renew", asks.path);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut away = false;
    loop {
        ticks.tick().await;
        let error = match asks.server.ask(Method::POST, &path, None).await {
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => asks.register().await.err(),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        // Once when it goes, once when it comes back.
        match (error, away) {
            (Some(error), false) => eprintln!("remora run: {error:#}; going on"),
            (None, true) => eprintln!("remora run: the control plane is back"),
            (Some(_), true) => continue,
            (None, false) => continue,
        }
        away = !away;
    }
}
