//! Where a worker finds the answers that it keeps: by circuit breaker, for as long as the configuration says so.

use std::cell::{Cell, RefCell};
use std::hash::BuildHasher;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use foldhash::HashMap;
use foldhash::fast::FixedState;

use super::{LastGoodSpec, Store};
use crate::resilience::circuit::Circuit;

/// The answers of one worker. Not shared.
#[derive(Debug, Default)]
pub struct Shelves {
    shelves: RefCell<HashMap<Arc<str>, Rc<Shelf>>>,
    changes: Rc<Changes>,
}

/// How often things have changed, so that an answer which was asked for before is not kept after. Things that share a place change
/// together: a copy less is kept then.
#[derive(Debug)]
pub struct Changes([Cell<u32>; 256]);

impl Default for Changes {
    fn default() -> Self {
        Self([const { Cell::new(0) }; 256])
    }
}

impl Changes {
    /// The number of changes of `thing` so far.
    #[must_use]
    pub fn of(&self, thing: &str) -> u32 {
        self.at(thing).get()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are meant")]
    fn at(&self, thing: &str) -> &Cell<u32> {
        &self.0[usize::from(FixedState::default().hash_one(thing) as u8)]
    }
}

/// The answers of one circuit breaker.
#[derive(Debug)]
pub struct Shelf {
    /// What the configuration says. Another one, equal or not, is that of another time.
    of: Weak<LastGoodSpec>,
    /// The answers.
    pub store: RefCell<Store>,
    /// Of all shelves of the worker.
    pub changes: Rc<Changes>,
}

impl Shelves {
    /// Where `circuit` has its answers; None when it keeps none. What was kept under other bounds is gone.
    #[must_use]
    pub fn of(&self, circuit: &Circuit) -> Option<Rc<Shelf>> {
        let spec = circuit.last_good.as_ref()?;
        let mut shelves = self.shelves.borrow_mut();
        if let Some(shelf) = shelves.get(&circuit.name)
            && is_of(shelf, spec)
        {
            return Some(Rc::clone(shelf));
        }
        let shelf = Rc::new(Shelf {
            of: Arc::downgrade(spec),
            store: RefCell::new(Store::new(**spec)),
            changes: Rc::clone(&self.changes),
        });
        shelves.insert(Arc::clone(&circuit.name), Rc::clone(&shelf));
        Some(shelf)
    }

    /// Whether there are none: nothing keeps answers, or has been asked yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shelves.borrow().is_empty()
    }

    /// How often `thing` has changed so far.
    #[must_use]
    pub fn changes(&self, thing: &str) -> u32 {
        self.changes.of(thing)
    }

    /// Forgets on all shelves what is kept of `thing`, or on its way: it has changed, or is gone.
    pub fn forget(&self, thing: &str) {
        let changes = self.changes.at(thing);
        changes.set(changes.get().wrapping_add(1));
        for shelf in self.shelves.borrow().values() {
            shelf.store.borrow_mut().forget(thing);
        }
    }

    /// Throws away what belongs to a configuration that is gone. `current` says what holds for the name of a circuit breaker; None when
    /// it does not know the name, which is then known by whether anybody still holds its configuration.
    pub fn prune<'a>(&self, current: impl Fn(&str) -> Option<Option<&'a Arc<LastGoodSpec>>>) {
        self.shelves.borrow_mut().retain(|name, shelf| match current(name) {
            Some(spec) => spec.is_some_and(|spec| is_of(shelf, spec)),
            None => shelf.of.strong_count() > 0,
        });
    }
}

fn is_of(shelf: &Shelf, spec: &Arc<LastGoodSpec>) -> bool {
    std::ptr::eq(shelf.of.as_ptr(), Arc::as_ptr(spec))
}
