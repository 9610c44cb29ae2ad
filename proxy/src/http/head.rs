//! Request and response heads as the pipeline sees them, whichever protocol they came by.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, StatusCode, Version};
use smallvec::SmallVec;

/// The head of a request. The pseudo-headers of HTTP/2 are fields; an HTTP/1 request is brought into the same
/// form by its codec, so that routing, policy and forwarding read one value each.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method, case-sensitive (RFC 9110 §9.1).
    pub method: Method,
    /// Derived from the transport, never from what the peer claims.
    pub scheme: Scheme,
    /// `:authority`, or Host. None only for an HTTP/1.0 request without Host.
    pub authority: Option<Authority>,
    /// Path and query in the one canonical form that is routed, authorised and forwarded.
    pub path: PathAndQuery,
    /// The version it came by.
    pub version: Version,
    /// All other headers, without Host.
    pub headers: HeaderMap,
    /// Header names as an HTTP/1 peer wrote them.
    pub case: HeaderCase,
}

/// The head of a response.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The version it came by.
    pub version: Version,
    /// All headers.
    pub headers: HeaderMap,
    /// Header names as an HTTP/1 peer wrote them.
    pub case: HeaderCase,
    /// The reason phrase, when an HTTP/1 peer sent another than the standard one.
    pub phrase: Option<Bytes>,
}

impl ResponseHead {
    /// A head that the proxy makes itself.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            case: HeaderCase::default(),
            phrase: None,
        }
    }
}

impl RequestHead {
    /// Whether this is a gRPC request: content-type `application/grpc`, optionally followed by `+…` or `;…`.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.headers.get(http::header::CONTENT_TYPE).is_some_and(|v| is_grpc_content_type(v.as_bytes()))
    }
}

/// Whether a content type is gRPC's (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
#[must_use]
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    value.len() >= GRPC.len()
        && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';'))
}

/// Header names in the spelling of an HTTP/1 peer, in the order they came. HTTP/1 peers exist that compare names
/// case-sensitively (features.md B5), so names go out as they came in. Kept as ranges of the raw head: a name costs
/// four bytes and no reference count.
#[derive(Debug, Clone, Default)]
pub struct HeaderCase {
    raw: Bytes,
    names: SmallVec<[(u16, u16); 16]>,
}

impl HeaderCase {
    /// Names will be ranges of `raw`.
    #[must_use]
    pub fn new(raw: Bytes) -> Self {
        Self { raw, names: SmallVec::new() }
    }

    /// Adds the name at `start..start + len` of the raw head.
    pub fn push(&mut self, start: usize, len: usize) {
        if let (Ok(start), Ok(len)) = (u16::try_from(start), u16::try_from(len)) {
            self.names.push((start, len));
        }
    }

    /// Whether the head came without spelling (HTTP/2, or made by the proxy).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The original spelling of `name`. `cursor` follows the order of the head, so that a walk in that order finds
    /// each name at the first look.
    #[must_use]
    pub fn find(&self, name: &[u8], cursor: &mut usize) -> Option<&[u8]> {
        let n = self.names.len();
        for step in 0..n {
            let i = if *cursor + step < n { *cursor + step } else { *cursor + step - n };
            let (start, len) = self.names[i];
            let spelled = &self.raw[start as usize..(start + len) as usize];
            if spelled.eq_ignore_ascii_case(name) {
                *cursor = if i + 1 == n { 0 } else { i + 1 };
                return Some(spelled);
            }
        }
        None
    }
}
