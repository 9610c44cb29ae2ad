//! What a mirror makes of what it is told.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod slices;

use super::super::fake;
use super::*;
use crate::document::{Text, read};
use crate::kinds::{KINDS, Kind};
use crate::quota::owner;
use crate::registry;
use crate::registry::change::{How, Mode, Refused};
use crate::store::{Expect, Put};

fn what(kind: &str) -> What {
    KINDS.iter().position(|known| known.name == kind).map_or(What::Pods, What::Documents)
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": port}]},
    })
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": crate::inject::PROXY}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// One that knows of nothing, where plaintext is allowed to all Services.
fn mirror_of(registry: Arc<Registry>, board: Arc<Board>) -> Mirror {
    Mirror::new(registry, board).plaintext_to(vec![PlaintextTo::All])
}

impl Mirror {
    /// Takes one event alone.
    fn take(&mut self, what: What, seen: Seen) {
        self.take_all([(what, seen)]);
    }
}

struct World {
    registry: Arc<Registry>,
    events: mpsc::Sender<Told>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let (registry, folder) = fake::registry().await;
        let (events, taken) = mpsc::channel(100);
        tokio::spawn(mirror_of(Arc::clone(&registry), Arc::default()).follow(taken));
        Self { registry, events, _folder: folder }
    }

    async fn tell(&self, what: What, seen: impl IntoIterator<Item = Seen>) {
        for seen in seen {
            self.events.send((what, seen)).await.unwrap();
        }
    }

    /// Waits until `there` holds.
    async fn until(&self, there: impl Fn(&Registry) -> bool) {
        let mut progress = self.registry.progress();
        while !there(&self.registry) {
            progress.changed().await.unwrap();
        }
    }

    fn ports(&self) -> Option<Value> {
        let record = self.registry.get(&Key::new(REGISTRATION, "shop", "web-1"))?;
        Some(record.get("spec")?["workload"]["ports"].clone())
    }
}

#[tokio::test]
async fn what_is_listed_is_there_and_what_is_not_is_gone() {
    let world = World::new().await;
    let texts = [Text {
        name: "mine.yaml".into(),
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: mine, namespace: shop}\nspec: {ports: [{port: 80}]}\n".into(),
    }];
    let mine = read(&texts, "shop").unwrap();
    let how = How { mode: Mode::Apply, dry_run: false, force: false };
    world.registry.write(&mine, how).await.unwrap();
    let key = |name: &str| Key::new("Service", "shop", name);
    let listed = [Seen::Begin, Seen::Listed(service("a", 1)), Seen::Listed(service("b", 1)), Seen::End];
    world.tell(what("Service"), listed).await;
    world.until(|r| r.get(&key("a")).is_some() && r.get(&key("b")).is_some()).await;
    assert!(world.registry.get(&marker()).is_none(), "the others were not read");
    for other in What::all().filter(|other| *other != what("Service")) {
        world.tell(other, [Seen::Begin, Seen::End]).await;
    }
    super::super::read_once(&world.registry).await;

    world.tell(what("Service"), [Seen::Begin, Seen::Listed(service("b", 1)), Seen::End]).await;
    world.until(|r| r.get(&key("a")).is_none()).await;
    assert!(world.registry.get(&key("b")).is_some());
    assert!(world.registry.get(&key("mine")).is_some(), "what people wrote here is theirs");
    let revision = world.registry.get(&key("b")).unwrap().revision;
    world.tell(what("Service"), [Seen::Changed(service("b", 1)), Seen::Changed(service("c", 1))]).await;
    world.until(|r| r.get(&key("c")).is_some()).await;
    assert_eq!(
        world.registry.get(&key("b")).unwrap().revision,
        revision,
        "what says the same is not written"
    );

    let refused = world.registry.remove(&[key("b")], None, How { force: true, ..how }).await;
    assert!(matches!(refused, Err(Refused::Mirrored(_))), "{refused:?}");
    world.tell(what("Service"), [Seen::Changed(service("mine", 1))]).await;
    world.until(|r| r.get(&key("mine")).is_some_and(|record| is_mirrored(&record))).await;
    let refused = world.registry.write(&mine, how).await;
    assert!(matches!(refused, Err(Refused::Mirrored(_))), "{refused:?}");
}

