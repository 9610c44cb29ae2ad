//! Which slices say that they have no sidecars.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::json;

use super::*;
use crate::inject::PROXY;
use crate::kinds::Kind;

fn pod(uid: &str, sidecar: bool) -> Value {
    let name = if sidecar { PROXY } else { "web" };
    json!({
        "metadata": {"uid": uid, "labels": {"app": "web"}}, "spec": {"containers": [{"name": name}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    })
}

/// One that is nobody, or a pod: its name and uid.
fn endpoint(pod: Option<&str>) -> Value {
    let mut endpoint = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}});
    if let Some((name, uid)) = pod.and_then(|pod| pod.split_once('/')) {
        endpoint["targetRef"] = json!({"kind": "Pod", "namespace": "shop", "name": name, "uid": uid});
    }
    endpoint
}

struct World {
    plain: Plain,
    services: ByName<Selection>,
    slice: Key,
    labels: Value,
}

impl World {
    /// Whether a slice with these endpoints says that none of them has a sidecar.
    fn says(&mut self, endpoints: &[Value]) -> bool {
        let Key { namespace, name, .. } = &self.slice;
        let object = json!({
            "metadata": {"name": **name, "namespace": **namespace, "labels": self.labels}, "addressType": "IPv4",
            "endpoints": endpoints,
        });
        let document = map::document(Kind::named("EndpointSlice").unwrap(), &object);
        assert!(self.plain.slice(&self.slice, &object, document.as_ref()).contains(&self.slice));
        self.still_says()
    }

    /// A slice of which nobody is called says it of nobody.
    fn still_says(&self) -> bool {
        self.endpoints().is_some_and(|called| called > 0)
    }

    /// How many endpoints of a slice that says it are called.
    fn endpoints(&self) -> Option<usize> {
        let (none, called, _) = self.told(&self.slice);
        (none == "none").then_some(called)
    }

    /// What a slice says of sidecars, how many endpoints of it are called, and how many are only known.
    fn told(&self, slice: &Key) -> (Value, usize, usize) {
        let document = self.plain.document(slice, &self.services).unwrap();
        let called = map::called(&document).count();
        (document["metadata"]["annotations"][SIDECARS].clone(), called, map::not_called(&document).count())
    }

    /// Another slice of the Service. The answer is the slices that have to be told anew.
    fn other(&mut self, endpoints: &[Value]) -> BTreeSet<Key> {
        let object = json!({
            "metadata": {"name": "web-2", "namespace": "shop", "labels": self.labels}, "addressType": "IPv4",
            "endpoints": endpoints,
        });
        let document = map::document(Kind::named("EndpointSlice").unwrap(), &object);
        self.plain.slice(&other(), &object, document.as_ref())
    }

    /// Whether the slice has to be told anew.
    fn pod(&mut self, name: &str, object: Option<&Value>) -> bool {
        let key = Key::new("Registration", "shop", name);
        let told = self.plain.pod(&key, object, &self.services);
        assert!(told.iter().all(|slice| *slice == self.slice));
        !told.is_empty()
    }

    /// The Service of the slice selects all pods.
    fn selects(&mut self) {
        let service = json!({"spec": {"selector": {"app": "web"}, "ports": []}});
        insert(&mut self.services, &Key::new("Service", "shop", "web"), Selection::of(&service).unwrap());
    }
}

fn other() -> Key {
    Key::new("EndpointSlice", "shop", "web-2")
}

fn world() -> World {
    let slice = Key::new("EndpointSlice", "shop", "web-1");
    let labels = json!({"kubernetes.io/service-name": "web"});
    World { plain: Plain::new(vec![PlaintextTo::All]), services: ByName::new(), slice, labels }
}

#[test]
fn a_slice_of_pods_without_sidecars_says_so_of_those_that_are_known() {
    let mut world = world();
    assert!(!world.says(&[]), "nothing is no endpoint");
    assert!(!world.says(&[endpoint(None)]), "who knows what is there");
    let mut unnamed = endpoint(Some("web-1/a"));
    unnamed["targetRef"].as_object_mut().unwrap().remove("uid");
    assert!(!world.says(&[unnamed]), "it may be any pod");
    let both = [endpoint(Some("web-1/a")), endpoint(Some("web-2/b"))];
    assert!(!world.says(&both));
    assert!(world.pod("web-1", Some(&pod("a", false))));
    assert_eq!(world.endpoints(), Some(1), "nobody has heard of the other one, and nobody calls it");
    assert!(world.pod("web-2", Some(&pod("b", false))));
    assert_eq!(world.endpoints(), Some(2));
    assert!(!world.pod("web-2", Some(&pod("b", false))), "that was known");
}

