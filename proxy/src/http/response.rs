//! What an attempt, or the proxy itself, answers.

use http::HeaderValue;

use super::body::Body;
use super::head::ResponseHead;
use super::tunnel::Tunnel;
use crate::upstream::lease::{H1Lease, H2Slot};
use crate::upstream::server::Server;

/// A response on its way downstream.
#[derive(Debug)]
pub struct Response {
    /// The head.
    pub head: ResponseHead,
    /// The body.
    pub body: Body,
    /// After a 101 (or a 2xx to CONNECT): the connection that becomes a byte tunnel.
    pub upgraded: Option<Box<Upgraded>>,
}

/// The upstream side of a tunnel.
#[derive(Debug)]
pub struct Upgraded {
    /// `Upgrade` of the answer.
    pub protocol: HeaderValue,
    /// The bytes, those that were already read first.
    pub io: Tunnel,
    /// Keeps the connection or stream counted.
    pub held: Held,
}

/// What counts a tunnel as in use.
#[derive(Debug)]
pub enum Held {
    /// A connection.
    H1(H1Lease),
    /// A stream.
    H2(H2Slot),
}

impl Held {
    /// Who is verified to be at the other end.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        match self {
            Self::H1(lease) => lease.server(),
            Self::H2(slot) => slot.server(),
        }
    }
}
