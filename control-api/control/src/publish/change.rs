//! Changes of the registry as changes of a mesh.

use std::collections::BTreeSet;
use std::sync::Arc;

use remora_mesh::document::{
    AuthenticationPolicySpec, AuthorizationPolicySpec, Document, SERVICE_NAME, SIDECARS,
};
use remora_mesh::{AnyDocument, Change, Documents, Health, Instance, Key, Kind, Name, senseless};
use serde_json::{Value, json};

use crate::document::Record;
use crate::registry::instances::{self, REGISTRATION, health};
use crate::registry::mirror::is_mirrored;
use crate::store;

/// What `change` means for a mesh. `Err` says why a document cannot be read, with what to do instead: it is then as if there were none.
///
/// A policy that cannot be read, because it was written for a newer version, may not open what it closes. It stays what it was, when
/// `in_force` says that it was something; else everything is denied to its targets, and to all Services of its namespace where it cannot be said
/// which they are. Limits that were none are none. An EndpointSlice that cannot be read has no endpoints, and keeps its Service from being called
/// in plaintext by what others say; a Workload or a registration is behind no Service, and keeps all of its namespace from that.
pub(super) fn change(
    key: &store::Key,
    new: Option<&Record>,
    in_force: bool,
) -> Result<Change, (Option<Change>, Vec<String>)> {
    let name = Name::new(&key.namespace, &key.name);
    if *key.kind == *REGISTRATION {
        let Some(record) = new else { return Ok(Change::Deregister(name)) };
        return instance(record).map_err(|why| (Some(Change::Unreadable { name, documented: false }), why));
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == &*key.kind) else {
        // A kind that this version does not know changes nothing that it compiles.
        return Err((None, vec![format!("{} is not known here", key.kind)]));
    };
    let Some(record) = new else { return Ok(Change::Remove(Key::new(kind, name))) };
    let read = read(&key.path(), &record.text()).and_then(|document| sensible(record, document));
    read.map(Change::Put).map_err(|why| {
        let gone = || Some(Change::Remove(Key::new(kind, name.clone())));
        let instead = match kind {
            Kind::AuthorizationPolicy | Kind::AuthenticationPolicy | Kind::RateLimitPolicy if in_force => {
                None
            }
            Kind::AuthorizationPolicy => closed(record).or_else(gone),
            Kind::AuthenticationPolicy => unreadable(record).or_else(gone),
            Kind::EndpointSlice => unread_slice(record).or_else(gone),
            Kind::Workload => Some(Change::Unreadable { name: name.clone(), documented: true }),
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
    denies(record, &BTreeSet::new()).map(|policy| Change::Put(AnyDocument::AuthorizationPolicy(policy)))
}

/// The same, but for some of its targets. None: there are no others.
fn denies(record: &Record, but: &BTreeSet<String>) -> Option<Arc<Document<AuthorizationPolicySpec>>> {
    let spec = record.get("spec").unwrap_or_default();
    let Targets { mut named, all } = Targets::of(&spec);
    named.retain(|name| !but.contains(name));
    if spec["dryRun"] == true || named.is_empty() && !all {
        return None;
    }
    let denies = json!({
        "apiVersion": Kind::AuthorizationPolicy.api_version(),
        "kind": Kind::AuthorizationPolicy.as_str(),
        "metadata": {"name": *record.key.name, "namespace": *record.key.namespace},
        "spec": {"targetRefs": references(&named), "action": "Deny", "rules": [{}]},
    });
    let AnyDocument::AuthorizationPolicy(mut policy) = read(&record.key.path(), &denies.to_string()).ok()?
    else {
        return None;
    };
    Arc::make_mut(&mut policy).spec.all_but = all.then(|| but.iter().cloned().collect());
    Some(policy)
}

/// The key of [`beside`]. No document has such a name.
pub(super) fn beside_key(policy: &store::Key) -> Key {
    let authorization = *policy.kind == *Kind::AuthorizationPolicy.as_str();
    let kind = if authorization { Kind::AuthorizationPolicy } else { Kind::AuthenticationPolicy };
    Key::new(kind, Name::new(&policy.namespace, &format!("{}:unreadable", policy.name)))
}

/// What stands beside a policy that cannot be read any more, whose targets, `held`, go on as they were: it keeps everybody from those that are
/// new. Of two AuthenticationPolicies the one that could be read holds: it is as old, and before the other one by name.
pub(super) fn beside(record: &Record, held: &BTreeSet<String>) -> Option<Change> {
    let name = beside_key(&record.key).name.name.to_string();
    let policy = if *record.key.kind == *Kind::AuthorizationPolicy.as_str() {
        let mut policy = denies(record, held)?;
        Arc::make_mut(&mut policy).metadata.name = name;
        AnyDocument::AuthorizationPolicy(policy)
    } else if *record.key.kind == *Kind::AuthenticationPolicy.as_str() {
        let mut policy = nobody(record)?;
        Arc::make_mut(&mut policy).metadata.name = name;
        AnyDocument::AuthenticationPolicy(policy)
    } else {
        return None;
    };
    Some(Change::Put(policy))
}

/// The names of the Services that the AuthorizationPolicy of a change guards, to tell others from them when it cannot be read any more. A dry run
/// guards none: that it still is one, nobody can say of an edit that cannot be read.
pub(super) fn held(change: &Change) -> BTreeSet<String> {
    let Change::Put(AnyDocument::AuthorizationPolicy(policy)) = change else { return BTreeSet::new() };
    if policy.spec.dry_run {
        return BTreeSet::new();
    }
    policy.spec.target_refs.iter().map(|target| target.name.clone()).collect()
}

/// An AuthenticationPolicy in the place of `record` that keeps everybody from the targets that it names.
fn unreadable(record: &Record) -> Option<Change> {
    nobody(record).map(|policy| Change::Put(AnyDocument::AuthenticationPolicy(policy)))
}

fn nobody(record: &Record) -> Option<Arc<Document<AuthenticationPolicySpec>>> {
    let Targets { named, all } = Targets::of(&record.get("spec").unwrap_or_default());
    if named.is_empty() && !all {
        return None;
    }
    let nobody = json!({
        "apiVersion": Kind::AuthenticationPolicy.api_version(),
        "kind": Kind::AuthenticationPolicy.as_str(),
        "metadata": {
            "name": *record.key.name, "namespace": *record.key.namespace,
            // Of two policies of a Service the older one holds.
            "creationTimestamp": record.metadata().remove("creationTimestamp").filter(Value::is_string),
        },
        "spec": {"targetRefs": references(&named)},
    });
    let AnyDocument::AuthenticationPolicy(mut policy) = read(&record.key.path(), &nobody.to_string()).ok()?
    else {
        return None;
    };
    let spec = &mut Arc::make_mut(&mut policy).spec;
    (spec.unreadable, spec.of_all) = (true, all);
    Some(policy)
}

/// A slice in the place of `record`, without endpoints: those that it has may have sidecars.
fn unread_slice(record: &Record) -> Option<Change> {
    let labels = record.metadata().remove("labels")?;
    let slice = json!({
        "apiVersion": Kind::EndpointSlice.api_version(),
        "kind": Kind::EndpointSlice.as_str(),
        "metadata": {
            "name": *record.key.name, "namespace": *record.key.namespace,
            "labels": {SERVICE_NAME: labels[SERVICE_NAME].as_str()?}, "annotations": {SIDECARS: "some"},
        },
        "addressType": "IPv4",
    });
    read(&record.key.path(), &slice.to_string()).ok().map(Change::Put)
}

/// The targets of a policy that cannot be read, without what a newer version says of them: all of each.
struct Targets {
    /// Services.
    named: BTreeSet<String>,
    /// There may be more: nothing is said of them that can be understood.
    all: bool,
}

impl Targets {
    fn of(spec: &Value) -> Self {
        let (one, several) = (&spec["targetRef"], &spec["targetRefs"]);
        let all = several.as_array().into_iter().flatten().chain(Some(one).filter(|one| !one.is_null()));
        let (mut named, mut unclear, mut count) =
            (BTreeSet::new(), !several.is_null() && !several.is_array(), 0);
        for target in all {
            count += 1;
            match service(target) {
                Ok(name) => named.extend(name.map(str::to_owned)),
                Err(Unclear) => unclear = true,
            }
        }
        Self { named, all: unclear || count == 0 }
    }
}

/// Which Service it is cannot be said.
struct Unclear;

/// The Service that a target is. None: it is of another group, and no Service.
fn service(target: &Value) -> Result<Option<&str>, Unclear> {
    let text = |field: &str| match target.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(Unclear),
    };
    let (group, kind, name) = (text("group")?, text("kind")?, text("name")?);
    if !matches!(group, None | Some("" | "core")) {
        return Ok(None);
    }
    if kind.is_some_and(|kind| kind != "Service") {
        return Err(Unclear);
    }
    name.filter(|name| !name.is_empty()).map(Some).ok_or(Unclear)
}

fn references(named: &BTreeSet<String>) -> Value {
    named.iter().map(|name| json!({"name": name})).collect()
}

fn read(source: &str, text: &str) -> Result<AnyDocument, Vec<String>> {
    let documents = Documents::read_alone([(source, text)])
        .map_err(|errors| errors.iter().map(|e| format!("{}: {}", e.path, e.message)).collect::<Vec<_>>())?;
    documents.iter().next().ok_or_else(|| vec!["it is empty".to_owned()])
}

fn instance(record: &Record) -> Result<Change, Vec<String>> {
    let spec = record.get("spec").unwrap_or_default();
    // A pod may have none.
    let labels = record.metadata().remove("labels").filter(|labels| !labels.is_null());
    let workload = json!({
        "apiVersion": Kind::Workload.api_version(),
        "kind": Kind::Workload.as_str(),
        "metadata": {
            "name": *record.key.name, "namespace": *record.key.namespace,
            "labels": labels.unwrap_or_else(|| json!({})),
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
    // On the network of its node, a pod has no address of its own: others there have the same.
    let reported = is_mirrored(record) && spec["hostNetwork"] != true;
    Ok(Change::Register(Arc::new(Instance { workload, health, services, reported })))
}
