//! A raw-TCP HTTP/1 upstream: records the exact bytes of every connection, reads them strictly, answers by script.

mod answer;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::Upstream;
use crate::http1::{BodyReader, Fields, Head, latin1, take_head};
use crate::wait::{eventually, within};

pub use answer::Answer;
use answer::Step;

/// A request as it was forwarded.
#[derive(Debug, Clone, Default)]
pub struct Forwarded {
    /// Which connection it came by, from 0.
    pub connection: usize,
    /// Request line and fields.
    pub head: Head,
    /// The body without its framing, as far as it came.
    pub body: Vec<u8>,
    /// Trailer fields.
    pub trailers: Fields,
    /// Whether its end came.
    pub complete: bool,
}

impl Forwarded {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.head.word(0)
    }

    /// The request target.
    #[must_use]
    pub fn target(&self) -> &str {
        self.head.word(1)
    }

    /// The header fields.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.head.fields
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        latin1(&self.body)
    }
}

/// How the proxy ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Fin,
    /// RST.
    Reset,
}

#[derive(Debug, Default)]
struct Record {
    connections: Vec<(Vec<u8>, Option<End>)>,
    requests: Vec<Forwarded>,
    malformed: Vec<String>,
}

type Script = dyn Fn(&Forwarded, usize) -> Answer + Send + Sync;

/// The upstream. Dropping it ends its tasks.
#[derive(Debug)]
pub struct Http1Upstream {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    reading: watch::Sender<bool>,
    accept: tokio::task::JoinHandle<()>,
}

impl Upstream for Http1Upstream {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http1Upstream {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Http1Upstream {
    /// Gives every request the same answer.
    pub async fn answering(answer: Answer) -> Self {
        Self::scripted(move |_, _| answer.clone()).await
    }

    /// Asks `script` for the answer to each request; its second argument counts requests from 0.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn scripted(script: impl Fn(&Forwarded, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::scripted_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// The same at a loopback address of the test's choice.
    ///
    /// # Panics
    /// When it is taken.
    pub async fn scripted_at(
        address: SocketAddr,
        script: impl Fn(&Forwarded, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let record = Arc::<Mutex<Record>>::default();
        let (reading, gate) = watch::channel(true);
        let script: Arc<Script> = Arc::new(script);
        let accept = tokio::spawn(accept(listener, record.clone(), gate, script));
        Self { address, record, reading, accept }
    }

    /// Every request whose head has come, in order.
    ///
    /// # Panics
    /// When the proxy forwarded something that is not strictly HTTP/1: no test tolerates that.
    #[must_use]
    pub fn requests(&self) -> Vec<Forwarded> {
        let record = self.lock();
        assert!(record.malformed.is_empty(), "the proxy forwarded {:?}", record.malformed);
        record.requests.clone()
    }

    /// The one request that came.
    ///
    /// # Panics
    /// When none or several came.
    #[must_use]
    pub fn only_request(&self) -> Forwarded {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "forwarded: {requests:#?}");
        requests.remove(0)
    }

    /// Waits for the `n`th request (from 0) to be complete.
    pub async fn request(&self, n: usize) -> Forwarded {
        eventually(&format!("request {n} at the upstream"), || {
            self.lock().requests.get(n).is_some_and(|r| r.complete)
        })
        .await;
        self.requests().remove(n)
    }

    /// Waits for the head of the `n`th request (from 0).
    pub async fn request_head(&self, n: usize) -> Forwarded {
        eventually(&format!("head of request {n} at the upstream"), || self.lock().requests.len() > n).await;
        self.requests().remove(n)
    }

    /// The bytes that came by each connection.
    #[must_use]
    pub fn raw(&self) -> Vec<Vec<u8>> {
        self.lock().connections.iter().map(|(raw, _)| raw.clone()).collect()
    }

    /// How the proxy ended each connection; None while it is open.
    #[must_use]
    pub fn ends(&self) -> Vec<Option<End>> {
        self.lock().connections.iter().map(|(_, end)| *end).collect()
    }

    /// Waits for the proxy to end the `n`th connection (from 0).
    pub async fn ended(&self, n: usize) -> End {
        eventually(&format!("end of upstream connection {n}"), || {
            self.lock().connections.get(n).is_some_and(|(_, end)| end.is_some())
        })
        .await;
        self.ends()[n].expect("waited for")
    }

    /// Stops or resumes reading from all connections: a slow upstream.
    pub fn read(&self, on: bool) {
        self.reading.send_replace(on);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }
}

async fn accept(
    listener: TcpListener,
    record: Arc<Mutex<Record>>,
    gate: watch::Receiver<bool>,
    script: Arc<Script>,
) {
    // Connections end with the accept task, that is with the upstream.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let number = {
            let mut record = record.lock().unwrap();
            record.connections.push((Vec::new(), None));
            record.connections.len() - 1
        };
        connections.spawn(serve(stream, number, record.clone(), gate.clone(), script.clone()));
    }
}

