//! All pools of one worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;

use super::EndpointPool;
use crate::upstream::cluster::{Cluster, TransportVersion};
use crate::upstream::endpoint::{Endpoint, EndpointKey};

/// See the module.
#[derive(Debug, Default)]
pub struct Pools {
    by_endpoint: RefCell<HashMap<EndpointKey, Rc<EndpointPool>>>,
}

impl Pools {
    /// The pool of `endpoint`, whose connections were made with the transport socket of `cluster`.
    #[must_use]
    pub fn of(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Rc<EndpointPool> {
        let wanted = cluster.transport();
        if let Some(pool) = self.by_endpoint.borrow().get(&endpoint.key)
            && pool.transport == wanted
        {
            return Rc::clone(pool);
        }
        self.open(endpoint, wanted)
    }

    /// A new pool, in the place of one with an older transport socket: its connections at rest close, those in use finish.
    #[cold]
    fn open(&self, endpoint: &Arc<Endpoint>, transport: TransportVersion) -> Rc<EndpointPool> {
        let pool = EndpointPool::new(Arc::clone(endpoint), transport);
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
        self.by_endpoint.borrow_mut().retain(|_, pool| {
            let stays = !pool.endpoint.state.is_gone();
            if !stays {
                removed.push(Rc::clone(pool));
            }
            stays
        });
        for pool in removed {
            pool.close();
        }
    }

    /// Connections of all pools: (at rest, HTTP/2).
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let pools = self.by_endpoint.borrow();
        pools.values().fold((0, 0), |(idle, h2), p| (idle + p.idle.borrow().len(), h2 + p.h2.borrow().len()))
    }
}
