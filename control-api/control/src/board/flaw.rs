//! What is wrong with a document.

use remora_mesh::{Finding, Lack, Rule};

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Which kind of thing.
    pub rule: Rule,
    /// The field, `spec.rules[0].backendRefs[0].name`; empty for all of the document.
    pub path: String,
    /// What a reference lacks.
    pub lacks: Option<Lack>,
    /// The field and what is wrong with it, for people.
    pub text: String,
}

impl Flaw {
    /// What was found when all documents were checked together.
    #[must_use]
    pub fn of(found: Finding) -> Self {
        let Finding { rule, error, lacks, .. } = found;
        let text = format!("{}: {}", error.path, error.message);
        Self { rule, path: error.path, lacks, text }
    }

    /// Why it cannot be read.
    #[must_use]
    pub const fn unreadable(text: String) -> Self {
        Self { rule: Rule::Syntax, path: String::new(), lacks: None, text }
    }
}
