//! An HTTP/2 client that sends any frame, and keeps what comes back by stream.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Io;
use crate::certs::ClientTls;
use crate::frame::{Frame, PREFACE, flag, kind};
use crate::hpack::{self, Block};
use crate::http1::{Broken, Fields};
use crate::wait::{patience, within};

/// One connection.
#[derive(Debug)]
pub struct Http2Client {
    io: Io,
    input: BytesMut,
    decoder: hpack::Decoder,
    streams: BTreeMap<u32, Stream>,
    goaway: Vec<Goaway>,
    block: Option<(u32, bool, Vec<u8>)>,
    next: u32,
    pongs: usize,
    windows: bool,
    /// The last SETTINGS of the proxy.
    pub settings: BTreeMap<u16, u32>,
}

/// What came on a stream so far.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    /// Heads in order: 1xx, the final one, trailers.
    pub heads: Vec<Fields>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether END_STREAM came.
    pub ended: bool,
    /// The code of RST_STREAM.
    pub reset: Option<u32>,
}

/// A GOAWAY of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goaway {
    /// Last stream id.
    pub last_stream: u32,
    /// Error code.
    pub code: u32,
    /// Debug data.
    pub debug: String,
}

/// How a stream ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With an answer, complete.
    Answer(Answer),
    /// With RST_STREAM before END_STREAM; the answer as far as it came.
    Reset(u32, Stream),
    /// With the connection, which ended with a GOAWAY of this code (None: without GOAWAY).
    ConnectionEnded(Option<u32>),
}

/// A complete answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields, pseudo-header included.
    pub fields: Fields,
    /// Body.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Fields,
    /// Whether END_STREAM was on the HEADERS frame: trailers-only in gRPC's words.
    pub head_only: bool,
}

impl Answer {
    /// The proxy's reason id, when the proxy made this answer itself.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.fields.get("x-remora-reason")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        crate::http1::latin1(&self.body)
    }
}

impl Outcome {
    /// The answer.
    ///
    /// # Panics
    /// When the stream ended otherwise.
    #[must_use]
    pub fn answer(self) -> Answer {
        match self {
            Self::Answer(answer) => answer,
            other => panic!("expected an answer: {other:?}"),
        }
    }
}

impl Stream {
    /// Status of the newest head that has one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.heads.iter().rev().find_map(|h| h.get(":status")).and_then(|s| s.parse().ok())
    }
}

/// The pseudo-headers of a GET, with the authority `a.example`.
#[must_use]
pub fn get(path: &str) -> [(&'static str, &str); 4] {
    request("GET", path)
}

/// The pseudo-headers of a request, with the authority `a.example`.
#[must_use]
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'static str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", "a.example"), (":path", path)]
}

