//! Changes that people ask for, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use remora_mesh::{Documents, Finding, Severity};
use remora_xds::diag::ConfigError;
use serde::{Deserialize, Serialize};

use super::Registry;
use crate::document::{Incoming, Mistake, Record};
use crate::kinds::KINDS;
use crate::store::{Key, Revision, StoreError};

/// What happened to a document, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// There was none.
    Created,
    /// It says something else.
    Configured,
    /// It says what it said.
    Unchanged,
    /// It is no longer there.
    Deleted,
}

/// What became of one document.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which.
    pub key: Key,
    /// What happened.
    pub verb: Verb,
    /// A unified diff; empty when it says what it said.
    pub diff: String,
    /// What is there now, or would be.
    pub record: Option<Arc<Record>>,
}

/// Why a change was refused.
#[derive(Debug)]
pub enum Refused {
    /// Documents are wrong, or would make others wrong.
    Invalid(Vec<Mistake>),
    /// Others, which are not a part of the change, would no longer be right.
    Breaks(Vec<String>),
    /// Another version is there than the one that should be replaced.
    Conflict {
        /// Which document.
        key: Key,
        /// The version that was expected.
        expected: String,
        /// The version that is there.
        found: Option<Revision>,
    },
    /// There is no such document.
    NotFound(Key),
    /// It is there already.
    Exists(Key),
    /// Kubernetes has it, and it is changed there.
    Mirrored(Key),
    /// The store.
    Store(StoreError),
    /// More than one transaction holds, and not the first of them failed: these changes were made all the same.
    Partly(Vec<Outcome>, Box<Self>),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { key, expected, current } => {
                Self::Conflict { key, expected: expected.to_string(), found: current }
            }
            other => Self::Store(other),
        }
    }
}

/// Which of the documents may be there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None may (POST).
    Create,
    /// Any may or may not (apply).
    Apply,
    /// All must (PUT).
    Replace,
}

/// How a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Which documents may be there before.
    pub mode: Mode,
    /// Only tell what would happen.
    pub dry_run: bool,
    /// Also if other documents are no longer right after it.
    pub force: bool,
}

impl Mode {
    /// Whether `document` may be written where `there` is.
    fn admit(self, document: &Incoming, there: Option<&Record>) -> Result<(), Refused> {
        match (self, there) {
            (Self::Create, Some(_)) => return Err(Refused::Exists(document.key.clone())),
            (Self::Replace, None) => return Err(Refused::NotFound(document.key.clone())),
            _ => {}
        }
        let found = there.map(|record| record.revision);
        match &document.resource_version {
            Some(expected) if Some(expected.as_str()) != found.map(|r| r.to_string()).as_deref() => {
                Err(Refused::Conflict { key: document.key.clone(), expected: expected.clone(), found })
            }
            _ => Ok(()),
        }
    }
}

impl Registry {
    /// Whether `document` may be written where `there` is.
    pub(super) fn admit(
        &self,
        document: &Incoming,
        mode: Mode,
        there: Option<&Record>,
    ) -> Result<(), Refused> {
        if there.is_some_and(|there| self.is_locked(there)) {
            return Err(Refused::Mirrored(document.key.clone()));
        }
        mode.admit(document, there)
    }

    /// Checks everything as it will be. Mistakes of `documents` are an error; the answer names the others that are right now, and
    /// would not be any more.
    pub(super) async fn check(
        &self,
        documents: &[Incoming],
        removed: &BTreeSet<Key>,
    ) -> Result<Vec<String>, Refused> {
        // It parses all documents: on a thread of its own, so that everybody else is answered meanwhile, and one at a time.
        let turn = Arc::clone(&self.checking).lock_owned().await;
        let (there, documents, removed) = (self.documents(), documents.to_vec(), removed.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            together(&there, &documents, &removed)
        });
        checked.await.map_err(|error| Refused::Store(StoreError::Unavailable(error.to_string())))?
    }

    /// What is wrong with the documents as they are, by document, and the newest write that is among them.
    #[must_use]
    pub fn mistakes(&self) -> (Revision, Vec<(Key, Finding)>) {
        let (revision, all) = self.written();
        let texts = all.into_iter().map(|record| (record.key.path(), record.text()));
        let found = mistakes(texts).into_iter();
        (revision, found.filter_map(|found| Some((Key::parse(&found.error.source)?, found))).collect())
    }

    /// Everything that people wrote.
    #[must_use]
    pub fn documents(&self) -> Vec<Arc<Record>> {
        self.written().1
    }

    fn written(&self) -> (Revision, Vec<Arc<Record>>) {
        let (_, revision, mut all) = self.all();
        all.retain(|record| KINDS.iter().any(|kind| kind.name == &*record.key.kind));
        (revision, all)
    }
}

/// What would be wrong if `documents` were there, and `removed` were not: see [`Registry::check`].
fn together(
    there: &[Arc<Record>],
    documents: &[Incoming],
    removed: &BTreeSet<Key>,
) -> Result<Vec<String>, Refused> {
    let new: BTreeMap<&Key, &Incoming> = documents.iter().map(|d| (&d.key, d)).collect();
    let kept = there.iter().filter(|record| !new.contains_key(&record.key) && !removed.contains(&record.key));
    let texts = documents.iter().map(|d| (d.key.path(), d.text()));
    let all = texts.chain(kept.map(|record| (record.key.path(), record.text())));
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for error in errors(all) {
        let key = Key::parse(&error.source);
        match key.as_ref().and_then(|key| new.get(key)) {
            Some(document) => own.push(document.mistake(&error)),
            None => others.push(error),
        }
    }
    if !own.is_empty() {
        return Err(Refused::Invalid(own));
    }
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let now = errors(there.iter().map(|record| (record.key.path(), record.text())));
    let now: BTreeSet<_> = now.map(|error| error.source).collect();
    others.retain(|error| !now.contains(&error.source));
    let name = |error: &ConfigError| {
        let key = Key::parse(&error.source).map_or_else(|| error.source.to_string(), |key| key.to_string());
        format!("{key}: {}: {}", error.path, error.message)
    };
    Ok(others.iter().map(name).collect())
}

/// What is wrong with `texts`, which are named by the paths of their keys.
fn mistakes(texts: impl Iterator<Item = (String, String)>) -> Vec<Finding> {
    let texts: Vec<_> = texts.collect();
    let (_, mut found) = Documents::check(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    found.retain(|found| found.severity == Severity::Error);
    found
}

/// The same, without what only programs read.
pub(super) fn errors(texts: impl Iterator<Item = (String, String)>) -> impl Iterator<Item = ConfigError> {
    mistakes(texts).into_iter().map(|found| found.error)
}
