//! Join tokens.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::App;
use super::body::{Caller, Utf8, json};
use super::failure::Failure;
use crate::ca::keeper::NAMESPACE;
use crate::ca::tokens::{KIND, Listed, Terms};
use crate::registry::change::{Outcome, Verb};
use crate::store::Key;

/// `GET /remora/v1/tokens`.
pub(super) async fn list(State(app): State<App>) -> Response {
    json(StatusCode::OK, &json!({"items": app.tokens.list()}))
}

/// `POST /remora/v1/tokens`: the answer has the text of the token, which nothing else will ever show.
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let terms: Terms = serde_json::from_str(&body)
        .map_err(|e| Failure::bad_request(format!("the terms of a token: {e}")))?;
    let (text, listed) = app.tokens.create(&terms).await?;
    let Listed { id, identity, expires, uses } = &listed;
    let diff = format!("+identity {identity}\n+uses {uses}\n+expires {expires}\n");
    audited(&app, &caller, id, Verb::Created, diff).await;
    let mut answer = json!(listed);
    answer["token"] = text.into();
    Ok(json(StatusCode::CREATED, &answer))
}

/// `DELETE /remora/v1/tokens/{id}`.
pub(super) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
    caller: Caller,
) -> Result<StatusCode, Failure> {
    if !app.tokens.delete(&id).await? {
        return Err(Failure::not_found(&Key::new(KIND, NAMESPACE, &id)));
    }
    audited(&app, &caller, &id, Verb::Deleted, String::new()).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn audited(app: &App, caller: &Caller, id: &str, verb: Verb, diff: String) {
    let outcome = Outcome { key: Key::new(KIND, NAMESPACE, id), verb, diff, record: None };
    app.audit.write(caller.address, &caller.name, &[outcome]).await;
}