impl Http2Client {
    /// Connects in plaintext with prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::greet(Io::tcp(address).await).await
    }

    /// Connects with TLS.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn connect_tls(address: SocketAddr, tls: &ClientTls) -> io::Result<Self> {
        Ok(Self::greet(Io::tls(address, tls).await?).await)
    }

    async fn greet(io: Io) -> Self {
        let mut client = Self::silent(io);
        // 4 = SETTINGS_INITIAL_WINDOW_SIZE.
        let greeting = [PREFACE.to_vec(), Frame::settings(&[(4, 1 << 20)]).encode()].concat();
        client.send_bytes(&greeting).await;
        client
    }

    /// A connection on which nothing was said yet.
    #[must_use]
    pub fn silent(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            decoder: hpack::Decoder::default(),
            streams: BTreeMap::new(),
            goaway: Vec::new(),
            block: None,
            next: 1,
            pongs: 0,
            windows: true,
            settings: BTreeMap::new(),
        }
    }

    /// Sends raw bytes. A connection that the proxy closed already is no failure: the answer may be waiting.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _closed = tokio::time::timeout(patience(), async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        })
        .await;
    }

    /// Sends one frame.
    pub async fn send(&mut self, frame: Frame) {
        self.send_bytes(&frame.encode()).await;
    }

    /// Opens a stream with these fields, and returns its id.
    pub async fn open(&mut self, fields: &[(&str, &str)], end_stream: bool) -> u32 {
        self.open_block(&hpack::encode(fields), end_stream).await
    }

    /// Opens a stream with this header block, and returns its id.
    pub async fn open_block(&mut self, block: &[u8], end_stream: bool) -> u32 {
        let stream = self.next_stream();
        let mut first = true;
        let mut bytes = Vec::new();
        // The default maximum frame size; what does not fit goes into CONTINUATION.
        let mut parts = block.chunks(16_384).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let last = if parts.peek().is_none() { flag::END_HEADERS } else { 0 };
            let (kind, flags) = match first {
                true => (kind::HEADERS, last | u8::from(end_stream)),
                false => (kind::CONTINUATION, last),
            };
            bytes.extend_from_slice(&Frame::new(kind, flags, stream, part).encode());
            first = false;
            if last != 0 {
                break;
            }
        }
        self.send_bytes(&bytes).await;
        stream
    }

    /// Takes the next stream id without sending anything.
    pub fn next_stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// Sends a GET and waits for its end.
    pub async fn get(&mut self, path: &str) -> Outcome {
        let stream = self.open(&get(path), true).await;
        self.outcome(stream).await
    }

    /// Leaves DATA unacknowledged from now on: the proxy runs into the windows.
    pub fn hold_windows(&mut self) {
        self.windows = false;
    }

    /// What came on a stream so far.
    #[must_use]
    pub fn stream(&self, id: u32) -> Stream {
        self.streams.get(&id).cloned().unwrap_or_default()
    }

    /// The GOAWAYs that came.
    #[must_use]
    pub fn goaways(&self) -> &[Goaway] {
        &self.goaway
    }

    /// Waits for the end of a stream.
    ///
    /// # Panics
    /// When nothing ends it.
    pub async fn outcome(&mut self, id: u32) -> Outcome {
        within(&format!("end of stream {id}"), async {
            loop {
                if let Some(stream) = self.streams.get(&id) {
                    if stream.ended {
                        return Outcome::Answer(answer(stream));
                    }
                    if let Some(code) = stream.reset {
                        return Outcome::Reset(code, stream.clone());
                    }
                }
                if self.step().await.is_err() {
                    return Outcome::ConnectionEnded(self.goaway.last().map(|g| g.code));
                }
            }
        })
        .await
    }

    /// Waits until a stream looks like this.
    ///
    /// # Panics
    /// When it never does.
    pub async fn until(&mut self, id: u32, what: &str, condition: impl Fn(&Stream) -> bool) -> Stream {
        within(what, async {
            loop {
                if let Some(stream) = self.streams.get(&id).filter(|s| condition(s)) {
                    return stream.clone();
                }
                if let Err(broken) = self.step().await {
                    panic!("{what}: {broken:?}, so far {:?}", self.streams.get(&id));
                }
            }
        })
        .await
    }

    /// Waits until a GOAWAY came.
    ///
    /// # Panics
    /// When none comes.
    pub async fn until_goaway(&mut self) -> Goaway {
        within("GOAWAY", async {
            loop {
                if let Some(goaway) = self.goaway.last() {
                    return goaway.clone();
                }
                if let Err(broken) = self.step().await {
                    panic!("no GOAWAY but {broken:?}");
                }
            }
        })
        .await
    }

    /// Waits for the end of the connection, and returns the code of its last GOAWAY.
    pub async fn ended(&mut self) -> Option<u32> {
        within("end of the connection", async { while self.step().await.is_ok() {} }).await;
        self.goaway.last().map(|g| g.code)
    }

    /// Whether a PING is answered: the connection lives, and the proxy has worked through all that was sent before.
    pub async fn ping(&mut self) -> bool {
        let seen = self.pongs;
        self.send(Frame::ping(*b"are-you?")).await;
        within("answer to PING", async {
            while self.pongs == seen {
                if self.step().await.is_err() {
                    return false;
                }
            }
            true
        })
        .await
    }

    /// Sends bytes while reading (or not), until all are sent or the proxy ends the connection or stops reading for
    /// `stall`. Returns how many were sent; [`Http2Client::goaways`] and [`Http2Client::step`] tell the rest.
    pub async fn pour(&mut self, bytes: &[u8], reading: bool, stall: std::time::Duration) -> usize {
        let mut sent = 0;
        let (mut read, mut write) = tokio::io::split(&mut self.io);
        let mut sink = vec![0; 64 << 10];
        let mut read_open = reading;
        while sent < bytes.len() {
            let end = bytes.len().min(sent + (64 << 10));
            tokio::select! {
                written = write.write(&bytes[sent..end]) => match written {
                    Ok(n) if n > 0 => sent += n,
                    _ => break,
                },
                got = read.read(&mut sink), if read_open => match got {
                    Ok(n) if n > 0 => self.input.extend_from_slice(&sink[..n]),
                    _ => read_open = false,
                },
                () = tokio::time::sleep(stall) => break,
            }
        }
        sent
    }

    /// Reads and acts on one frame.
    ///
    /// # Errors
    /// When the connection ended, or nothing came for the test's patience.
    pub async fn step(&mut self) -> Result<Frame, Broken> {
        let frame = self.frame().await?;
        self.act(&frame).await?;
        Ok(frame)
    }

    async fn frame(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = Frame::take(&mut self.input) {
                return Ok(frame);
            }
            match tokio::time::timeout(patience(), self.io.read_buf(&mut self.input)).await {
                Err(_) => return Err(Broken::Silent("frame".into())),
                Ok(Ok(0)) => return Err(Broken::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(Broken::Reset(e.to_string())),
            }
        }
    }

    async fn act(&mut self, frame: &Frame) -> Result<(), Broken> {
        match frame.kind {
            kind::DATA => {
                let stream = self.streams.entry(frame.stream).or_default();
                stream.body.extend_from_slice(&frame.payload);
                stream.ended |= frame.has(flag::END_STREAM);
                let n = u32::try_from(frame.payload.len()).unwrap_or(0);
                if n > 0 && self.windows {
                    self.send(Frame::window_update(frame.stream, n)).await;
                    self.send(Frame::window_update(0, n)).await;
                }
            }
            kind::HEADERS => self.block = Some((frame.stream, frame.has(flag::END_STREAM), Vec::new())),
            kind::RST_STREAM => {
                self.streams.entry(frame.stream).or_default().reset.get_or_insert_with(|| frame.number(0));
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                for setting in frame.payload.chunks_exact(6) {
                    let id = u16::from_be_bytes([setting[0], setting[1]]);
                    let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                    self.settings.insert(id, value);
                }
                self.send(Frame::new(kind::SETTINGS, flag::ACK, 0, b"")).await;
            }
            kind::PING if frame.has(flag::ACK) => self.pongs += 1,
            kind::PING => self.send(Frame::new(kind::PING, flag::ACK, 0, &frame.payload)).await,
            kind::GOAWAY => self.goaway.push(Goaway {
                last_stream: frame.number(0) & 0x7fff_ffff,
                code: frame.number(1),
                debug: crate::http1::latin1(frame.payload.get(8..).unwrap_or_default()),
            }),
            _ => {}
        }
        if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
            self.head(frame)?;
        }
        Ok(())
    }

    fn head(&mut self, frame: &Frame) -> Result<(), Broken> {
        let malformed = |what: &str| Broken::Malformed(format!("{what}: {frame:?}"));
        let Some((id, ended, mut block)) = self.block.take() else {
            return Err(malformed("lone CONTINUATION"));
        };
        if frame.has(flag::PADDED) && frame.kind == kind::HEADERS {
            return Err(malformed("padding is not read here"));
        }
        block.extend_from_slice(&frame.payload);
        if !frame.has(flag::END_HEADERS) {
            self.block = Some((id, ended, block));
            return Ok(());
        }
        let fields: Block = self.decoder.decode(&block).map_err(Broken::Malformed)?;
        let stream = self.streams.entry(id).or_default();
        stream.heads.push(Fields(fields));
        stream.ended |= ended;
        Ok(())
    }

    /// Closes with RST.
    pub fn reset(self) {
        self.io.reset();
    }
}

fn answer(stream: &Stream) -> Answer {
    let status = |head: &Fields| head.get(":status").and_then(|s| s.parse::<u16>().ok());
    let last = stream.heads.iter().rposition(|h| status(h).is_some()).unwrap_or(0);
    let fields = stream.heads.get(last).cloned().unwrap_or_default();
    Answer {
        status: status(&fields).unwrap_or(0),
        trailers: stream.heads.get(last + 1).cloned().unwrap_or_default(),
        head_only: stream.body.is_empty() && stream.heads.len() == last + 1,
        body: stream.body.clone(),
        fields,
    }
}
