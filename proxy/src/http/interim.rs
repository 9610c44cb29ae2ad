//! Interim (1xx) answers on their way to the client: 100 Continue and 103 Early Hints (RFC 9110 §15.2, RFC 8297).

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::Version;

use super::h1::conn::{self, SharedConn};
use super::h1::encode::{self, Spelling, Wire};
use super::h1::framing::Framing;
use super::head::ResponseHead;

/// An endpoint that sends more interim answers than this is not answering.
pub const MAX_INTERIM: usize = 32;

/// Where the interim answers of one request go.
#[derive(Debug, Clone)]
pub enum InterimSink {
    /// To an HTTP/1.1 client.
    H1 {
        /// Its connection.
        conn: SharedConn,
        /// Spelling of header names.
        spelling: Spelling,
    },
    /// To an HTTP/2 client.
    H2(Rc<RefCell<SendResponse<Bytes>>>),
    /// Nowhere: an HTTP/1.0 client knows none.
    None,
}

impl InterimSink {
    /// Passes one on. A client that cannot take it any more is found out with the final answer.
    pub async fn send(&self, head: ResponseHead) {
        match self {
            Self::None => {}
            Self::H1 { conn, spelling } => {
                let wire = Wire {
                    framing: Framing::Empty,
                    keep_alive: true,
                    peer: Version::HTTP_11,
                    upgrade: None,
                    spelling: *spelling,
                };
                encode::response(conn.borrow_mut().out_head(), &head, wire);
                let _ = conn::flush(conn).await;
            }
            Self::H2(stream) => {
                let mut response = http::Response::new(());
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                let _ = stream.borrow_mut().send_informational(response);
            }
        }
    }
}
