//! An HTTP/2 upstream (prior knowledge): records every request, answers by script.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::Upstream;
use crate::wait::{eventually, within};

/// What the upstream does with one request.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    steps: Vec<Step>,
    early: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Data(Bytes),
    Trailers(Vec<(String, String)>),
    Pause(Duration),
    Until(Arc<Notify>),
    Reset(Reason),
    Echo,
    Hang,
}

impl Answer {
    /// 200 with a body.
    #[must_use]
    pub fn ok(body: &str) -> Self {
        Self::status(200).data(body)
    }

    /// Any status, no body yet.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// No head at all: RST_STREAM.
    #[must_use]
    pub fn refuse(reason: Reason) -> Self {
        Self::status(0).then(Step::Reset(reason))
    }

    /// No head at all, and no end.
    #[must_use]
    pub fn silence() -> Self {
        Self::status(0).then(Step::Hang)
    }

    /// Adds a header field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Answers before the request's body has come.
    #[must_use]
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Then a DATA frame.
    #[must_use]
    pub fn data(self, body: impl AsRef<[u8]>) -> Self {
        self.then(Step::Data(Bytes::copy_from_slice(body.as_ref())))
    }

    /// Then trailers, which end the answer.
    #[must_use]
    pub fn trailers(self, trailers: &[(&str, &str)]) -> Self {
        self.then(Step::Trailers(trailers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect()))
    }

    /// Then silence for a while.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.then(Step::Pause(time))
    }

    /// Then nothing until the test gives a permit. Before the first data it holds the head back as well.
    #[must_use]
    pub fn until(self, permit: &Arc<Notify>) -> Self {
        self.then(Step::Until(permit.clone()))
    }

    /// Then RST_STREAM.
    #[must_use]
    pub fn reset(self, reason: Reason) -> Self {
        self.then(Step::Reset(reason))
    }

    /// Then every DATA frame of the request comes back, and its trailers.
    #[must_use]
    pub fn echo(mut self) -> Self {
        self.early = true;
        self.then(Step::Echo)
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// A request as it was forwarded.
#[derive(Debug, Clone)]
pub struct Forwarded {
    /// Which connection it came by, from 0.
    pub connection: usize,
    /// Head.
    pub head: http::request::Parts,
    /// Body as far as it came.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: HeaderMap,
    /// Whether its end came.
    pub complete: bool,
    /// The code with which the proxy reset the stream.
    pub reset: Option<u32>,
}

impl Forwarded {
    /// The value of a header field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

#[derive(Debug, Default)]
struct Record {
    connections: usize,
    closed: usize,
    requests: Vec<Forwarded>,
}

type Script = dyn Fn(&Forwarded, usize) -> Answer + Send + Sync;

/// The upstream. Dropping it ends its tasks.
#[derive(Debug)]
pub struct Http2Upstream {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    shutdown: Arc<Notify>,
    accept: tokio::task::JoinHandle<()>,
}

impl Upstream for Http2Upstream {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_http2(&self) -> bool {
        true
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Http2Upstream {
    /// Gives every request the same answer.
    pub async fn answering(answer: Answer) -> Self {
        Self::scripted(move |_, _| answer.clone()).await
    }

    /// Asks `script` for the answer to each request; its second argument counts requests from 0.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn scripted(script: impl Fn(&Forwarded, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let record = Arc::<Mutex<Record>>::default();
        let shutdown = Arc::new(Notify::new());
        let shared = Shared { record: record.clone(), script: Arc::new(script), shutdown: shutdown.clone() };
        let accept = tokio::spawn(accept(listener, shared));
        Self { address, record, shutdown, accept }
    }

    /// Every request, in order.
    ///
    /// # Panics
    /// When a task of the upstream panicked.
    #[must_use]
    pub fn requests(&self) -> Vec<Forwarded> {
        self.record.lock().unwrap().requests.clone()
    }

    /// How many requests came.
    ///
    /// # Panics
    /// When a task of the upstream panicked.
    #[must_use]
    pub fn count(&self) -> usize {
        self.record.lock().unwrap().requests.len()
    }

    /// How many connections are open.
    ///
    /// # Panics
    /// When a task of the upstream panicked.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        let record = self.record.lock().unwrap();
        record.connections - record.closed
    }

    /// How many connections were made.
    ///
    /// # Panics
    /// When a task of the upstream panicked.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.record.lock().unwrap().connections
    }

    /// Waits for the `n`th request (from 0) to be complete.
    pub async fn request(&self, n: usize) -> Forwarded {
        self.request_with(n, "complete", |r| r.complete).await
    }

    /// Waits for the head of the `n`th request (from 0).
    pub async fn request_head(&self, n: usize) -> Forwarded {
        self.request_with(n, "there", |_| true).await
    }

    /// Waits until the `n`th request (from 0) looks like this.
    pub async fn request_with(
        &self,
        n: usize,
        what: &str,
        condition: impl Fn(&Forwarded) -> bool,
    ) -> Forwarded {
        let mut found = None;
        eventually(&format!("request {n} {what} at the upstream"), || {
            found = self.record.lock().unwrap().requests.get(n).filter(|r| condition(r)).cloned();
            found.is_some()
        })
        .await;
        found.expect("waited for")
    }

    /// GOAWAY on every open connection; streams in progress finish.
    pub fn goaway(&self) {
        self.shutdown.notify_waiters();
    }
}

#[derive(Clone)]
struct Shared {
    record: Arc<Mutex<Record>>,
    script: Arc<Script>,
    shutdown: Arc<Notify>,
}

async fn accept(listener: TcpListener, shared: Shared) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let number = {
            let mut record = shared.record.lock().unwrap();
            record.connections += 1;
            record.connections - 1
        };
        let shared = shared.clone();
        connections.spawn(async move {
            serve(stream, number, &shared).await;
            shared.record.lock().unwrap().closed += 1;
        });
    }
}

