//! Known attacks that cross layers, against the proxy as a process: what is authorised is what is routed and forwarded.
//! docs/reference/security-tests.md lists them, with those that are tested elsewhere.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod headers;
mod paths;
mod peers;
mod tokens;

use remora_tests::config::Listener;
use serde_json::{Value, json};

/// The filter `envoy.filters.http.rbac` with one policy for everybody, or for these principals.
fn rbac(action: &str, permission: Value, principal: Value) -> Value {
    json!({ "name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": { "action": action, "policies": { "only": {
            "permissions": [permission], "principals": [principal],
        } } },
    } })
}

/// Every request, or everybody.
fn any() -> Value {
    json!({ "any": true })
}

/// Requests under this path.
fn under(prefix: &str) -> Value {
    json!({ "url_path": { "path": { "prefix": prefix } } })
}

/// Requests with this header.
fn header(name: &str, value: &str) -> Value {
    json!({ "header": { "name": name, "string_match": { "exact": value } } })
}

/// A listener that judges by `filter`, without routes.
fn judged(name: &str, filter: Value) -> Listener {
    let router = json!({ "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } });
    Listener::http(name).manager(json!({ "http_filters": [filter, router] }))
}
