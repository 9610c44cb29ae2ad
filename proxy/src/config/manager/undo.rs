//! Taking back listeners: that one has no sockets shows only after everything else about it was right.

use std::collections::BTreeMap;
use std::sync::Arc;

use remora_xds::Kind;

use super::{Dumped, Held, Manager};
use crate::config::spec::ListenerSpec;

/// What the last response replaced, by listener.
pub(super) type Undo = BTreeMap<Arc<str>, Before>;

/// What there was of a listener before; nothing when it was new.
#[derive(Debug)]
pub(super) struct Before {
    listener: Option<Held<ListenerSpec>>,
    dumped: Option<Dumped>,
    version: Option<Arc<str>>,
}

impl Manager {
    /// Keeps what there is of a listener before it is replaced.
    pub(super) fn keep_for_undo(&mut self, name: &Arc<str>) {
        let versions = self.dynamic.versions.get(&Kind::Listener);
        let before = Before {
            listener: self.listeners.get(name).cloned(),
            dumped: self.dump.get(Kind::Listener, name),
            version: versions.and_then(|versions| versions.get(name)).cloned(),
        };
        self.dynamic.undo.insert(Arc::clone(name), before);
    }

    /// A listener of the last response has no sockets: what was there before is in force again, or nothing. False: the response changed
    /// nothing about it.
    pub fn take_back(&mut self, name: &Arc<str>) -> bool {
        let Some(Before { listener, dumped, version }) = self.dynamic.undo.remove(name) else { return false };
        self.listener_at = None;
        match listener {
            Some(listener) => drop(self.listeners.insert(Arc::clone(name), listener)),
            None => drop(self.listeners.remove(name)),
        }
        match dumped {
            Some(dumped) => self.dump.put(Kind::Listener, Arc::clone(name), dumped),
            None => self.dump.remove(Kind::Listener, name),
        }
        let versions = self.dynamic.versions.entry(Kind::Listener).or_default();
        match version {
            Some(version) => drop(versions.insert(Arc::clone(name), version)),
            None => drop(versions.remove(name)),
        }
        self.forget_unwanted();
        true
    }
}
