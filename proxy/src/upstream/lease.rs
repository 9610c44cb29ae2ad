//! A connection out of a pool, for as long as one request uses it.

use std::rc::Rc;

use tokio::time::Instant;

use super::lifespan::Lifespan;
use super::pool::{Allowed, EndpointPool};
use super::server::Server;
use crate::http::h1::conn::SharedConn;

/// An HTTP/1 connection in use. Dropping it closes the connection; [`Self::finish`] gives it back.
#[derive(Debug)]
pub struct H1Lease {
    /// The connection.
    pub conn: SharedConn,
    pool: Rc<EndpointPool>,
    life: Lifespan,
    server: Option<Server>,
    reusable: bool,
    /// None once the connection went back.
    permit: Option<Allowed>,
}

/// A connection that no request uses.
#[derive(Debug)]
pub struct IdleConn {
    pub(super) conn: SharedConn,
    pub(super) since: Instant,
    pub(super) life: Lifespan,
    /// Who is verified to be at its other end.
    pub(super) server: Option<Server>,
    pub(super) permit: Allowed,
}

impl H1Lease {
    /// A connection taken from rest, or just made.
    #[must_use]
    pub fn of(idle: IdleConn, pool: Rc<EndpointPool>) -> Self {
        let IdleConn { conn, since: _, mut life, server, permit } = idle;
        life.count_use();
        Self { conn, pool, life, server, reusable: false, permit: Some(permit) }
    }

    /// Whether an earlier request used this connection, so that the server may be closing it right now.
    #[must_use]
    pub const fn is_reused(&self) -> bool {
        self.life.uses() > 1
    }

    /// Who is verified to be at its other end.
    #[must_use]
    pub const fn server(&self) -> Option<&Server> {
        self.server.as_ref()
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
                server: self.server.take(),
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

    /// Who is verified to be at the connection's other end.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.0.server()
    }
}

impl Drop for H2Slot {
    fn drop(&mut self) {
        self.0.release();
    }
}
