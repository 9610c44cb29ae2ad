//! What stands behind a Service.

use std::sync::Arc;

use super::members::Account;
use crate::document::{Document, WorkloadSpec};

/// Whether an instance gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Health {
    /// It does.
    #[default]
    Ready,
    /// It finishes what it has, and gets nothing new.
    Draining,
    /// Its lease ran out, or it does not answer. It is still listed, so that callers see how much of a Service is gone
    /// (the panic threshold).
    Dead,
    /// It is known, and nobody is to call it: a pod that is not ready, which is no endpoint in Kubernetes either.
    Absent,
}

/// A process behind Services: a Workload document, which has no lease and is ready, or a registration, which the registry keeps
/// alive.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Who and where it is.
    pub workload: Arc<Document<WorkloadSpec>>,
    /// Whether it gets requests.
    pub health: Health,
    /// Services of its namespace that it registered for by name, besides those whose selectors match it.
    pub services: Vec<String>,
    /// Kubernetes says that it, and nobody else, is at its addresses. Others say so themselves.
    pub reported: bool,
}

impl Instance {
    /// What a Workload document says.
    #[must_use]
    pub const fn of(workload: Arc<Document<WorkloadSpec>>) -> Self {
        Self { workload, health: Health::Ready, services: Vec::new(), reported: false }
    }

    /// Whether `other`, which has the same name, stands behind the same ports of the same Services with the same account.
    pub(super) fn answers_like(&self, other: &Self) -> bool {
        let (a, b) = (&self.workload, &other.workload);
        self.services == other.services
            && a.metadata.labels == b.metadata.labels
            && a.spec.ports == b.spec.ports
            && Account::of(&a.spec) == Account::of(&b.spec)
    }
}
