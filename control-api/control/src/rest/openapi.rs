//! The OpenAPI 3.1 document, made from the routes.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::body::json;
use super::routes::{Route, routes};

/// `GET /openapi.json`.
pub(super) async fn page() -> Response {
    json(StatusCode::OK, &document())
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in routes() {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Remora control plane",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Mesh documents at the paths of the Kubernetes API, registrations, and the state of proxies.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let path = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
    let query = route.query.iter().map(|name| {
        json!({"name": name, "in": "query", "description": described(name), "schema": {"type": "string"}})
    });
    let parameters: Vec<_> = path.chain(query).collect();
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{} {}", route.method, route.path),
        "parameters": parameters,
        "responses": {
            "2XX": {"description": "Done."},
            "default": {
                "description": "Not done, and why.",
                "content": {"application/json": {"schema": schema("Status")}},
            },
        },
    });
    if let Some(body) = route.body {
        let content = json!({"schema": schema(body)});
        operation["requestBody"] = json!({
            "required": true,
            "content": if body == "Document" {
                json!({"application/json": content, "application/yaml": content})
            } else {
                json!({"application/json": content})
            },
        });
    }
    operation
}

fn described(parameter: &str) -> &'static str {
    match parameter {
        "dryRun" => "`All`: only tell what would happen.",
        "force" => "`true`: also if other documents are no longer right after it.",
        "ignoreNotFound" => "`true`: what is not there is no error.",
        "labelSelector" => "`name=value`, `name!=value`, `name`, `!name`, joined by commas.",
        "fieldSelector" => "`metadata.name` and `metadata.namespace`.",
        "watch" => "`1`: changes as lines of JSON instead of a list.",
        "resourceVersion" => "Of a watch: changes after this version.",
        "allowWatchBookmarks" => "`true`: a watch says from time to time how far it is.",
        "timeoutSeconds" => "The watch ends after this time.",
        _ => "",
    }
}

fn schemas() -> Value {
    let text = json!({"type": "string"});
    let object = json!({"type": "object"});
    json!({
        "Document": {
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {"apiVersion": text, "kind": text, "metadata": object, "spec": object, "status": object},
        },
        "Texts": {
            "type": "object",
            "required": ["files"],
            "properties": {
                "namespace": text,
                "files": {
                    "type": "array",
                    "items": {"type": "object", "required": ["name", "text"], "properties": {"name": text, "text": text}},
                },
            },
        },
        "Token": {
            "type": "object",
            "required": ["namespace", "serviceAccount"],
            "properties": {
                "namespace": text, "serviceAccount": text,
                "ttlSeconds": {"type": "integer", "default": 3600}, "uses": {"type": "integer", "default": 1},
            },
        },
        "Root": {
            "type": "object",
            "required": ["root"],
            "properties": {"root": {"type": "string", "description": "id, or the beginning of it"}},
        },
        "Revocation": {
            "type": "object",
            "properties": {
                "serial": text, "identity": text,
                "reason": {"enum": [
                    "unspecified", "key-compromise", "superseded", "cessation-of-operation", "privilege-withdrawn",
                ]},
            },
        },
        "Registration": {
            "type": "object",
            "required": ["workload"],
            "properties": {
                "labels": {"type": "object", "additionalProperties": text},
                "services": {"type": "array", "items": text},
                "workload": object,
                "ttlMs": {"type": "integer", "minimum": 500, "maximum": 300_000},
            },
        },
        "Status": {
            "type": "object",
            "description": "Kubernetes' Status. `details.mistakes` has file, line, column, field, message and suggestion of each mistake.",
            "required": ["kind", "apiVersion", "status", "message", "reason", "code"],
            "properties": {
                "kind": {"const": "Status"}, "apiVersion": {"const": "v1"}, "status": text, "message": text, "reason": text,
                "code": {"type": "integer"}, "details": object,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = document();
        for route in routes() {
            let operation = &document["paths"][route.path][route.method.to_ascii_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{} {}", route.method, route.path);
            assert!(route.summary.ends_with('.'), "{}", route.summary);
            for name in route.query {
                assert!(!described(name).is_empty(), "{name}");
            }
            if let Some(body) = route.body {
                assert!(document["components"]["schemas"][body].is_object(), "{body}");
            }
        }
    }
}
