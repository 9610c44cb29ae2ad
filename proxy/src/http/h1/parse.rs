//! HTTP/1 heads (RFC 9112): strict where two parsers could disagree, lenient nowhere.
//!
//! hyper's server drops Content-Length next to Transfer-Encoding, strips fragments and accepts bare LF before we could
//! see them (docs/decisions/0002), so the head is parsed here, on httparse, in one pass that also takes out the
//! hop-by-hop headers (RFC 9110 §7.6.1).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Version};
use smallvec::SmallVec;

use super::framing::{Framing, FramingHeaders};
use crate::config::spec::{Http1Spec, Underscores};
use crate::error::Reason;
use crate::http::authority;
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};
use crate::http::path::{self, Canonical, PathRules};

/// No head may have more headers than this, whatever the configuration says.
pub const MAX_HEADERS: usize = 256;

/// What a cluster accepts as the head of an answer.
#[derive(Debug, Clone, Copy)]
pub struct ResponseLimits {
    /// Bytes of the whole head.
    pub max_bytes: usize,
    /// Number of headers; on HTTP/1 at most [`MAX_HEADERS`].
    pub max_headers: usize,
}

/// What a listener accepts in a request head.
#[derive(Debug, Clone)]
pub struct RequestRules {
    /// Bytes of the whole head.
    pub max_bytes: usize,
    /// Number of headers; at most [`MAX_HEADERS`].
    pub max_headers: usize,
    /// Path canonicalisation.
    pub path: PathRules,
    /// `headers_with_underscores_action`.
    pub underscores: Underscores,
    /// HTTP/1 options.
    pub http1: Http1Spec,
    /// From the transport: `https` under TLS.
    pub scheme: Scheme,
}

/// A request head, and what it says about the message and the connection.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head, in canonical form.
    pub head: RequestHead,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client wants to reuse the connection.
    pub keep_alive: bool,
    /// `Upgrade`, when `Connection` names it.
    pub upgrade: Option<HeaderValue>,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
    /// The client is to be redirected to the canonical path.
    pub redirect: bool,
}

/// A response head, and what it says about the message and the connection.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head.
    pub head: ResponseHead,
    /// How the body is delimited.
    pub framing: Framing,
    /// The connection may be used again after this response.
    pub keep_alive: bool,
    /// `Upgrade` of a 101 answer.
    pub upgrade: Option<HeaderValue>,
    /// Identical repeated `Transfer-Encoding: chunked` lines were collapsed (features.md pain 15).
    pub repeated_chunked: bool,
}

#[derive(Clone, Copy)]
struct Span {
    name: (u32, u32),
    value: (u32, u32),
}

type Spans = SmallVec<[Span; 32]>;

fn spans(base: &[u8], headers: &[httparse::Header<'_>]) -> Spans {
    let start = base.as_ptr() as usize;
    let at = |part: &[u8]| ((part.as_ptr() as usize - start) as u32, part.len() as u32);
    headers.iter().map(|h| Span { name: at(h.name.as_bytes()), value: at(h.value) }).collect()
}

fn head_error(error: httparse::Error, head: &[u8]) -> Reason {
    match error {
        // Three words, of which the last is no version at all.
        httparse::Error::Version
            if !head.splitn(3, |b| *b == b' ').nth(2).is_some_and(|v| v.starts_with(b"HTTP/")) =>
        {
            Reason::Malformed
        }
        httparse::Error::TooManyHeaders => Reason::HeadersTooLarge,
        httparse::Error::Version => Reason::UnsupportedVersion,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Reason::BadHeader,
        httparse::Error::NewLine => Reason::BareLineEnd,
        _ => Reason::Malformed,
    }
}

/// Every line of a head ends in CRLF (RFC 9112 §2.2 allows a lone LF; two parsers in a row must not disagree on it).
fn crlf_only(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|i| i > 0 && head[i - 1] == b'\r')
}

