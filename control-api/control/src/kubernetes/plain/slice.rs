//! What a slice says, and what is known of the pods that it names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::kubernetes::map;
use crate::store::Key;

/// By which pods are told apart.
pub(super) type Uid = Arc<str>;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// It has not gone.
    pub(super) there: bool,
    /// It has one.
    pub(super) sidecar: bool,
    /// Its namespace and name.
    pub(super) key: Key,
    /// None of one that has ended: they may be others' by now.
    pub(super) addresses: Vec<IpAddr>,
}

/// What an endpoint says of the pod that it is.
#[derive(Debug)]
pub(super) struct Claim {
    /// Empty where it says nothing.
    pub(super) uid: Uid,
    /// Its name, where it is a pod of the slice's namespace.
    name: Option<Arc<str>>,
    /// None where one of them is no address.
    addresses: Option<Vec<IpAddr>>,
}

impl Claim {
    fn of(slice: &Key, endpoint: &Value) -> Self {
        let target = &endpoint["targetRef"];
        let is_ours = target["kind"] == "Pod" && target["namespace"] == *slice.namespace;
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        Self {
            uid: pod_of(endpoint),
            name: target["name"].as_str().filter(|_| is_ours).map(Into::into),
            addresses: addresses.map(address).collect(),
        }
    }

    /// Whether the pod of its uid is what it says.
    pub(super) fn is(&self, slice: &Key, pod: &Known) -> bool {
        let there = self.addresses.as_ref().filter(|addresses| !addresses.is_empty());
        pod.key.namespace == slice.namespace
            && self.name.as_ref() == Some(&pod.key.name)
            && there.is_some_and(|addresses| addresses.iter().all(|ip| pod.addresses.contains(ip)))
    }

    /// Whether it may be soon: nobody has heard of that pod yet, or of an address of it.
    pub(super) fn may_come(&self, slice: &Key, pod: Option<&Known>) -> bool {
        let is = |name: &Arc<str>| {
            let waits = |pod: &Known| {
                pod.addresses.is_empty() && pod.key.namespace == slice.namespace && pod.key.name == *name
            };
            !self.uid.is_empty() && pod.is_none_or(waits)
        };
        self.name.as_ref().is_some_and(is)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Slice {
    /// The document, as JSON, without what is said of sidecars. None: nobody here can read it.
    pub(super) json: Option<Box<str>>,
    pub(super) service: Arc<str>,
    /// What stands behind each of its endpoints that are called. None: nothing that could have a sidecar.
    pub(super) behind: Vec<Option<Claim>>,
    /// What stands behind those that are not called now.
    waiting: Vec<Uid>,
    /// Those, as a list in JSON.
    pub(super) rest: Box<str>,
}

impl Slice {
    /// See [`super::Plain::slice`].
    pub(super) fn of(key: &Key, object: &Value, document: Option<&Value>) -> Self {
        let service: Arc<str> = map::service_of(object).unwrap_or_default().into();
        // API servers keep the one of this name.
        let of_api = *key.namespace == *"default" && *key.name == *"kubernetes" && *service == *"kubernetes";
        let behind = map::called(object).map(|endpoint| {
            let nobody = of_api && endpoint["targetRef"].is_null();
            (!nobody).then(|| Claim::of(key, endpoint))
        });
        Self {
            json: document.map(|document| document.to_string().into()),
            behind: behind.collect(),
            waiting: map::not_called(object).map(pod_of).collect(),
            rest: map::not_called(object).map(map::known_of).collect::<Value>().to_string().into(),
            service,
        }
    }

    /// Whom it names, whether that is so or not.
    pub(super) fn named(&self) -> impl Iterator<Item = &Uid> {
        self.behind.iter().flatten().map(|claim| &claim.uid).chain(&self.waiting)
    }

    /// Each of them.
    pub(super) fn pods(&self) -> BTreeSet<Uid> {
        self.named().cloned().collect()
    }
}

/// Of `metadata`, or of a reference. It becomes a part of keys.
pub(super) fn uid(from: &Value) -> Option<Uid> {
    let fits = |uid: &&str| !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    from["uid"].as_str().filter(fits).map(Into::into)
}

/// Those of a pod that has not ended.
pub(super) fn addresses(pod: &Value) -> Vec<IpAddr> {
    let status = &pod["status"];
    if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let all = status["podIPs"].as_array().into_iter().flatten().map(|one| &one["ip"]);
    all.chain([&status["podIP"]]).filter_map(address).collect()
}

/// An address, in the one way to write it.
pub(in crate::kubernetes) fn address(text: &Value) -> Option<IpAddr> {
    text.as_str()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Which pod an endpoint is; empty where it does not say.
fn pod_of(endpoint: &Value) -> Uid {
    uid(&endpoint["targetRef"]).unwrap_or_default()
}
