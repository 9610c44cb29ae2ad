//! Answers that are no success, in the shape of Kubernetes' `Status`.

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::ca;
use crate::document::Mistake;
use crate::registry::change::Refused;
use crate::registry::instances;
use crate::store::{Key, StoreError};

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

impl Failure {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn not_found(key: &Key) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{key} does not exist")).about(key)
    }

    pub(super) fn gone() -> Self {
        Self::new(
            StatusCode::GONE,
            "Expired",
            "the changes since this resourceVersion are no longer kept: list again",
        )
    }

    /// Documents with mistakes; each has its file, line, field and, where it is known, what to write instead.
    pub(super) fn invalid(mistakes: &[Mistake]) -> Self {
        let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        let causes: Vec<_> = mistakes
            .iter()
            .map(|mistake| {
                let fix = mistake.suggestion.as_ref().map(|fix| format!(" ({fix})")).unwrap_or_default();
                json!({"reason": "FieldValueInvalid", "field": mistake.field, "message": format!("{}{fix}", mistake.message)})
            })
            .collect();
        Self {
            details: Some(json!({"causes": causes, "mistakes": mistakes})),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", lines.join("\n"))
        }
    }

    fn about(mut self, key: &Key) -> Self {
        self.details = Some(json!({"kind": *key.kind, "name": *key.name, "namespace": *key.namespace}));
        self
    }

    /// As the object of a watch event.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = super::body::json(self.code, &self.status());
        if self.code == StatusCode::SERVICE_UNAVAILABLE || self.code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "Conflict", message),
            StoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
            }
            StoreError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message),
            StoreError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "StoreFull", message),
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message),
        }
    }
}

impl From<ca::Refused> for Failure {
    fn from(refused: ca::Refused) -> Self {
        use tonic::Code;
        let code = match refused.code() {
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        match refused {
            ca::Refused::Store(error) => error.into(),
            other => Self::new(code, other.id(), other.to_string()),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(mistakes) => Self::invalid(&mistakes),
            Refused::Breaks(others) => Self {
                details: Some(
                    json!({ "causes": others.iter().map(|text| json!({"message": text})).collect::<Vec<_>>() }),
                ),
                ..Self::new(
                    StatusCode::CONFLICT,
                    "Conflict",
                    format!(
                        "other documents would no longer be right (change all of them at once, or ?force=true):\n{}",
                        others.join("\n")
                    ),
                )
            },
            Refused::Conflict { key, expected, found } => {
                let found =
                    found.map_or_else(|| "it is not there".into(), |found| format!("it is at {found}"));
                let text =
                    format!("{key} was changed by somebody else: expected version {expected}, {found}");
                Self::new(StatusCode::CONFLICT, "Conflict", text).about(&key)
            }
            Refused::NotFound(key) => Self::not_found(&key),
            Refused::Exists(key) => {
                Self::new(StatusCode::CONFLICT, "AlreadyExists", format!("{key} exists already")).about(&key)
            }
            Refused::Mirrored(key) => {
                let text = format!("{key} is from Kubernetes: change it there (kubectl)");
                Self::new(StatusCode::FORBIDDEN, "Forbidden", text).about(&key)
            }
            Refused::Store(error) => error.into(),
            Refused::Partly(done, because) => {
                let because = Self::from(*because);
                let names: Vec<_> = done.iter().map(|outcome| outcome.key.to_string()).collect();
                let text = format!("{} documents were changed, the others were not: ", names.len());
                Self {
                    message: text + &because.message,
                    details: Some(json!({ "changed": names })),
                    ..because
                }
            }
        }
    }
}

impl From<instances::Refused> for Failure {
    fn from(refused: instances::Refused) -> Self {
        let message = refused.to_string();
        match refused {
            instances::Refused::Invalid(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message),
            instances::Refused::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "NotFound", message),
            instances::Refused::Documented(_) => Self::new(StatusCode::CONFLICT, "AlreadyExists", message),
            instances::Refused::Mirrored(_) => Self::new(StatusCode::FORBIDDEN, "Forbidden", message),
            instances::Refused::Full => Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message),
            instances::Refused::Store(error) => error.into(),
        }
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Failure {
    let text = format!("there is nothing at {}; /openapi.json lists what there is", uri.path());
    Failure::new(StatusCode::NOT_FOUND, "NotFound", text)
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let text = format!("{method} is not possible at {}", uri.path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text)
}
