//! Why a pod cannot be injected.

/// A mistake of whoever wrote the pod, or a pod that cannot have a sidecar that works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {message} ({fix})")]
pub struct Failure {
    /// Annotation, or path of the field, in the pod template.
    pub at: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub fix: String,
}

impl Failure {
    pub(super) fn new(at: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into(), fix: fix.into() }
    }
}
