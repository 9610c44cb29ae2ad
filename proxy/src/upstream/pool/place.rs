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
    limit: Limit,
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
        let limit: Limit = cluster.state().breaker(priority);
        let number = pool.clients.upgrade().map_or(0, |clients| clients.queue.join(limit, pool));
        Box::new(Self { pool: Rc::clone(pool), limit, number, _pending: pending })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.waiting.set(self.pool.waiting.get() - 1);
        if let Some(clients) = self.pool.clients.upgrade() {
            clients.queue.leave(self.limit, self.number);
            clients.queue.tell();
        }
    }
}

/// Whose limit it is: only compared.
type Limit = *const Breaker;

/// Those with a client's address that wait at a limit, whose room may be what other clients give up. Who came first is told first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// One for each limit at which somebody waits: few.
    limits: RefCell<Vec<(Limit, VecDeque<Waiting>)>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    pool: Rc<EndpointPool>,
}

impl Queue {
    fn join(&self, limit: Limit, pool: &Rc<EndpointPool>) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        let one = Waiting { number, pool: Rc::clone(pool) };
        let mut limits = self.limits.borrow_mut();
        match limits.iter_mut().find(|(known, _)| *known == limit) {
            Some((_, waiting)) => waiting.push_back(one),
            None => limits.push((limit, VecDeque::from([one]))),
        }
        number
    }

    fn leave(&self, limit: Limit, number: u64) {
        let mut limits = self.limits.borrow_mut();
        let Some(at) = limits.iter().position(|(known, _)| *known == limit) else { return };
        let waiting = &mut limits[at].1;
        if let Ok(place) = waiting.binary_search_by_key(&number, |one| one.number) {
            waiting.remove(place);
        }
        if waiting.is_empty() {
            limits.swap_remove(at);
        }
    }

    /// A connection of somebody rests now, or is gone: of each limit the first one looks again. Whoever is told in vain keeps its place.
    pub(super) fn tell(&self) {
        for (_, waiting) in self.limits.borrow().iter() {
            // Those whose client connects look when that is done.
            if let Some(first) = waiting.iter().find(|one| !one.pool.h2_connecting.get()) {
                first.pool.changed.notify_one();
            }
        }
    }
}
