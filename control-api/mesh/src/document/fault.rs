//! FaultPolicy.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{HttpMatch, Percent, TargetRef};
use crate::span::Span;

/// `remora.dev/v1alpha1` FaultPolicy: a Service that is slow or fails on purpose, so that everybody sees what callers make of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultPolicySpec {
    /// The Services (GEP-713). A Service has at most one FaultPolicy.
    pub target_refs: Vec<TargetRef>,
    /// Each is decided by itself, in this order.
    pub faults: Vec<Fault>,
}

/// A delay, an abort or, if both are decided, one after the other.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Which requests; all of them when it is left out.
    #[serde(default, rename = "match")]
    pub matched: Option<HttpMatch>,
    /// They wait.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// They are answered by the sidecar.
    #[serde(default)]
    pub abort: Option<Abort>,
}

/// A delay before the program gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// How long.
    pub fixed_delay: Span,
    /// Of how many requests.
    pub percentage: Percent,
}

/// An answer in place of the program's: one of `httpStatus` and `grpcStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// 200 to 599.
    #[serde(default)]
    pub http_status: Option<u16>,
    /// 1 to 16.
    #[serde(default)]
    pub grpc_status: Option<u32>,
    /// Of how many requests.
    pub percentage: Percent,
}
