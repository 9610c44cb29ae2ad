//! What the control plane knows of itself and of its proxies.

use std::fmt::Write;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::App;
use super::body::{json, text};
use crate::kinds::KINDS;
use crate::registry::Health;
use crate::store::Scope;

/// `GET /healthz`: the process serves.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the store has been read and the authority has begun, so that proxies get what is true. A store that is away later on is no reason to take
/// this control plane away too.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let (code, words) = match app.registry.health() {
        Health::Starting => (StatusCode::SERVICE_UNAVAILABLE, "the store has not been read yet\n".to_owned()),
        _ if app.ca.secret().is_err() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the certificate authority has not begun yet\n".to_owned())
        }
        Health::Following => (StatusCode::OK, "ok\n".to_owned()),
        Health::Away(why) => (StatusCode::OK, format!("ok; serving what was read last: {why}\n")),
    };
    text(code, words, "text/plain; charset=utf-8")
}

/// `GET /status`: the store, and every connected proxy with its sync state.
pub(super) async fn status(State(app): State<App>) -> Response {
    let (state, why) = match app.registry.health() {
        Health::Starting => ("starting", None),
        Health::Following => ("following", None),
        Health::Away(why) => ("away", Some(why)),
    };
    let revision = app.registry.revision();
    let store = json!({
        "address": app.registry.store().describe(), "state": state, "error": why, "revision": revision.to_string(),
    });
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "store": store,
        "documents": app.registry.documents().len(),
        "instances": app.instances.list().len(),
        "proxies": app.board.proxies(),
        "files": app.board.files(),
        "kubernetes": app.board.kubernetes(),
    });
    json(StatusCode::OK, &value)
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let mut page = String::new();
    let mut family = |name: &str, help: &str, kind: &str, values: &[(String, f64)]| {
        // Writing to a String does not fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(page, "{name}{labels} {value}");
        }
    };
    let documents: Vec<_> = KINDS
        .iter()
        .map(|kind| {
            let count = app.registry.list(&Scope::Kind(kind.name.into())).1.len();
            (format!("{{kind=\"{}\"}}", kind.name), count as f64)
        })
        .collect();
    let plain = |value: f64| [(String::new(), value)];
    family("remora_control_documents", "Documents by kind.", "gauge", &documents);
    family(
        "remora_control_instances",
        "Registered instances, at any control plane.",
        "gauge",
        &plain(app.instances.list().len() as f64),
    );
    let following = f64::from(u8::from(app.registry.health() == Health::Following));
    family("remora_control_store_up", "Whether the store answers.", "gauge", &plain(following));
    for (name, help, kind, value) in app.board.metrics() {
        family(name, help, kind, &plain(value));
    }
    let (issued, refused) = app.certificates.counts();
    let total = [("issued", issued), ("refused", refused)]
        .map(|(answer, count)| (format!("{{answer=\"{answer}\"}}"), count as f64));
    family(
        "remora_control_ca_requests_total",
        "Requests for certificates, at this control plane.",
        "counter",
        &total,
    );
    let ends = app.ca.read(|authority| authority.signing().map(|root| root.not_after));
    if let Ok(Ok(ends)) = ends {
        family(
            "remora_control_ca_root_ends_seconds",
            "When the root that signs ends.",
            "gauge",
            &plain(ends as f64),
        );
    }
    text(StatusCode::OK, page, "text/plain; version=0.0.4; charset=utf-8")
}
