//! The webhook's question and answer: `AdmissionReview` of `admission.k8s.io/v1`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::shape::Report;
use super::{Settings, diff, object};

const VERSION: &str = "admission.k8s.io/v1";

/// The answer to an `AdmissionReview`. `opted_in`: the namespace of the pod asks for sidecars.
///
/// A pod that cannot be injected is denied, with what to do: one that came up without its sidecar would be outside the mesh unseen. What
/// is no pod that is being created is allowed as it is.
#[must_use]
pub fn review(review: &Value, settings: &Settings, opted_in: bool) -> Value {
    let request = &review["request"];
    let (kind, version) = (&review["kind"], &review["apiVersion"]);
    if kind != "AdmissionReview" || version != VERSION {
        let message = format!(
            "kind {kind} of apiVersion {version} is not supported: this webhook speaks {VERSION} (set admissionReviewVersions: [v1])"
        );
        return answer(request, denied(400, &message));
    }
    if request["uid"].as_str().is_none_or(str::is_empty)
        || !request["object"].is_object() && request["operation"] == "CREATE"
    {
        return answer(request, denied(400, "the request has no uid or no object"));
    }
    let asked = &request["kind"];
    let is_pod = asked["group"].as_str().unwrap_or_default().is_empty() && asked["kind"] == "Pod";
    let sub = request["subResource"].as_str().unwrap_or_default();
    if !is_pod || !sub.is_empty() || request["operation"] != "CREATE" {
        return answer(request, allowed());
    }
    let settings = Settings { by_default: opted_in, ..settings.clone() };
    let old = &request["object"];
    // A pod of a Deployment has no namespace of its own when it is asked about, and a request always has one.
    let mut known = old.clone();
    known["apiVersion"] = "v1".into();
    known["kind"] = "Pod".into();
    if known["metadata"].is_object() && known["metadata"]["namespace"].is_null() {
        known["metadata"]["namespace"] = request["namespace"].clone();
    }
    match object(&known, &settings) {
        Err(failure) => answer(request, denied(400, &failure.to_string())),
        Ok(Report { object: None, .. }) => answer(request, allowed()),
        Ok(Report { object: Some(new), notes, .. }) => {
            let mut response = allowed();
            response["patchType"] = "JSONPatch".into();
            response["patch"] =
                STANDARD.encode(Value::Array(diff(old, &as_sent(new, old))).to_string()).into();
            if !notes.is_empty() {
                response["warnings"] = notes.into();
            }
            answer(request, response)
        }
    }
}

/// Without what was added to know the pod by.
fn as_sent(mut new: Value, old: &Value) -> Value {
    if let Some(new) = new.as_object_mut() {
        for field in ["apiVersion", "kind"] {
            match old.get(field) {
                Some(value) => new.insert(field.into(), value.clone()),
                None => new.shift_remove(field),
            };
        }
        if old["metadata"].get("namespace").is_none()
            && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.shift_remove("namespace");
        }
    }
    new
}

fn allowed() -> Value {
    json!({"allowed": true})
}

fn denied(code: u16, message: &str) -> Value {
    json!({"allowed": false, "status": {"code": code, "message": format!("remora: {message}")}})
}

fn answer(request: &Value, mut response: Value) -> Value {
    response["uid"] = request["uid"].as_str().unwrap_or_default().into();
    json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response})
}
