//! When a Service is not called for a while because of how it answers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{BackendObjectReference, Percent, Statuses};
use crate::span::Span;

/// A circuit breaker with the states CLOSED, OPEN and HALF_OPEN, in each caller's sidecar and for all endpoints together. Words, meaning and
/// defaults are Resilience4j's.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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

/// What callers get instead of a Service: one of the fields.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// An answer of the sidecar's. HTTP only, and not to gRPC.
    #[serde(default)]
    pub answer: Option<FixedAnswer>,
    /// The answer of another Service.
    #[serde(default)]
    pub backend_ref: Option<BackendObjectReference>,
}

/// An answer that is always the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
