//! Why a request or connection was refused or lost, for the operator: what its reason means, and the story of each one.
//!
//! A story is kept when a record is closed that has a reason: a request that goes well costs nothing. Each worker has a
//! ring of its own, whose lock nobody else takes but a reader of the admin page `/why`. The caller knows the reason
//! alone; which rule it was stands here.

mod advice;
mod ring;
mod story;

pub use ring::{Stories, WorkerStories};
pub use story::{Place, Story};

use crate::error::{Party, Reason};
use crate::telemetry::metrics::Refusal;
use crate::tls::error::TlsFailure;

/// The one word that callers, logs and metrics have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Of a request, or of a connection that was served.
    Request(Reason),
    /// Of a connection that was refused before that.
    Connection(Refusal),
}

impl Cause {
    /// Every cause. The few ids that both kinds have mean the same; the reason comes first.
    pub fn all() -> impl Iterator<Item = Self> {
        Reason::ALL.iter().copied().map(Self::Request).chain(Refusal::all().map(Self::Connection))
    }

    /// The cause with this id.
    #[must_use]
    pub fn by_id(id: &str) -> Option<Self> {
        Self::all().find(|cause| cause.id() == id)
    }

    /// Stable id.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Request(reason) => reason.id(),
            Self::Connection(refusal) => refusal.as_str(),
        }
    }

    /// What it means, in one sentence.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::Request(reason) => reason.explain().trim_ascii(),
            Self::Connection(refusal) => refusal.explain(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Request(reason) => advice::of_reason(reason),
            Self::Connection(refusal) => advice::of_refusal(refusal),
        }
    }

    /// Who ended it.
    #[must_use]
    pub const fn party(self) -> Party {
        use TlsFailure as Tls;
        match self {
            Self::Request(reason) => reason.party(),
            Self::Connection(Refusal::Tls(Tls::NoServerCertificate | Tls::SecretMissing | Tls::Internal)) => {
                Party::Proxy
            }
            Self::Connection(Refusal::Tls(_) | Refusal::TlsTimeout | Refusal::DetectTimeout) => {
                Party::Downstream
            }
            Self::Connection(_) => Party::Proxy,
        }
    }
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        Self::Request(reason)
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        Self::Connection(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_found_by_its_id_and_says_what_it_means_and_what_to_do() {
        for cause in Cause::all() {
            assert_eq!(Cause::by_id(cause.id()).map(Cause::id), Some(cause.id()));
            for text in [cause.explain(), cause.advice()] {
                assert!(text.ends_with('.') && text.trim() == text, "{}: {text}", cause.id());
            }
        }
        assert_eq!(Cause::by_id("overloaded"), Some(Reason::Overloaded.into()), "the reason comes first");
        assert_eq!(Cause::by_id("nonsense"), None);
    }

    #[test]
    fn every_cause_is_in_the_reference() {
        let page = include_str!("../../../docs/reference/reasons.md");
        for cause in Cause::all() {
            assert!(page.contains(&format!("| `{}` |", cause.id())), "{}", cause.id());
        }
    }
}
