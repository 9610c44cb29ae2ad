//! Where the pod template is in an object.

use serde_json::Value;

use super::{Failure, Outcome, Settings, Skip, pod};

/// Whose pod it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// `Deployment`, or `Pod`.
    pub kind: &'a str,
    /// Its name; None when the API server is to make one.
    pub name: Option<&'a str>,
    /// Its namespace, when it is known.
    pub namespace: Option<&'a str>,
}

impl std::fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(self.name.unwrap_or("?"))
    }
}

/// What became of an object, which may be a list of others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The object; None when nothing in it has changed.
    pub object: Option<Value>,
    /// Who got a sidecar.
    pub injected: Vec<String>,
    /// Who did not, and why.
    pub skipped: Vec<(String, Skip)>,
    /// What whoever deploys it should know.
    pub notes: Vec<String>,
}

/// JSON pointers of templates by kind, and the API groups in which the kinds mean that.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "Pod", ""),
    ("", "ReplicationController", "/spec/template"),
    ("apps", "Deployment", "/spec/template"),
    ("apps", "ReplicaSet", "/spec/template"),
    ("apps", "StatefulSet", "/spec/template"),
    ("apps", "DaemonSet", "/spec/template"),
    ("batch", "Job", "/spec/template"),
    ("batch", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// Gives every pod of `object` a sidecar. What has no pods stays as it is.
///
/// # Errors
/// [`Failure`] of the first pod that has one; `at` begins with whose pod it is.
pub fn object(object: &Value, settings: &Settings) -> Result<Report, Failure> {
    let mut report = Report::default();
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if version == "v1" && kind == "List" {
        return items(object, settings);
    }
    let Some((_, kind, pointer)) = TEMPLATES.iter().find(|(g, k, _)| *g == group && *k == kind) else {
        return Ok(report);
    };
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str());
    let owner = Owner { kind, name, namespace: metadata["namespace"].as_str() };
    let template = object.pointer(pointer).filter(|template| template.is_object());
    let found = match template {
        Some(template) => pod(template, &owner, settings),
        None => Err(Failure::new(
            pointer.trim_start_matches('/').replace('/', "."),
            "is missing",
            "give it a pod template",
        )),
    };
    match found.map_err(|failure| Failure { at: format!("{owner}: {}", failure.at), ..failure })? {
        Outcome::Skipped(skip) => report.skipped.push((owner.to_string(), skip)),
        Outcome::Injected { template, notes } => {
            let mut whole = object.clone();
            if let Some(place) = whole.pointer_mut(pointer) {
                *place = template;
            }
            report.object = Some(whole);
            report.injected.push(owner.to_string());
            report.notes.extend(notes.into_iter().map(|note| format!("{owner}: {note}")));
        }
    }
    Ok(report)
}

fn items(list: &Value, settings: &Settings) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut whole = list.clone();
    let places = whole["items"].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
    for place in places {
        let one = object(place, settings)?;
        if let Some(new) = one.object {
            *place = new;
        }
        report.injected.extend(one.injected);
        report.skipped.extend(one.skipped);
        report.notes.extend(one.notes);
    }
    report.object = (!report.injected.is_empty()).then_some(whole);
    Ok(report)
}
