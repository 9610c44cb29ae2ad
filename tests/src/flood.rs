//! Floods: what a hostile HTTP/2 client pours into one connection.

use std::time::Duration;

use crate::client::http2::{Http2Client, get, request};
use crate::frame::{Frame, flag, kind};
use crate::hpack;

/// One flood.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Its name in reports.
    pub name: &'static str,
    /// Makes its bytes. The connection's preface and one request (stream 1) went before.
    pub bytes: fn() -> Vec<u8>,
    /// Whether the client reads what comes back.
    pub reading: bool,
    /// Whether the only acceptable end is that the proxy ends the connection; otherwise it may also work the flood
    /// off in bounded memory.
    pub must_close: bool,
}

/// How a flood ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The proxy ended the connection; the number of bytes that it took (sockets buffer some of them).
    Closed(usize),
    /// The proxy stopped reading: back-pressure.
    Stalled(usize),
    /// All bytes were taken, and the connection still works.
    Survived,
}

impl Flood {
    /// Pours the flood into the connection, which must be fresh but for one request.
    pub async fn pour(&self, client: &mut Http2Client) -> End {
        let bytes = (self.bytes)();
        let sent = client.pour(&bytes, self.reading, Duration::from_millis(700)).await;
        if sent == bytes.len() {
            return if self.reading && client.ping().await {
                End::Survived
            } else {
                end_of(client, sent).await
            };
        }
        end_of(client, sent).await
    }
}

async fn end_of(client: &mut Http2Client, sent: usize) -> End {
    // After a stall, a PING answered or an end of the connection tells them apart.
    let looked =
        tokio::time::timeout(Duration::from_secs(3), async { while client.step().await.is_ok() {} }).await;
    if looked.is_ok() { End::Closed(sent) } else { End::Stalled(sent) }
}

/// Every flood.
pub const FLOODS: &[Flood] = &[
    Flood { name: "rapid_reset", bytes: rapid_reset, reading: true, must_close: true },
    Flood { name: "continuation_32_mb", bytes: continuation, reading: true, must_close: true },
    Flood { name: "empty_continuation", bytes: empty_continuation, reading: true, must_close: true },
    Flood { name: "ping", bytes: ping, reading: true, must_close: false },
    Flood { name: "ping_unread", bytes: ping, reading: false, must_close: false },
    Flood { name: "settings", bytes: settings, reading: true, must_close: false },
    Flood { name: "settings_unread", bytes: settings, reading: false, must_close: false },
    Flood { name: "empty_data", bytes: empty_data, reading: true, must_close: true },
    Flood { name: "one_byte_data", bytes: one_byte_data, reading: true, must_close: false },
    Flood { name: "priority", bytes: priority, reading: true, must_close: false },
    Flood { name: "window_update", bytes: window_update, reading: true, must_close: false },
    Flood { name: "unknown_frames", bytes: unknown, reading: true, must_close: false },
    Flood {
        name: "reset_by_window_update_of_zero",
        bytes: window_update_zero,
        reading: true,
        must_close: true,
    },
    Flood { name: "reset_by_window_overflow", bytes: window_overflow, reading: true, must_close: true },
    Flood { name: "reset_by_priority_length", bytes: priority_length, reading: true, must_close: true },
    Flood { name: "reset_by_self_dependency", bytes: self_dependency, reading: true, must_close: true },
    Flood { name: "reset_by_headers_after_end", bytes: headers_after_end, reading: true, must_close: true },
    Flood { name: "reset_by_data_after_end", bytes: data_after_end, reading: true, must_close: true },
    Flood { name: "header_bomb", bytes: header_bomb, reading: true, must_close: true },
    Flood { name: "open_streams", bytes: open_streams, reading: true, must_close: false },
];

/// The target of requests that the upstream never answers.
pub const HELD: &str = "/held";

/// Stream ids after the one request that went before.
fn streams(n: u32) -> impl Iterator<Item = u32> {
    (0..n).map(|n| 3 + 2 * n)
}

fn open(stream: u32, end: bool) -> Vec<u8> {
    Frame::headers(stream, hpack::encode(&get(HELD)), end).encode()
}

