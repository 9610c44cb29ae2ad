//! HTTP/1 heads and chunk frames as bytes. Appends to a buffer; knows no socket.

use bytes::{BufMut, BytesMut};
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Version};

use super::framing::Framing;
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};

/// How header names are spelled on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As the peer that sent them spelled them; lower case, as Envoy, for those that have no spelling.
    Preserve,
    /// `header_key_format.proper_case_words`.
    Proper,
    /// As Envoy writes them by default.
    Lower,
}

/// What the connection headers of a message say.
#[derive(Debug, Clone, Copy)]
pub struct Wire<'a> {
    /// Body framing.
    pub framing: Framing,
    /// `Connection: close` is added (or `keep-alive` to an HTTP/1.0 peer that may keep it).
    pub keep_alive: bool,
    /// Version of the receiver.
    pub peer: Version,
    /// `Connection: upgrade` and this `Upgrade`.
    pub upgrade: Option<&'a HeaderValue>,
    /// Spelling of names.
    pub spelling: Spelling,
}

/// Appends a request head.
pub fn request(out: &mut BytesMut, head: &RequestHead, wire: Wire<'_>) {
    out.reserve(256);
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    if head.method == http::Method::CONNECT {
        out.put_slice(head.authority.as_ref().map_or("", |a| a.as_str()).as_bytes());
    } else {
        out.put_slice(head.path.as_str().as_bytes());
    }
    out.put_slice(b" HTTP/1.1\r\n");
    let mut cursor = 0;
    if let Some(authority) = &head.authority {
        put_name(out, &header::HOST, &head.case, &mut cursor, wire.spelling);
        out.put_slice(b": ");
        out.put_slice(authority.as_str().as_bytes());
        out.put_slice(b"\r\n");
    }
    put_headers(out, &head.headers, &head.case, cursor, wire.spelling);
    if wire.framing == Framing::Empty && wire.upgrade.is_none() && says_no_content(head) {
        put_name(out, &header::CONTENT_LENGTH, &HeaderCase::default(), &mut 0, wire.spelling);
        out.put_slice(b": 0\r\n");
    }
    put_connection(out, wire, b"Upgrade");
    if wire.framing == Framing::Chunked {
        put_framing(out, wire.spelling);
    }
    out.put_slice(b"\r\n");
}

/// A method that could have content says when it has none (RFC 9110 section 8.6).
fn says_no_content(head: &RequestHead) -> bool {
    use http::Method as M;
    !matches!(head.method, M::GET | M::HEAD | M::DELETE | M::TRACE | M::CONNECT)
        && !head.headers.contains_key(header::CONTENT_LENGTH)
}

/// Appends a response head.
pub fn response(out: &mut BytesMut, head: &ResponseHead, wire: Wire<'_>) {
    out.reserve(256);
    let old = wire.peer == Version::HTTP_10;
    if head.status == http::StatusCode::OK && head.phrase.is_none() && !old {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.put_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.put_slice(head.status.as_str().as_bytes());
        out.put_u8(b' ');
        match &head.phrase {
            Some(phrase) => out.put_slice(phrase),
            None => out.put_slice(head.status.canonical_reason().unwrap_or("").as_bytes()),
        }
        out.put_slice(b"\r\n");
    }
    put_headers(out, &head.headers, &head.case, 0, wire.spelling);
    put_connection(out, wire, b"upgrade");
    if wire.framing == Framing::Chunked {
        put_framing(out, wire.spelling);
    }
    out.put_slice(b"\r\n");
}

fn put_framing(out: &mut BytesMut, spelling: Spelling) {
    put_name(out, &header::TRANSFER_ENCODING, &HeaderCase::default(), &mut 0, spelling);
    out.put_slice(b": chunked\r\n");
}

/// `word` is the token of an upgrade, which some compare with case.
fn put_connection(out: &mut BytesMut, wire: Wire<'_>, word: &[u8]) {
    let proper = wire.spelling == Spelling::Proper;
    let name: &[u8] = if proper { b"Connection: " } else { b"connection: " };
    if let Some(protocol) = wire.upgrade {
        out.put_slice(name);
        out.put_slice(word);
        out.put_slice(if proper { b"\r\nUpgrade: " } else { b"\r\nupgrade: " });
        out.put_slice(protocol.as_bytes());
        out.put_slice(b"\r\n");
    } else if !wire.keep_alive {
        out.put_slice(name);
        out.put_slice(b"close\r\n");
    } else if wire.peer == Version::HTTP_10 {
        out.put_slice(name);
        out.put_slice(b"keep-alive\r\n");
    }
}

