//! `http_service`: the question is the request's own head, the answer a status and headers.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;

use super::answer::{Action, Answer, Changes, Denial, HeaderChange, Invalid, is_changeable};
use super::{PARTIAL_BODY, Question, Told};
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};
use crate::route::header::ValueTemplate;
use crate::route::text::StringMatch;

/// Names headers that are to be removed from the request, in an answer that allows it.
static HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// A compiled `http_service`.
#[derive(Debug)]
pub struct WebService {
    /// `path_prefix`.
    pub path_prefix: Box<str>,
    /// `authorization_request.headers_to_add`.
    pub headers_to_add: Box<[(HeaderName, ValueTemplate)]>,
    /// `allowed_upstream_headers`: of an answer that allows, these replace those of the request; of several lines the last one does.
    pub upstream: Box<[StringMatch]>,
    /// `allowed_upstream_headers_to_append`.
    pub upstream_append: Box<[StringMatch]>,
    /// `allowed_client_headers` of a denial; empty lets every header pass.
    pub client: Box<[StringMatch]>,
    /// `allowed_client_headers_on_success`.
    pub client_on_success: Box<[StringMatch]>,
}

fn matches(list: &[StringMatch], name: &HeaderName) -> bool {
    list.iter().any(|matcher| matcher.is_match(name.as_str().as_bytes()))
}

/// The head of the check. None: the request cannot be asked about in this way, because it has no path (a CONNECT to the service
/// would be a tunnel to it), or one that does not fit behind the prefix.
#[must_use]
pub fn head(
    service: &WebService,
    timeout: Duration,
    question: &Question<'_>,
    told: &Told,
) -> Option<RequestHead> {
    let path = format!("{}{}", service.path_prefix, question.path()?);
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?;
    let mut headers = HeaderMap::new();
    for name in question.head.headers.keys() {
        // Without a list only credentials are told.
        let listed = told.allowed.is_some() && told.allows(name.as_str());
        let usual = name == header::AUTHORIZATION && !matches(&told.disallowed, name);
        if (listed || usual) && is_changeable(name) {
            headers.extend(question.head.headers.get_all(name).iter().map(|v| (name.clone(), v.clone())));
        }
    }
    if let Some(partial) = question.partial() {
        headers.insert(&PARTIAL_BODY, HeaderValue::from_static(partial));
    }
    let length = question.body.map_or(0, |piece| piece.bytes.len());
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    // It comes from inside, and says how long there is, as every request of Envoy itself.
    headers.insert("x-envoy-internal", HeaderValue::from_static("true"));
    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    headers.insert("x-envoy-expected-rq-timeout-ms", HeaderValue::from(millis));
    let RequestHead { method, scheme, authority, version, .. } = question.head;
    Some(RequestHead {
        method: method.clone(),
        scheme: scheme.clone(),
        authority: authority.clone(),
        path,
        version: *version,
        headers,
        case: HeaderCase::default(),
    })
}

/// Whether the body of an answer is of use.
#[must_use]
pub fn is_denial(status: StatusCode) -> bool {
    status != StatusCode::OK && !status.is_server_error()
}

/// What the answer `head` means; `body` is that of a denial.
///
/// # Errors
/// Why it means nothing.
pub fn answer(
    service: &WebService,
    head: &ResponseHead,
    body: Bytes,
    limit: usize,
) -> Result<Answer, Invalid> {
    if head.status.is_server_error() {
        return Err(Invalid::HttpStatus);
    }
    if head.status == StatusCode::OK {
        return changes(service, &head.headers).map(|changes| Answer::Allowed(Box::new(changes)));
    }
    const USUAL: [HeaderName; 3] = [header::WWW_AUTHENTICATE, header::PROXY_AUTHENTICATE, header::LOCATION];
    let passes = |name: &HeaderName| {
        service.client.is_empty() || USUAL.contains(name) || matches(&service.client, name)
    };
    let headers = head.headers.iter().filter(|(name, _)| passes(name));
    let headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(Answer::Denied(Box::new(Denial::new(head.status.as_u16(), headers, body, limit))))
}

/// The file says which headers are taken; those that an answer may not change are not among them.
fn changes(service: &WebService, headers: &HeaderMap) -> Result<Changes, Invalid> {
    let mut changes = Changes::default();
    for (name, value) in headers.iter().filter(|(name, _)| is_changeable(name)) {
        let change = |action| HeaderChange { name: name.clone(), value: value.clone(), action };
        if matches(&service.upstream, name) {
            changes.request.push(change(Action::Overwrite));
        }
        if matches(&service.upstream_append, name) {
            changes.request.push(change(Action::Add));
        }
        if matches(&service.client_on_success, name) {
            changes.response.push(change(Action::Add));
        }
    }
    let removed = headers.get_all(&HEADERS_TO_REMOVE).iter().filter_map(|line| line.to_str().ok());
    let removed = removed.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok());
    changes.remove.extend(removed.filter(is_changeable));
    changes.check()
}
