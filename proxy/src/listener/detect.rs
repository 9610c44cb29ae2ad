//! What a connection speaks, from its first bytes: TLS with its server name and protocols, HTTP/2, HTTP/1 or anything
//! else. Pure; the caller reads, keeps the bytes, and limits the time.
//!
//! The answer is [`Detected::NeedMore`] only while the bytes so far could still become TLS or HTTP, and once it is
//! another it never changes, however many bytes follow: a protocol in which the client speaks first is recognised at
//! the first byte that no HTTP method and no TLS record begins with.

use std::borrow::Cow;

use smallvec::SmallVec;

/// No more than this much is looked at: a peer that has not shown its protocol by then is opaque.
pub const LIMIT: usize = 64 * 1024;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// They could become TLS or HTTP.
    NeedMore,
    /// A complete TLS ClientHello.
    Tls(ClientHelloInfo),
    /// The preface of HTTP/2 with prior knowledge (RFC 9113 §3.4).
    Http2,
    /// The beginning of an HTTP/1 request line.
    Http1,
    /// Anything else.
    Opaque,
}

/// What a ClientHello says about where its connection wants to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHelloInfo {
    /// Server name (RFC 6066 §3) in lower case, without a trailing dot.
    pub sni: Option<Box<str>>,
    /// Application protocols (RFC 7301), most wanted first.
    pub alpn: SmallVec<[Box<[u8]>; 2]>,
}

/// Looks at the first bytes of a connection.
#[must_use]
pub fn detect(first_bytes: &[u8]) -> Detected {
    let bytes = &first_bytes[..first_bytes.len().min(LIMIT)];
    let answer = match bytes.first() {
        None => Detected::NeedMore,
        Some(&HANDSHAKE) => tls(bytes),
        Some(b'A'..=b'Z') => http(bytes),
        Some(_) => Detected::Opaque,
    };
    if answer == Detected::NeedMore && bytes.len() == LIMIT { Detected::Opaque } else { answer }
}

/// Content type of a TLS handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// Handshake type of a ClientHello (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
/// RFC 8446 §5.1: a record holds at most 2^14 bytes.
const MAX_RECORD: usize = 1 << 14;

fn tls(bytes: &[u8]) -> Detected {
    match hello_body(bytes) {
        Err(answer) => answer,
        Ok(body) => parse_hello(&body).map_or(Detected::Opaque, Detected::Tls),
    }
}

/// The body of the ClientHello, put together when it is spread over records. `Err` is the answer without one.
fn hello_body(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Detected> {
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        let (fragment, complete, after) = record(rest)?;
        if joined.is_empty() {
            joined = Cow::Borrowed(fragment);
        } else {
            joined.to_mut().extend_from_slice(fragment);
        }
        if joined.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Detected::Opaque);
        }
        if let Some([_, a, b, c]) = joined.first_chunk::<4>() {
            let end = 4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
            if end > LIMIT {
                return Err(Detected::Opaque);
            }
            if joined.len() >= end {
                return Ok(match joined {
                    Cow::Borrowed(joined) => Cow::Borrowed(&joined[4..end]),
                    Cow::Owned(mut joined) => {
                        joined.truncate(end);
                        Cow::Owned(joined.split_off(4))
                    }
                });
            }
        }
        if !complete {
            return Err(Detected::NeedMore);
        }
        rest = after;
    }
}

/// The first handshake record: its fragment as far as it is there, whether that is all of it, and what follows.
fn record(bytes: &[u8]) -> Result<(&[u8], bool, &[u8]), Detected> {
    let expected = |at: usize, ok: fn(u8) -> bool| bytes.get(at).is_none_or(|b| ok(*b));
    // Legacy record versions 3.0 to 3.4 have been seen; RFC 8446 §5.1 says to ignore the minor one.
    if !(expected(0, |b| b == HANDSHAKE) && expected(1, |b| b == 3) && expected(2, |b| b <= 4)) {
        return Err(Detected::Opaque);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<5>() else { return Err(Detected::NeedMore) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_RECORD {
        return Err(Detected::Opaque);
    }
    let here = length.min(rest.len());
    Ok((&rest[..here], here == length, &rest[here..]))
}

/// Reads big-endian lengths and the bytes under them.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|b| usize::from(b[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length).map(Self)
    }
}

/// RFC 8446 §4.1.2. None when it is malformed.
fn parse_hello(body: &[u8]) -> Option<ClientHelloInfo> {
    let mut hello = Reader(body);
    let version = hello.u16()?;
    if version >> 8 != 3 {
        return None;
    }
    hello.take(32)?; // random
    if hello.vector8()?.len() > 32 {
        return None; // session id
    }
    let ciphers = hello.vector16()?.0.len();
    if ciphers == 0 || ciphers % 2 != 0 || hello.vector8()?.is_empty() {
        return None;
    }
    let mut info = ClientHelloInfo::default();
    if hello.0.is_empty() {
        return Some(info);
    }
    let mut extensions = hello.vector16()?;
    if !hello.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        match kind {
            0 => info.sni = server_name(content)?,
            16 => info.alpn = protocols(content)?,
            _ => {}
        }
    }
    Some(info)
}