#[test]
fn one_with_a_sidecar_ends_it_also_under_the_name_of_one_without() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    assert!(world.says(&[endpoint(Some("web-0/a"))]));
    world.pod("web-0", None);
    assert!(world.says(&[endpoint(Some("web-0/a"))]), "it is still there for those who call it");
    assert!(!world.says(&[endpoint(Some("web-0/b"))]), "the slice may come before its pod");
    world.pod("web-0", Some(&pod("b", true)));
    world.pod("web-1", Some(&pod("c", false)));
    assert!(!world.says(&[endpoint(Some("web-0/b")), endpoint(Some("web-1/c"))]));
    world.pod("web-0", None);
    assert!(!world.still_says(), "what is left of it is no reason");
    assert!(world.says(&[endpoint(Some("web-1/c"))]));
}

/// A Service that selects nobody has those whom somebody puts into its slices.
#[test]
fn one_with_a_sidecar_that_is_not_ready_ends_it() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    let mut waits = endpoint(Some("web-1/b"));
    waits["conditions"] = json!({"ready": false});
    assert!(
        world.says(&[endpoint(Some("web-0/a")), waits.clone()]),
        "nobody has heard of it, and nobody calls it"
    );
    assert!(world.pod("web-1", Some(&pod("b", true))));
    assert!(!world.still_says());
    assert!(world.says(&[endpoint(Some("web-0/a"))]));
}

/// The mesh looks whether an instance is one of them, or where one is.
#[test]
fn endpoints_that_are_not_called_stay_to_be_seen() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    let mut waits = endpoint(None);
    waits["conditions"] = json!({"ready": false});
    world.says(&[endpoint(Some("web-0/a")), endpoint(None), endpoint(Some("web-1/b")), waits.clone()]);
    assert_eq!(world.told(&world.slice), (Value::from("none"), 1, 3));
    world.says(&[waits]);
    assert_eq!(world.told(&world.slice), (Value::from("none"), 0, 1));
    world.says(&[endpoint(Some("web-9/a"))]);
    assert_eq!(world.told(&world.slice), (Value::Null, 1, 0), "of nobody who is called it is known");
    world.says(&[endpoint(None), endpoint(Some("web-1/b"))]);
    assert_eq!(world.told(&world.slice), (Value::Null, 2, 0), "the first one may be anybody");
}

/// Else the pods of other slices were called by nobody until it is known.
#[test]
fn a_slice_of_pods_of_which_nobody_has_heard_yet_leaves_it_to_the_others() {
    let mut world = world();
    let comes = endpoint(Some("web-1/b"));
    world.says(std::slice::from_ref(&comes));
    assert_eq!(world.told(&world.slice), (Value::from("none"), 0, 1));
    // It is not where it will be yet.
    let mut starts = pod("b", false);
    starts["status"] = json!({"phase": "Pending"});
    world.pod("web-1", Some(&starts));
    assert_eq!(world.told(&world.slice), (Value::from("none"), 0, 1));
    world.pod("web-1", Some(&pod("b", false)));
    assert_eq!(world.told(&world.slice), (Value::from("none"), 1, 0));
    for (field, value) in [("namespace", "bank"), ("uid", ""), ("kind", "Node")] {
        let mut other = endpoint(Some("web-2/c"));
        other["targetRef"][field] = value.into();
        world.says(&[other]);
        assert_eq!(world.told(&world.slice).0, Value::Null, "{field}");
    }
}

/// Without `--plaintext-to`, slices are as they came.
#[test]
fn pods_of_services_to_which_plaintext_is_not_allowed_touch_no_slice() {
    let mut world = world();
    world.plain = Plain::new(Vec::new());
    world.selects();
    let object = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": world.labels}, "addressType": "IPv4",
        "endpoints": [endpoint(Some("web-1/a"))],
    });
    let document = map::document(Kind::named("EndpointSlice").unwrap(), &object);
    world.plain.slice(&world.slice, &object, document.as_ref());
    assert!(!world.pod("web-1", Some(&pod("a", false))));
    assert!(!world.pod("web-1", Some(&pod("a", true))));
    assert!(!world.pod("web-1", None));
}

