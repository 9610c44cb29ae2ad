//! Names of what is kept.

use std::fmt;
use std::sync::Arc;

/// Kind, namespace and name of a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `HTTPRoute`.
    pub kind: Arc<str>,
    /// `default`.
    pub namespace: Arc<str>,
    /// `checkout`.
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The key that [`Self::path`] wrote.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        let empty = kind.is_empty() || namespace.is_empty() || name.is_empty();
        (!empty && parts.next().is_none()).then(|| Self::new(kind, namespace, name))
    }

    /// As it stands in a store: `kind/namespace/name`. Names contain no slash: they are DNS labels.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// As people write it: `HTTPRoute default/checkout`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those of a kind.
    Kind(String),
    /// Those of a kind and namespace.
    Namespace(String, String),
}

impl Scope {
    /// What the paths of these keys, and of no others, begin with.
    #[must_use]
    pub fn prefix(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Kind(kind) => format!("{kind}/"),
            Self::Namespace(kind, namespace) => format!("{kind}/{namespace}/"),
        }
    }

    /// Whether it has `key`.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Kind(kind) => *key.kind == **kind,
            Self::Namespace(kind, namespace) => *key.kind == **kind && *key.namespace == **namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_back_and_what_is_none_is_refused() {
        let key = Key::new("HTTPRoute", "default", "checkout");
        assert_eq!(Key::parse(&key.path()), Some(key));
        for wrong in ["", "a", "a/b", "a/b/", "//", "a/b/c/d", "/b/c"] {
            assert_eq!(Key::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_scope_has_the_keys_with_its_prefix() {
        let key = Key::new("HTTPRoute", "default", "checkout");
        for (scope, has) in [
            (Scope::All, true),
            (Scope::Kind("HTTPRoute".into()), true),
            (Scope::Kind("HTTP".into()), false),
            (Scope::Namespace("HTTPRoute".into(), "default".into()), true),
            (Scope::Namespace("HTTPRoute".into(), "def".into()), false),
        ] {
            assert_eq!(scope.contains(&key), has, "{scope:?}");
            assert_eq!(key.path().starts_with(&scope.prefix()), has, "{scope:?}");
        }
    }
}
