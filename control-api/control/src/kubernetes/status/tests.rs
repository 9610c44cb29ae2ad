//! What is written to the status of objects.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Mutex;

use super::super::{fake, map};
use super::*;
use crate::kinds::Kind;
use crate::registry::mirror::Wanted;

fn condition(kind: &str, holds: &str, reason: &str) -> Value {
    json!({"type": kind, "status": holds, "reason": reason, "message": "", "observedGeneration": 1})
}

fn at(mut condition: Value, time: &str) -> Value {
    condition["lastTransitionTime"] = time.into();
    condition
}

#[test]
fn a_condition_has_the_time_since_when_it_is_so() {
    let said =
        |programmed: Value| Said::Conditions(json!([condition("Accepted", "True", "Accepted"), programmed]));
    let pending = said(condition("Programmed", "False", "Pending"));
    let first = status(&Value::Null, &pending, "t1");
    assert_eq!(first["conditions"][0], at(condition("Accepted", "True", "Accepted"), "t1"));
    let programmed = said(condition("Programmed", "True", "Programmed"));
    let second = status(&first, &programmed, "t2");
    let expected = [
        at(condition("Accepted", "True", "Accepted"), "t1"),
        at(condition("Programmed", "True", "Programmed"), "t2"),
    ];
    assert_eq!(second["conditions"], json!(expected));
    assert_eq!(status(&second, &programmed, "t3"), second, "nothing to write");
}

#[test]
fn a_route_has_a_status_for_each_service_beside_those_of_others() {
    let others =
        json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": []});
    let stale = json!({"parentRef": {"name": "gone"}, "controllerName": CONTROLLER, "conditions": []});
    let web = json!({"group": "", "kind": "Service", "name": "web"});
    let said = json!([condition("Accepted", "False", "NoMatchingParent")]);
    let new = status(&json!({"parents": [others, stale]}), &Said::Parents(vec![(web.clone(), said)]), "t1");
    let conditions = [at(condition("Accepted", "False", "NoMatchingParent"), "t1")];
    let ours = json!({"parentRef": web, "controllerName": CONTROLLER, "conditions": conditions});
    assert_eq!(new, json!({"parents": [others, ours]}));
}

const GROUPS: [(&str, &str, &str); 2] = [
    ("remora.dev/v1alpha1", "trafficpolicies", "TrafficPolicy"),
    ("gateway.networking.k8s.io/v1", "httproutes", "HTTPRoute"),
];

/// What an API server has: the status of objects by name, and the names of those whose status was written.
#[derive(Default)]
struct Cluster {
    status: Mutex<BTreeMap<String, Value>>,
    written: Mutex<Vec<String>>,
}

impl Cluster {
    fn written(&self) -> Vec<String> {
        self.written.lock().unwrap().clone()
    }

    fn status(&self, name: &str) -> Value {
        self.status.lock().unwrap().get(name).cloned().unwrap_or_default()
    }
}

/// An API server that takes no status of what is called `a`.
fn server(cluster: &Arc<Cluster>) -> Client {
    let cluster = Arc::clone(cluster);
    fake::client(move |method, path, body| {
        let found = GROUPS.iter().find(|(group, ..)| path.starts_with(&format!("/apis/{group}")));
        let Some((group, plural, kind)) = found else {
            return fake::failure(404, "NotFound", "no such group");
        };
        if path == format!("/apis/{group}") {
            let kind =
                json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": []});
            return (
                200,
                json!({
                    "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": [kind],
                }),
            );
        }
        let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
        if *method == http::Method::PATCH {
            if name == "a" {
                return fake::failure(403, "Forbidden", "not this one");
            }
            cluster.written.lock().unwrap().push(name.to_owned());
            cluster.status.lock().unwrap().insert(name.to_owned(), body["status"].clone());
        }
        let metadata = json!({"name": name, "namespace": "shop"});
        let status = cluster.status(name);
        (200, json!({"apiVersion": group, "kind": kind, "metadata": metadata, "status": status}))
    })
}