/// One that is not ready and in no list of endpoints is one.
#[test]
fn one_with_a_sidecar_ends_it_in_all_slices_of_the_service() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    assert!(world.says(&[endpoint(Some("web-0/a"))]));
    let mut waits = endpoint(Some("web-1/b"));
    waits["conditions"] = json!({"ready": false});
    assert_eq!(world.other(std::slice::from_ref(&waits)), BTreeSet::from([other()]));
    assert!(world.still_says());
    let key = Key::new("Registration", "shop", "web-1");
    let both = BTreeSet::from([world.slice.clone(), other()]);
    let told = world.plain.pod(&key, Some(&pod("b", true)), &world.services);
    assert_eq!(told, both, "the other one does not know it by itself");
    assert_eq!(world.told(&world.slice), (Value::from("some"), 1, 0));
    assert_eq!(world.told(&other()), (Value::from("some"), 0, 0), "also without endpoints");
    assert_eq!(world.other(&[]), both);
    assert!(world.still_says());
    assert_eq!(world.other(&[waits]), both);
    assert!(!world.still_says());
    assert_eq!(world.plain.no_slice(&other()), BTreeSet::from([world.slice.clone()]));
    assert!(world.still_says());
}

#[test]
fn a_slice_that_nobody_can_read_may_have_some() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    assert!(world.says(&[endpoint(Some("web-0/a"))]));
    let object = json!({"metadata": {"labels": world.labels}, "addressType": "FQDN", "endpoints": []});
    let both = BTreeSet::from([world.slice.clone(), other()]);
    assert_eq!(world.plain.slice(&other(), &object, None), both);
    assert_eq!(world.told(&world.slice).0, "some");
    assert!(world.plain.document(&other(), &world.services).is_none());
}

#[test]
fn the_api_server_has_none() {
    let mut world = world();
    world.slice = Key::new("EndpointSlice", "default", "kubernetes");
    let labels = json!({"kubernetes.io/service-name": "kubernetes"});
    world.labels = labels;
    assert!(world.says(&[endpoint(None)]));
    assert!(!world.says(&[endpoint(Some("web-0/a"))]), "a pod is a pod there too");
    world.slice = Key::new("EndpointSlice", "shop", "kubernetes");
    assert!(!world.says(&[endpoint(None)]), "that is somebody else");
    world.slice = Key::new("EndpointSlice", "default", "kubernetes-2");
    assert!(!world.says(&[endpoint(None)]), "API servers do not keep it");
}

#[test]
fn a_pod_with_a_sidecar_that_is_selected_ends_it_wherever_it_is() {
    let mut world = world();
    world.selects();
    world.pod("web-0", Some(&pod("a", false)));
    assert!(world.says(&[endpoint(Some("web-0/a"))]));
    assert!(world.pod("web-1", Some(&pod("b", true))));
    assert!(!world.still_says());
    let mut other = pod("b", true);
    other["metadata"]["labels"] = json!({"app": "other"});
    assert!(world.pod("web-1", Some(&other)), "it is selected no more");
    assert!(world.still_says());
    assert!(world.pod("web-1", Some(&pod("b", true))));
    assert!(world.pod("web-1", None), "it has gone");
    assert!(world.still_says());
}

/// An instance registers itself, or is registered no more.
fn registers(world: &mut World, (namespace, name): (&str, &str), at: Option<&str>) -> BTreeSet<Key> {
    let at = at.map(|ip| vec![ip.parse().unwrap()]);
    world.plain.registration(&Key::new("Registration", namespace, name), at, &world.services)
}

