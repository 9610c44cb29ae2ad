//! Many documents at once: checked together, and written together.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::body::{Asked, Caller, Utf8, json};
use super::documents::{Query, audited, without_origin, yes};
use super::failure::Failure;
use crate::document::{Text, read};
use crate::registry::change::{self, How, Mode, Verb};
use crate::store::Key;

/// Texts with documents.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Where documents are that name no namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// The texts.
    pub files: Vec<Text>,
}

/// What became of a document.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// `HTTPRoute`.
    pub kind: String,
    /// `default`.
    pub namespace: String,
    /// `checkout`.
    pub name: String,
    /// What happened, or would.
    pub result: Verb,
    /// A unified diff.
    pub diff: String,
}

/// What became of all of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// In the order of the texts.
    pub results: Vec<Outcome>,
}

fn default_namespace() -> String {
    "default".into()
}

fn answer(outcomes: &[change::Outcome]) -> Response {
    let result = |outcome: &change::Outcome| Outcome {
        kind: outcome.key.kind.to_string(),
        namespace: outcome.key.namespace.to_string(),
        name: outcome.key.name.to_string(),
        result: outcome.verb,
        diff: outcome.diff.clone(),
    };
    let results = Results { results: outcomes.iter().map(result).collect() };
    json(StatusCode::OK, &json!(results))
}

fn texts(body: &str) -> Result<Texts, Failure> {
    serde_json::from_str(body).map_err(|e| {
        Failure::bad_request(format!("the body must be {{\"files\": [{{\"name\": …, \"text\": …}}]}}: {e}"))
    })
}

/// `POST /remora/v1/apply`.
pub(super) async fn apply(
    State(app): State<App>,
    Asked(query): Asked<Query>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let texts = texts(&body)?;
    let documents = read(&texts.files, &texts.namespace).map_err(|mistakes| Failure::invalid(&mistakes))?;
    let documents = without_origin(&app, documents)?;
    let how = query.how(Mode::Apply)?;
    let outcomes = app.registry.write(&documents, how).await;
    let outcomes = audited(&app, &caller, how, outcomes).await?;
    Ok(answer(&outcomes))
}

/// `POST /remora/v1/delete`: the documents that the texts name, whatever else they say.
pub(super) async fn delete(
    State(app): State<App>,
    Asked(query): Asked<Query>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let texts = texts(&body)?;
    let documents = read(&texts.files, &texts.namespace).map_err(|mistakes| Failure::invalid(&mistakes))?;
    let mut keys: Vec<Key> = documents.into_iter().map(|document| document.key).collect();
    if yes(query.ignore_not_found.as_deref()) {
        keys.retain(|key| app.registry.get(key).is_some());
    }
    let how = query.how(Mode::Apply)?;
    let outcomes = app.registry.remove(&keys, None, how).await;
    let outcomes = audited(&app, &caller, how, outcomes).await?;
    Ok(answer(&outcomes))
}

/// `POST /remora/v1/check`: what is wrong with the texts, together with everything that is there; nothing is written.
pub(super) async fn check(State(app): State<App>, Utf8(body): Utf8) -> Result<Response, Failure> {
    let texts = texts(&body)?;
    let documents = read(&texts.files, &texts.namespace).map_err(|mistakes| Failure::invalid(&mistakes))?;
    let documents = without_origin(&app, documents)?;
    let how = How { mode: Mode::Apply, dry_run: true, force: false };
    let outcomes = app.registry.write(&documents, how).await?;
    let value: Value = json!({"documents": outcomes.len()});
    Ok(json(StatusCode::OK, &value))
}