#[tokio::test]
async fn a_pod_is_told_with_the_ports_of_services_and_not_before_they_are_known() {
    let world = World::new().await;
    world.tell(What::Pods, [Seen::Begin, Seen::Listed(pod()), Seen::End]).await;
    world
        .tell(
            what("Workload"),
            [Seen::Begin, Seen::Listed(json!({"metadata": {"name": "w", "namespace": "shop"}}))],
        )
        .await;
    world.until(|r| r.get(&Key::new("Workload", "shop", "w")).is_some()).await;
    assert_eq!(world.ports(), None);
    world.tell(what("Service"), [Seen::Begin, Seen::Listed(service("a", 8080)), Seen::End]).await;
    world.until(|_| world.ports() == Some(json!([{"port": 8080}]))).await;
    world.tell(what("Service"), [Seen::Changed(service("a", 9090))]).await;
    world.until(|_| world.ports() == Some(json!([{"port": 9090}]))).await;
    world.tell(what("Service"), [Seen::Gone(service("a", 9090))]).await;
    world.until(|_| world.ports() == Some(json!([]))).await;
    world.tell(What::Pods, [Seen::Gone(pod())]).await;
    world.until(|_| world.ports().is_none()).await;
}

/// What was told shortly before the watch broke is on its way to the registry, and may be gone in the list that follows.
#[tokio::test]
async fn what_a_new_list_lacks_is_gone_also_if_the_registry_has_not_seen_it() {
    let (registry, _folder) = fake::registry().await;
    let mut mirror = mirror_of(registry, Arc::default());
    let services = what("Service");
    mirror.take(services, Seen::Changed(service("a", 1)));
    mirror.take(What::Pods, Seen::Changed(pod()));
    for seen in [Seen::Begin, Seen::Listed(service("b", 1)), Seen::End] {
        mirror.take(services, seen);
    }
    let wanted = |mirror: &Mirror, kind: &str, name: &str| {
        let wanted = mirror.wanted.get(&Key::new(kind, "shop", name)).cloned();
        wanted.expect("it was told").is_some()
    };
    assert!(!wanted(&mirror, "Service", "a"), "it is in no list");
    assert!(wanted(&mirror, "Service", "b") && wanted(&mirror, REGISTRATION, "web-1"));
    mirror.take(What::Pods, Seen::Begin);
    mirror.take(What::Pods, Seen::End);
    assert!(!wanted(&mirror, REGISTRATION, "web-1"), "nor is the pod");
    assert!(mirror.pods.is_empty() && mirror.services.len() == 1);
}

#[tokio::test]
async fn nobody_holds_what_came_from_kubernetes_when_no_control_plane_reads_there() {
    let (reads, _folder) = fake::registry().await;
    let key = Key::new("Service", "shop", "a");
    let document = map::document(Kind::named("Service").unwrap(), &service("a", 1));
    reads.mirror(Wanted::from([(key.clone(), document)])).await;
    async fn remove(registry: &Registry, key: &Key) -> Option<Refused> {
        let how = How { mode: Mode::Apply, dry_run: false, force: false };
        registry.remove(std::slice::from_ref(key), None, how).await.err()
    }
    assert!(matches!(remove(&reads, &key).await, Some(Refused::Mirrored(_))));

    // Another control plane with the same store, which does not read there itself.
    let other = Arc::new(Registry::new(Arc::clone(reads.store())));
    tokio::spawn(registry::follow(Arc::clone(&other)));
    other.filled().await;
    let reader = owner::key(READER);
    let value = json!({"metadata": {}}).to_string().into();
    let put = Put { key: reader.clone(), value, expect: Expect::Any, lease: None };
    let revision = other.store().put(put).await.unwrap();
    assert!(other.seen(revision).await);
    assert!(matches!(remove(&other, &key).await, Some(Refused::Mirrored(_))), "somebody reads there");
    let revision = other.store().delete(&reader, Expect::Any).await.unwrap();
    assert!(other.seen(revision).await);
    assert!(remove(&other, &key).await.is_none());
}

