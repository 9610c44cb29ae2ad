//! All pools of one worker.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;

use super::EndpointPool;
use crate::upstream::cluster::{Cluster, TransportVersion};
use crate::upstream::connect::Origin;
use crate::upstream::endpoint::{Endpoint, EndpointKey};

/// See the module.
#[derive(Debug, Default)]
pub struct Pools {
    by_endpoint: RefCell<HashMap<EndpointKey, Rc<EndpointPool>>>,
    /// Those whose connections have a client's address.
    by_origin: RefCell<HashMap<(EndpointKey, Origin), Rc<EndpointPool>>>,
    /// How many of them there may be before those without a connection are forgotten.
    enough: Cell<usize>,
}

/// The least of [`Pools::enough`].
const FEW: usize = 64;

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
            return self.of_origin(cluster, endpoint, origin);
        }
        let wanted = cluster.transport();
        if let Some(pool) = self.by_endpoint.borrow().get(&endpoint.key)
            && pool.transport == wanted
        {
            return Rc::clone(pool);
        }
        self.open(endpoint, wanted)
    }

    /// The same for connections that have the address of `origin`. A client that has no connection any more is forgotten when there
    /// are twice as many as had one last time.
    #[cold]
    fn of_origin(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>, origin: Origin) -> Rc<EndpointPool> {
        let (wanted, key) = (cluster.transport(), (endpoint.key, origin));
        let known = self.by_origin.borrow().get(&key).cloned();
        if let Some(pool) = known.as_ref().filter(|pool| pool.transport == wanted) {
            return Rc::clone(pool);
        }
        let pool = EndpointPool::new(Arc::clone(endpoint), wanted, Some(origin));
        if known.is_some_and(|newer| newer.transport > wanted) {
            pool.close();
            return pool;
        }
        let mut pools = self.by_origin.borrow_mut();
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
        self.by_origin.borrow_mut().retain(|_, pool| stays(pool));
        for pool in removed {
            pool.close();
        }
    }

    /// How many clients have a pool of their own.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> usize {
        self.by_origin.borrow().len()
    }

    /// Connections of all pools: (at rest, HTTP/2).
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let (pools, of_clients) = (self.by_endpoint.borrow(), self.by_origin.borrow());
        pools
            .values()
            .chain(of_clients.values())
            .fold((0, 0), |(idle, h2), p| (idle + p.idle.borrow().len(), h2 + p.h2.borrow().len()))
    }
}
