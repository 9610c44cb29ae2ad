//! Body decoder: bytes in, data, trailers or the end out. Pure; knows no socket.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::framing::Framing;
use crate::error::Reason;

/// A chunk-size line longer than this is an attack (extensions included).
const MAX_CHUNK_LINE: usize = 256;
/// Trailers in bytes and lines.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64;

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The next piece of the body; never empty.
    Data(Bytes),
    /// Trailer fields; the body has ended.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
    /// More bytes are needed.
    NeedMore,
}

/// Where in the body we are.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk headers since the last data: a peer that sends only overhead is cut off.
    overhead: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkDataEnd,
    Trailers,
    Done,
}

impl Decoder {
    /// A decoder at the first byte of a body.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, overhead: 0 }
    }

    /// Whether the whole body was delivered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes still to come, when that is known.
    #[must_use]
    pub const fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(n) => Some(n),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The connection was closed by the peer: the end of a close-delimited body, else a truncated one.
    ///
    /// # Errors
    /// [`Reason::BadChunk`] when the body is not complete.
    pub fn end_of_stream(&mut self) -> Result<Decoded, Reason> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(Decoded::End)
            }
            _ => Err(Reason::BadChunk),
        }
    }

    /// Takes the next item off `buf`.
    ///
    /// # Errors
    /// [`Reason::BadChunk`] for malformed chunks, [`Reason::HeadersTooLarge`] for too many trailers.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Reason> {
        loop {
            match self.state {
                State::Done => return Ok(Decoded::End),
                State::Length(left) => {
                    let Some(data) = take(buf, left) else { return Ok(Decoded::NeedMore) };
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Decoded::Data(data));
                }
                State::UntilClose => {
                    return Ok(take(buf, u64::MAX).map_or(Decoded::NeedMore, Decoded::Data));
                }
                State::ChunkSize => match chunk_size(buf)? {
                    None => return Ok(Decoded::NeedMore),
                    Some((0, _)) => self.state = State::Trailers,
                    Some((size, line)) => {
                        self.count_overhead(line, size)?;
                        self.state = State::ChunkData(size);
                    }
                },
                State::ChunkData(left) => {
                    let Some(data) = take(buf, left) else { return Ok(Decoded::NeedMore) };
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::ChunkDataEnd } else { State::ChunkData(left) };
                    return Ok(Decoded::Data(data));
                }
                State::ChunkDataEnd => {
                    match buf.get(..2) {
                        Some(b"\r\n") => buf.advance(2),
                        None if buf.is_empty() || &buf[..] == b"\r" => return Ok(Decoded::NeedMore),
                        _ => return Err(Reason::BadChunk),
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailers => return self.trailers(buf),
            }
        }
    }

    /// One-byte chunks with 200-byte extensions cost us far more than the peer: at most 16 KiB more overhead than data.
    fn count_overhead(&mut self, line: usize, size: u64) -> Result<(), Reason> {
        let data = usize::try_from(size).unwrap_or(usize::MAX);
        self.overhead = (self.overhead + line.saturating_sub(10)).saturating_sub(data);
        if self.overhead > MAX_TRAILER_BYTES { Err(Reason::BadChunk) } else { Ok(()) }
    }

    fn trailers(&mut self, buf: &mut BytesMut) -> Result<Decoded, Reason> {
        if buf.starts_with(b"\r\n") {
            buf.advance(2);
            self.state = State::Done;
            return Ok(Decoded::End);
        }
        let mut storage = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        let (length, map) = match httparse::parse_headers(buf, &mut storage) {
            Ok(httparse::Status::Complete((length, fields))) => {
                if memchr::memchr_iter(b'\n', &buf[..length]).any(|i| i == 0 || buf[i - 1] != b'\r') {
                    return Err(Reason::BadChunk);
                }
                (length, trailer_map(fields)?)
            }
            Ok(httparse::Status::Partial) if buf.len() > MAX_TRAILER_BYTES => {
                return Err(Reason::HeadersTooLarge);
            }
            Ok(httparse::Status::Partial) => return Ok(Decoded::NeedMore),
            Err(httparse::Error::TooManyHeaders) => return Err(Reason::HeadersTooLarge),
            Err(_) => return Err(Reason::BadChunk),
        };
        buf.advance(length);
        self.state = State::Done;
        Ok(if map.is_empty() { Decoded::End } else { Decoded::Trailers(map) })
    }
}

fn trailer_map(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Reason> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Reason::BadChunk)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| Reason::BadChunk)?;
        if is_allowed_trailer(&name) {
            map.try_append(name, value).map_err(|_| Reason::HeadersTooLarge)?;
        }
    }
    Ok(map)
}