/// Takes a complete request head off `buf`. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// The reason to refuse the request; the connection must then be closed.
pub fn parse_request(buf: &mut BytesMut, rules: &RequestRules) -> Result<Option<ParsedRequest>, Reason> {
    let mut storage = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let limit = rules.max_headers.min(MAX_HEADERS);
    let mut request = httparse::Request::new(&mut []);
    let (length, method, target, version, found) = match request
        .parse_with_uninit_headers(buf, &mut storage[..limit])
        .map_err(|e| head_error(e, buf))?
    {
        httparse::Status::Partial if buf.len() >= rules.max_bytes => return Err(Reason::HeadersTooLarge),
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => {
            let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
            else {
                return Err(Reason::Malformed);
            };
            let target_at = (target.as_ptr() as usize - buf.as_ptr() as usize, target.len());
            let method = Method::from_bytes(method.as_bytes()).map_err(|_| Reason::Malformed)?;
            (length, method, target_at, version, spans(buf, request.headers))
        }
    };
    if length > rules.max_bytes {
        return Err(Reason::HeadersTooLarge);
    }
    let raw = buf.split_to(length).freeze();
    if !crlf_only(&raw) {
        return Err(Reason::BareLineEnd);
    }
    let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    if version == Version::HTTP_10 && !rules.http1.accept_http_10 {
        return Err(Reason::UnsupportedVersion);
    }
    let target = raw.slice(target.0..target.0 + target.1);
    let fields = RequestFields::collect(&raw, &found, rules)?;
    finish_request(fields, RequestLine { method, target, version }, rules).map(Some)
}

struct RequestLine {
    method: Method,
    target: Bytes,
    version: Version,
}

/// The header fields of a request, with framing, connection and Host taken out.
struct RequestFields {
    headers: HeaderMap,
    case: HeaderCase,
    framing: FramingHeaders,
    connection: ConnectionTokens,
    host: Option<Bytes>,
    upgrade: Option<HeaderValue>,
    expect_continue: bool,
}

impl RequestFields {
    fn collect(raw: &Bytes, found: &[Span], rules: &RequestRules) -> Result<Self, Reason> {
        let mut fields = Self {
            headers: HeaderMap::with_capacity(found.len()),
            case: HeaderCase::new(raw.clone()),
            framing: FramingHeaders::default(),
            connection: ConnectionTokens::default(),
            host: None,
            upgrade: None,
            expect_continue: false,
        };
        for span in found {
            fields.add(raw, *span, rules)?;
        }
        fields.connection.strip_named(&mut fields.headers);
        Ok(fields)
    }

    fn add(&mut self, raw: &Bytes, span: Span, rules: &RequestRules) -> Result<(), Reason> {
        let (name, value) = field(raw, span)?;
        match name {
            header::HOST => {
                let (start, len) = span.value;
                if self.host.replace(raw.slice(start as usize..(start + len) as usize)).is_some() {
                    return Err(Reason::BadHost);
                }
                self.case.push(span.name.0 as usize, span.name.1 as usize);
                return Ok(());
            }
            header::TRANSFER_ENCODING => return self.framing.transfer_encoding(&value),
            header::CONNECTION => {
                self.connection.add(&value);
                return Ok(());
            }
            header::UPGRADE => {
                self.upgrade = Some(value);
                return Ok(());
            }
            header::TE => {
                if !has_token(value.as_bytes(), b"trailers") {
                    return Ok(());
                }
                self.headers.insert(header::TE, HeaderValue::from_static("trailers"));
                return Ok(());
            }
            header::CONTENT_LENGTH => self.framing.content_length(&value)?,
            header::EXPECT => self.expect_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            _ if is_hop_by_hop(&name) => return Ok(()),
            _ => {}
        }
        if rules.underscores != Underscores::Allow && name.as_str().contains('_') {
            return if rules.underscores == Underscores::Reject { Err(Reason::BadHeader) } else { Ok(()) };
        }
        self.case.push(span.name.0 as usize, span.name.1 as usize);
        self.headers.try_append(name, value).map_err(|_| Reason::HeadersTooLarge)?;
        Ok(())
    }
}

