//! Changes that people ask for, made: documents that come together are written together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::Registry;
use super::change::{How, Mode, Outcome, Refused, Verb};
use crate::document::{Incoming, Record, diff};
use crate::kinds::Kind;
use crate::store::{Entry, Expect, Key, MAX_VALUE, MAX_WRITES, Put, Revision, StoreError, Write};

/// How often documents are tried again that somebody else changes at the same time.
const TRIES: u32 = 5;

/// A document on its way to the store.
struct Prepared {
    outcome: Outcome,
    /// None: it says what it said.
    put: Option<Put>,
}

impl Registry {
    /// Writes documents: all of them are right, together with all others, or none is written. They are in one transaction of the store,
    /// as far as it takes that many ([`MAX_WRITES`], [`MAX_VALUE`] bytes); more are in several, what is referred to first.
    ///
    /// # Errors
    /// See [`Refused`]; [`Refused::Partly`] when a transaction failed after others.
    pub async fn write(&self, documents: &[Incoming], how: How) -> Result<Vec<Outcome>, Refused> {
        for document in documents {
            // To refuse it before all are checked; what counts is what is there when it is written.
            self.admit(document, how.mode, self.get(&document.key).as_deref())?;
        }
        let others = self.check(documents, &BTreeSet::new()).await?;
        if !others.is_empty() && !how.force {
            return Err(Refused::Breaks(others));
        }
        let mut order: Vec<_> = documents.iter().collect();
        order.sort_by_key(|document| document.kind.order());
        let mut outcomes = Vec::with_capacity(order.len());
        for together in transactions(&order) {
            match self.put(together, how).await {
                Ok(put) => outcomes.extend(put),
                Err(refused) if how.dry_run || outcomes.is_empty() => return Err(refused),
                Err(refused) => return Err(Refused::Partly(outcomes, Box::new(refused))),
            }
        }
        if !how.dry_run {
            let revisions = outcomes.iter().filter_map(|outcome| outcome.record.as_ref());
            self.seen(revisions.map(|record| record.revision).max().unwrap_or(0)).await;
        }
        // In the order of the texts.
        let places: BTreeMap<_, _> =
            documents.iter().enumerate().map(|(i, document)| (&document.key, i)).collect();
        outcomes.sort_by_key(|outcome| places.get(&outcome.key));
        Ok(outcomes)
    }

