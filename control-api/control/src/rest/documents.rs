//! Documents one by one and as lists, at the paths and with the habits of the Kubernetes API.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::body::{Asked, Caller, Utf8, json};
use super::failure::Failure;
use super::selector::Selector;
use super::watch;
use crate::board::Standing;
use crate::document::{Incoming, Mistake, Record, Text, read};
use crate::kinds::Kind;
use crate::registry::change::{How, Mode, Outcome, Refused, Verb};
use crate::registry::mirror::{KUBERNETES, ORIGIN, origin};
use crate::store::{Key, Scope};

/// Parts of a path.
#[derive(Debug, Deserialize)]
pub(super) struct Parts {
    group: Option<String>,
    version: Option<String>,
    namespace: Option<String>,
    plural: String,
    name: Option<String>,
}

impl Parts {
    fn kind(&self) -> Result<&'static Kind, Failure> {
        let (group, version) = (self.group.as_deref().unwrap_or(""), self.version.as_deref().unwrap_or("v1"));
        Kind::in_path(group, version, &self.plural).ok_or_else(|| {
            let text =
                format!("there are no {} in {group}/{version}; /apis lists what there is", self.plural);
            Failure::new(StatusCode::NOT_FOUND, "NotFound", text)
        })
    }

    fn key(&self) -> Result<Key, Failure> {
        let (namespace, name) = (self.namespace.as_deref(), self.name.as_deref());
        Ok(Key::new(self.kind()?.name, namespace.unwrap_or_default(), name.unwrap_or_default()))
    }

    fn scope(&self) -> Result<Scope, Failure> {
        let kind = self.kind()?.name.to_owned();
        Ok(match &self.namespace {
            Some(namespace) => Scope::Namespace(kind, namespace.clone()),
            None => Scope::Kind(kind),
        })
    }
}

/// Parameters of requests. Others, which kubectl sends, change nothing here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Query {
    dry_run: Option<String>,
    force: Option<String>,
    pub(super) ignore_not_found: Option<String>,
    watch: Option<String>,
    label_selector: Option<String>,
    field_selector: Option<String>,
    resource_version: Option<String>,
    allow_watch_bookmarks: Option<String>,
    timeout_seconds: Option<u64>,
}

/// `true` as clients write it.
pub(super) fn yes(text: Option<&str>) -> bool {
    matches!(text, Some("1" | "true" | ""))
}

impl Query {
    pub(super) fn how(&self, mode: Mode) -> Result<How, Failure> {
        let dry_run = match self.dry_run.as_deref() {
            None | Some("") => false,
            Some("All") => true,
            Some(other) => return Err(Failure::bad_request(format!("dryRun: {other:?} is not All"))),
        };
        Ok(How { mode, dry_run, force: yes(self.force.as_deref()) })
    }
}

/// What clients get of a document.
pub(super) fn shown(standing: &Standing, record: &Record) -> Value {
    record.to_value(Some(standing.of(record)))
}

/// `GET …/{plural}`, and `?watch=1`.
pub(super) async fn list(
    State(app): State<App>,
    Path(parts): Path<Parts>,
    Asked(query): Asked<Query>,
) -> Result<Response, Failure> {
    let (kind, scope) = (parts.kind()?, parts.scope()?);
    let selector = Selector::parse(query.label_selector.as_deref(), query.field_selector.as_deref())
        .map_err(Failure::bad_request)?;
    if yes(query.watch.as_deref()) {
        let from = match query.resource_version.as_deref() {
            None | Some("" | "0") => None,
            Some(text) => {
                let wrong = |_| Failure::bad_request(format!("resourceVersion: {text:?} is no number"));
                Some(text.parse().map_err(wrong)?)
            }
        };
        let asked = watch::Asked {
            kind,
            scope,
            selector,
            from,
            bookmarks: yes(query.allow_watch_bookmarks.as_deref()),
            seconds: query.timeout_seconds,
        };
        return Ok(watch::start(app, asked));
    }
    let (revision, records) = app.registry.list(&scope);
    let standing = app.board.standing();
    let chosen = records.iter().filter(|record| selector.matches(record));
    let items: Vec<_> = chosen.map(|record| shown(&standing, record)).collect();
    let list = json!({
        "apiVersion": kind.api_version(), "kind": format!("{}List", kind.name),
        "metadata": {"resourceVersion": revision.to_string()}, "items": items,
    });
    Ok(json(StatusCode::OK, &list))
}

