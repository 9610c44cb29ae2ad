//! Which kinds there are, as the Kubernetes API tells it: `kubectl --server http://127.0.0.1:15014 get httproutes` finds its way.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::body::json;
use super::failure::Failure;
use crate::kinds::{KINDS, Kind};

const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];

/// `GET /version`.
pub(super) async fn version() -> Response {
    // What kubectl looks at is the minor version; the fields are those of the API that these paths have.
    let version = env!("CARGO_PKG_VERSION");
    json(
        StatusCode::OK,
        &json!({"major": "1", "minor": "32", "gitVersion": format!("v1.32.0+remora-{version}")}),
    )
}

/// `GET /api`.
pub(super) async fn core_versions() -> Response {
    json(
        StatusCode::OK,
        &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
    )
}

/// `GET /apis`.
pub(super) async fn groups() -> Response {
    let mut groups: Vec<Value> = Vec::new();
    for kind in KINDS.iter().filter(|kind| !kind.group.is_empty()) {
        let version = json!({"groupVersion": kind.api_version(), "version": kind.version});
        if groups.iter().all(|group| group["name"] != kind.group) {
            groups.push(json!({"name": kind.group, "versions": [version], "preferredVersion": version}));
        }
    }
    json(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

/// `GET /api/v1`.
pub(super) async fn core_kinds() -> Response {
    kinds("", "v1")
}

/// `GET /apis/{group}/{version}`.
pub(super) async fn group_kinds(Path((group, version)): Path<(String, String)>) -> Result<Response, Failure> {
    if KINDS.iter().any(|kind| kind.group == group && kind.version == version) {
        return Ok(kinds(&group, &version));
    }
    Err(Failure::new(
        StatusCode::NOT_FOUND,
        "NotFound",
        format!("there is no {group}/{version}; /apis lists what there is"),
    ))
}

fn kinds(group: &str, version: &str) -> Response {
    let resource = |kind: &Kind| {
        json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": true, "kind": kind.name,
            "verbs": VERBS, "shortNames": kind.short,
        })
    };
    let resources: Vec<_> =
        KINDS.iter().filter(|kind| kind.group == group && kind.version == version).map(resource).collect();
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list =
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources});
    json(StatusCode::OK, &list)
}
