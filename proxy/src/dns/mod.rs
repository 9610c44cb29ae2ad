//! DNS for the program beside the proxy: Envoy's `dns_filter`, with a cache (decision 0021).
//!
//! [`wire`], [`reply`], [`table`] and [`cache`] are pure. [`forward`] asks for what they do not know, once for all who wait; [`exchange`] is one question to one
//! name server. [`server`] is UDP and TCP. All of it runs on the control runtime.

pub mod cache;
pub mod exchange;
pub mod forward;
pub mod reply;
pub mod server;
pub mod servers;
pub mod stats;
pub mod table;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use self::table::Table;
use crate::upstream::dns::ServerSpec;

/// A compiled `envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsFilterSpec {
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// `server_config`.
    pub table: Table,
    /// `client_config`; None: names that are not in the table do not exist.
    pub forward: Option<ForwardSpec>,
}

/// Whom to ask for what is not in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSpec {
    /// `typed_dns_resolver_config`.
    pub servers: ServerSpec,
    /// `resolver_timeout`, default 500 ms: how long one server has for one answer.
    pub timeout: Duration,
    /// `external_retry_count`, 0 to 3: how often servers that said nothing are asked again.
    pub retries: u32,
    /// `max_pending_lookups`: questions under way, and clients that wait.
    pub max_pending: usize,
}