/// Nobody may take what is not kept for what is not there.
#[tokio::test]
async fn of_what_is_too_large_it_is_kept_whom_it_is_about() {
    let (registry, _folder) = fake::registry().await;
    let large = "x".repeat(crate::store::MAX_VALUE);
    let policy = |spec: Value| json!({"metadata": {"name": "web-1", "namespace": "shop", "generation": 2}, "spec": spec});
    let mut endpoints = slices::slice(&["u1"]);
    endpoints["endpoints"][0]["zone"] = large.clone().into();
    let refs = json!([{"name": "web"}]);
    for (kind, object, kept) in [
        ("EndpointSlice", endpoints, json!("web")),
        ("AuthorizationPolicy", policy(json!({"targetRefs": refs, "rules": [large]})), refs.clone()),
        ("AuthenticationPolicy", policy(json!({"targetRefs": [{"name": large}]})), Value::Null),
    ] {
        let key = Key::new(kind, "shop", "web-1");
        let document = map::document(Kind::named(kind).unwrap(), &object);
        let wanted = Wanted::from([(key.clone(), document)]);
        assert_eq!(registry.mirror(wanted.clone()).await, 1, "{kind}");
        assert_eq!(registry.mirror(wanted).await, 0, "{kind}: it is there");
        let record = registry.get(&key).unwrap();
        assert!(is_mirrored(&record));
        let body = without_version(&record);
        let said = if kind == "EndpointSlice" {
            &body["metadata"]["labels"]["kubernetes.io/service-name"]
        } else {
            &body["spec"]["targetRefs"]
        };
        assert_eq!(*said, kept, "{kind}");
        assert!(body["tooLarge"].is_u64() || body["spec"]["tooLarge"].is_u64(), "nobody can read it: {body}");
    }
    // A route of before is better than none.
    let key = Key::new("HTTPRoute", "shop", "web-1");
    let route = json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": {"x": large}});
    assert_eq!(registry.mirror(Wanted::from([(key.clone(), Some(route))])).await, 0);
    assert!(registry.get(&key).is_none());
}

/// One that lost its lease while it tried may not take back what the next one wrote.
#[tokio::test]
async fn nothing_is_written_while_another_control_plane_may_read_kubernetes() {
    let (registry, _folder) = fake::registry().await;
    let key = Key::new("Service", "shop", "a");
    let document = map::document(Kind::named("Service").unwrap(), &service("a", 1));
    let wanted = Wanted::from([(key.clone(), document)]);
    let (asked, mut asks) = mpsc::channel(100);
    let leads = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (writes, says) = (Arc::clone(&registry), Arc::clone(&leads));
    let write = tokio::spawn(async move {
        let leads = || {
            let _ = asked.try_send(());
            says.load(std::sync::atomic::Ordering::Relaxed)
        };
        writes.mirror_while(wanted, leads, None).await
    });
    for _ in 0..2 {
        asks.recv().await.unwrap();
    }
    assert!(registry.get(&key).is_none());
    leads.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(write.await.unwrap(), 1);
    assert!(registry.get(&key).is_some());
}

/// It knows of the end of its lease later than the store does, and so does a write that is on its way.
#[tokio::test]
async fn nothing_is_written_by_whoever_is_the_reader_no_more() {
    let (registry, _folder) = fake::registry().await;
    let reader = Key::new("Reader", "shop", "r");
    let take = |expect| Put { key: reader.clone(), value: "{}".into(), expect, lease: None };
    let taken = registry.store().put(take(Expect::Absent)).await.unwrap();
    let fence = Write::Check { key: reader.clone(), expect: Expect::Revision(taken) };
    let key = |name: &str| Key::new("Service", "shop", name);
    let wanted = move |name: &str| {
        Wanted::from([(key(name), map::document(Kind::named("Service").unwrap(), &service(name, 1)))])
    };
    assert_eq!(registry.mirror_while(wanted("a"), || true, Some(&fence)).await, 1);
    assert!(registry.get(&key("a")).is_some());

    registry.store().put(take(Expect::Revision(taken))).await.unwrap();
    let (asked, mut asks) = mpsc::channel(100);
    let writes = Arc::clone(&registry);
    let write = tokio::spawn(async move {
        let leads = || asked.try_send(()).is_ok();
        writes.mirror_while(wanted("b"), leads, Some(&fence)).await
    });
    // It has tried twice.
    for _ in 0..3 {
        asks.recv().await.unwrap();
    }
    assert!(registry.store().get(&key("b")).await.unwrap().is_none());
    write.abort();
}