/// Fields that frame, route or authenticate a message must not come after it (RFC 9110 §6.5.1).
#[must_use]
pub fn is_allowed_trailer(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
            | header::HOST
            | header::CONNECTION
            | header::UPGRADE
            | header::TE
            | header::TRAILER
            | header::AUTHORIZATION
            | header::COOKIE
            | header::SET_COOKIE
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_RANGE
            | header::EXPECT
            | header::RANGE
            | header::CACHE_CONTROL
            | header::FORWARDED
    ) && !name.as_str().starts_with("x-forwarded-")
}

/// Up to `limit` bytes off `buf` without copying, or None when it is empty.
fn take(buf: &mut BytesMut, limit: u64) -> Option<Bytes> {
    if buf.is_empty() {
        return None;
    }
    let n = usize::try_from(limit).unwrap_or(usize::MAX).min(buf.len());
    Some(buf.split_to(n).freeze())
}

/// `chunk-size [chunk-ext] CRLF` (RFC 9112 §7.1): size and length of the line. Extensions are dropped; white space
/// before them is tolerated, because the chunk is framed anew for the next hop.
fn chunk_size(buf: &mut BytesMut) -> Result<Option<(u64, usize)>, Reason> {
    let Some(end) = memchr::memchr(b'\n', &buf[..buf.len().min(MAX_CHUNK_LINE)]) else {
        return if buf.len() >= MAX_CHUNK_LINE { Err(Reason::BadChunk) } else { Ok(None) };
    };
    let Some(line) = buf[..end].strip_suffix(b"\r") else { return Err(Reason::BadChunk) };
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 15 {
        return Err(Reason::BadChunk);
    }
    let rest = line[digits..].trim_ascii_start();
    let clean = rest.iter().all(|b| *b == b'\t' || (0x20..0x7f).contains(b) || *b >= 0x80);
    if !(rest.is_empty() || rest[0] == b';') || !clean {
        return Err(Reason::BadChunk);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| Reason::BadChunk)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| Reason::BadChunk)?;
    buf.advance(end + 1);
    Ok(Some((size, end + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` cut at `cuts` and collects body and trailers.
    fn run(framing: Framing, wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, HeaderMap, usize), Reason> {
        let mut decoder = Decoder::new(framing);
        let (mut buf, mut body, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        let mut at = 0;
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (wire.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(wire.len());
        for cut in cuts {
            buf.extend_from_slice(&wire[at..cut]);
            at = cut;
            loop {
                match decoder.decode(&mut buf)? {
                    Decoded::Data(d) => body.extend_from_slice(&d),
                    Decoded::Trailers(t) => trailers = t,
                    Decoded::NeedMore => break,
                    Decoded::End => {
                        buf.extend_from_slice(&wire[at..]);
                        return Ok((body, trailers, buf.len()));
                    }
                }
            }
        }
        Err(Reason::BadChunk)
    }

    #[test]
    fn chunks_and_trailers() {
        let wire = b"3;x=y\r\nabc\r\n1 \r\nd\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nContent-Length: 3\r\n\r\nGET";
        let (body, trailers, left) = run(Framing::Chunked, wire, &[]).unwrap();
        assert_eq!((&body[..], left), (&b"abcd"[..], 3));
        assert_eq!(trailers.len(), 1, "framing and routing fields are dropped from trailers");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            "3\r\nabcd\r\n0\r\n\r\n",
            "g\r\n",
            "\r\n",
            "+3\r\nabc\r\n",
            "0x3\r\nabc",
            "3\nabc\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "ffffffffffffffff1\r\n",
            "-1\r\n",
            "0\r\nbad header\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "3 x\r\nabc\r\n",
        ] {
            assert!(run(Framing::Chunked, wire.as_bytes(), &[]).is_err(), "{wire:?}");
        }
        let many = "1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(1000);
        assert!(run(Framing::Chunked, many.as_bytes(), &[]).is_err(), "overhead without data");
    }

    #[test]
    fn truncation_is_never_an_end() {
        for framing in [Framing::Chunked, Framing::Length(5)] {
            let mut decoder = Decoder::new(framing);
            assert!(decoder.end_of_stream().is_err());
        }
        assert_eq!(Decoder::new(Framing::UntilClose).end_of_stream(), Ok(Decoded::End));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_body(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for c in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", c.len()).as_bytes());
                wire.extend_from_slice(c);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\nNEXT");
            let (body, _, left) = run(Framing::Chunked, &wire, &cuts).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(left, 4);
        }

        #[test]
        fn garbage_never_panics(wire in proptest::collection::vec(any::<u8>(), 0..400), cuts in proptest::collection::vec(any::<usize>(), 0..5)) {
            let _ = run(Framing::Chunked, &wire, &cuts);
        }
    }
}
