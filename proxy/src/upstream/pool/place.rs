//! Requests that wait for a connection, and who tells those of other clients that there is room.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::EndpointPool;
use crate::resilience::breaker::{Breaker, RoutingPriority};
use crate::upstream::cluster::{Cluster, ClusterPermit};

/// The place of one request among those that wait. Who leaves tells the next one: what it was told of may be left for it.
#[derive(Debug)]
pub(super) struct Place {
    pool: Rc<EndpointPool>,
    number: u64,
    _pending: ClusterPermit,
}

impl Place {
    pub(super) fn take(
        pool: &Rc<EndpointPool>,
        (cluster, priority): (&Cluster, RoutingPriority),
        pending: ClusterPermit,
    ) -> Box<Self> {
        pool.waiting.set(pool.waiting.get() + 1);
        let breaker: *const Breaker = cluster.state().breaker(priority);
        let number = pool.clients.upgrade().map_or(0, |clients| clients.queue.join(breaker, Rc::clone(pool)));
        Box::new(Self { pool: Rc::clone(pool), number, _pending: pending })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.waiting.set(self.pool.waiting.get() - 1);
        if let Some(clients) = self.pool.clients.upgrade() {
            clients.queue.leave(self.number);
            clients.queue.tell();
        }
    }
}

/// Those with a client's address that wait at a limit, whose room may be what other clients give up. Who came first is told first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Waiting>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// At the limit of which it waits: only compared.
    breaker: *const Breaker,
    pool: Rc<EndpointPool>,
}

impl Queue {
    fn join(&self, breaker: *const Breaker, pool: Rc<EndpointPool>) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().push_back(Waiting { number, breaker, pool });
        number
    }

    fn leave(&self, number: u64) {
        let gone = {
            let mut waiting = self.waiting.borrow_mut();
            let at = waiting.binary_search_by_key(&number, |one| one.number);
            at.ok().and_then(|at| waiting.remove(at))
        };
        // It may be the last one that has its pool.
        drop(gone);
    }

    /// A connection of somebody rests now, or is gone: of each limit the first one looks again. Whoever is told in vain keeps its place.
    pub(super) fn tell(&self) {
        let mut told: Vec<*const Breaker> = Vec::new();
        for one in self.waiting.borrow().iter() {
            if !told.contains(&one.breaker) {
                told.push(one.breaker);
                one.pool.changed.notify_one();
            }
        }
    }
}
