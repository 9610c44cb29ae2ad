//! Interim (1xx) answers on their way to the client: 100 Continue and 103 Early Hints (RFC 9110 §15.2, RFC 8297).

use std::cell::{Cell, RefCell};
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
    /// To one of the others, if the try that they come from is the only one, or has won.
    Held(Rc<Held>),
}

/// Interim answers of one try among several beside each other. What a try says that loses is none of the client's business.
#[derive(Debug)]
pub struct Held {
    to: InterimSink,
    /// How many tries are under way.
    tries: Rc<Cell<usize>>,
    heads: RefCell<Vec<ResponseHead>>,
}

impl Held {
    /// Those that go `to` the client while `tries` is at most 1.
    #[must_use]
    pub fn new(to: &InterimSink, tries: &Rc<Cell<usize>>) -> Rc<Self> {
        Rc::new(Self { to: to.clone(), tries: Rc::clone(tries), heads: RefCell::default() })
    }

    async fn send(&self, head: ResponseHead) {
        self.heads.borrow_mut().push(head);
        if self.tries.get() <= 1 {
            self.pass_on().await;
        }
    }

    /// Passes on what was held: the try has won.
    pub async fn pass_on(&self) {
        for head in self.heads.take() {
            self.to.pass(head).await;
        }
    }
}

impl InterimSink {
    /// Passes one on. A client that cannot take it any more is found out with the final answer.
    pub async fn send(&self, head: ResponseHead) {
        match self {
            Self::Held(held) => held.send(head).await,
            _ => self.pass(head).await,
        }
    }

    async fn pass(&self, head: ResponseHead) {
        match self {
            Self::None | Self::Held(_) => {}
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
