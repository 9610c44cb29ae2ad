//! Instances that registered themselves, for what that says of pods.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{KIND, Mirror};
use crate::ca::keeper::NAMESPACE;
use crate::document::Record;
use crate::kubernetes::plain::address;
use crate::registry::instances::REGISTRATION;
use crate::registry::mirror::{KUBERNETES, ORIGIN, is_mirrored};
use crate::store::Key;

/// Before the uid, in the name of a key of [`KIND`]: an instance registered itself where that pod is.
const OWN: &str = "sidecar-";

/// That an instance was seen where a pod is: also the control plane that reads Kubernetes next knows it.
pub(super) fn own(uid: &str) -> (Key, Value) {
    let name = format!("{OWN}{uid}");
    let body = json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {ORIGIN: KUBERNETES}},
    });
    (Key::new(KIND, NAMESPACE, &name), body)
}

/// Where an instance is that registered itself, as far as that can be read; None: Kubernetes told of it.
fn registered_at(record: &Record) -> Option<Vec<IpAddr>> {
    if is_mirrored(record) {
        return None;
    }
    let spec = record.get("spec").unwrap_or_default();
    let workload = &spec["workload"];
    let more = workload["addresses"].as_array().into_iter().flatten();
    Some(more.chain([&workload["address"]]).filter_map(address).collect())
}

impl Mirror {
    /// Takes what instances have said of themselves since the last time.
    pub(super) fn look(&mut self) {
        let changed: Vec<_> = if let Ok(changes) = self.registry.changes(self.looked, usize::MAX) {
            self.looked = changes.last().map_or(self.looked, |last| last.position);
            changes.into_iter().map(|change| (change.key, change.new)).collect()
        } else {
            let (position, _, all) = self.registry.all();
            self.looked = position;
            let before = self.plain.registered(REGISTRATION).into_iter().map(|key| (key, None));
            before.chain(all.into_iter().map(|record| (record.key.clone(), Some(record)))).collect()
        };
        for (key, new) in changed {
            let slices = match &*key.kind {
                REGISTRATION => {
                    let at = new.as_deref().and_then(registered_at);
                    self.plain.registration(&key, at, &self.services)
                }
                // One that is there: its pod may have gone since, and the mark with it.
                KIND if new.is_some() && self.registry.get(&key).is_some() => {
                    match key.name.strip_prefix(OWN) {
                        Some(uid) => self.plain.mark(&uid.into(), &self.services),
                        None => continue,
                    }
                }
                _ => continue,
            };
            self.stale.extend(slices);
        }
        self.save();
    }

    /// Keeps which pods instances were seen at.
    pub(super) fn save(&mut self) {
        for (uid, there) in self.plain.unsaved() {
            let (key, body) = own(&uid);
            self.wanted.insert(key, there.then_some(body));
        }
    }
}
