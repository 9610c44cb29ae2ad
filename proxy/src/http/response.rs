//! What an attempt, or the proxy itself, answers.

use http::HeaderValue;

use super::body::Body;
use super::h1::conn::SharedConn;
use super::head::ResponseHead;
use crate::upstream::lease::H1Lease;

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
    /// The connection, with what was already read from it.
    pub conn: SharedConn,
    /// Keeps the connection counted.
    pub lease: H1Lease,
}
