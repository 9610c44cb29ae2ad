//! What policies decided.

use prometheus::proto::{MetricFamily, MetricType};
use tokio::time::Instant;

use super::Registry;
use super::expose::{counter, family, label_pairs, pair};
use super::worker::WorkerMetrics;
use crate::config::names::{ChainId, PolicyId};
use crate::telemetry::labels::PolicyLabels;

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The rules gave access.
    Allowed,
    /// The rules refused.
    Denied,
    /// The shadow rules would have given access.
    ShadowAllowed,
    /// The shadow rules would have refused.
    ShadowDenied,
    /// An external service gave no answer.
    Failed,
    /// An external service gave no answer, and the request went on all the same (`failure_mode_allow`).
    FailedOpen,
    /// The filter was not asked (`filter_enabled`).
    Disabled,
}

pub(super) const POLICY_CELLS: usize = 7;

impl Decision {
    const ALL: [Self; POLICY_CELLS] = [
        Self::Allowed,
        Self::Denied,
        Self::ShadowAllowed,
        Self::ShadowDenied,
        Self::Failed,
        Self::FailedOpen,
        Self::Disabled,
    ];

    /// Of rules that are enforced.
    #[must_use]
    pub const fn enforced(allowed: bool) -> Self {
        if allowed { Self::Allowed } else { Self::Denied }
    }

    /// Of shadow rules.
    #[must_use]
    pub const fn shadow(allowed: bool) -> Self {
        if allowed { Self::ShadowAllowed } else { Self::ShadowDenied }
    }

    /// Value of the label `decision`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::ShadowAllowed => "shadow_allowed",
            Self::ShadowDenied => "shadow_denied",
            Self::Failed => "error",
            Self::FailedOpen => "failure_mode_allowed",
            Self::Disabled => "disabled",
        }
    }
}

impl WorkerMetrics {
    /// Counts a decision of a policy in a filter chain. `labels` is called only when the two are new on this worker.
    pub fn decided(
        &self,
        key: (ChainId, PolicyId),
        decision: Decision,
        labels: impl FnOnce() -> PolicyLabels,
    ) {
        let (registry, policies) = self.policies();
        let family = &registry.policies;
        if let Some(shard) = policies.borrow().get(&key, family) {
            return shard.add(decision as usize, 1);
        }
        policies.borrow_mut().resolve(key, labels(), family).add(decision as usize, 1);
    }
}

impl Registry {
    pub(super) fn collect_policies(&self, now: Instant, out: &mut Vec<MetricFamily>) {
        let mut metrics = Vec::new();
        self.policies.scrape(now, |labels, cells| {
            let labels = label_pairs(labels);
            for (decision, count) in Decision::ALL.iter().zip(cells).filter(|(_, count)| **count > 0) {
                let mut labels = labels.clone();
                labels.push(pair("decision", decision.as_str()));
                metrics.push(counter(labels, *count));
            }
        });
        let help = "Decisions of access policies about requests and connections.";
        out.push(family("remora_policy_decisions_total".to_owned(), help, MetricType::COUNTER, metrics));
    }
}
