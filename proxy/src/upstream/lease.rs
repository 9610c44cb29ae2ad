//! A connection out of a pool, for as long as one request uses it.

use std::rc::Rc;

use tokio::time::Instant;

use super::lifespan::Lifespan;
use super::pool::{Allowed, EndpointPool};
use crate::http::h1::conn::SharedConn;

/// An HTTP/1 connection in use. Dropping it closes the connection; [`Self::finish`] gives it back.
#[derive(Debug)]
pub struct H1Lease {
    /// The connection.
    pub conn: SharedConn,
    pool: Rc<EndpointPool>,
    life: Lifespan,
    reusable: bool,
    /// None once the connection went back.
    permit: Option<Allowed>,
}

/// A pooled connection at rest.
#[derive(Debug)]
pub struct IdleConn {
    pub(super) conn: SharedConn,
    pub(super) since: Instant,
    pub(super) life: Lifespan,
    pub(super) permit: Allowed,
}

impl H1Lease {
    /// A connection just made.
    #[must_use]
    pub const fn new(conn: SharedConn, pool: Rc<EndpointPool>, mut life: Lifespan, permit: Allowed) -> Self {
        life.count_use();
        Self { conn, pool, life, reusable: false, permit: Some(permit) }
    }

    /// A connection taken from rest.
    #[must_use]
    pub fn again(idle: IdleConn, pool: Rc<EndpointPool>) -> Self {
        let IdleConn { conn, life, permit, .. } = idle;
        Self::new(conn, pool, life, permit)
    }

    /// Whether an earlier request used this connection, so that the server may be closing it right now.
    #[must_use]
    pub const fn is_reused(&self) -> bool {
        self.life.uses() > 1
    }

    /// The response allows another request, and the whole request was sent.
    pub const fn allow_reuse(&mut self) {
        self.reusable = true;
    }

    /// The response is complete: back to the pool, if it allows that.
    pub fn finish(mut self) {
        let clean = {
            let conn = self.conn.borrow();
            // Bytes beyond the response belong to nobody: the next request would read them as its answer.
            !conn.eof && conn.read.is_empty() && conn.is_flushed()
        };
        if self.reusable
            && clean
            && let Some(permit) = self.permit.take()
        {
            self.pool.put(IdleConn {
                conn: Rc::clone(&self.conn),
                since: Instant::now(),
                life: self.life,
                permit,
            });
        }
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.pool.released();
        }
    }
}

/// A stream on a shared HTTP/2 connection, counted until dropped.
#[derive(Debug)]
pub struct H2Slot(pub(super) Rc<super::pool::H2Conn>);

impl H2Slot {
    /// The connection is not to be used for further streams.
    pub fn retire(&self) {
        self.0.retire();
    }

    /// Whether earlier streams used the connection.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.0.streams_started() > 1
    }
}

impl Drop for H2Slot {
    fn drop(&mut self) {
        self.0.release();
    }
}