async fn serve(stream: TcpStream, number: usize, shared: &Shared) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(100_000)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let mut streams = tokio::task::JoinSet::new();
    let shutdown = shared.shutdown.notified();
    tokio::pin!(shutdown);
    let mut leaving = false;
    loop {
        tokio::select! {
            () = &mut shutdown, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (index, forwarded) = enter(&shared.record, number, &request);
                    let answer = (shared.script)(&forwarded, index);
                    streams.spawn(answer_one(answer, request.into_body(), respond, shared.record.clone(), index));
                }
                _ => return,
            },
        }
    }
}

fn enter(
    record: &Mutex<Record>,
    connection: usize,
    request: &http::Request<RecvStream>,
) -> (usize, Forwarded) {
    let mut parts = http::Request::new(()).into_parts().0;
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.headers = request.headers().clone();
    let mut record = record.lock().unwrap();
    let forwarded = Forwarded {
        connection,
        head: parts,
        body: Vec::new(),
        trailers: HeaderMap::new(),
        complete: false,
        reset: None,
    };
    record.requests.push(forwarded.clone());
    (record.requests.len() - 1, forwarded)
}

async fn answer_one(
    answer: Answer,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    record: Arc<Mutex<Record>>,
    index: usize,
) {
    let echo = answer.steps.iter().any(|s| matches!(s, Step::Echo));
    if answer.early {
        let play = play(&answer, &mut respond);
        if echo {
            let Some(mut send) = play.await else { return };
            receive(&mut body, &record, index, Some(&mut send)).await;
        } else {
            tokio::join!(async { drop(play.await) }, receive(&mut body, &record, index, None));
        }
    } else {
        receive(&mut body, &record, index, None).await;
        if matches!(&answer, Answer { status: 0, steps, .. } if matches!(steps[..], [Step::Hang])) {
            // Who gets no answer may give up.
            let code = poll_fn(|cx| respond.poll_reset(cx)).await.map_or(0, u32::from);
            record.lock().unwrap().requests[index].reset = Some(code);
            return;
        }
        let _send = play(&answer, &mut respond).await;
    }
}

/// Reads the request's body, and sends it back when there is somewhere to.
async fn receive(
    body: &mut RecvStream,
    record: &Mutex<Record>,
    index: usize,
    mut back: Option<&mut SendStream<Bytes>>,
) {
    let fail = |error: &h2::Error| {
        record.lock().unwrap().requests[index].reset = Some(error.reason().map_or(0, u32::from));
    };
    while let Some(data) = body.data().await {
        let data = match data {
            Ok(data) => data,
            Err(error) => return fail(&error),
        };
        let _ = body.flow_control().release_capacity(data.len());
        record.lock().unwrap().requests[index].body.extend_from_slice(&data);
        if let Some(send) = back.as_deref_mut() {
            let _gone = send.send_data(data, false);
        }
    }
    let trailers = match body.trailers().await {
        Ok(trailers) => trailers,
        Err(error) => return fail(&error),
    };
    if let Some(send) = back {
        let _gone = match &trailers {
            Some(trailers) => send.send_trailers(trailers.clone()),
            None => send.send_data(Bytes::new(), true),
        };
    }
    let mut record = record.lock().unwrap();
    record.requests[index].trailers = trailers.unwrap_or_default();
    record.requests[index].complete = true;
}

/// Sends the answer; the stream when it is still open at the end of the steps.
async fn play(answer: &Answer, respond: &mut SendResponse<Bytes>) -> Option<SendStream<Bytes>> {
    let mut steps = answer.steps.iter().peekable();
    while let Some(Step::Until(permit)) = steps.peek() {
        within("permit for the upstream", permit.notified()).await;
        steps.next();
    }
    if answer.status == 0 {
        for step in steps {
            match step {
                Step::Pause(time) => tokio::time::sleep(*time).await,
                Step::Reset(reason) => respond.send_reset(*reason),
                _ => std::future::pending().await,
            }
        }
        return None;
    }
    let mut head = Response::builder().status(answer.status);
    for (name, value) in &answer.fields {
        head = head.header(name, value);
    }
    let ends = steps.peek().is_none();
    let mut send = respond.send_response(head.body(()).expect("head"), ends).ok()?;
    while let Some(step) = steps.next() {
        match step {
            Step::Data(data) => send.send_data(data.clone(), steps.peek().is_none()).ok()?,
            Step::Trailers(trailers) => send.send_trailers(trailer_map(trailers)).ok()?,
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::Until(permit) => within("permit for the upstream", permit.notified()).await,
            Step::Reset(reason) => send.send_reset(*reason),
            Step::Echo => return Some(send),
            Step::Hang => std::future::pending().await,
        }
    }
    None
}

fn trailer_map(trailers: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in trailers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("trailer name");
        map.append(name, value.parse().expect("trailer value"));
    }
    map
}