    /// Removes documents, together as [`Self::write`] writes them, those that refer to others first. `expected` is the version that
    /// each must have.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn remove(
        &self,
        keys: &[Key],
        expected: Option<Revision>,
        how: How,
    ) -> Result<Vec<Outcome>, Refused> {
        if let Some(missing) = keys.iter().find(|key| self.get(key).is_none()) {
            return Err(Refused::NotFound(missing.clone()));
        }
        let mirrored = |key: &&Key| self.get(key).is_some_and(|record| self.is_locked(&record));
        if let Some(key) = keys.iter().find(mirrored) {
            return Err(Refused::Mirrored(key.clone()));
        }
        let distinct: BTreeSet<Key> = keys.iter().cloned().collect();
        if !how.force {
            let others = self.check(&[], &distinct).await?;
            if !others.is_empty() {
                return Err(Refused::Breaks(others));
            }
        }
        let mut order: Vec<_> = distinct.into_iter().collect();
        order.sort_by_key(|key| std::cmp::Reverse(Kind::named(&key.kind).map(Kind::order)));
        let mut outcomes = Vec::with_capacity(order.len());
        for key in &order {
            let Some(old) = self.get(key) else { continue };
            let diff = diff(Some(&old.to_value(None)), None, &key.path());
            outcomes.push(Outcome { key: key.clone(), verb: Verb::Deleted, diff, record: Some(old) });
        }
        if how.dry_run {
            return Ok(outcomes);
        }
        let expect = expected.map_or(Expect::Any, Expect::Revision);
        let mut last = 0;
        for (number, keys) in order.chunks(MAX_WRITES).enumerate() {
            let writes = keys.iter().map(|key| Write::Delete { key: key.clone(), expect }).collect();
            match self.store().transact(writes).await {
                Ok(revisions) => last = revisions.into_iter().max().unwrap_or(last),
                Err(error) if number == 0 => return Err(error.into()),
                Err(error) => {
                    let done: BTreeSet<_> = order.iter().take(number * MAX_WRITES).collect();
                    outcomes.retain(|outcome| done.contains(&outcome.key));
                    return Err(Refused::Partly(outcomes, Box::new(error.into())));
                }
            }
        }
        self.seen(last).await;
        Ok(outcomes)
    }

    /// Writes documents in one transaction.
    async fn put(&self, documents: &[&Incoming], how: How) -> Result<Vec<Outcome>, Refused> {
        for attempt in 1.. {
            let prepared = documents.iter().map(|document| self.prepare(document, how.mode));
            let mut prepared = prepared.collect::<Result<Vec<_>, _>>()?;
            let writes: Vec<_> = prepared.iter().filter_map(|p| p.put.clone()).map(Write::Put).collect();
            if writes.is_empty() {
                return Ok(prepared.into_iter().map(|p| p.outcome).collect());
            }
            let revisions = if how.dry_run {
                // Those that are there.
                let changed = prepared.iter().filter(|p| p.put.is_some());
                changed.map(|p| p.outcome.record.as_ref().map_or(0, |old| old.revision)).collect()
            } else {
                match self.store().transact(writes).await {
                    Ok(revisions) => revisions,
                    // Somebody was faster: what they wrote is replaced, unless the document says which version it replaces.
                    Err(StoreError::Conflict { key, current, .. })
                        if how.mode == Mode::Apply
                            && attempt < TRIES
                            && documents.iter().any(|d| d.key == key && d.resource_version.is_none()) =>
                    {
                        self.seen(current.unwrap_or(0)).await;
                        continue;
                    }
                    Err(StoreError::Conflict { key, .. }) if how.mode == Mode::Create => {
                        return Err(Refused::Exists(key));
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            let written = prepared.iter_mut().filter_map(|p| Some((&mut p.outcome, p.put.take()?)));
            for ((outcome, put), revision) in written.zip(revisions) {
                let entry = Entry { key: put.key, value: put.value, revision, lease: None };
                outcome.record = Some(Arc::new(Record::of(&entry)?));
            }
            return Ok(prepared.into_iter().map(|p| p.outcome).collect());
        }
        Err(Refused::Store(StoreError::Busy))
    }

    /// What writing a document would do; `record` of the outcome is what is there.
    fn prepare(&self, document: &Incoming, mode: Mode) -> Result<Prepared, Refused> {
        let key = document.key.clone();
        let old = self.get(&key);
        self.admit(document, mode, old.as_deref())?;
        let before = old.as_ref().map(|old| old.to_value(None));
        let after = Value::Object(document.body.clone());
        let diff = diff(before.as_ref(), Some(&after), &key.path());
        let value = Record::replace(document, old.as_deref(), SystemTime::now());
        let verb = match (&value, &old) {
            (None, _) => Verb::Unchanged,
            (Some(_), Some(_)) => Verb::Configured,
            (Some(_), None) => Verb::Created,
        };
        let expect = old.as_ref().map_or(Expect::Absent, |old| Expect::Revision(old.revision));
        let put = value.map(|value| Put { key: key.clone(), value, expect, lease: None });
        Ok(Prepared { outcome: Outcome { key, verb, diff, record: old }, put })
    }
}

/// Documents by transaction.
fn transactions<'a, 'd>(documents: &'a [&'d Incoming]) -> Vec<&'a [&'d Incoming]> {
    let (mut found, mut rest) = (Vec::new(), documents);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |document: &&&Incoming| {
            bytes += document.size();
            bytes <= MAX_VALUE
        };
        // One that is too large alone is refused by the store.
        let count = rest.iter().take(MAX_WRITES).take_while(fits).count().max(1);
        let (together, later) = rest.split_at(count);
        found.push(together);
        rest = later;
    }
    found
}
