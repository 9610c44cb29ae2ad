//! When a Service is not called for a while because of how it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{BackendObjectReference, Percent, Statuses};
use crate::span::Span;

/// A circuit breaker with the states CLOSED, OPEN and HALF_OPEN, in each caller's sidecar and for all endpoints together. Words, meaning and
/// defaults are Resilience4j's.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Whether the window is one of calls or of seconds; of calls when it is left out.
    #[serde(default)]
    pub sliding_window_type: WindowType,
    /// Calls or seconds; 100 when it is left out.
    #[serde(default)]
    pub sliding_window_size: Option<u32>,
    /// Fewer calls in the window mean nothing; 100 when it is left out, and never more than a window of calls holds.
    #[serde(default)]
    pub minimum_number_of_calls: Option<u32>,
    /// Failures in the window that open it; 50 when it is left out.
    #[serde(default)]
    pub failure_rate_threshold: Option<Percent>,
    /// Slow calls in the window that open it; 100 when it is left out.
    #[serde(default)]
    pub slow_call_rate_threshold: Option<Percent>,
    /// A call that takes longer is slow; 60 seconds when it is left out.
    #[serde(default)]
    pub slow_call_duration_threshold: Option<Span>,
    /// How long no call is let through; 60 seconds when it is left out.
    #[serde(default)]
    pub wait_duration_in_open_state: Option<Span>,
    /// So many are let through then to see how it is; 10 when it is left out.
    #[serde(default)]
    pub permitted_number_of_calls_in_half_open_state: Option<u32>,
    /// After that time without all of their answers it opens again; never when it is left out, or 0s.
    #[serde(default)]
    pub max_wait_duration_in_half_open_state: Option<Span>,
    /// Whether it is HALF_OPEN as soon as the wait is over. Otherwise the next call makes it so.
    #[serde(default)]
    pub automatic_transition_from_open_to_half_open_enabled: bool,
    /// Statuses that are failures, besides what was never answered; 500 to 599 when it is left out.
    #[serde(default)]
    pub failure_statuses: Vec<Statuses>,
    /// What callers get while it is open; 503 when it is left out.
    #[serde(default)]
    pub fallback: Option<Fallback>,
}

/// What a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum WindowType {
    /// The last calls.
    #[default]
    #[serde(rename = "COUNT_BASED")]
    CountBased,
    /// The calls of the last seconds.
    #[serde(rename = "TIME_BASED")]
    TimeBased,
}

impl WindowType {
    /// As documents write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CountBased => "COUNT_BASED",
            Self::TimeBased => "TIME_BASED",
        }
    }
}

/// What callers get instead of a Service: `lastGood`, or one of the others, or both.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// An answer of the sidecar's. HTTP only, and not to gRPC.
    #[serde(default)]
    pub answer: Option<FixedAnswer>,
    /// The answer of another Service.
    #[serde(default)]
    pub backend_ref: Option<BackendObjectReference>,
    /// The last good answer of the Service to the same GET or HEAD, where there is one and it may be given again (RFC 9111); otherwise what else is
    /// said here. HTTP only, and not to gRPC.
    #[serde(default)]
    pub last_good: Option<LastGood>,
}

/// Which answers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastGood {
    /// None that is older is given; 5 minutes when it is left out.
    #[serde(default)]
    pub max_age: Option<Span>,
    /// None with a longer body is kept; 65536 when it is left out.
    #[serde(default)]
    pub max_body_bytes: Option<u32>,
    /// Of all of them, in each worker of a sidecar; 8388608 when it is left out.
    #[serde(default)]
    pub max_bytes: Option<u32>,
}

impl LastGood {
    /// See [`Self::max_age`].
    #[must_use]
    pub fn max_age(&self) -> Duration {
        self.max_age.map_or(Duration::from_secs(300), |span| span.0)
    }

    /// See [`Self::max_body_bytes`].
    #[must_use]
    pub fn max_body_bytes(&self) -> u32 {
        self.max_body_bytes.unwrap_or(64 * 1024)
    }

    /// See [`Self::max_bytes`].
    #[must_use]
    pub fn max_bytes(&self) -> u32 {
        self.max_bytes.unwrap_or(8 * 1024 * 1024)
    }
}

/// An answer that is always the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FixedAnswer {
    /// 200 to 599.
    #[serde(default = "ok")]
    pub status: u16,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Text.
    #[serde(default)]
    pub body: String,
}

const fn ok() -> u16 {
    200
}