fn repeat(frame: &Frame, n: usize) -> Vec<u8> {
    frame.encode().repeat(n)
}

/// A stream, and then what makes the server reset it, 3000 times: MadeYouReset (CVE-2025-8671).
fn made_you_reset(end: bool, trigger: impl Fn(u32) -> Frame) -> Vec<u8> {
    streams(3000).flat_map(|stream| [open(stream, end), trigger(stream).encode()].concat()).collect()
}

fn rapid_reset() -> Vec<u8> {
    streams(20_000).flat_map(|s| [open(s, true), Frame::reset(s, 8).encode()].concat()).collect()
}

fn continuation() -> Vec<u8> {
    let mut bytes = Frame::new(kind::HEADERS, flag::END_STREAM, 3, hpack::encode(&get("/"))).encode();
    let mut field = hpack::encode(&[("x-a", &"b".repeat(16_000))]);
    field.truncate(16_384);
    bytes.extend(repeat(&Frame::new(kind::CONTINUATION, 0, 3, field), 2000));
    bytes
}

fn empty_continuation() -> Vec<u8> {
    let mut bytes = Frame::new(kind::HEADERS, flag::END_STREAM, 3, hpack::encode(&get("/"))).encode();
    bytes.extend(repeat(&Frame::new(kind::CONTINUATION, 0, 3, b""), 50_000));
    bytes
}

fn ping() -> Vec<u8> {
    repeat(&Frame::ping(*b"floodfld"), 100_000)
}

fn settings() -> Vec<u8> {
    repeat(&Frame::settings(&[(4, 65_535)]), 50_000)
}

fn post() -> Vec<u8> {
    Frame::headers(3, hpack::encode(&request("POST", HELD)), false).encode()
}

fn empty_data() -> Vec<u8> {
    [post(), repeat(&Frame::data(3, b"", false), 100_000)].concat()
}

fn one_byte_data() -> Vec<u8> {
    [post(), repeat(&Frame::data(3, b"x", false), 60_000)].concat()
}

fn priority() -> Vec<u8> {
    (0..100_000u32)
        .flat_map(|n| Frame::new(kind::PRIORITY, 0, 2 * n + 3, [0, 0, 0, 0, 16]).encode())
        .collect()
}

fn window_update() -> Vec<u8> {
    repeat(&Frame::window_update(0, 1), 100_000)
}

fn unknown() -> Vec<u8> {
    repeat(&Frame::new(0xbe, 0, 0, b"whatever"), 100_000)
}

fn window_update_zero() -> Vec<u8> {
    made_you_reset(false, |s| Frame::window_update(s, 0))
}

fn window_overflow() -> Vec<u8> {
    made_you_reset(false, |s| Frame::window_update(s, 0x7fff_ffff))
}

fn priority_length() -> Vec<u8> {
    made_you_reset(false, |s| Frame::new(kind::PRIORITY, 0, s, [0; 4]))
}

fn self_dependency() -> Vec<u8> {
    made_you_reset(false, |s| Frame::new(kind::PRIORITY, 0, s, [&s.to_be_bytes()[..], &[16]].concat()))
}

fn headers_after_end() -> Vec<u8> {
    made_you_reset(true, |s| Frame::headers(s, hpack::encode(&get(HELD)), true))
}

fn data_after_end() -> Vec<u8> {
    made_you_reset(true, |s| Frame::data(s, b"late", true))
}

fn header_bomb() -> Vec<u8> {
    let mut first = hpack::encode(&get(HELD));
    first.extend(hpack::encode_indexed(b"x-bomb", &[b'v'; 3900]));
    first.extend(std::iter::repeat_n(0x80 | 62, 4000));
    let mut next = hpack::encode(&get(HELD));
    next.extend(std::iter::repeat_n(0x80 | 62, 4000));
    let mut bytes = Frame::headers(3, first, true).encode();
    for stream in streams(200).skip(1) {
        bytes.extend(Frame::headers(stream, &next, true).encode());
    }
    bytes
}

fn open_streams() -> Vec<u8> {
    streams(5000).flat_map(|s| open(s, false)).collect()
}
