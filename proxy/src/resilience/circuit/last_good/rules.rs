//! Which answers may be kept and given again: those that a shared cache may store, and may use when they are stale (RFC 9111, RFC 5861).

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use crate::http::local_reply::REASON_HEADER;

/// Names in `Vary` beyond which an answer is not kept.
const MAX_VARY: usize = 16;
/// A delta-seconds that is too large counts as this (RFC 9111 §1.2.2).
const MAX_SECONDS: u64 = 1 << 31;

static CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// On which terms an answer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How old it was when it came (RFC 9111 §4.2.3, `corrected_age_value`).
    pub age: Duration,
    /// It is given until it is so old.
    pub limit: Duration,
    /// It says itself that it is for everybody, also where the request told who asked.
    pub shared: bool,
}

/// What a request allows of an answer that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// `max-age`: no older one.
    pub max_age: Option<Duration>,
}

/// What a request for which an answer was kept had in the headers that the answer depends on; a header that it did not have is None.
#[derive(Debug, PartialEq, Eq)]
pub struct Vary(Box<[(HeaderName, Had)]>);

/// The values of a header; None: it was not there.
type Had = Option<Box<[u8]>>;

impl Vary {
    /// Reads `Vary` of an answer to a request with `asked`. None: no other request is like it, or it names too much.
    #[must_use]
    pub fn of(answer: &HeaderMap, asked: &HeaderMap) -> Option<Self> {
        let mut names: Vec<HeaderName> = Vec::new();
        for value in answer.get_all(header::VARY) {
            for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if !name.is_empty() {
                    names.push(HeaderName::from_bytes(name).ok().filter(|name| name.as_str() != "*")?);
                }
            }
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        let had = |name: HeaderName| {
            let value = joined(asked, &name);
            (name, value)
        };
        (names.len() <= MAX_VARY).then(|| Self(names.into_iter().map(had).collect()))
    }

    /// Whether a request with `headers` is like the one that was answered (RFC 9111 §4.1).
    #[must_use]
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        self.0.iter().all(|(name, value)| joined(headers, name) == *value)
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |(name, value): &(HeaderName, Had)| {
            size_of::<(HeaderName, Had)>()
                + name.as_str().len()
                + value.as_ref().map_or(0, |value| value.len())
        };
        self.0.iter().map(of).sum()
    }

    fn names(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|(named, _)| named == name)
    }
}

/// All values of a header as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Had {
    let mut values = headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii());
    let mut all = values.next()?.to_vec();
    for value in values {
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(all.into())
}

/// Whether a request tells who asks, so that its answer may be for nobody else: by `Authorization` (RFC 9111 §3.5) and, which is stricter, by
/// a cookie or the certificate of a peer, unless the answer is kept for that one only (`vary`).
#[must_use]
pub fn tells_who(asked: &HeaderMap, vary: &Vary) -> bool {
    asked.contains_key(header::AUTHORIZATION)
        || [&header::COOKIE, &CLIENT_CERT].iter().any(|name| asked.contains_key(*name) && !vary.names(name))
}

/// Whether a request may be answered with what is kept, and by which (RFC 9111 §5.2.1). What depends on the state of the origin is for the
/// origin to say (RFC 9110 §13.1).
#[must_use]
pub fn wish(method: &Method, asked: &HeaderMap) -> Option<Wish> {
    let said = Control::read(asked);
    let conditional = [header::IF_MATCH, header::IF_UNMODIFIED_SINCE];
    let may = matches!(*method, Method::GET | Method::HEAD)
        && !(said.no_store || said.no_cache)
        && !conditional.iter().any(|name| asked.contains_key(name));
    may.then_some(Wish { max_age: said.max_age })
}

