//! HTTP/2 heads to ours and back. The h2 crate checks frames and pseudo-headers; what it leaves to its user
//! (reliability.md §2.5) is refused here.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Version};

use crate::config::spec::{HttpSpec, Underscores};
use crate::error::Reason;
use crate::http::authority;
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};
use crate::http::path::{self, Canonical, PathRules};

/// No request may have more headers than this, whatever the configuration says: a `HeaderMap` holds 24,576 names, ours among them.
const MAX_HEADERS: usize = 8192;

/// How a malformed request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// With RST_STREAM(PROTOCOL_ERROR): malformed by RFC 9113 §8.1.1.
    Reset(Reason),
    /// With an answer.
    Reply(Reason),
}

/// A request as the pipeline takes it.
#[derive(Debug)]
pub struct Converted {
    /// The head, in canonical form.
    pub head: RequestHead,
    /// The client is to be redirected to the canonical path.
    pub redirect: bool,
    /// `:protocol` of an extended CONNECT.
    pub upgrade: Option<HeaderValue>,
}

/// A request head in canonical form, and whether the client is to be redirected to its canonical path.
///
/// # Errors
/// How to refuse it.
pub fn request(parts: http::request::Parts, http: &HttpSpec, secure: bool) -> Result<Converted, Refused> {
    let http::request::Parts { mut method, uri, mut headers, extensions, .. } = parts;
    if headers.len() > http.max_header_count.min(MAX_HEADERS) {
        return Err(Refused::Reply(Reason::HeadersTooLarge));
    }
    let upgrade = extensions.get::<h2::ext::Protocol>().map(|p| HeaderValue::from_str(p.as_str()));
    let upgrade = upgrade.transpose().map_err(|_| Refused::Reset(Reason::BadHeader))?;
    if let Some(protocol) = &upgrade {
        // RFC 8441 §5: what HTTP/1 says with GET and Upgrade.
        method = Method::GET;
        add_websocket_key(protocol, &mut headers);
    }
    if headers.values().any(has_outer_space) {
        return Err(Refused::Reset(Reason::BadHeader));
    }
    if method == Method::TRACE {
        return Err(Refused::Reply(Reason::MethodNotAllowed));
    }
    underscores(&mut headers, http.underscores)?;
    let uri = uri.into_parts();
    let authority = one_authority(uri.authority, &mut headers)?;
    let (path, redirect) = if method == Method::CONNECT {
        if authority.is_none() {
            return Err(Refused::Reset(Reason::MissingHost));
        }
        (PathAndQuery::from_static("/"), false)
    } else {
        if authority.is_none() {
            return Err(Refused::Reply(Reason::MissingHost));
        }
        canonical_path(&method, uri.path_and_query, http)?
    };
    join_cookies(&mut headers);
    let scheme = if secure { Scheme::HTTPS } else { Scheme::HTTP };
    let head = RequestHead {
        method,
        scheme,
        authority,
        path,
        version: Version::HTTP_2,
        headers,
        case: HeaderCase::default(),
    };
    Ok(Converted { head, redirect, upgrade })
}

/// RFC 8441 §5.1 drops the key; a server that speaks HTTP/1 behind us insists on one (RFC 6455 §4.1).
fn add_websocket_key(protocol: &HeaderValue, headers: &mut HeaderMap) {
    if protocol == "websocket" && !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("cmVtb3JhLW92ZXItaDItMA=="));
    }
}

/// RFC 9113 §8.2.1: a value must not start or end with white space.
fn has_outer_space(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    matches!(bytes.first(), Some(b' ' | b'\t')) || matches!(bytes.last(), Some(b' ' | b'\t'))
}

fn underscores(headers: &mut HeaderMap, action: Underscores) -> Result<(), Refused> {
    if action == Underscores::Allow || !headers.keys().any(|n| n.as_str().contains('_')) {
        return Ok(());
    }
    if action == Underscores::Reject {
        return Err(Refused::Reply(Reason::BadHeader));
    }
    let names: Vec<_> = headers.keys().filter(|n| n.as_str().contains('_')).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    Ok(())
}

/// RFC 9113 §8.3.1: `:authority`, or `host` when it is absent; when both are there they must agree.
fn one_authority(pseudo: Option<Authority>, headers: &mut HeaderMap) -> Result<Option<Authority>, Refused> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(Refused::Reset(Reason::BadHost));
    }
    headers.remove(header::HOST);
    let bad = |_| Refused::Reply(Reason::BadHost);
    match (pseudo, host) {
        (Some(pseudo), host) => {
            let differs =
                host.is_some_and(|h| !h.as_bytes().eq_ignore_ascii_case(pseudo.as_str().as_bytes()));
            if differs {
                return Err(Refused::Reset(Reason::HostMismatch));
            }
            authority::check(pseudo.as_str().as_bytes()).map_err(bad)?;
            Ok(Some(pseudo))
        }
        (None, Some(host)) => {
            authority::parse(Bytes::copy_from_slice(host.as_bytes())).map(Some).map_err(bad)
        }
        (None, None) => Ok(None),
    }
}

fn canonical_path(
    method: &Method,
    path: Option<PathAndQuery>,
    http: &HttpSpec,
) -> Result<(PathAndQuery, bool), Refused> {
    let path = path.ok_or(Refused::Reply(Reason::BadPath))?;
    if path.as_str() == "*" && method == Method::OPTIONS {
        return Ok((path, false));
    }
    let rules = PathRules {
        normalize: http.normalize_path,
        merge_slashes: http.merge_slashes,
        escaped_slashes: http.escaped_slashes,
    };
    if path::is_canonical(path.as_str().as_bytes()) {
        return Ok((path, false));
    }
    match path::canonicalize(Bytes::copy_from_slice(path.as_str().as_bytes()), rules) {
        Ok(Canonical::Path(path)) => Ok((path, false)),
        Ok(Canonical::Redirect(path)) => Ok((path, true)),
        Err(reason) => Err(Refused::Reply(reason)),
    }
}

/// RFC 9113 §8.2.3: crumbs are joined before they meet anything that expects one Cookie line.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs = headers.get_all(header::COOKIE).iter().count();
    if crumbs < 2 {
        return;
    }
    let joined = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(header::COOKIE, value);
    }
}

/// A response head as the h2 crate sends it.
#[must_use]
pub fn response(head: ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    // RFC 8441 §5: what HTTP/1 says with 101.
    let switched = head.status == http::StatusCode::SWITCHING_PROTOCOLS;
    *response.status_mut() = if switched { http::StatusCode::OK } else { head.status };
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = head.headers;
    response
}
