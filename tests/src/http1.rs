//! HTTP/1 messages as bytes: a strict parser without I/O, shared by the client and the recording upstream.
//!
//! Everything that RFC 9112 lets a lenient recipient accept is an error here: the peer under test is the proxy,
//! and a proxy must send nothing that two recipients could read in two ways.

use bytes::BytesMut;

/// Header or trailer fields in the order and spelling of the wire. Values are read as Latin-1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The value of the only field of this name; None when there is none.
    ///
    /// # Panics
    /// When the field is repeated: a test that expects this asks for [`Fields::all`].
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is repeated: {self:?}");
        all.first().copied()
    }

    /// Every value of the fields of this name.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// Whether a field of this name is there, in any spelling.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// Whether a field of this name is there in this very spelling.
    #[must_use]
    pub fn spelled(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }
}

/// A start line and its fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Start line without its CRLF.
    pub start: String,
    /// Header fields.
    pub fields: Fields,
}

impl Head {
    /// The `n`th word of the start line.
    #[must_use]
    pub fn word(&self, n: usize) -> &str {
        self.start.splitn(3, ' ').nth(n).unwrap_or_default()
    }
}

/// Why a message could not be read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The connection ended (FIN) before the first byte of the message.
    Closed,
    /// The connection ended (FIN) within the message.
    Truncated(String),
    /// The connection was reset.
    Reset(String),
    /// The bytes are not a message.
    Malformed(String),
    /// Nothing came for the test's patience.
    Silent(String),
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// Content-Length.
    Length,
    /// Transfer-Encoding: chunked.
    Chunked,
    /// The end of the connection.
    Close,
}

/// Splits one head off `input`; None when it is not complete yet.
///
/// # Errors
/// What is wrong with the bytes.
pub fn take_head(input: &mut BytesMut) -> Result<Option<Head>, String> {
    let Some(end) = find(input, b"\r\n\r\n") else {
        return if input.len() > 4 << 20 { Err("head over 4 MiB".into()) } else { Ok(None) };
    };
    let block = input.split_to(end + 4);
    let mut lines = block[..end].split_crlf();
    let start = latin1(lines.next().unwrap_or_default());
    if start.bytes().any(|b| b < 0x20) {
        return Err(format!("control byte in start line {start:?}"));
    }
    Ok(Some(Head { start, fields: fields(lines)? }))
}

fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Fields, String> {
    let mut all = Vec::new();
    for line in lines {
        let line = latin1(line);
        let Some((name, value)) = line.split_once(':') else { return Err(format!("no colon in {line:?}")) };
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("not a field name: {name:?}"));
        }
        if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err(format!("control byte in {line:?}"));
        }
        all.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok(Fields(all))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Bytes as text, one character a byte.
#[must_use]
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

trait SplitCrlf {
    fn split_crlf(&self) -> impl Iterator<Item = &[u8]>;
}

impl SplitCrlf for [u8] {
    fn split_crlf(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let all = rest?;
            let Some(end) = find(all, b"\r\n") else { return rest.take() };
            rest = Some(&all[end + 2..]);
            Some(&all[..end])
        })
    }
}

/// Reads a body off a growing buffer.
#[derive(Debug, Default)]
pub struct BodyReader {
    framing: Framing,
    left: u64,
    in_chunk: bool,
    done: bool,
    /// The body so far.
    pub body: Vec<u8>,
    /// Trailer fields of a chunked body.
    pub trailers: Fields,
}

impl BodyReader {
    /// For a request with these fields.
    ///
    /// # Errors
    /// Framing that two recipients could read in two ways.
    pub fn request(fields: &Fields) -> Result<Self, String> {
        Self::framed(fields, Framing::None)
    }

    /// For a response with this status to a request with this method.
    ///
    /// # Errors
    /// Framing that two recipients could read in two ways.
    pub fn response(method: &str, status: u16, fields: &Fields) -> Result<Self, String> {
        if (status < 200 || status == 204)
            && (fields.has("content-length") || fields.has("transfer-encoding"))
        {
            return Err(format!("{status} with body framing: {fields:?}"));
        }
        let framed = Self::framed(fields, Framing::Close)?;
        let tunnel = method == "CONNECT" && (200..300).contains(&status);
        if method == "HEAD" || status < 200 || matches!(status, 204 | 304) || tunnel {
            return Ok(Self { done: true, ..Self::default() });
        }
        Ok(framed)
    }

