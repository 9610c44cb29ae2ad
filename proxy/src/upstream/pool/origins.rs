//! The pools of one worker whose connections have the addresses of clients.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;
use tokio::time::Instant;

use super::place::Queue;
use super::pools::count;
use super::{EndpointPool, H2Conn};
use crate::resilience::breaker::RoutingPriority;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::Origin;
use crate::upstream::endpoint::{Endpoint, EndpointKey};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pools: RefCell<HashMap<(EndpointKey, Origin), Rc<EndpointPool>>>,
    /// How many there may be before those without a connection are forgotten.
    enough: Cell<usize>,
    /// Those that wait.
    pub(super) queue: Queue,
}

/// The least of [`Origins::enough`].
const FEW: usize = 64;

impl Origins {
    /// The pool of `endpoint` for connections that have the address of `origin`. A client that has no connection any more is forgotten when
    /// there are twice as many as had one last time.
    pub(super) fn of(
        self: &Rc<Self>,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        origin: Origin,
    ) -> Rc<EndpointPool> {
        let (wanted, key) = (cluster.transport(), (endpoint.key, origin));
        let known = self.pools.borrow().get(&key).cloned();
        if let Some(pool) = known.as_ref().filter(|pool| pool.transport == wanted) {
            return Rc::clone(pool);
        }
        let client = Some((origin, Rc::downgrade(self)));
        let pool = EndpointPool::new(Arc::clone(endpoint), wanted, client);
        if known.is_some_and(|newer| newer.transport > wanted) {
            pool.close();
            return pool;
        }
        let mut pools = self.pools.borrow_mut();
        if pools.len() >= self.enough.get().max(FEW) {
            pools.retain(|_, pool| !pool.is_unused());
            self.enough.set(pools.len() * 2);
        }
        let old = pools.insert(key, Rc::clone(&pool));
        drop(pools);
        if let Some(old) = old {
            old.close();
        }
        pool
    }

    /// As [`make_room`], among all clients.
    pub(super) fn make_room(
        &self,
        cluster: &Cluster,
        priority: RoutingPriority,
        asks: Option<&EndpointPool>,
    ) -> bool {
        make_room(self.pools.borrow().values(), (cluster, priority), asks)
    }

    pub(super) fn retain(&self, mut stays: impl FnMut(&Rc<EndpointPool>) -> bool) {
        self.pools.borrow_mut().retain(|_, pool| stays(pool));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pools.borrow().len()
    }

    /// Connections: (at rest, HTTP/2).
    pub(super) fn count(&self) -> (usize, usize) {
        count(self.pools.borrow().values())
    }
}

/// Closes a connection of a cluster that nobody uses, whoever's address it has: of HTTP/1 the one that has been at rest for longest, else one
/// of HTTP/2 without a stream. Whether there was one. What those who wait in a pool were told of is theirs, unless it is they who ask: `asks`
/// can take nothing of what it has. Takes as long as there are pools: it is for those that would be refused.
pub(super) fn make_room<'p>(
    mut pools: impl Iterator<Item = &'p Rc<EndpointPool>> + Clone,
    (cluster, priority): (&Cluster, RoutingPriority),
    asks: Option<&EndpointPool>,
) -> bool {
    let told = |pool: &EndpointPool| match asks {
        Some(asks) if std::ptr::eq(asks, pool) => 0,
        _ => pool.waiting.get(),
    };
    let since = |pool: &EndpointPool| pool.rests_since(cluster, priority, told(pool));
    let resting = pools.clone().filter_map(|pool| Some((since(pool)?, pool)));
    match resting.min_by_key(|(since, _)| *since) {
        Some((_, pool)) => pool.close_oldest(cluster, priority),
        None => pools.any(|pool| told(pool) == 0 && pool.close_unused_h2(cluster, priority)),
    }
}

/// Connections whose end makes room under the limit of a cluster and priority.
impl EndpointPool {
    /// Since when the oldest one at rest has been so; None if there is one for each of those who were told already.
    fn rests_since(&self, cluster: &Cluster, priority: RoutingPriority, told: u32) -> Option<Instant> {
        let idle = self.idle.borrow();
        if idle.len() <= told as usize {
            return None;
        }
        idle.iter().find(|idle| idle.permit.is_of(cluster, priority)).map(|idle| idle.since)
    }

    /// Closes what it has if nobody uses any of it: whoever asks can take none, and what has the grace, or the permit of another priority,
    /// makes no room under the limit but for the grace of the next one.
    pub(super) fn give_up_unused(&self) {
        let unused = |conn: &&Rc<H2Conn>| conn.active.get() == 0;
        let shared: Vec<_> = self.h2.borrow().iter().filter(unused).cloned().collect();
        if self.idle.borrow().len() + shared.len() < self.open.get() as usize {
            return;
        }
        for _idle in std::mem::take(&mut *self.idle.borrow_mut()) {
            self.released();
        }
        for conn in shared {
            conn.retire();
        }
    }

    fn close_oldest(&self, cluster: &Cluster, priority: RoutingPriority) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = idle.iter().position(|idle| idle.permit.is_of(cluster, priority));
        let closed = oldest.and_then(|at| idle.remove(at));
        drop(idle);
        if closed.is_some() {
            self.released();
        }
        closed.is_some()
    }

    fn close_unused_h2(&self, cluster: &Cluster, priority: RoutingPriority) -> bool {
        let unused = |conn: &&Rc<H2Conn>| conn.active.get() == 0 && conn.permit.is_of(cluster, priority);
        let found = self.h2.borrow().iter().find(unused).cloned();
        if let Some(conn) = &found {
            conn.retire();
        }
        found.is_some()
    }
}
