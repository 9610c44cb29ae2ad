//! The admin server: Envoy's pages under Envoy's paths, so that its users and tools find their way.
//!
//! | path | method | what |
//! | --- | --- | --- |
//! | `/` | GET | this list, as HTML |
//! | `/help` | GET | this list, as text |
//! | `/ready` | GET | 200 `LIVE`, or 503 with the state and what is not ready |
//! | `/healthz/ready` | GET | the same, under the path of Istio's readiness port |
//! | `/healthcheck` | GET | 200 while the process runs |
//! | `/config_dump` | GET | the configuration in use; `?resource=dynamic_active_clusters` one list of it, `?name_regex=` by name |
//! | `/clusters` | GET | clusters and their endpoints; `?format=json` |
//! | `/circuit_breakers` | GET, POST | circuit breakers and their state; POST `?name=cluster/orders&state=FORCED_OPEN` sets one |
//! | `/listeners` | GET | listeners and their addresses; `?format=json` |
//! | `/certs` | GET | certificates and when they expire |
//! | `/why` | GET | what was refused or lost, the newest first; `/why/<request id>`, `?id=`, `?reason=`, `?format=json` |
//! | `/stats` | GET | metrics as text; `?format=json`, `?format=prometheus`, `?filter=<regex>`, `?usedonly` |
//! | `/stats/prometheus` | GET | metrics for Prometheus |
//! | `/metrics` | GET | the same |
//! | `/server_info` | GET | version, state, uptime, node |
//! | `/logging` | GET, POST | log levels; POST `?level=debug` sets all, `?upstream=trace` those of one module |
//! | `/drain_listeners` | POST | stop accepting; `?graceful` after telling clients, `?inboundonly` |
//! | `/healthcheck/fail` | POST | `/ready` fails from now on |
//! | `/healthcheck/ok` | POST | `/ready` no longer fails for this |
//! | `/reopen_logs` | POST | open access log files anew |
//! | `/quitquitquit` | POST | end now |
//!
//! What changes something takes POST only, and refuses a browser that another site sent here. A server on a loopback
//! address answers only to `localhost` and IP addresses as Host, so that no web page can reach it by a name of its own
//! that resolves to 127.0.0.1. A query parameter that a page does not know is an error. Everything is bounded:
//! connections, head size, the time to send a request and to get the answer.

mod certificates;
mod circuit_breakers;
mod clusters;
mod config_dump;
mod html;
pub mod logging;
mod pages;
mod query;
mod server;
mod source;
mod stats;
#[cfg(test)]
mod tests;
pub mod view;
mod why;

use std::sync::Arc;

use crate::drain::Drain;
use crate::readiness::Readiness;
use crate::telemetry::access_log::LogControl;
use crate::telemetry::metrics::Registry;
use crate::why::Stories;

pub use logging::LevelControl;
pub use server::{BoundAdmin, OpenAnswers, Pages};
pub use source::{
    AdminSource, Certificate, CircuitStatus, ClusterStatus, DrainListeners, EdsHealth, HealthFlags,
    HostStats, HostStatus, ListenerStatus, Locality, ServerInfo, Thresholds,
};

/// What the pages show and change.
pub struct Admin {
    /// Configuration and its state.
    pub source: Arc<dyn AdminSource>,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// `/why`.
    pub stories: Arc<Stories>,
    /// `/ready`.
    pub readiness: Readiness,
    /// `/quitquitquit`.
    pub drain: Drain,
    /// `/reopen_logs`.
    pub logs: LogControl,
    /// `/logging`; None when log levels cannot be changed.
    pub levels: Option<Arc<dyn LevelControl>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}
