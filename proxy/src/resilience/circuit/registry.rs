//! The circuit breakers in force, by name: an edit goes on where the old one is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Circuit, CircuitSpec};

/// Shared by the compiler, which puts them in, and the pages that show them.
#[derive(Debug, Clone, Default)]
pub struct Circuits(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Of one name several may live: what is compiled may be refused, and requests hold what they began with.
    by_name: BTreeMap<Arc<str>, Vec<Weak<Circuit>>>,
    prune_at: usize,
}

impl Circuits {
    /// The circuit breaker of that name with these settings, in the state that the name has.
    #[must_use]
    pub fn put(&self, name: &str, spec: CircuitSpec) -> Arc<Circuit> {
        let mut known = self.lock();
        if known.by_name.len() >= known.prune_at {
            known.by_name.retain(|_, living| living.iter().any(|one| one.strong_count() > 0));
            known.prune_at = 2 * known.by_name.len() + 16;
        }
        let name: Arc<str> = name.into();
        let living = known.by_name.entry(Arc::clone(&name)).or_default();
        living.retain(|one| one.strong_count() > 0);
        let old = living.last().and_then(Weak::upgrade);
        if let Some(same) = old.as_ref().filter(|old| old.spec == spec) {
            return Arc::clone(same);
        }
        let new = Circuit::new(name, spec, old.as_deref());
        living.push(Arc::downgrade(&new));
        new
    }

    /// All, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Circuit>> {
        let known = self.lock();
        known.by_name.values().filter_map(|living| living.iter().rev().find_map(Weak::upgrade)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn an_edit_goes_on_where_the_old_one_is() {
        let circuits = Circuits::default();
        let first = circuits.put("cluster/a", spec());
        first.set_state("FORCED_OPEN").unwrap();
        assert!(Arc::ptr_eq(&first, &circuits.put("cluster/a", spec())));
        let refused = circuits.put("cluster/a", CircuitSpec { automatic: true, ..spec() });
        drop(refused);
        let mut longer = spec();
        longer.length = super::super::window::Length::Calls(7);
        let second = circuits.put("cluster/a", longer);
        let now = tokio::time::Instant::now();
        assert_eq!(second.view(now).state, "FORCED_OPEN");
        drop(first);
        assert_eq!(circuits.all().len(), 1);
        drop(second);
        assert!(circuits.all().is_empty());
        assert_eq!(circuits.put("cluster/a", spec()).view(now).state, "CLOSED");
    }
}
