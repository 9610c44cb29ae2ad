//! Registrations.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::body::{Utf8, json};
use super::failure::Failure;
use crate::registry::instances::Registration;

type Name = Path<(String, String)>;

/// `PUT /remora/v1/namespaces/{namespace}/instances/{name}`.
pub(super) async fn register(
    State(app): State<App>,
    Path((namespace, name)): Name,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let said: Registration =
        serde_json::from_str(&body).map_err(|e| Failure::bad_request(format!("a registration: {e}")))?;
    let terms = app.instances.register(&namespace, &name, &said).await?;
    Ok(json(StatusCode::OK, &json!(terms)))
}

/// `POST …/{name}/renew`.
pub(super) async fn renew(
    State(app): State<App>,
    Path((namespace, name)): Name,
) -> Result<StatusCode, Failure> {
    app.instances.renew(&namespace, &name)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST …/{name}/drain`.
pub(super) async fn drain(
    State(app): State<App>,
    Path((namespace, name)): Name,
) -> Result<StatusCode, Failure> {
    app.instances.drain(&namespace, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE …/{name}`.
pub(super) async fn deregister(
    State(app): State<App>,
    Path((namespace, name)): Name,
) -> Result<StatusCode, Failure> {
    app.instances.deregister(&namespace, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /remora/v1/instances`.
pub(super) async fn list(State(app): State<App>) -> Response {
    let items: Vec<_> = app.instances.list().iter().map(|record| record.to_value(None)).collect();
    json(StatusCode::OK, &json!({ "items": items })).into_response()
}