fn finish_request(
    fields: RequestFields,
    line: RequestLine,
    rules: &RequestRules,
) -> Result<ParsedRequest, Reason> {
    let RequestLine { method, target, version } = line;
    let framing = fields.framing.of_request(version)?;
    if method == Method::TRACE {
        return Err(Reason::MethodNotAllowed);
    }
    // RFC 9110 §9.3.6: it has no content, and Envoy gives the same answers. What follows it is the tunnel's, or, where it is refused, nobody's.
    if method == Method::CONNECT {
        match framing {
            Framing::Empty => {}
            Framing::Length(_) => return Err(Reason::BadContentLength),
            Framing::Chunked | Framing::UntilClose => return Err(Reason::UnsupportedTransferEncoding),
        }
    }
    let (path, uri_authority, redirect) = request_target(&method, target, rules)?;
    // RFC 9112 §3.2: one valid Host in every HTTP/1.1 request, even where the target overrides it.
    let host = match fields.host {
        Some(host) => Some(authority::parse(host)?),
        None if version == Version::HTTP_11 => return Err(Reason::MissingHost),
        None => match &rules.http1.default_host {
            Some(host) => Some(authority::parse(Bytes::copy_from_slice(host.as_bytes()))?),
            None => None,
        },
    };
    let keep_alive = fields.connection.keep_alive(version);
    let upgrade = fields.upgrade.filter(|_| fields.connection.upgrade && version == Version::HTTP_11);
    let head = RequestHead {
        method,
        scheme: rules.scheme.clone(),
        authority: uri_authority.or(host),
        path,
        version,
        headers: fields.headers,
        case: fields.case,
    };
    Ok(ParsedRequest {
        head,
        framing,
        keep_alive,
        upgrade,
        expect_continue: fields.expect_continue,
        redirect,
    })
}

/// RFC 9112 §3.2: origin-form, absolute-form (any method), authority-form (CONNECT only), `*` (OPTIONS only).
fn request_target(
    method: &Method,
    target: Bytes,
    rules: &RequestRules,
) -> Result<(PathAndQuery, Option<Authority>, bool), Reason> {
    if method == Method::CONNECT {
        return Ok((PathAndQuery::from_static("/"), Some(authority::parse(target)?), false));
    }
    if &target[..] == b"*" {
        let star = PathAndQuery::from_static("*");
        return if method == Method::OPTIONS { Ok((star, None, false)) } else { Err(Reason::BadPath) };
    }
    let (path, authority) =
        if target.first() == Some(&b'/') { (target, None) } else { split_absolute(&target)? };
    Ok(match path::canonicalize(path, rules.path)? {
        Canonical::Path(path) => (path, authority, false),
        Canonical::Redirect(path) => (path, authority, true),
    })
}

/// `http://host[:port]/path` -> path and host. RFC 9112 §3.2.2: the target wins over Host.
fn split_absolute(target: &Bytes) -> Result<(Bytes, Option<Authority>), Reason> {
    let rest = ["http://", "https://"]
        .iter()
        .find(|s| target.len() >= s.len() && target[..s.len()].eq_ignore_ascii_case(s.as_bytes()))
        .map(|s| target.slice(s.len()..))
        .ok_or(Reason::BadPath)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let authority = authority::parse(rest.slice(..end))?;
    let path = match rest.get(end) {
        None => Bytes::from_static(b"/"),
        Some(b'/') => rest.slice(end..),
        Some(_) => Bytes::from([b"/", &rest[end..]].concat()),
    };
    Ok((path, Some(authority)))
}

/// Takes a complete response head off `buf`; `method` is the request's, which decides about a body (RFC 9112 §6.3).
///
/// # Errors
/// [`Reason::UpstreamProtocol`] or [`Reason::UpstreamHeadersTooLarge`]; the connection must then be closed.
pub fn parse_response(
    buf: &mut BytesMut,
    method: &Method,
    limits: ResponseLimits,
) -> Result<Option<ParsedResponse>, Reason> {
    let ResponseLimits { max_bytes, max_headers } = limits;
    let mut storage = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let storage = &mut storage[..max_headers.min(MAX_HEADERS)];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, buf, storage)
        .map_err(|e| match e {
            httparse::Error::TooManyHeaders => Reason::UpstreamHeadersTooLarge,
            _ => Reason::UpstreamProtocol,
        })?;
    let httparse::Status::Complete(length) = parsed else {
        return if buf.len() >= max_bytes { Err(Reason::UpstreamHeadersTooLarge) } else { Ok(None) };
    };
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(Reason::UpstreamProtocol);
    };
    let status = StatusCode::from_u16(code).map_err(|_| Reason::UpstreamProtocol)?;
    let phrase = response
        .reason
        .filter(|r| status.canonical_reason() != Some(r))
        .map(|r| Bytes::copy_from_slice(r.as_bytes()));
    let found = spans(buf, response.headers);
    if length > max_bytes {
        return Err(Reason::UpstreamHeadersTooLarge);
    }
    let raw = buf.split_to(length).freeze();
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let head = ResponseHead {
        status,
        version,
        headers: HeaderMap::with_capacity(found.len() + 2),
        case: HeaderCase::new(raw.clone()),
        phrase,
    };
    response_fields(&raw, &found, head, method).map(Some)
}