    fn framed(fields: &Fields, otherwise: Framing) -> Result<Self, String> {
        let codings = fields.all("transfer-encoding");
        let lengths = fields.all("content-length");
        let (framing, left) = match (codings.as_slice(), lengths.as_slice()) {
            ([], []) => (otherwise, 0),
            ([one], []) if one.eq_ignore_ascii_case("chunked") => (Framing::Chunked, 0),
            ([], [one]) if !one.is_empty() && one.bytes().all(|b| b.is_ascii_digit()) => {
                (Framing::Length, one.parse().map_err(|_| format!("content-length {one}"))?)
            }
            _ => return Err(format!("ambiguous framing: {codings:?} {lengths:?}")),
        };
        let done = framing == Framing::None || (framing == Framing::Length && left == 0);
        Ok(Self { framing, left, done, ..Self::default() })
    }

    /// How the end is found.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the end of the connection is the end of the body.
    #[must_use]
    pub fn ends_with_connection(&self) -> bool {
        self.framing == Framing::Close
    }

    /// Takes what it can from `input`; true when the body is complete.
    ///
    /// # Errors
    /// What is wrong with the chunks.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<bool, String> {
        while !self.done {
            let more = match self.framing {
                Framing::None => {
                    self.done = true;
                    true
                }
                Framing::Close => {
                    self.body.extend_from_slice(&input.split());
                    false
                }
                Framing::Length => {
                    let left = self.take(input);
                    self.done = left == 0;
                    self.done
                }
                Framing::Chunked => self.chunk(input)?,
            };
            if !more {
                break;
            }
        }
        Ok(self.done)
    }

    fn take(&mut self, input: &mut BytesMut) -> u64 {
        let n = input.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.body.extend_from_slice(&input.split_to(n));
        self.left -= n as u64;
        self.left
    }

    /// One step of the chunked coding; false when more input is needed.
    fn chunk(&mut self, input: &mut BytesMut) -> Result<bool, String> {
        if self.in_chunk {
            if self.take(input) > 0 || input.len() < 2 {
                return Ok(false);
            }
            if &input.split_to(2)[..] != b"\r\n" {
                return Err("chunk data without CRLF".into());
            }
            self.in_chunk = false;
            return Ok(true);
        }
        let Some(end) = find(input, b"\r\n") else { return Ok(false) };
        let size = latin1(&input[..end]);
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("chunk size {size:?}"));
        }
        self.left = u64::from_str_radix(&size, 16).map_err(|e| e.to_string())?;
        if self.left > 0 {
            let _ = input.split_to(end + 2);
            self.in_chunk = true;
            return Ok(true);
        }
        if input.len() < end + 4 {
            return Ok(false);
        }
        if &input[end + 2..end + 4] == b"\r\n" {
            let _ = input.split_to(end + 4);
        } else {
            let Some(stop) = find(&input[end + 2..], b"\r\n\r\n") else { return Ok(false) };
            let block = input.split_to(end + 2 + stop + 4);
            self.trailers = fields(block[end + 2..end + 2 + stop].split_crlf())?;
        }
        self.done = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_with_trailers_is_read_byte_by_byte() {
        let head: &[u8] = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut input = BytesMut::from(head);
        let head = take_head(&mut input).unwrap().unwrap();
        assert_eq!((head.word(0), head.word(1), head.word(2)), ("POST", "/x", "HTTP/1.1"));
        let mut reader = BodyReader::request(&head.fields).unwrap();
        let mut done = false;
        for byte in b"3\r\nabc\r\na\r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\n" {
            assert!(!done);
            input.extend_from_slice(&[*byte]);
            done = reader.read(&mut input).unwrap();
        }
        assert!(done && input.is_empty());
        assert_eq!(reader.body, b"abc0123456789");
        assert_eq!(reader.trailers.get("x-sum"), Some("7"));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for framing in
            ["Content-Length: 1\r\nContent-Length: 1", "Content-Length: 1\r\nTransfer-Encoding: chunked"]
        {
            let mut input = BytesMut::from(format!("POST / HTTP/1.1\r\n{framing}\r\n\r\n").as_bytes());
            let head = take_head(&mut input).unwrap().unwrap();
            assert!(BodyReader::request(&head.fields).is_err(), "{framing}");
        }
        for chunk in ["3 \r\nabc\r\n", "3;x=y\r\nabc\r\n", "3\r\nabcd\r\n", "\r\n"] {
            let fields = Fields(vec![("transfer-encoding".into(), "chunked".into())]);
            let mut reader = BodyReader::request(&fields).unwrap();
            assert!(reader.read(&mut BytesMut::from(chunk.as_bytes())).is_err(), "{chunk:?}");
        }
    }
}
