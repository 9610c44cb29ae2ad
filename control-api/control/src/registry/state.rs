//! The documents and their last changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::document::Record;
use crate::store::{Event, Key, Listing, Revision, Scope};

/// How many changes are kept for those that follow.
const KEPT: usize = 10_000;

/// Number of a change in this process. (Revisions do not count changes: several may have one.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(u64);

/// A change.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its number.
    pub position: Position,
    /// The write that made it.
    pub revision: Revision,
    /// What changed.
    pub key: Key,
    /// What was there.
    pub old: Option<Arc<Record>>,
    /// What is there now.
    pub new: Option<Arc<Record>>,
}

/// Changes that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the changes since then are no longer kept: list again")]
pub struct Gone;

#[derive(Debug, Default)]
pub(super) struct State {
    documents: BTreeMap<Key, Arc<Record>>,
    revision: Revision,
    position: Position,
    recent: VecDeque<Change>,
    /// Changes up to this revision are not in `recent`, or not one by one.
    forgotten: Revision,
}

impl State {
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Record>> {
        self.documents.get(key).cloned()
    }

    pub(super) fn list(&self, scope: &Scope) -> Vec<Arc<Record>> {
        self.documents.values().filter(|record| scope.contains(&record.key)).cloned().collect()
    }

    pub(super) fn position_after(&self, revision: Revision) -> Result<Position, Gone> {
        if revision < self.forgotten || revision > self.revision {
            return Err(Gone);
        }
        let later = self.recent.partition_point(|change| change.revision <= revision);
        Ok(self.recent.get(later).map_or(self.position, |change| Position(change.position.0 - 1)))
    }

    pub(super) fn changes(&self, after: Position, most: usize) -> Result<Vec<Change>, Gone> {
        let first = self.recent.front().map_or(self.position.0 + 1, |change| change.position.0);
        if after.0 + 1 < first || after > self.position {
            return Err(Gone);
        }
        let later = self.recent.partition_point(|change| change.position <= after);
        Ok(self.recent.range(later..).take(most).cloned().collect())
    }

    /// Takes what changed in the store. What is no document is left out and answered.
    pub(super) fn apply(&mut self, events: &[Event]) -> Vec<String> {
        let mut wrong = Vec::new();
        for event in events {
            let new = match event {
                Event::Delete { .. } => None,
                Event::Put(entry) => match Record::of(entry) {
                    Ok(record) => Some(Arc::new(record)),
                    Err(error) => {
                        wrong.push(error.to_string());
                        None
                    }
                },
            };
            self.revision = self.revision.max(event.revision());
            self.replace(event.key(), new, event.revision());
        }
        wrong
    }

    /// Takes everything that the store has, in place of what is here.
    pub(super) fn reset(&mut self, listing: &Listing) -> Vec<String> {
        let (mut documents, mut wrong) = (BTreeMap::new(), Vec::new());
        for entry in &listing.entries {
            match Record::of(entry) {
                Ok(record) => drop(documents.insert(entry.key.clone(), Arc::new(record))),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        self.revision = listing.revision;
        let gone: Vec<_> =
            self.documents.keys().filter(|key| !documents.contains_key(key)).cloned().collect();
        for key in gone {
            self.replace(&key, None, listing.revision);
        }
        for (key, record) in documents {
            if self.documents.get(&key).is_none_or(|old| old.revision != record.revision) {
                self.replace(&key, Some(record), listing.revision);
            }
        }
        self.forgotten = listing.revision;
        wrong
    }

    fn replace(&mut self, key: &Key, new: Option<Arc<Record>>, revision: Revision) {
        let old = match &new {
            Some(record) => self.documents.insert(key.clone(), Arc::clone(record)),
            None => self.documents.remove(key),
        };
        if old.is_none() && new.is_none() {
            return;
        }
        self.position.0 += 1;
        self.recent.push_back(Change { position: self.position, revision, key: key.clone(), old, new });
        if self.recent.len() > KEPT
            && let Some(oldest) = self.recent.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;

    fn entry(name: &str, revision: Revision) -> Entry {
        let value = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"at":{revision}}}}}"#);
        Entry { key: Key::new("Service", "default", name), value: value.into(), revision, lease: None }
    }

    fn put(name: &str, revision: Revision) -> Event {
        Event::Put(entry(name, revision))
    }

    fn told(changes: &[Change]) -> Vec<(&str, Revision, bool)> {
        changes.iter().map(|c| (&*c.key.name, c.revision, c.new.is_some())).collect()
    }

    #[test]
    fn changes_are_told_from_any_position_that_is_kept() {
        let mut state = State::default();
        state.reset(&Listing { revision: 5, entries: vec![entry("a", 3)] });
        let begin = state.position();
        let gone = Event::Delete { key: Key::new("Service", "default", "a"), revision: 7 };
        assert!(state.apply(&[put("b", 6), gone, put("b", 8)]).is_empty());
        assert_eq!(state.revision(), 8);
        let all = state.changes(begin, 10).unwrap();
        assert_eq!(told(&all), [("b", 6, true), ("a", 7, false), ("b", 8, true)]);
        assert_eq!(all[2].old.as_ref().unwrap().revision, 6);
        assert_eq!(told(&state.changes(begin, 1).unwrap()), [("b", 6, true)]);
        let after = state.position_after(6).unwrap();
        assert_eq!(told(&state.changes(after, 10).unwrap()), [("a", 7, false), ("b", 8, true)]);
        assert_eq!(state.changes(state.position_after(8).unwrap(), 10).unwrap().len(), 0);
        assert_eq!(state.position_after(4), Err(Gone), "before the listing");
        assert_eq!(state.position_after(9), Err(Gone), "in the future");
    }

    #[test]
    fn a_listing_is_told_as_the_changes_that_it_amounts_to() {
        let mut state = State::default();
        state.reset(&Listing { revision: 5, entries: vec![entry("a", 3), entry("b", 4), entry("c", 5)] });
        let begin = state.position();
        state.reset(&Listing { revision: 9, entries: vec![entry("b", 4), entry("c", 8), entry("d", 9)] });
        let changes = state.changes(begin, 10).unwrap();
        assert_eq!(told(&changes), [("a", 9, false), ("c", 9, true), ("d", 9, true)]);
    }

    #[test]
    fn what_is_too_long_ago_is_gone() {
        let mut state = State::default();
        let begin = state.position();
        for i in 1..=KEPT as u64 + 1 {
            state.apply(&[put("a", i)]);
        }
        assert!(matches!(state.changes(begin, 1), Err(Gone)));
        assert_eq!(state.position_after(0), Err(Gone));
        assert_eq!(state.changes(state.position_after(1).unwrap(), usize::MAX).unwrap().len(), KEPT);
    }

    #[test]
    fn what_is_no_document_is_left_out_and_named() {
        let mut state = State::default();
        let junk = Event::Put(Entry { value: "junk".into(), ..entry("a", 1) });
        let wrong = state.apply(&[junk]);
        assert!(wrong[0].contains("Service default/a"), "{wrong:?}");
        assert!(state.list(&Scope::All).is_empty());
    }
}
