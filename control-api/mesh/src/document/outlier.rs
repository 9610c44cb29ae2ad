//! Which endpoints are left out for a while because of what they answer.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::span::Span;

/// Outlier detection, by each caller's sidecar. The words are Istio's where it has them, else Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Whether endpoints are ejected at all.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Failures in a row (5xx, and what never answered) that eject; 5 when it is left out, 0 is never.
    #[serde(default, rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Answers 502, 503 or 504 in a row that eject. When it is left out they count as 5xx only.
    #[serde(default)]
    pub consecutive_gateway_errors: Option<u32>,
    /// Whether what never answered (resets, timeouts) is counted apart from what did.
    #[serde(default)]
    pub split_external_local_origin_errors: bool,
    /// Failures of the way to an endpoint in a row that eject, when they are counted apart; 5 when it is left out.
    #[serde(default)]
    pub consecutive_local_origin_failures: Option<u32>,
    /// How often rates are looked at, and ejections ended; 10 seconds when it is left out.
    #[serde(default)]
    pub interval: Option<Span>,
    /// The first ejection; the n-th takes n times as long. 30 seconds when it is left out.
    #[serde(default)]
    pub base_ejection_time: Option<Span>,
    /// No ejection is longer; 300 seconds when it is left out.
    #[serde(default)]
    pub max_ejection_time: Option<Span>,
    /// Most endpoints that are out at once, percent; 50 when it is left out. The last one is never ejected.
    #[serde(default)]
    pub max_ejection_percent: Option<u32>,
    /// Endpoints that fail more often than the others.
    #[serde(default)]
    pub success_rate: SuccessRate,
    /// Endpoints that fail more often than is said here.
    #[serde(default)]
    pub failure_percentage: Option<FailurePercentage>,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_5xx_errors: None,
            consecutive_gateway_errors: None,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failures: None,
            interval: None,
            base_ejection_time: None,
            max_ejection_time: None,
            max_ejection_percent: None,
            success_rate: SuccessRate::default(),
            failure_percentage: None,
        }
    }
}

const fn yes() -> bool {
    true
}

/// Ejection of endpoints whose success rate is far below the average.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// Fewest endpoints with enough requests; 5 when it is left out.
    #[serde(default)]
    pub minimum_hosts: Option<u32>,
    /// Fewest requests of an endpoint in an interval; 100 when it is left out.
    #[serde(default)]
    pub request_volume: Option<u32>,
    /// Thousandths of the standard deviation below the average that are too far; 1900 when it is left out.
    #[serde(default)]
    pub stdev_factor: Option<u32>,
}

/// Ejection of endpoints with too many failures.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailurePercentage {
    /// Percentage of failures that is too much; 85 when it is left out.
    #[serde(default)]
    pub threshold: Option<u32>,
    /// Fewest endpoints with enough requests; 5 when it is left out.
    #[serde(default)]
    pub minimum_hosts: Option<u32>,
    /// Fewest requests of an endpoint in an interval; 50 when it is left out.
    #[serde(default)]
    pub request_volume: Option<u32>,
}