fn response_fields(
    raw: &Bytes,
    found: &[Span],
    mut head: ResponseHead,
    method: &Method,
) -> Result<ParsedResponse, Reason> {
    let protocol = |_| Reason::UpstreamProtocol;
    let mut framing = FramingHeaders::default();
    let mut connection = ConnectionTokens::default();
    let mut upgrade = None;
    for span in found {
        let (name, value) = field(raw, *span).map_err(protocol)?;
        match name {
            header::TRANSFER_ENCODING => {
                framing.transfer_encoding(&value).map_err(protocol)?;
                continue;
            }
            header::CONNECTION => {
                connection.add(&value);
                continue;
            }
            header::UPGRADE => {
                upgrade = Some(value);
                continue;
            }
            header::CONTENT_LENGTH => framing.content_length(&value).map_err(protocol)?,
            _ if is_hop_by_hop(&name) => continue,
            _ => {}
        }
        head.case.push(span.name.0 as usize, span.name.1 as usize);
        head.headers.try_append(name, value).map_err(|_| Reason::UpstreamHeadersTooLarge)?;
    }
    connection.strip_named(&mut head.headers);
    let repeated_chunked = framing.repeated_chunked();
    let framing = framing.of_response(method, head.status, head.version).map_err(protocol)?;
    let keep_alive = connection.keep_alive(head.version) && framing != Framing::UntilClose;
    let upgrade = upgrade.filter(|_| head.status == StatusCode::SWITCHING_PROTOCOLS);
    Ok(ParsedResponse { head, framing, keep_alive, upgrade, repeated_chunked })
}

fn field(raw: &Bytes, span: Span) -> Result<(HeaderName, HeaderValue), Reason> {
    let part = |(start, len): (u32, u32)| start as usize..(start + len) as usize;
    let name = HeaderName::from_bytes(&raw[part(span.name)]).map_err(|_| Reason::BadHeader)?;
    let value = HeaderValue::from_maybe_shared(raw.slice(part(span.value))).map_err(|_| Reason::BadHeader)?;
    Ok((name, value))
}

/// Headers that describe one connection only and are not among those handled by name (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// What the `Connection` lines say.
#[derive(Default)]
struct ConnectionTokens {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: SmallVec<[HeaderName; 2]>,
}

impl ConnectionTokens {
    fn add(&mut self, value: &HeaderValue) {
        for token in tokens(value.as_bytes()) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if let Ok(name) = HeaderName::from_bytes(token) {
                self.named.push(name);
            }
        }
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }

    /// Removes the headers that `Connection` names, but never one that frames the message, routes it or guards it:
    /// a client could otherwise delete what an earlier hop has set.
    fn strip_named(&self, headers: &mut HeaderMap) {
        for name in &self.named {
            let s = name.as_str();
            let kept = matches!(
                *name,
                header::CONTENT_LENGTH
                    | header::CONTENT_TYPE
                    | header::AUTHORIZATION
                    | header::COOKIE
                    | header::FORWARDED
                    | header::EXPECT
                    | header::TE
            ) || s.starts_with("x-forwarded-")
                || s.starts_with("x-envoy-")
                || s.starts_with("x-remora-")
                || s.starts_with("grpc-")
                || s == "x-request-id";
            if !kept {
                headers.remove(name);
            }
        }
    }
}

/// The members of a comma-separated list, without surrounding white space.
pub fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    tokens(list).any(|t| t.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests;
