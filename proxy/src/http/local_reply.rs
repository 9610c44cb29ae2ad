//! Answers that the proxy makes itself: each carries the id of its reason (DESIGN rule 4), and a gRPC client gets
//! valid gRPC (features.md D4).

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};

use super::body::Body;
use super::head::ResponseHead;
use super::response::Response;
use crate::error::{GrpcCode, Reason};

/// Names the [`Reason`] of an answer that the proxy made.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-remora-reason");

/// The answer for `reason`, with a short explanation as its body.
#[must_use]
pub fn reply(reason: Reason, grpc: bool) -> Response {
    reply_with(reason, reason.status(), Bytes::from_static(text(reason).as_bytes()), grpc)
}

/// What the answer says. Refusals by policy have Envoy's words, which clients and tests know.
#[must_use]
pub const fn text(reason: Reason) -> &'static str {
    match reason {
        Reason::RbacDenied => "RBAC: access denied",
        Reason::JwtMissing => "Jwt is missing",
        Reason::JwtMalformed => {
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
        }
        Reason::JwtUnknownIssuer => "Jwt issuer is not configured",
        Reason::JwtExpired => "Jwt is expired",
        Reason::JwtNotYetValid => "Jwt not yet valid",
        Reason::JwtAudience => "Audiences in Jwt are not allowed",
        Reason::JwtUnknownKey => "Jwks doesn't have key to match kid or alg from Jwt",
        Reason::JwtBadSignature => "Jwt verification fails",
        Reason::JwtKeysUnavailable => "Jwks remote fetch is failed",
        Reason::FaultInjected => "fault filter abort",
        Reason::LocalRateLimited => "local_rate_limited",
        Reason::ConcurrencyLimit => "reached concurrency limit",
        other => other.explain().trim_ascii(),
    }
}

/// An answer with a body of its own (direct responses).
#[must_use]
pub fn reply_with(reason: Reason, status: StatusCode, body: Bytes, grpc: bool) -> Response {
    if grpc {
        return grpc_reply(reason, status, &body);
    }
    let mut head = ResponseHead::new(status);
    if !body.is_empty() {
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    head.headers.insert(REASON_HEADER, HeaderValue::from_static(reason.id()));
    if reason == Reason::MethodNotAllowed {
        head.headers
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"));
    }
    Response { head, body: if body.is_empty() { Body::Empty } else { Body::Full(body) }, upgraded: None }
}

/// Trailers-only: HTTP 200 with the gRPC status in the head (gRPC PROTOCOL-HTTP2, "Responses").
fn grpc_reply(reason: Reason, status: StatusCode, message: &[u8]) -> Response {
    let own = matches!(
        reason,
        Reason::DirectResponse
            | Reason::ExtAuthzDenied
            | Reason::ExtAuthzError
            | Reason::FaultInjected
            | Reason::LocalRateLimited
            | Reason::ConcurrencyLimit
            | Reason::RateLimited
            | Reason::RateLimitError
            | Reason::QuotaExceeded
    );
    let code = match grpc_of(status) {
        _ if !own => reason.grpc(),
        // What a service refuses with a status that says nothing is refused all the same.
        GrpcCode::Unknown if status == StatusCode::OK && !written(reason) => reason.grpc(),
        code => code,
    };
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert("grpc-status", HeaderValue::from(code as u16));
    if !message.is_empty()
        && let Ok(message) = HeaderValue::from_str(&percent_encode(message))
    {
        head.headers.insert("grpc-message", message);
    }
    head.headers.insert(REASON_HEADER, HeaderValue::from_static(reason.id()));
    Response { head, body: Body::Empty, upgraded: None }
}

/// Whether the configuration says the answer's status.
const fn written(reason: Reason) -> bool {
    matches!(reason, Reason::DirectResponse | Reason::FaultInjected)
}

/// The gRPC code of an HTTP status (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
const fn grpc_of(status: StatusCode) -> GrpcCode {
    match status.as_u16() {
        400 => GrpcCode::Internal,
        401 => GrpcCode::Unauthenticated,
        403 => GrpcCode::PermissionDenied,
        404 => GrpcCode::Unimplemented,
        429 | 502 | 503 | 504 => GrpcCode::Unavailable,
        _ => GrpcCode::Unknown,
    }
}

/// `grpc-message` is percent-encoded outside printable ASCII, and `%` itself.
fn percent_encode(message: &[u8]) -> String {
    const UNSAFE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');
    percent_encoding::percent_encode(message, UNSAFE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_an_answer() {
        for reason in Reason::ALL {
            let plain = reply(*reason, false);
            assert_eq!(plain.head.headers[REASON_HEADER], reason.id());
            assert_eq!(plain.head.status, reason.status());
            let grpc = reply(*reason, true);
            assert_eq!(grpc.head.status, StatusCode::OK);
            assert_eq!(grpc.head.headers["grpc-status"], (reason.grpc() as u8).to_string());
        }
    }

    #[test]
    fn a_refusal_by_a_service_is_one_for_clients_of_grpc_whatever_its_http_status() {
        let code = |reason, status| {
            let reply = reply_with(reason, status, Bytes::new(), true);
            reply.head.headers["grpc-status"].to_str().unwrap().to_owned()
        };
        assert_eq!(code(Reason::ExtAuthzDenied, StatusCode::OK), "7");
        assert_eq!(code(Reason::ExtAuthzDenied, StatusCode::UNAUTHORIZED), "16");
        assert_eq!(code(Reason::DirectResponse, StatusCode::OK), "2", "it says nothing in gRPC's terms");
    }
}
