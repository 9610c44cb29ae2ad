//! Names of documents, and maps by them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::kinds::Kind;

/// `namespace/name`: a document among those of its kind. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name in it.
    pub name: Arc<str>,
}

impl Name {
    /// `namespace/name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `kind/namespace/name`: one document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl Key {
    /// `kind/namespace/name`.
    #[must_use]
    pub const fn new(kind: Kind, name: Name) -> Self {
        Self { kind, name }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A map by namespace and name, in that order.
#[derive(Debug, Clone)]
pub struct ByName<V> {
    namespaces: BTreeMap<Arc<str>, BTreeMap<Arc<str>, V>>,
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self { namespaces: BTreeMap::new() }
    }
}

impl<V> ByName<V> {
    /// The value of `namespace/name`.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&V> {
        self.namespaces.get(namespace)?.get(name)
    }

    /// The value of `name`.
    #[must_use]
    pub fn of(&self, name: &Name) -> Option<&V> {
        self.get(&name.namespace, &name.name)
    }

    /// Puts `value` there. Answers the old one.
    pub fn insert(&mut self, name: Name, value: V) -> Option<V> {
        self.namespaces.entry(name.namespace).or_default().insert(name.name, value)
    }

    /// Takes the value of `name` out.
    pub fn remove(&mut self, name: &Name) -> Option<V> {
        let namespace = self.namespaces.get_mut(&name.namespace)?;
        let value = namespace.remove(&name.name);
        if namespace.is_empty() {
            self.namespaces.remove(&name.namespace);
        }
        value
    }

    /// Everything in a namespace.
    pub fn namespace(&self, namespace: &str) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.namespaces.get(namespace).into_iter().flatten()
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = (Name, &V)> {
        let name = |namespace: &Arc<str>, name: &Arc<str>| Name {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
        };
        self.namespaces.iter().flat_map(move |(ns, all)| all.iter().map(move |(n, v)| (name(ns, n), v)))
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.namespaces.values().flat_map(BTreeMap::values)
    }
}

impl<T: Ord> ByName<BTreeSet<T>> {
    /// Adds `item` to the set of `name`.
    pub(crate) fn link(&mut self, name: Name, item: T) {
        self.namespaces.entry(name.namespace).or_default().entry(name.name).or_default().insert(item);
    }

    /// Takes `item` out of the set of `name`.
    pub(crate) fn unlink<Q: Ord + ?Sized>(&mut self, name: &Name, item: &Q)
    where
        T: Borrow<Q>,
    {
        let sets = self.namespaces.get_mut(&name.namespace);
        let Some(set) = sets.and_then(|sets| sets.get_mut(&name.name)) else { return };
        set.remove(item);
        if set.is_empty() {
            self.remove(name);
        }
    }

    /// The items of `namespace/name`.
    pub(crate) fn linked<'s>(
        &'s self,
        namespace: &str,
        name: &str,
    ) -> impl Iterator<Item = &'s T> + use<'s, T> {
        self.get(namespace, name).into_iter().flatten()
    }
}
