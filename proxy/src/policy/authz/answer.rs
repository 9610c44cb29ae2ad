//! What a service may say. Everything is checked before anything is done: an answer with one bad change is none.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode};

/// The most changes of one answer.
const MAX_CHANGES: usize = 128;

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// The request may go on.
    Allowed(Box<Changes>),
    /// It may not.
    Denied(Box<Denial>),
    /// The service could not decide, and has its own words for that (`error_response`).
    Failed(Box<Denial>),
}

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// It is longer than [`MAX_ANSWER`](super::MAX_ANSWER).
    TooLarge,
    /// Not one gRPC message, or not a `CheckResponse`.
    Malformed,
    /// The RPC ended with another status than OK.
    GrpcStatus,
    /// HTTP 5xx, or another status than 200 where gRPC is spoken.
    HttpStatus,
    /// More changes than an answer may have.
    TooMany,
    /// A change of what is no header, or is not to be changed by an answer.
    Forbidden,
    /// The path would be longer than one may be.
    PathTooLong,
}

/// What is changed of a request that goes on, and of its answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers of the request.
    pub request: Vec<HeaderChange>,
    /// Headers that are removed from it, afterwards.
    pub remove: Vec<HeaderName>,
    /// Query parameters that are set.
    pub set_query: Vec<(String, String)>,
    /// Query parameters that are removed.
    pub remove_query: Vec<String>,
    /// Headers of the answer to it.
    pub response: Vec<HeaderChange>,
}

/// A refusal in the words of the service.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// Its status; None leaves it to the filter.
    pub status: Option<StatusCode>,
    /// Headers of the answer. They replace those that are there; several of one name stand beside each other.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

/// One change of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderChange {
    /// Which one.
    pub name: HeaderName,
    /// To what.
    pub value: HeaderValue,
    /// How.
    pub action: Action,
}

/// What becomes of the values that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// APPEND_IF_EXISTS_OR_ADD: one more line.
    Add,
    /// The deprecated `append: true`: the value goes to the end of the line; without one nothing is done.
    Join,
    /// ADD_IF_ABSENT.
    AddIfAbsent,
    /// OVERWRITE_IF_EXISTS_OR_ADD.
    Overwrite,
    /// OVERWRITE_IF_EXISTS.
    OverwriteIfExists,
}

impl Invalid {
    /// The reason for operators.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::TooLarge => "answer_too_large",
            Self::Malformed => "malformed_answer",
            Self::GrpcStatus => "grpc_status",
            Self::HttpStatus => "http_status",
            Self::TooMany => "too_many_changes",
            Self::Forbidden => "forbidden_change",
            Self::PathTooLong => "path_too_long",
        }
    }
}

impl HeaderChange {
    /// A change of a header that an answer may change.
    ///
    /// # Errors
    /// [`Invalid::Forbidden`].
    pub fn new(name: &[u8], value: &[u8], action: Action) -> Result<Self, Invalid> {
        let name = HeaderName::from_bytes(name).map_err(|_| Invalid::Forbidden)?;
        let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| Invalid::Forbidden)?;
        if is_changeable(&name) { Ok(Self { name, value, action }) } else { Err(Invalid::Forbidden) }
    }

    /// Makes the change.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let Self { name, value, action } = self;
        match action {
            Action::Add => {
                headers.append(name, value.clone());
            }
            Action::AddIfAbsent if headers.contains_key(name) => {}
            Action::Overwrite | Action::AddIfAbsent => {
                headers.insert(name, value.clone());
            }
            Action::OverwriteIfExists => {
                if headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Action::Join => {
                let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
                if lines.is_empty() {
                    return;
                }
                let joined = [&lines.join(&b","[..])[..], value.as_bytes()].join(&b","[..]);
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    headers.insert(name, joined);
                }
            }
        }
    }
}

/// Whether an answer may touch a header: neither the host, nor what frames a message, nor what belongs to one hop.
#[must_use]
pub fn is_changeable(name: &HeaderName) -> bool {
    const FIXED: [HeaderName; 8] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
    ];
    !FIXED.contains(name) && !matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

impl Changes {
    /// Whether the request itself is changed.
    #[must_use]
    pub const fn is_request_changed(&self) -> bool {
        !(self.request.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty())
    }

    /// Checks what is not checked one by one.
    ///
    /// # Errors
    /// [`Invalid::TooMany`], [`Invalid::Forbidden`].
    pub fn check(self) -> Result<Self, Invalid> {
        let count = self.request.len()
            + self.remove.len()
            + self.set_query.len()
            + self.remove_query.len()
            + self.response.len();
        if count > MAX_CHANGES {
            return Err(Invalid::TooMany);
        }
        let fits = |(key, value): &(String, String)| {
            !key.is_empty() && key.bytes().all(|b| is_query(b) && b != b'=') && value.bytes().all(is_query)
        };
        if self.set_query.iter().all(fits) { Ok(self) } else { Err(Invalid::Forbidden) }
    }

    /// The headers of the request as they are to be.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for change in &self.request {
            change.apply(headers);
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// `path` with the query as it is to be; None when nothing changes. What is set keeps its place, or comes last.
    ///
    /// # Errors
    /// It would be longer than a path may be.
    pub fn path(&self, path: &PathAndQuery) -> Result<Option<PathAndQuery>, Invalid> {
        if self.set_query.is_empty() && self.remove_query.is_empty() {
            return Ok(None);
        }
        let key = |pair: &str| pair.split_once('=').map_or(pair, |(key, _)| key).to_owned();
        let removed = |pair: &&str| !self.remove_query.contains(&key(pair));
        let pairs =
            path.query().into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty());
        let mut pairs: Vec<String> = pairs.filter(removed).map(str::to_owned).collect();
        for (name, value) in &self.set_query {
            let place = pairs.iter().position(|pair| key(pair) == *name).unwrap_or(pairs.len());
            pairs.retain(|pair| key(pair) != *name);
            pairs.insert(place.min(pairs.len()), format!("{name}={value}"));
        }
        let mark = if pairs.is_empty() { "" } else { "?" };
        let changed = format!("{}{mark}{}", path.path(), pairs.join("&"));
        changed.parse().map(Some).map_err(|_| Invalid::PathTooLong)
    }
}

/// RFC 3986 §3.4, without what separates parameters.
fn is_query(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@/?%".contains(&byte)
}

impl Denial {
    /// A refusal with at most `limit` bytes of `body`. What is no status of a final answer is left to the filter, and
    /// headers that are none, or that would change the framing, are left out: a refusal stays one.
    #[must_use]
    pub fn new(status: u16, headers: Vec<(HeaderName, HeaderValue)>, body: Bytes, limit: usize) -> Self {
        let status = StatusCode::from_u16(status).ok().filter(|s| (200..600).contains(&s.as_u16()));
        let mut headers = headers;
        headers.retain(|(name, _)| is_changeable(name));
        headers.truncate(MAX_CHANGES);
        let bodiless = matches!(status, Some(StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED));
        let end = if bodiless { 0 } else { body.len().min(limit) };
        Self { status, headers, body: body.slice(..end) }
    }

    /// Puts the headers into an answer.
    pub fn apply(&self, into: &mut HeaderMap) {
        for (name, _) in &self.headers {
            into.remove(name);
        }
        for (name, value) in &self.headers {
            into.append(name, value.clone());
        }
    }
}