fn put_headers(
    out: &mut BytesMut,
    headers: &HeaderMap,
    case: &HeaderCase,
    mut cursor: usize,
    spelling: Spelling,
) {
    for (name, value) in headers {
        put_name(out, name, case, &mut cursor, spelling);
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
}

fn put_name(
    out: &mut BytesMut,
    name: &HeaderName,
    case: &HeaderCase,
    cursor: &mut usize,
    spelling: Spelling,
) {
    let lower = name.as_str().as_bytes();
    match spelling {
        Spelling::Lower => out.put_slice(lower),
        Spelling::Preserve => match case.find(lower, cursor) {
            Some(spelled) => out.put_slice(spelled),
            None => out.put_slice(lower),
        },
        Spelling::Proper => put_train_case(out, lower),
    }
}

/// `x-request-id` -> `X-Request-Id`.
fn put_train_case(out: &mut BytesMut, lower: &[u8]) {
    let start = out.len();
    out.put_slice(lower);
    let mut word_start = true;
    for b in &mut out[start..] {
        if word_start {
            b.make_ascii_uppercase();
        }
        word_start = !b.is_ascii_alphanumeric();
    }
}

/// Appends `SIZE CRLF` of a chunk.
pub fn chunk_head(out: &mut BytesMut, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 16];
    let mut at = 16;
    let mut rest = size;
    loop {
        at -= 1;
        digits[at] = HEX[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

/// Appends the last chunk, trailers and the final CRLF.
pub fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>, spelling: Spelling) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        put_headers(out, trailers, &HeaderCase::default(), 0, spelling);
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::parse;
    use bytes::Bytes;
    use http::uri::PathAndQuery;
    use proptest::prelude::*;

    const WIRE: Wire<'static> = Wire {
        framing: Framing::Empty,
        keep_alive: true,
        peer: Version::HTTP_11,
        upgrade: None,
        spelling: Spelling::Preserve,
    };

    #[test]
    fn names_keep_their_case_and_ours_are_lower_case() {
        let mut case = HeaderCase::new(Bytes::from_static(b"x-LOWER sOAPAction"));
        case.push(0, 7);
        case.push(8, 10);
        let mut head = ResponseHead::new(http::StatusCode::OK);
        head.headers.insert("x-lower", HeaderValue::from_static("1"));
        head.headers.insert("soapaction", HeaderValue::from_static("2"));
        head.headers.insert("x-request-id", HeaderValue::from_static("3"));
        head.case = case;
        let mut out = BytesMut::new();
        response(&mut out, &head, WIRE);
        assert_eq!(&out[..], b"HTTP/1.1 200 OK\r\nx-LOWER: 1\r\nsOAPAction: 2\r\nx-request-id: 3\r\n\r\n");
    }

    #[test]
    fn chunk_sizes_are_hex() {
        for (size, want) in [(0usize, "0\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabc_def, "abcdef\r\n")] {
            let mut out = BytesMut::new();
            chunk_head(&mut out, size);
            assert_eq!(&out[..], want.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            names in proptest::collection::vec("[a-z][a-z0-9-]{0,12}", 0..10),
            value in "[ -~]{0,30}",
            status in 200u16..600,
        ) {
            let mut head = ResponseHead::new(http::StatusCode::from_u16(status).unwrap());
            for name in &names {
                let name = HeaderName::from_bytes(format!("x-{name}").as_bytes()).unwrap();
                head.headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
            }
            let mut out = BytesMut::new();
            response(&mut out, &head, WIRE);
            let limits = parse::ResponseLimits { max_bytes: 1 << 16, max_headers: 100 };
            let back = parse::parse_response(&mut out, &http::Method::GET, limits).unwrap().unwrap();
            prop_assert_eq!(back.head.headers, head.headers);
            prop_assert_eq!(back.head.status, head.status);
            let _ = PathAndQuery::from_static("/");
        }
    }
}
