//! Bodies of requests and answers.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::Failure;

/// Largest body of a request: many documents at once.
pub(super) const MAX_BODY: usize = 16 << 20;

/// For all of it.
const ARRIVES_IN: Duration = Duration::from_secs(30);

/// An answer of JSON.
pub(super) fn json(code: StatusCode, value: &Value) -> Response {
    let mut text = value.to_string();
    text.push('\n');
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (code, kind, text).into_response()
}

/// An answer of text.
pub(super) fn text(code: StatusCode, text: String, kind: &'static str) -> Response {
    (code, [(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response()
}

/// The body of a request: a text in UTF-8 of a bounded size.
#[derive(Debug)]
pub(super) struct Utf8(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Utf8 {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request.into_body()).await?;
        let text = String::from_utf8(bytes.into());
        text.map(Self).map_err(|_| Failure::bad_request("the body is not UTF-8"))
    }
}

async fn read(body: Body) -> Result<Bytes, Failure> {
    let arrived = tokio::time::timeout(ARRIVES_IN, axum::body::to_bytes(body, MAX_BODY)).await;
    let late = |_| Failure::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the body takes too long");
    arrived.map_err(late)?.map_err(|error| {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(cause) = source {
            if cause.is::<http_body_util::LengthLimitError>() {
                let text = format!("a body has at most {MAX_BODY} bytes");
                return Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", text);
            }
            source = cause.source();
        }
        Failure::bad_request("the body did not arrive")
    })
}

/// The query of a request.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(Failure::bad_request(error.body_text())),
        }
    }
}

/// Who asks, as far as that is known: the address, and the name that the client gives itself.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) address: Option<SocketAddr>,
    pub(super) name: String,
}

/// The name that a client gives itself.
pub(super) const ACTOR: &str = "x-remora-actor";

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let address = parts.extensions.get::<SocketAddr>().copied();
        let header = |headers: &HeaderMap, name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            Some(value.chars().take(200).collect::<String>())
        };
        let name = header(&parts.headers, ACTOR).or_else(|| header(&parts.headers, "user-agent"));
        Ok(Self { address, name: name.unwrap_or_default() })
    }
}