struct World {
    registry: Arc<Registry>,
    board: Arc<Board>,
    cluster: Arc<Cluster>,
    writer: Writer,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let (registry, folder) = fake::registry().await;
        let (board, cluster) = (Arc::<Board>::default(), Arc::<Cluster>::default());
        let writer = Writer::new(server(&cluster), Arc::clone(&registry), Arc::clone(&board));
        Self { registry, board, cluster, writer, _folder: folder }
    }

    /// An object as it is now, or that there is none.
    async fn put(&self, kind: &str, name: &str, object: Option<(&str, Value)>) {
        let kind = Kind::named(kind).unwrap();
        let document = object.and_then(|(uid, spec)| {
            let metadata = json!({"name": name, "namespace": "shop", "uid": uid});
            map::document(kind, &json!({"metadata": metadata, "spec": spec}))
        });
        self.registry.mirror(Wanted::from([(Key::new(kind.name, "shop", name), document)])).await;
    }

    /// Everything was looked at, and is right.
    fn checked(&self) {
        self.board.left_out(self.registry.revision(), BTreeMap::new());
    }
}

fn policy(uid: &str) -> Option<(&str, Value)> {
    Some((uid, json!({"targetRefs": []})))
}

#[tokio::test]
async fn a_status_that_is_refused_keeps_back_no_other() {
    let mut world = World::new().await;
    world.put("TrafficPolicy", "a", policy("u1")).await;
    world.put("TrafficPolicy", "b", policy("u2")).await;
    world.checked();
    let told = world.writer.look().await.unwrap_err();
    assert!(told.contains("TrafficPolicy shop/a: not this one"), "{told}");
    assert_eq!(world.cluster.written(), ["b"]);
    assert_eq!(world.writer.look().await, Ok(()), "it is put off");
    assert_eq!(world.cluster.written().len(), 1, "nothing new is said");
}

#[tokio::test]
async fn nothing_is_said_of_what_nobody_has_checked() {
    let mut world = World::new().await;
    world.put("TrafficPolicy", "b", policy("u1")).await;
    assert_eq!(world.writer.look().await, Ok(()));
    assert!(world.cluster.written().is_empty(), "it may be wrong");
    world.checked();
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 1);
    world.put("TrafficPolicy", "b", Some(("u1", json!({"targetRefs": [], "weather": "good"})))).await;
    world.put("TrafficPolicy", "c", policy("u2")).await;
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 1, "nor of an edit, or of what is new");
    world.checked();
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.status("c")["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn an_object_that_takes_the_place_of_one_of_its_name_has_a_status() {
    let mut world = World::new().await;
    world.put("TrafficPolicy", "b", policy("u1")).await;
    world.checked();
    assert_eq!(world.writer.look().await, Ok(()));
    world.cluster.status.lock().unwrap().clear();
    world.put("TrafficPolicy", "b", policy("u2")).await;
    world.checked();
    // What proxies have is Pending as before: nothing else is new.
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 2);
    // Somebody else took it away.
    world.cluster.status.lock().unwrap().clear();
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 2);
    world.writer.again = Duration::ZERO;
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 3);
}

#[tokio::test]
async fn what_was_said_of_a_route_that_leaves_the_mesh_is_taken_back() {
    let mut world = World::new().await;
    let route = |kind: &str| {
        Some(("u1", json!({"parentRefs": [{"group": "", "kind": kind, "name": "web"}], "rules": []})))
    };
    let others =
        json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": []});
    world.cluster.status.lock().unwrap().insert("r".into(), json!({"parents": [others]}));
    world.put("HTTPRoute", "r", route("Service")).await;
    world.checked();
    assert_eq!(world.writer.look().await, Ok(()));
    let parents = || world.cluster.status("r")["parents"].as_array().unwrap().len();
    assert_eq!(parents(), 2);
    world.put("HTTPRoute", "r", route("Gateway")).await;
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.status("r"), json!({"parents": [others]}));
    assert_eq!(world.writer.look().await, Ok(()));
    assert_eq!(world.cluster.written().len(), 2, "once");
}
