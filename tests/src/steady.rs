//! Clients that ask one request after the other, keep their connection for as long as they may, and then open another one: a process that goes
//! away or is replaced must not be noticed by them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::certs::ClientTls;
use crate::client::Io;
use crate::client::http1::Http1Client;
use crate::client::http2::{Http2Client, Outcome, get};
use crate::frame::{Frame, PREFACE};
use crate::wait::eventually;

/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(3);

/// What the clients speak.
#[derive(Debug, Clone)]
pub enum Speaks {
    /// HTTP/1.1 in plaintext.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// HTTP/1.1 over TLS.
    Https1(ClientTls),
    /// HTTP/2 over TLS.
    Https2(ClientTls),
}

/// What every client needs.
#[derive(Debug, Clone)]
struct Shared {
    address: SocketAddr,
    speaks: Speaks,
    /// A refused connection is the end, and no loss.
    ends: bool,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

/// Clients that run.
#[derive(Debug)]
pub struct Steady {
    shared: Shared,
    clients: JoinSet<Result<(), String>>,
}

impl Steady {
    /// So many clients of the listener at `address`. A connection that is refused is a loss.
    #[must_use]
    pub fn on(address: SocketAddr, speaks: Speaks, clients: usize) -> Self {
        Self::start(address, speaks, clients, false)
    }

    /// The same; they end when nobody listens any more.
    #[must_use]
    pub fn while_listening(address: SocketAddr, speaks: Speaks, clients: usize) -> Self {
        Self::start(address, speaks, clients, true)
    }

    fn start(address: SocketAddr, speaks: Speaks, clients: usize, ends: bool) -> Self {
        let (stop, answered, connections) = (Arc::default(), Arc::default(), Arc::default());
        let shared = Shared { address, speaks, ends, stop, answered, connections };
        let clients = (0..clients).map(|_| run(shared.clone()));
        let clients = clients.collect();
        Self { shared, clients }
    }

    /// Waits for so many more answers, or for a loss.
    pub async fn flows(&self, more: usize) {
        let before = self.shared.answered.load(Ordering::Relaxed);
        eventually("answers", || {
            self.shared.answered.load(Ordering::Relaxed) >= before + more
                || self.shared.stop.load(Ordering::Relaxed)
        })
        .await;
    }

    /// Stops.
    ///
    /// # Panics
    /// When a request or a connection was lost, by any of them.
    pub async fn lost_nothing(self, what: &str) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.ended(what).await;
    }

    /// Waits until nobody listens.
    ///
    /// # Panics
    /// When a request was lost.
    pub async fn ended(mut self, what: &str) {
        while let Some(ended) = self.clients.join_next().await {
            if let Err(lost) = ended.expect("no panic") {
                panic!("{what}: lost: {lost}");
            }
        }
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (answered, connections) = (load(&self.shared.answered), load(&self.shared.connections));
        println!("{what}: {answered} requests on {connections} connections, lost 0");
    }
}

async fn run(shared: Shared) -> Result<(), String> {
    let ended = ask(&shared).await;
    if ended.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    ended
}

async fn ask(shared: &Shared) -> Result<(), String> {
    while !shared.stop.load(Ordering::Relaxed) {
        let stream = match TcpStream::connect(shared.address).await {
            Ok(stream) => stream,
            Err(error) if shared.ends && error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Ok(());
            }
            Err(error) => return Err(format!("no connection: {error}")),
        };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let lost = |error: std::io::Error| format!("no connection: {error}");
        stream.set_nodelay(true).map_err(lost)?;
        let io = match &shared.speaks {
            Speaks::Http1 | Speaks::Http2 => Io::Tcp(stream),
            Speaks::Https1(tls) | Speaks::Https2(tls) => Io::tls_over(stream, tls).await.map_err(lost)?,
        };
        match shared.speaks {
            Speaks::Http1 | Speaks::Https1(_) => http1(Http1Client::over(io), shared).await?,
            Speaks::Http2 | Speaks::Https2(_) => http2(Http2Client::silent(io), shared).await?,
        }
    }
    Ok(())
}

impl Shared {
    /// True: the next request.
    async fn goes_on(&self) -> bool {
        self.answered.fetch_add(1, Ordering::Relaxed);
        // Not a wait for anything: the pace of the load.
        tokio::time::sleep(PACE).await;
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Until the answer says that the connection ends.
async fn http1(mut client: Http1Client, shared: &Shared) -> Result<(), String> {
    loop {
        let response = client.get("/").await.map_err(|broken| format!("HTTP/1: {broken:?}"))?;
        if response.status != 200 {
            return Err(format!("HTTP/1: {response:?}"));
        }
        if !shared.goes_on().await || !response.keeps_alive() {
            return Ok(());
        }
    }
}

/// Until GOAWAY. A stream beyond its last id was not processed, and is not lost; every other one must be answered.
async fn http2(mut client: Http2Client, shared: &Shared) -> Result<(), String> {
    client.send_bytes(&[PREFACE.to_vec(), Frame::settings(&[]).encode()].concat()).await;
    loop {
        let stream = client.open(&get("/"), true).await;
        match client.outcome(stream).await {
            Outcome::Answer(answer) if answer.status == 200 => {}
            // 7 = REFUSED_STREAM: certainly not processed, an HTTP client sends it again.
            Outcome::Reset(7, _) => {}
            Outcome::ConnectionEnded(_)
                if client.goaways().last().is_some_and(|goaway| goaway.last_stream < stream) =>
            {
                return Ok(());
            }
            other => return Err(format!("HTTP/2, stream {stream}: {other:?}, {:?}", client.goaways())),
        }
        if !shared.goes_on().await || !client.goaways().is_empty() {
            return Ok(());
        }
    }
}
