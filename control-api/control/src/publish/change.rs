//! Changes of the registry as changes of a mesh.

use std::sync::Arc;

use remora_mesh::{AnyDocument, Change, Documents, Health, Instance, Key, Kind, Name, senseless};
use serde_json::{Value, json};

use crate::document::Record;
use crate::registry::instances::{self, REGISTRATION, health};
use crate::registry::mirror::is_mirrored;
use crate::store;

/// What `change` means for a mesh. `Err` says why a document cannot be read, with what to do instead: it is then as if there were none.
///
/// A policy that cannot be read, because it was written for a newer version, may not open what it closes. It stays what it was, when
/// `in_force` says that it was something; else everything is denied to its targets. Limits that were none are none.
pub(super) fn change(
    key: &store::Key,
    new: Option<&Record>,
    in_force: bool,
) -> Result<Change, (Option<Change>, Vec<String>)> {
    let name = Name::new(&key.namespace, &key.name);
    if *key.kind == *REGISTRATION {
        let Some(record) = new else { return Ok(Change::Deregister(name)) };
        return instance(record).map_err(|why| (Some(Change::Deregister(name)), why));
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == &*key.kind) else {
        // A kind that this version does not know changes nothing that it compiles.
        return Err((None, vec![format!("{} is not known here", key.kind)]));
    };
    let Some(record) = new else { return Ok(Change::Remove(Key::new(kind, name))) };
    let read = read(&key.path(), &record.text()).and_then(|document| sensible(record, document));
    read.map(Change::Put).map_err(|why| {
        let gone = || Some(Change::Remove(Key::new(kind, name)));
        let instead = match kind {
            Kind::AuthorizationPolicy | Kind::AuthenticationPolicy | Kind::RateLimitPolicy if in_force => {
                None
            }
            Kind::AuthorizationPolicy => closed(record).or_else(gone),
            Kind::AuthenticationPolicy => unreadable(record).or_else(gone),
            _ => gone(),
        };
        (instead, why)
    })
}

/// What comes from Kubernetes was not checked when it was written: a policy that makes no sense is as one that cannot be read. Others hold as
/// far as they go: without a Service or a route calls would go elsewhere.
fn sensible(record: &Record, document: AnyDocument) -> Result<AnyDocument, Vec<String>> {
    let policy = matches!(
        document,
        AnyDocument::AuthorizationPolicy(_)
            | AnyDocument::AuthenticationPolicy(_)
            | AnyDocument::RateLimitPolicy(_)
            | AnyDocument::FaultPolicy(_)
            | AnyDocument::TrafficPolicy(_)
    );
    if !policy || !is_mirrored(record) {
        return Ok(document);
    }
    let why: Vec<_> = senseless(&document)
        .iter()
        .map(|found| format!("{}: {}", found.error.path, found.error.message))
        .collect();
    if why.is_empty() { Ok(document) } else { Err(why) }
}

/// A policy in the place of `record` that denies everything to the targets that it names; None for a dry run, which closes nothing.
fn closed(record: &Record) -> Option<Change> {
    let spec = record.get("spec").unwrap_or_default();
    if spec["dryRun"] == true {
        return None;
    }
    let denies = json!({
        "apiVersion": Kind::AuthorizationPolicy.api_version(),
        "kind": Kind::AuthorizationPolicy.as_str(),
        "metadata": {"name": *record.key.name, "namespace": *record.key.namespace},
        "spec": {"targetRefs": targets(&spec), "action": "Deny", "rules": [{}]},
    });
    read(&record.key.path(), &denies.to_string()).ok().map(Change::Put)
}

/// The key of [`beside`]. No document has such a name.
pub(super) fn beside_key(policy: &store::Key) -> Key {
    Key::new(Kind::AuthenticationPolicy, Name::new(&policy.namespace, &format!("{}:unreadable", policy.name)))
}

/// What stands beside an AuthenticationPolicy that cannot be read any more, whose targets go on as they were: it keeps everybody from those
/// that are new. Of the two, the policy holds: it is as old, and before it by name.
pub(super) fn beside(record: &Record) -> Option<Change> {
    if *record.key.kind != *Kind::AuthenticationPolicy.as_str() {
        return None;
    }
    let Some(Change::Put(AnyDocument::AuthenticationPolicy(mut policy))) = unreadable(record) else {
        return None;
    };
    Arc::make_mut(&mut policy).metadata.name = beside_key(&record.key).name.name.to_string();
    Some(Change::Put(AnyDocument::AuthenticationPolicy(policy)))
}

/// An AuthenticationPolicy in the place of `record` that keeps everybody from the targets that it names.
fn unreadable(record: &Record) -> Option<Change> {
    let spec = record.get("spec").unwrap_or_default();
    let nobody = json!({
        "apiVersion": Kind::AuthenticationPolicy.api_version(),
        "kind": Kind::AuthenticationPolicy.as_str(),
        "metadata": {
            "name": *record.key.name, "namespace": *record.key.namespace,
            // Of two policies of a Service the older one holds.
            "creationTimestamp": record.metadata().get("creationTimestamp"),
        },
        "spec": {"targetRefs": targets(&spec)},
    });
    match read(&record.key.path(), &nobody.to_string()).ok()? {
        AnyDocument::AuthenticationPolicy(mut policy) => {
            Arc::make_mut(&mut policy).spec.unreadable = true;
            Some(Change::Put(AnyDocument::AuthenticationPolicy(policy)))
        }
        _ => None,
    }
}

/// The targets of a policy that cannot be read, without what a newer version says of them: all of each.
fn targets(spec: &Value) -> Value {
    let known = |target: &Value| {
        let fields =
            ["group", "kind", "name"].into_iter().filter_map(|name| Some((name, target.get(name)?.clone())));
        fields.map(|(name, value)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>()
    };
    spec["targetRefs"].as_array().into_iter().flatten().map(known).collect()
}

fn read(source: &str, text: &str) -> Result<AnyDocument, Vec<String>> {
    let documents = Documents::read_alone([(source, text)])
        .map_err(|errors| errors.iter().map(|e| format!("{}: {}", e.path, e.message)).collect::<Vec<_>>())?;
    documents.iter().next().ok_or_else(|| vec!["it is empty".to_owned()])
}

fn instance(record: &Record) -> Result<Change, Vec<String>> {
    let spec = record.get("spec").unwrap_or_default();
    let workload = json!({
        "apiVersion": Kind::Workload.api_version(),
        "kind": Kind::Workload.as_str(),
        "metadata": {
            "name": *record.key.name, "namespace": *record.key.namespace, "labels": record.metadata().get("labels"),
        },
        "spec": spec["workload"],
    });
    let AnyDocument::Workload(workload) = read(&record.key.path(), &workload.to_string())? else {
        return Err(vec!["it is no workload".into()]);
    };
    let services = spec["services"].as_array().into_iter().flatten();
    let health = match health(record) {
        instances::Health::Ready => Health::Ready,
        instances::Health::Draining => Health::Draining,
        instances::Health::Dead => Health::Dead,
        instances::Health::Absent => Health::Absent,
    };
    let services = services.filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Change::Register(Arc::new(Instance { workload, health, services })))
}