/// `GET …/{name}` and `GET …/{name}/status`.
pub(super) async fn get(State(app): State<App>, Path(parts): Path<Parts>) -> Result<Response, Failure> {
    let key = parts.key()?;
    let record = app.registry.get(&key).ok_or_else(|| Failure::not_found(&key))?;
    Ok(json(StatusCode::OK, &shown(&app.board.standing(), &record)))
}

/// `POST …/{plural}`.
pub(super) async fn create(
    State(app): State<App>,
    Path(parts): Path<Parts>,
    Asked(query): Asked<Query>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    write(&app, &parts, query.how(Mode::Create)?, &caller, body).await
}

/// `PUT …/{name}`.
pub(super) async fn replace(
    State(app): State<App>,
    Path(parts): Path<Parts>,
    Asked(query): Asked<Query>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    write(&app, &parts, query.how(Mode::Replace)?, &caller, body).await
}

/// `PATCH …/{name}`: a whole document (server-side apply) or a JSON merge patch (RFC 7396).
pub(super) async fn patch(
    State(app): State<App>,
    Path(parts): Path<Parts>,
    Asked(query): Asked<Query>,
    caller: Caller,
    headers: HeaderMap,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // `force` of a PATCH takes fields from their owners (kubectl apply --force-conflicts). There are none here, and to break other
    // documents is something else.
    let how = |mode| Ok::<_, Failure>(How { force: false, ..query.how(mode)? });
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/apply-patch+yaml" => write(&app, &parts, how(Mode::Apply)?, &caller, body).await,
        "application/merge-patch+json" => {
            let patch: Value =
                serde_json::from_str(&body).map_err(|e| Failure::bad_request(e.to_string()))?;
            let key = parts.key()?;
            let record = app.registry.get(&key).ok_or_else(|| Failure::not_found(&key))?;
            let mut merged = record.to_value(None);
            // The patch is of this version, or of the one that it names.
            merge(&mut merged, patch);
            write(&app, &parts, how(Mode::Replace)?, &caller, merged.to_string()).await
        }
        other => {
            let text = format!(
                "{other:?} is not supported; it may be application/apply-patch+yaml (kubectl apply --server-side) or \
                 application/merge-patch+json (kubectl patch --type=merge)"
            );
            Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", text))
        }
    }
}

/// RFC 7396 §2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

async fn write(
    app: &App,
    parts: &Parts,
    how: How,
    caller: &Caller,
    text: String,
) -> Result<Response, Failure> {
    let document = one(app, parts, text)?;
    let outcomes = app.registry.write(std::slice::from_ref(&document), how).await;
    let outcomes = audited(app, caller, how, outcomes).await?;
    let Some(Outcome { verb, record: Some(record), .. }) = outcomes.first() else {
        return Err(Failure::not_found(&document.key));
    };
    let code = if *verb == Verb::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(code, &shown(&app.board.standing(), record)))
}

/// The one document of a body, which must be the one of the path.
fn one(app: &App, parts: &Parts, text: String) -> Result<Incoming, Failure> {
    let (kind, namespace) = (parts.kind()?, parts.namespace.as_deref().unwrap_or("default"));
    let texts = [Text { name: "body".into(), text }];
    let documents = read(&texts, namespace).map_err(|mistakes| Failure::invalid(&mistakes))?;
    let mut documents = without_origin(app, documents)?;
    let (Some(document), true) = (documents.pop(), documents.is_empty()) else {
        return Err(Failure::bad_request("the body must be one document; several go to /remora/v1/apply"));
    };
    let named = parts.name.as_deref().is_none_or(|name| name == &*document.key.name);
    if document.kind != kind || *document.key.namespace != *namespace || !named {
        return Err(Failure::bad_request(format!("the body is {}, which is not at this path", document.key)));
    }
    Ok(document)
}