/// RFC 6066 §3. The outer None is malformed; the inner None is a name that is not printable ASCII.
fn server_name(mut extension: Reader<'_>) -> Option<Option<Box<str>>> {
    let mut list = extension.vector16()?;
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vector16()?.0;
        let plain = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        if kind == 0 && found.is_none() && plain {
            found = std::str::from_utf8(name).ok().map(relative);
        }
    }
    Some(found)
}

/// The name as it is compared. RFC 6066 §3 has it without a trailing dot; who sends one means the same name, and has to
/// get the filter chain and the certificate of one name: rustls, which chooses the latter, takes the dot away.
fn relative(name: &str) -> Box<str> {
    let name = match name.strip_suffix('.') {
        Some(shorter) if !shorter.is_empty() => shorter,
        _ => name,
    };
    name.to_ascii_lowercase().into()
}

/// RFC 7301 §3.1.
fn protocols(mut extension: Reader<'_>) -> Option<SmallVec<[Box<[u8]>; 2]>> {
    let mut list = extension.vector16()?;
    let mut protocols = SmallVec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if name.is_empty() {
            return None;
        }
        protocols.push(name.into());
    }
    Some(protocols)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The registered methods (IANA, HTTP Method Registry) and PURGE. Any token may be a method, but taking any token for
/// one would hold up text protocols until their first space.
const METHODS: &[&str] = &[
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "CONNECT",
    "TRACE",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

fn http(bytes: &[u8]) -> Detected {
    match prefix(bytes, PREFACE) {
        Prefix::Whole => return Detected::Http2,
        Prefix::Begun => return Detected::NeedMore,
        Prefix::Other => {}
    }
    let mut answer = Detected::Opaque;
    for method in METHODS {
        match prefix(bytes, method.as_bytes()) {
            Prefix::Whole => match bytes.get(method.len()) {
                None => answer = Detected::NeedMore,
                Some(b' ') => return target(&bytes[method.len() + 1..], *method == "CONNECT"),
                Some(_) => {}
            },
            Prefix::Begun => answer = Detected::NeedMore,
            Prefix::Other => {}
        }
    }
    answer
}

/// The request target (RFC 9112 §3.2). It tells HTTP from protocols that begin with the same word, such as `GET key`.
fn target(bytes: &[u8], connect: bool) -> Detected {
    if connect {
        return authority(bytes);
    }
    match bytes.first() {
        None => Detected::NeedMore,
        Some(b'/') => Detected::Http1,
        Some(b'*') => match bytes.get(1) {
            None => Detected::NeedMore,
            Some(b' ') => Detected::Http1,
            Some(_) => Detected::Opaque,
        },
        Some(_) => match [prefix_any_case(bytes, b"http://"), prefix_any_case(bytes, b"https://")] {
            [Prefix::Whole, _] | [_, Prefix::Whole] => Detected::Http1,
            [Prefix::Begun, _] | [_, Prefix::Begun] => Detected::NeedMore,
            _ => Detected::Opaque,
        },
    }
}

/// `host:port HTTP/1.` of a CONNECT request.
fn authority(bytes: &[u8]) -> Detected {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b".-_~:[]%@!$&'()*+,;=".contains(b);
    match bytes.iter().position(|b| !allowed(b)) {
        None => Detected::NeedMore,
        Some(0) => Detected::Opaque,
        Some(end) => match prefix(&bytes[end..], b" HTTP/1.") {
            Prefix::Whole => Detected::Http1,
            Prefix::Begun => Detected::NeedMore,
            Prefix::Other => Detected::Opaque,
        },
    }
}

#[derive(Clone, Copy)]
enum Prefix {
    Whole,
    Begun,
    Other,
}

fn prefix(bytes: &[u8], word: &[u8]) -> Prefix {
    prefix_by(bytes, word, |a, b| a == b)
}

fn prefix_any_case(bytes: &[u8], word: &[u8]) -> Prefix {
    prefix_by(bytes, word, <[u8]>::eq_ignore_ascii_case)
}

fn prefix_by(bytes: &[u8], word: &[u8], same: fn(&[u8], &[u8]) -> bool) -> Prefix {
    let common = bytes.len().min(word.len());
    match same(&bytes[..common], &word[..common]) {
        false => Prefix::Other,
        true if common == word.len() => Prefix::Whole,
        true => Prefix::Begun,
    }
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
