//! Where a worker finds the answers that it keeps: by circuit breaker, for as long as the configuration says so.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use foldhash::HashMap;

use super::{LastGoodSpec, Store};
use crate::resilience::circuit::Circuit;

/// The answers of one worker. Not shared.
#[derive(Debug, Default)]
pub struct Shelves(RefCell<HashMap<Arc<str>, Rc<Shelf>>>);

/// The answers of one circuit breaker.
#[derive(Debug)]
pub struct Shelf {
    /// What the configuration says. Another one, equal or not, is that of another time.
    of: Weak<LastGoodSpec>,
    /// The answers.
    pub store: RefCell<Store>,
}

impl Shelves {
    /// Where `circuit` has its answers; None when it keeps none. What was kept under other bounds is gone.
    #[must_use]
    pub fn of(&self, circuit: &Circuit) -> Option<Rc<Shelf>> {
        let spec = circuit.last_good.as_ref()?;
        let mut shelves = self.0.borrow_mut();
        if let Some(shelf) = shelves.get(&circuit.name)
            && is_of(shelf, spec)
        {
            return Some(Rc::clone(shelf));
        }
        let shelf = Rc::new(Shelf { of: Arc::downgrade(spec), store: RefCell::new(Store::new(**spec)) });
        shelves.insert(Arc::clone(&circuit.name), Rc::clone(&shelf));
        Some(shelf)
    }

    /// Throws away what belongs to a configuration that is gone. `current` says what holds for the name of a circuit breaker; None when
    /// it does not know the name, which is then known by whether anybody still holds its configuration.
    pub fn prune<'a>(&self, current: impl Fn(&str) -> Option<Option<&'a Arc<LastGoodSpec>>>) {
        self.0.borrow_mut().retain(|name, shelf| match current(name) {
            Some(spec) => spec.is_some_and(|spec| is_of(shelf, spec)),
            None => shelf.of.strong_count() > 0,
        });
    }
}

fn is_of(shelf: &Shelf, spec: &Arc<LastGoodSpec>) -> bool {
    std::ptr::eq(shelf.of.as_ptr(), Arc::as_ptr(spec))
}