/// Documents that come by REST do not say where they come from: sources say that of theirs. One that was got from here and comes back
/// says what it said; when it was of Kubernetes, and no control plane reads there any more, it is its author's now.
pub(super) fn without_origin(app: &App, mut documents: Vec<Incoming>) -> Result<Vec<Incoming>, Failure> {
    let mut mistakes = Vec::new();
    for document in &mut documents {
        let Some(said) = document.annotation(ORIGIN) else { continue };
        let there = app.registry.get(&document.key);
        let known = there.as_ref().and_then(|there| origin(there)).is_some_and(|known| known == said);
        if !known {
            let text = format!(
                "{ORIGIN} is written by the control plane, of what it takes from files or Kubernetes"
            );
            let field = format!("metadata.annotations.{ORIGIN}");
            mistakes.push(Mistake { suggestion: Some("remove it".into()), ..document.refused(&field, text) });
        } else if said == KUBERNETES {
            document.annotate(ORIGIN, None);
        }
    }
    if mistakes.is_empty() { Ok(documents) } else { Err(Failure::invalid(&mistakes)) }
}

/// Writes down who changed what, also when not all of it was done.
pub(super) async fn audited(
    app: &App,
    caller: &Caller,
    how: How,
    outcomes: Result<Vec<Outcome>, Refused>,
) -> Result<Vec<Outcome>, Failure> {
    if let Ok(done) | Err(Refused::Partly(done, _)) = &outcomes
        && !how.dry_run
    {
        app.audit.write(caller.address, &caller.name, done).await;
    }
    Ok(outcomes?)
}

/// What `DELETE` may say in its body (`DeleteOptions`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    preconditions: Preconditions,
    dry_run: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    resource_version: Option<String>,
    uid: Option<String>,
}

/// `DELETE …/{name}`.
pub(super) async fn delete(
    State(app): State<App>,
    Path(parts): Path<Parts>,
    Asked(query): Asked<Query>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let key = parts.key()?;
    let options: DeleteOptions = if body.trim().is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_str(&body).map_err(|e| Failure::bad_request(format!("DeleteOptions: {e}")))?
    };
    let mut how = query.how(Mode::Apply)?;
    how.dry_run |= options.dry_run.iter().any(|what| what == "All");
    let expected = options.preconditions.resource_version.as_deref().map(str::parse).transpose();
    let mut expected =
        expected.map_err(|_| Failure::bad_request("preconditions.resourceVersion is no number"))?;
    if let Some(uid) = &options.preconditions.uid {
        let record = app.registry.get(&key).ok_or_else(|| Failure::not_found(&key))?;
        if record.metadata().get("uid").and_then(Value::as_str) != Some(uid) {
            let text = format!("{key} is another one than that with the uid {uid}");
            return Err(Failure::new(StatusCode::CONFLICT, "Conflict", text));
        }
        expected = expected.or(Some(record.revision));
    }
    let outcomes = app.registry.remove(std::slice::from_ref(&key), expected, how).await;
    audited(&app, &caller, how, outcomes).await?;
    let details = json!({"name": *key.name, "kind": *key.kind, "namespace": *key.namespace});
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(json(StatusCode::OK, &status).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7396, appendix A.
    #[test]
    fn a_merge_patch_does_what_its_rfc_says() {
        for (target, patch, expected) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let mut value: Value = serde_json::from_str(target).unwrap();
            merge(&mut value, serde_json::from_str(patch).unwrap());
            assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap(), "{target} {patch}");
        }
    }
}
