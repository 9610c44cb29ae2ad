//! All pools of one worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;

use super::EndpointPool;
use super::origins::{Origins, make_room};
use crate::error::Reason;
use crate::resilience::breaker::RoutingPriority;
use crate::upstream::cluster::{Cluster, TransportVersion};
use crate::upstream::connect::Origin;
use crate::upstream::endpoint::{Endpoint, EndpointKey};
use crate::upstream::lease::H1Lease;

/// See the module.
#[derive(Debug, Default)]
pub struct Pools {
    by_endpoint: RefCell<HashMap<EndpointKey, Rc<EndpointPool>>>,
    /// Those whose connections have a client's address.
    pub(super) by_origin: Rc<Origins>,
}

impl Pools {
    /// The pool of `endpoint`, whose connections were made with the transport socket of `cluster`, and have the address of `origin` if there
    /// is one.
    #[must_use]
    pub fn of(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        origin: Option<Origin>,
    ) -> Rc<EndpointPool> {
        if let Some(origin) = origin {
            return self.by_origin.of(cluster, endpoint, origin);
        }
        let wanted = cluster.transport();
        if let Some(pool) = self.by_endpoint.borrow().get(&endpoint.key)
            && pool.transport == wanted
        {
            return Rc::clone(pool);
        }
        self.open(endpoint, wanted)
    }

    /// A new connection for opaque bytes: no request used it, and none will. Where the circuit breaker leaves no room for it, one of this worker
    /// that rests is closed; if none does it is refused, as nobody knows when others end.
    ///
    /// # Errors
    /// [`Reason::UpstreamOverflow`] at the circuit breaker's limits, or why connecting failed.
    pub async fn opaque(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        origin: Option<Origin>,
        priority: RoutingPriority,
    ) -> Result<H1Lease, Reason> {
        let make_room = || {
            make_room(self.by_endpoint.borrow().values(), (cluster, priority), None)
                || self.by_origin.make_room(cluster, priority, None)
        };
        self.of(cluster, endpoint, origin).opaque(cluster, priority, make_room).await
    }

    /// A new pool, in the place of one with an older transport socket: its connections at rest close, those in use finish.
    #[cold]
    fn open(&self, endpoint: &Arc<Endpoint>, transport: TransportVersion) -> Rc<EndpointPool> {
        let pool = EndpointPool::new(Arc::clone(endpoint), transport, None);
        let mut pools = self.by_endpoint.borrow_mut();
        if pools.get(&endpoint.key).is_some_and(|newer| newer.transport > transport) {
            // A request that began before the edit: what it connects to is for it alone.
            pool.close();
            return pool;
        }
        let old = pools.insert(endpoint.key, Rc::clone(&pool));
        drop(pools);
        if let Some(old) = old {
            old.close();
        }
        pool
    }

    /// Forgets the pools of endpoints that are gone: connections at rest close, those in use finish. Takes as long as there are
    /// pools, however many endpoints there are: this runs between requests.
    pub fn prune(&self) {
        let mut removed = Vec::new();
        let mut stays = |pool: &Rc<EndpointPool>| {
            let stays = !pool.endpoint.state.is_gone();
            if !stays {
                removed.push(Rc::clone(pool));
            }
            stays
        };
        self.by_endpoint.borrow_mut().retain(|_, pool| stays(pool));
        self.by_origin.retain(stays);
        for pool in removed {
            pool.close();
        }
    }

    /// How many clients have a pool of their own.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> usize {
        self.by_origin.len()
    }

    /// Connections of all pools: (at rest, HTTP/2).
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let (shared, of_clients) = (count(self.by_endpoint.borrow().values()), self.by_origin.count());
        (shared.0 + of_clients.0, shared.1 + of_clients.1)
    }
}

pub(super) fn count<'p>(pools: impl Iterator<Item = &'p Rc<EndpointPool>>) -> (usize, usize) {
    pools.fold((0, 0), |(idle, h2), p| (idle + p.idle.borrow().len(), h2 + p.h2.borrow().len()))
}