/// The terms on which the answer to a GET with the headers `asked` is kept; None: not at all. `took` is the time from the request to the
/// head of the answer, and `max_age` the most that the configuration allows.
#[must_use]
pub fn terms(
    asked: &HeaderMap,
    (status, answer): (StatusCode, &HeaderMap),
    vary: &Vary,
    took: Duration,
    max_age: Duration,
) -> Option<Terms> {
    let said = Control::read(answer);
    let shared = said.public || said.s_maxage.is_some() || said.must_revalidate;
    // Trailers cannot be given again, nor the part of a body for the whole. An answer that another proxy made is none of the destination's.
    let never = [&header::SET_COOKIE, &header::TRAILER, &header::CONTENT_RANGE, &REASON_HEADER];
    if status != StatusCode::OK
        || never.iter().any(|name| answer.contains_key(*name))
        || said.no_store
        || said.no_cache
        || said.private
        || Control::read(asked).no_store
        || (tells_who(asked, vary) && !shared)
    {
        return None;
    }
    let limit = usable(&said, answer).map_or(max_age, |limit| limit.min(max_age));
    let age = answer.get(header::AGE).map_or(Duration::ZERO, |value| seconds(value.as_bytes())) + took;
    (age < limit).then_some(Terms { age, limit, shared })
}

/// How old an answer may be by its own word when its origin fails; None: it does not say.
fn usable(said: &Control, answer: &HeaderMap) -> Option<Duration> {
    let fresh = said.s_maxage.or(said.max_age).or_else(|| expires(answer)).unwrap_or_default();
    // RFC 9111 §4.2.4: these say that it must not be used when it is stale.
    if said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some() {
        return Some(fresh);
    }
    // RFC 5861 §4.
    said.stale_if_error.map(|stale| fresh + stale)
}

/// How long an answer is fresh by `Expires` (RFC 9111 §5.3). What cannot be read is in the past.
fn expires(answer: &HeaderMap) -> Option<Duration> {
    let date = |name| httpdate::parse_http_date(answer.get(name)?.to_str().ok()?).ok();
    answer.get(header::EXPIRES)?;
    let both = date(header::EXPIRES).zip(date(header::DATE));
    Some(both.and_then(|(end, start)| end.duration_since(start).ok()).unwrap_or_default())
}

/// Whether a header of an answer is given again. Not what belongs to the connection (RFC 9111 §3.1) or to the one exchange that it came by.
#[must_use]
pub fn is_kept(name: &HeaderName) -> bool {
    let gone = matches!(
        name.as_str(),
        "age"
            | "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "x-request-id"
    );
    let of_a_proxy = |prefix| name.as_str().starts_with(prefix);
    !gone && !of_a_proxy("x-envoy-") && !of_a_proxy("x-remora-")
}

/// The directives of `Cache-Control` that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a directive")]
struct Control {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
    stale_if_error: Option<Duration>,
}

impl Control {
    /// With a field list (`private="x"`, `no-cache="x"`) the whole answer is meant, which is stricter (RFC 9111 §5.2.2.4).
    fn read(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for value in headers.get_all(header::CACHE_CONTROL) {
            for (name, argument) in directives(value.as_bytes()) {
                control.take(&name.to_ascii_lowercase(), argument);
            }
        }
        control
    }

    fn take(&mut self, name: &[u8], argument: &[u8]) {
        // Of several the least counts.
        let least = |known: Option<Duration>| {
            let said = seconds(argument);
            Some(known.map_or(said, |known| known.min(said)))
        };
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache = true,
            b"private" => self.private = true,
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"max-age" => self.max_age = least(self.max_age),
            b"s-maxage" => self.s_maxage = least(self.s_maxage),
            b"stale-if-error" => self.stale_if_error = least(self.stale_if_error),
            _ => {}
        }
    }
}

/// The directives of one line, each with its argument or nothing. A comma within quotes ends none.
fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = line.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' => return !quoted,
            _ => {}
        }
        false
    });
    parts.map(|part| {
        let at = part.iter().position(|byte| *byte == b'=');
        let (name, argument) = at.map_or((part, &[][..]), |at| (&part[..at], &part[at + 1..]));
        (name.trim_ascii(), argument.trim_ascii())
    })
}

/// A delta-seconds, quoted or not. What is none is 0: the answer counts as stale (RFC 9111 §4.2.1).
fn seconds(text: &[u8]) -> Duration {
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Duration::ZERO;
    }
    let digit = |all: u64, byte: &u8| (all * 10 + u64::from(byte - b'0')).min(MAX_SECONDS);
    Duration::from_secs(text.iter().fold(0, digit))
}

#[cfg(test)]
mod tests;
