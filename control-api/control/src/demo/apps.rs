//! The programs of the demo: shop asks stock, and one instance of stock misbehaves.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;

use super::client::Client;
use super::streams::Ticks;

/// A program that listens on loopback until the demo ends.
pub(super) struct App {
    pub(super) address: SocketAddr,
    /// Where it finds what it calls; set once its sidecar listens.
    upstream: Arc<OnceLock<Client>>,
}

#[derive(Clone)]
enum Role {
    Shop { name: String, stock: Arc<OnceLock<Client>> },
    Stock { version: String, faults: Option<Arc<Mutex<Faults>>> },
}

/// One request in four fails when it is met for the first time, and every third failure is a connection that closes without an
/// answer. What is asked again with the same request id is answered: faults of this kind pass.
#[derive(Default)]
struct Faults {
    seen: u64,
    failed: HashSet<Bytes>,
    order: VecDeque<Bytes>,
}

enum Fault {
    Unavailable,
    Close,
}

/// Ids that are remembered.
const REMEMBERED: usize = 10_000;

impl Faults {
    fn next(&mut self, id: Bytes) -> Option<Fault> {
        if self.failed.contains(&id) {
            return None;
        }
        self.seen += 1;
        if !self.seen.is_multiple_of(4) {
            return None;
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.failed.remove(&oldest);
        }
        self.failed.insert(id.clone());
        self.order.push_back(id);
        Some(if self.seen.is_multiple_of(12) { Fault::Close } else { Fault::Unavailable })
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

impl App {
    /// An instance of shop.
    pub(super) async fn shop(name: &str) -> std::io::Result<Self> {
        let stock = Arc::default();
        Self::start(Role::Shop { name: name.to_owned(), stock: Arc::clone(&stock) }, stock).await
    }

    /// An instance of stock.
    pub(super) async fn stock(version: &str, misbehaves: bool) -> std::io::Result<Self> {
        let faults = misbehaves.then(Arc::default);
        Self::start(Role::Stock { version: version.to_owned(), faults }, Arc::default()).await
    }

    /// Tells the program where its sidecar listens for what it calls.
    pub(super) fn calls(&self, address: SocketAddr) {
        // A second call would say the same.
        let _ = self.upstream.set(Client::new(address));
    }

    async fn start(role: Role, upstream: Arc<OnceLock<Client>>) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            // An accept fails when descriptors are short; the next may not.
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let role = role.clone();
                    tokio::spawn(serve(stream, role));
                } else {
                    tokio::task::yield_now().await;
                }
            }
        });
        Ok(Self { address, upstream })
    }
}

async fn serve(stream: tokio::net::TcpStream, role: Role) {
    let service = service_fn(move |request| {
        let role = role.clone();
        async move { role.answer(&request).await }
    });
    // An error is a connection that closed, on purpose or not.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

impl Role {
    async fn answer(&self, request: &Request<Incoming>) -> Result<Response<Sent>, Closed> {
        match self {
            Self::Shop { .. } if request.uri().path() == "/events" => Ok(events()),
            Self::Shop { name, stock } => {
                Ok(shop(name, stock.get()).await.unwrap_or_else(|never| match never {}))
            }
            Self::Stock { version, faults } => {
                let id =
                    request.headers().get("x-request-id").map(|id| Bytes::copy_from_slice(id.as_bytes()));
                let fault = faults
                    .as_ref()
                    .zip(id)
                    .and_then(|(faults, id)| faults.lock().unwrap_or_else(PoisonError::into_inner).next(id));
                match fault {
                    Some(Fault::Close) => Err(Closed),
                    Some(Fault::Unavailable) => Ok(answer(
                        StatusCode::SERVICE_UNAVAILABLE,
                        &json!({ "stock": version, "error": "out of order" }),
                    )),
                    None => Ok(answer(StatusCode::OK, &json!({ "stock": version, "items": 42 }))),
                }
            }
        }
    }
}

/// Asks stock on behalf of a visitor.
async fn shop(name: &str, stock: Option<&Client>) -> Result<Response<Sent>, Infallible> {
    let failed = |why: String| answer(StatusCode::BAD_GATEWAY, &json!({ "shop": name, "error": why }));
    let Some(stock) = stock else { return Ok(failed("not ready".into())) };
    Ok(match stock.get("stock", "/items").await {
        Ok(found) if found.status == StatusCode::OK => {
            let items: serde_json::Value = serde_json::from_slice(&found.body).unwrap_or_default();
            answer(StatusCode::OK, &json!({ "shop": name, "stock": items["stock"], "items": items["items"] }))
        }
        Ok(found) => failed(format!(
            "stock says {}, {}",
            found.status,
            found.reason.as_deref().unwrap_or("its own answer")
        )),
        Err(error) => failed(format!("stock: {error:#}")),
    })
}

/// An answer, or a stream without an end.
type Sent = Either<Full<Bytes>, Ticks>;

fn events() -> Response<Sent> {
    let mut response = Response::new(Either::Right(Ticks::new()));
    let kind = http::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response<Sent> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(format!("{body}\n")))));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_four_fails_once_and_never_twice() {
        let mut faults = Faults::default();
        let id = |n: u32| Bytes::from(n.to_string());
        let failed: Vec<_> = (0..400).filter(|n| faults.next(id(*n)).is_some()).collect();
        assert_eq!(failed.len(), 100);
        assert!(failed.iter().all(|n| faults.next(id(*n)).is_none()));
    }
}
