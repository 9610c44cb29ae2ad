//! An HTTP/2 connection of a pool, shared by its streams.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use h2::client::SendRequest;

use super::origins::Origins;
use super::{Allowed, EndpointPool};
use crate::upstream::lease::H2Slot;
use crate::upstream::lifespan::Lifespan;
use crate::upstream::server::Server;

/// A shared HTTP/2 connection.
#[derive(Debug)]
pub struct H2Conn {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) pool: Weak<EndpointPool>,
    /// Those of the pool, which may be gone before the last stream.
    pub(super) clients: Weak<Origins>,
    pub(super) active: Cell<u32>,
    pub(super) life: Cell<Lifespan>,
    pub(super) max_streams: u32,
    pub(super) retired: Cell<bool>,
    pub(super) server: Option<Server>,
    pub(super) permit: Allowed,
}

impl H2Conn {
    pub(super) fn has_room(&self) -> bool {
        let peer = u32::try_from(self.sender.current_max_send_streams()).unwrap_or(u32::MAX);
        !self.retired.get() && self.active.get() < self.max_streams.min(peer)
    }

    pub(super) fn slot(self: &Rc<Self>) -> (SendRequest<Bytes>, H2Slot) {
        self.active.set(self.active.get() + 1);
        let mut life = self.life.get();
        life.count_use();
        self.life.set(life);
        (self.sender.clone(), H2Slot(Rc::clone(self)))
    }

    /// Who is verified to be at its other end.
    pub const fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Streams that it has had.
    pub fn streams_started(&self) -> u32 {
        self.life.get().uses()
    }

    /// Takes the connection out of the pool; its streams finish.
    pub fn retire(self: &Rc<Self>) {
        self.retired.set(true);
        if let Some(pool) = self.pool.upgrade() {
            let mut conns = pool.h2.borrow_mut();
            let before = conns.len();
            conns.retain(|c| !Rc::ptr_eq(c, self));
            if conns.len() < before {
                pool.open.set(pool.open.get().saturating_sub(1));
            }
            pool.changed.notify_waiters();
            drop(conns);
            pool.tell_others();
        }
    }

    /// A stream has ended.
    pub fn release(&self) {
        self.active.set(self.active.get() - 1);
        if let Some(pool) = self.pool.upgrade() {
            pool.changed.notify_one();
        }
        if self.active.get() == 0
            && let Some(clients) = self.clients.upgrade()
        {
            clients.queue.tell();
        }
    }
}