/// That it is registered no more does not mean that its sidecar has gone.
#[test]
fn a_pod_where_an_instance_was_ever_seen_has_a_sidecar() {
    // By its name, and by an address of it.
    for (name, ip) in [("web-0", "127.0.0.1"), ("run-1", "10.0.0.1"), ("run-1", "fd00::1")] {
        let mut world = world();
        world.selects();
        world.pod("web-0", Some(&pod("a", false)));
        assert!(world.says(&[endpoint(Some("web-0/a"))]));
        assert!(registers(&mut world, ("bank", name), Some(ip)).is_empty(), "that is somebody else");
        assert!(registers(&mut world, ("shop", "other"), Some("10.0.0.2")).is_empty());
        assert!(world.still_says() && world.plain.unsaved().is_empty());
        assert_eq!(registers(&mut world, ("shop", name), Some(ip)), BTreeSet::from([world.slice.clone()]));
        assert!(!world.still_says(), "{name} at {ip}");
        assert!(registers(&mut world, ("shop", name), None).is_empty());
        world.pod("web-0", Some(&pod("a", false)));
        assert!(!world.still_says(), "its registration was lost");
        assert!(!world.says(&[]), "it is selected");
        let told = world.told(&world.slice);
        assert_eq!(told.0, "some", "{told:?}");
        assert_eq!(world.plain.unsaved(), BTreeMap::from([("a".into(), true)]));
        world.pod("web-0", Some(&pod("c", false)));
        assert_eq!(world.plain.unsaved(), BTreeMap::from([("a".into(), false)]), "another one has its name");
        assert!(world.says(&[endpoint(Some("web-0/c"))]));
    }
}

#[test]
fn an_instance_may_be_seen_before_its_pod_and_by_others() {
    let mut world = world();
    registers(&mut world, ("shop", "run-1"), Some("10.0.0.1"));
    world.pod("web-0", Some(&pod("a", false)));
    assert!(!world.says(&[endpoint(Some("web-0/a"))]));
    assert_eq!(world.plain.unsaved(), BTreeMap::from([("a".into(), true)]));

    // Another control plane has seen it, and this one sees only what is left of that.
    let mut world = self::world();
    world.plain.mark(&"a".into(), &world.services);
    world.plain.mark(&"gone".into(), &world.services);
    world.pod("web-0", Some(&pod("a", false)));
    assert!(!world.says(&[endpoint(Some("web-0/a"))]));
    world.plain.unsaved();
    world.plain.all_pods();
    assert_eq!(world.plain.unsaved(), BTreeMap::from([("gone".into(), false)]));
    assert!(!world.still_says());
}

/// Who may write slices of a namespace may write what they want.
#[test]
fn an_endpoint_is_the_pod_of_its_uid_only_if_all_else_is_that_of_the_pod() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    let is = endpoint(Some("web-0/a"));
    assert!(world.says(std::slice::from_ref(&is)));
    let mut second = is.clone();
    second["addresses"] = json!(["fd00:0::0:1"]);
    assert!(world.says(&[second]), "it has two addresses");
    for (field, value) in [
        ("kind", json!("Node")),
        ("namespace", json!("bank")),
        ("namespace", Value::Null),
        ("name", json!("web-1")),
    ] {
        let mut other = is.clone();
        other["targetRef"][field] = value;
        assert!(!world.says(&[other]), "{field}");
    }
    for addresses in [json!(["10.0.0.2"]), json!(["10.0.0.1", "10.0.0.2"]), json!([]), json!(["web"])] {
        let mut other = is.clone();
        other["addresses"] = addresses.clone();
        assert!(!world.says(&[other]), "{addresses}");
    }
    assert!(world.says(&[is]));
    let mut moved = pod("a", false);
    moved["status"] = json!({"podIP": "10.0.0.2"});
    assert!(world.pod("web-0", Some(&moved)));
    assert!(!world.still_says(), "it is somewhere else");
    world.pod("web-0", Some(&pod("a", false)));
    assert!(world.still_says());
    let mut ended = pod("a", false);
    ended["status"]["phase"] = "Failed".into();
    world.pod("web-0", Some(&ended));
    assert!(!world.still_says(), "its address may be somebody else's");
}

/// A pod of another namespace, whose address it is.
#[test]
fn a_pod_of_another_namespace_is_not_known_in_this_one() {
    let mut world = world();
    let key = Key::new("Registration", "bank", "web-0");
    world.plain.pod(&key, Some(&pod("a", false)), &world.services);
    assert!(!world.says(&[endpoint(Some("web-0/a"))]));
}

#[test]
fn what_has_gone_everywhere_is_forgotten() {
    let mut world = world();
    world.pod("web-0", Some(&pod("a", false)));
    world.says(&[endpoint(Some("web-0/a"))]);
    world.pod("web-0", None);
    world.plain.no_slice(&world.slice.clone());
    let Plain { pods, known, slices, of, within, seen, .. } = world.plain;
    assert!(pods.is_empty() && known.is_empty() && slices.is_empty() && of.is_empty() && within.is_empty());
    assert!(seen.is_empty());
}