async fn serve(
    stream: TcpStream,
    number: usize,
    record: Arc<Mutex<Record>>,
    gate: watch::Receiver<bool>,
    script: Arc<Script>,
) {
    let (read, write) = stream.into_split();
    let (chunks, incoming) = mpsc::channel(1024);
    let reader = pump(read, number, record.clone(), gate, chunks);
    let mut connection = Connection { number, record, input: BytesMut::new(), incoming, write };
    let answers = async move {
        match connection.answer_all(&script).await {
            Ok(Outcome::ProxyEnded) => {
                let _gone = connection.write.shutdown().await;
            }
            // The socket is kept, so that what the proxy still sends is recorded and not answered with RST.
            Ok(Outcome::Closed) => std::future::pending().await,
            // Dropping the socket with a linger time of zero sends RST.
            Ok(Outcome::Reset) => {}
            Err(malformed) => connection.record.lock().unwrap().malformed.push(malformed),
        }
    };
    tokio::select! { () = reader => {}, () = answers => {} }
}

/// Reads until the end, whatever the script does, so that the record is complete.
async fn pump(
    mut read: OwnedReadHalf,
    number: usize,
    record: Arc<Mutex<Record>>,
    mut gate: watch::Receiver<bool>,
    chunks: mpsc::Sender<Bytes>,
) {
    let end = loop {
        if gate.wait_for(|on| *on).await.is_err() {
            return;
        }
        let mut chunk = BytesMut::with_capacity(16 << 10);
        match read.read_buf(&mut chunk).await {
            Ok(0) => break End::Fin,
            Err(_) => break End::Reset,
            Ok(_) => {}
        }
        record.lock().unwrap().connections[number].0.extend_from_slice(&chunk);
        let _script_ended = chunks.send(chunk.freeze()).await;
    };
    record.lock().unwrap().connections[number].1 = Some(end);
    if end == End::Fin {
        drop(chunks);
        // The script may still have something to send after the proxy's FIN, and ends the connection itself.
        std::future::pending().await
    }
}

/// How a connection's script came to its end.
enum Outcome {
    ProxyEnded,
    Closed,
    Reset,
}

struct Connection {
    number: usize,
    record: Arc<Mutex<Record>>,
    input: BytesMut,
    incoming: mpsc::Receiver<Bytes>,
    write: OwnedWriteHalf,
}

impl Connection {
    async fn more(&mut self) -> bool {
        match self.incoming.recv().await {
            Some(chunk) => {
                self.input.extend_from_slice(&chunk);
                true
            }
            None => false,
        }
    }

    async fn answer_all(&mut self, script: &Arc<Script>) -> Result<Outcome, String> {
        loop {
            let Some(head) = self.next_head().await? else { return Ok(Outcome::ProxyEnded) };
            let mut body = BodyReader::request(&head.fields)?;
            let (index, request) = self.enter(head);
            let answer = script(&request, index);
            if !answer.early && !self.read_body(&mut body, index).await? {
                return Ok(Outcome::ProxyEnded);
            }
            for step in &answer.steps {
                if let Some(outcome) = self.play(step, &mut body, index).await? {
                    return Ok(outcome);
                }
            }
            if !self.read_body(&mut body, index).await? {
                return Ok(Outcome::ProxyEnded);
            }
        }
    }

    async fn next_head(&mut self) -> Result<Option<Head>, String> {
        loop {
            if let Some(head) = take_head(&mut self.input)? {
                return Ok(Some(head));
            }
            if !self.more().await {
                return Ok(None);
            }
        }
    }

    fn enter(&self, head: Head) -> (usize, Forwarded) {
        let mut record = self.record.lock().unwrap();
        record.requests.push(Forwarded { connection: self.number, head, ..Forwarded::default() });
        let index = record.requests.len() - 1;
        (index, record.requests[index].clone())
    }

    /// Reads the body to its end; false when the connection ended first.
    async fn read_body(&mut self, body: &mut BodyReader, index: usize) -> Result<bool, String> {
        loop {
            let complete = body.read(&mut self.input)?;
            {
                let mut record = self.record.lock().unwrap();
                let request = &mut record.requests[index];
                request.body.extend_from_slice(&std::mem::take(&mut body.body));
                request.trailers = body.trailers.clone();
                request.complete = complete;
            }
            if complete || !self.more().await {
                return Ok(complete);
            }
        }
    }

    /// One step; the outcome when the connection is over.
    async fn play(
        &mut self,
        step: &Step,
        body: &mut BodyReader,
        index: usize,
    ) -> Result<Option<Outcome>, String> {
        let over = match step {
            Step::Send(bytes) => self.write.write_all(bytes).await.is_err().then_some(Outcome::ProxyEnded),
            Step::Pause(time) => {
                tokio::time::sleep(*time).await;
                None
            }
            Step::Until(permit) => {
                within("permit for the upstream", permit.notified()).await;
                None
            }
            Step::ReadBody => (!self.read_body(body, index).await?).then_some(Outcome::ProxyEnded),
            Step::Close => {
                let _gone = self.write.shutdown().await;
                Some(Outcome::Closed)
            }
            Step::Reset => {
                let _ = socket2::SockRef::from(self.write.as_ref()).set_linger(Some(Duration::ZERO));
                Some(Outcome::Reset)
            }
            Step::Hang => std::future::pending().await,
            Step::Echo => {
                self.echo().await;
                Some(Outcome::Closed)
            }
        };
        Ok(over)
    }

    async fn echo(&mut self) {
        loop {
            let bytes = self.input.split();
            if self.write.write_all(&bytes).await.is_err() || !self.more().await {
                let _gone = self.write.shutdown().await;
                return;
            }
        }
    }
}
