//! Certificates and trust by name, as TLS contexts share them: a handshake uses what is there when it begins.

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;

/// A value that contexts refer to before it is there, and that changes while they are used.
pub struct Secret<T> {
    name: Arc<str>,
    value: ArcSwapOption<T>,
}

impl<T> Secret<T> {
    /// One that is yet to come.
    #[must_use]
    pub fn awaited(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { name, value: ArcSwapOption::empty() })
    }

    /// One that is written out where it is used.
    #[must_use]
    pub fn inline(value: T) -> Arc<Self> {
        Arc::new(Self { name: "inline".into(), value: ArcSwapOption::from_pointee(value) })
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What handshakes that begin now use.
    #[must_use]
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// Whether it has come.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.value.load().is_some()
    }

    /// Whether it still is `value`.
    #[must_use]
    pub fn is(&self, value: &Arc<T>) -> bool {
        self.value.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, value))
    }

    /// What handshakes that begin now use, unless that is `known`.
    #[must_use]
    pub fn other_than(&self, known: &Weak<T>) -> Option<Arc<T>> {
        let now = self.value.load();
        now.as_ref().filter(|now| Arc::as_ptr(now) != known.as_ptr()).map(Arc::clone)
    }

    /// Handshakes that begin from now on use `value`.
    pub fn set(&self, value: Arc<T>) {
        self.value.store(Some(value));
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("is_there", &self.is_there())
            .finish_non_exhaustive()
    }
}
