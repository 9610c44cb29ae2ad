//! Which EndpointSlices have no endpoint with a sidecar. They say so in the mesh, where their Services are called in plaintext unless a
//! policy says otherwise (docs/decisions/0020).
//!
//! A pod of which nobody has heard yet may have a sidecar. Pods are told apart by their uid: the next one of a name is another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use remora_mesh::document::SIDECARS;
use serde_json::Value;

use super::{map, pods};
use crate::store::Key;

type Uid = Arc<str>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// Pods without a sidecar.
    pods: BTreeMap<Key, Uid>,
    /// They, and those that a slice still has, with whether they are there.
    known: BTreeMap<Uid, bool>,
    slices: BTreeMap<Key, Slice>,
    /// The slices that a pod is in.
    within: BTreeMap<Uid, BTreeSet<Key>>,
}

#[derive(Debug)]
struct Slice {
    /// The document, as JSON, without what is said of sidecars.
    json: Box<str>,
    pods: BTreeSet<Uid>,
}

impl Plain {
    /// A pod as it is now, or that it has gone. The answer is the slices that have to be told anew.
    pub(super) fn pod(&mut self, key: &Key, object: Option<&Value>) -> Vec<Key> {
        let plain = object.filter(|object| !pods::has_sidecar(object));
        let new = plain.and_then(|object| uid(&object["metadata"]));
        let old = match &new {
            Some(new) => self.pods.insert(key.clone(), Arc::clone(new)),
            None => self.pods.remove(key),
        };
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            self.known.insert(Arc::clone(&old), false);
            self.forget(&old);
        }
        match new {
            Some(new) if self.known.insert(Arc::clone(&new), true).is_none() => {
                self.within.get(&new).into_iter().flatten().cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// A slice as it is now: the object, and the document that it becomes.
    pub(super) fn slice(&mut self, key: &Key, object: &Value, document: &Value) {
        let pods: BTreeSet<Uid> =
            map::called(object).filter_map(|endpoint| target(&endpoint["targetRef"])).collect();
        for pod in &pods {
            self.within.entry(Arc::clone(pod)).or_default().insert(key.clone());
        }
        let left: Vec<Uid> = match self.slices.get(key) {
            Some(old) => old.pods.difference(&pods).cloned().collect(),
            None => Vec::new(),
        };
        left.iter().for_each(|pod| self.leaves(pod, key));
        let json = document.to_string().into();
        self.slices.insert(key.clone(), Slice { json, pods });
    }

    /// All slices.
    pub(super) fn slices(&self) -> impl Iterator<Item = &Key> {
        self.slices.keys()
    }

    /// The document of a slice, with what is known of sidecars.
    pub(super) fn document(&self, key: &Key) -> Option<Value> {
        let slice = self.slices.get(key)?;
        let mut document: Value = serde_json::from_str(&slice.json).ok()?;
        let some = document["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty());
        if some && slice.pods.iter().all(|pod| self.known.contains_key(pod)) {
            document["metadata"]["annotations"][SIDECARS] = "none".into();
        }
        Some(document)
    }

    /// The slice has gone.
    pub(super) fn no_slice(&mut self, key: &Key) {
        let pods = self.slices.remove(key).map(|slice| slice.pods).unwrap_or_default();
        pods.iter().for_each(|pod| self.leaves(pod, key));
    }

    fn leaves(&mut self, pod: &Uid, slice: &Key) {
        if let Some(within) = self.within.get_mut(pod) {
            within.remove(slice);
            if within.is_empty() {
                self.within.remove(pod);
                self.forget(pod);
            }
        }
    }

    /// A pod that has gone is known as long as a slice has it: what is left there of it must not look like somebody unknown.
    fn forget(&mut self, pod: &Uid) {
        if self.known.get(pod) == Some(&false) && !self.within.contains_key(pod) {
            self.known.remove(pod);
        }
    }
}

fn uid(from: &Value) -> Option<Uid> {
    from["uid"].as_str().map(Into::into)
}

/// What stands behind an endpoint. None: nothing that could have a sidecar; what has no uid is nobody that is known.
fn target(reference: &Value) -> Option<Uid> {
    reference.is_object().then(|| uid(reference).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inject::PROXY;
    use crate::kinds::Kind;

    fn pod(uid: &str, sidecar: bool) -> Value {
        let name = if sidecar { PROXY } else { "web" };
        json!({"metadata": {"uid": uid}, "spec": {"containers": [{"name": name}]}})
    }

    fn endpoint(pod: Option<&str>) -> Value {
        let mut endpoint = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}});
        if let Some(uid) = pod {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": "web", "uid": uid});
        }
        endpoint
    }

    struct World {
        plain: Plain,
        slice: Key,
    }

    impl World {
        /// Whether a slice with these endpoints says that none of them has a sidecar.
        fn says(&mut self, endpoints: &[Value]) -> bool {
            let labels = json!({"kubernetes.io/service-name": "web"});
            let object = json!({
                "metadata": {"name": "web-1", "namespace": "shop", "labels": labels}, "addressType": "IPv4",
                "endpoints": endpoints,
            });
            let document = map::document(Kind::named("EndpointSlice").unwrap(), &object).unwrap();
            self.plain.slice(&self.slice, &object, &document);
            self.still_says()
        }

        fn still_says(&self) -> bool {
            let document = self.plain.document(&self.slice).unwrap();
            document["metadata"]["annotations"].get(SIDECARS).is_some()
        }

        fn pod(&mut self, name: &str, object: Option<&Value>) -> Vec<Key> {
            self.plain.pod(&Key::new("Registration", "shop", name), object)
        }
    }

    fn world() -> World {
        World { plain: Plain::default(), slice: Key::new("EndpointSlice", "shop", "web-1") }
    }

    #[test]
    fn a_slice_of_pods_without_sidecars_says_so_when_all_of_them_are_known() {
        let mut world = world();
        assert!(!world.says(&[]), "nothing is no endpoint");
        assert!(world.says(&[endpoint(None)]), "what is no pod has none");
        let mut unnamed = endpoint(Some("a"));
        unnamed["targetRef"] = json!({"kind": "Pod", "name": "web"});
        assert!(!world.says(&[unnamed]), "it may be any pod");
        let both = [endpoint(Some("a")), endpoint(Some("b"))];
        assert!(!world.says(&both));
        assert_eq!(world.pod("web-1", Some(&pod("a", false))), [world.slice.clone()]);
        assert!(!world.still_says(), "nobody has heard of the other one");
        assert_eq!(world.pod("web-2", Some(&pod("b", false))), [world.slice.clone()]);
        assert!(world.still_says());
        assert!(world.pod("web-2", Some(&pod("b", false))).is_empty(), "that was known");
    }

    #[test]
    fn one_with_a_sidecar_ends_it_also_under_the_name_of_one_without() {
        let mut world = world();
        world.pod("web-0", Some(&pod("a", false)));
        assert!(world.says(&[endpoint(Some("a"))]));
        world.pod("web-0", None);
        assert!(world.says(&[endpoint(Some("a"))]), "it is still there for those who call it");
        assert!(!world.says(&[endpoint(Some("b"))]), "the slice may come before its pod");
        world.pod("web-0", Some(&pod("b", true)));
        assert!(!world.says(&[endpoint(Some("b"))]));
    }

    #[test]
    fn what_has_gone_everywhere_is_forgotten() {
        let mut world = world();
        world.pod("web-0", Some(&pod("a", false)));
        world.says(&[endpoint(Some("a"))]);
        world.pod("web-0", None);
        world.plain.no_slice(&world.slice.clone());
        let Plain { pods, known, slices, within } = world.plain;
        assert!(pods.is_empty() && known.is_empty() && slices.is_empty() && within.is_empty());
    }
}
