//! What is said of the sidecars behind slices, and when.

use super::*;

/// A slice of a Service, whose endpoints are these pods, by uid.
pub(super) fn slice(pods: &[&str]) -> Value {
    let endpoint = |uid: &&str| {
        let name = uid.replace('u', "web-");
        json!({
            "addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": name, "uid": uid},
        })
    };
    json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(), "ports": [],
    })
}

/// A pod of that Service without a sidecar.
fn plain(uid: &str) -> Value {
    let mut plain = pod();
    plain["metadata"]["name"] = uid.replace('u', "web-").into();
    plain["metadata"]["uid"] = uid.into();
    plain["spec"]["containers"][0]["name"] = "web".into();
    plain
}

/// Whether that slice says that it has no sidecars, and that somebody is to be called; None: it was not told.
fn says(mirror: &Mirror) -> Option<bool> {
    let document = mirror.wanted.get(&Key::new("EndpointSlice", "shop", "web-1"))?.clone()?;
    let none = document["metadata"]["annotations"]["remora.dev/sidecars"] == "none";
    Some(none && map::called(&document).next().is_some())
}

/// All there is of a kind.
fn list(mirror: &mut Mirror, what: What, object: Option<Value>) {
    let listed = object.map(Seen::Listed);
    for seen in [Seen::Begin].into_iter().chain(listed).chain([Seen::End]) {
        mirror.take(what, seen);
    }
}

fn injected(name: &str, uid: &str, status: &Value) -> Value {
    let mut injected = pod();
    injected["metadata"]["name"] = name.into();
    injected["metadata"]["uid"] = uid.into();
    injected["status"] = status.clone();
    injected
}

#[tokio::test]
async fn slices_say_whether_their_pods_have_sidecars_and_not_before_all_is_known() {
    let (registry, _folder) = fake::registry().await;
    let mut mirror = mirror_of(registry, Arc::default());
    list(&mut mirror, what("EndpointSlice"), Some(slice(&["u1"])));
    list(&mut mirror, What::Pods, Some(plain("u1")));
    for kind in ["Service", "Workload", "AuthorizationPolicy", "AuthenticationPolicy"] {
        assert_eq!(says(&mirror), None, "nobody knows of any {kind}");
        list(&mut mirror, what(kind), None);
    }
    assert_eq!(says(&mirror), Some(true));
    mirror.take(what("EndpointSlice"), Seen::Changed(slice(&["u2"])));
    assert_eq!(says(&mirror), Some(false), "nobody has heard of it");
    mirror.take(what("EndpointSlice"), Seen::Changed(slice(&["u1", "u2"])));
    assert_eq!(says(&mirror), Some(true), "of the one that is known");
    mirror.take(What::Pods, Seen::Changed(injected("web-2", "u2", &json!({"phase": "Running"}))));
    assert_eq!(says(&mirror), Some(false), "it has a sidecar");
    let mut names = slice(&[]);
    names["metadata"]["name"] = "web-2".into();
    names["addressType"] = "FQDN".into();
    mirror.take(what("EndpointSlice"), Seen::Changed(slice(&["u1"])));
    assert_eq!(says(&mirror), Some(true));
    mirror.take(what("EndpointSlice"), Seen::Changed(names.clone()));
    assert_eq!(says(&mirror), Some(false), "there is another slice, which nobody can read");
    assert_eq!(mirror.wanted.get(&Key::new("EndpointSlice", "shop", "web-2")), Some(&None));
    mirror.take(what("EndpointSlice"), Seen::Gone(names));
    assert_eq!(says(&mirror), Some(true));
    mirror.take(what("EndpointSlice"), Seen::Gone(slice(&[])));
    assert!(mirror.wanted.get(&Key::new("EndpointSlice", "shop", "web-1")).is_some_and(Option::is_none));
}

#[tokio::test]
async fn a_pod_with_a_sidecar_that_has_ended_or_has_no_address_is_one() {
    for status in [
        json!({"phase": "Failed", "reason": "Evicted"}),
        json!({"phase": "Succeeded", "podIP": "10.0.0.7"}),
        json!({"phase": "Pending"}),
    ] {
        let (registry, _folder) = fake::registry().await;
        let mut mirror = mirror_of(registry, Arc::default());
        list(&mut mirror, what("Service"), Some(service("web", 8080)));
        list(&mut mirror, What::Pods, Some(plain("u1")));
        for kind in ["Workload", "AuthorizationPolicy", "AuthenticationPolicy"] {
            list(&mut mirror, what(kind), None);
        }
        list(&mut mirror, what("EndpointSlice"), Some(slice(&["u1"])));
        assert_eq!(says(&mirror), Some(true));
        mirror.take(What::Pods, Seen::Changed(injected("web-2", "u2", &status)));
        assert_eq!(says(&mirror), Some(false), "{status}");
        mirror.take(What::Pods, Seen::Gone(injected("web-2", "u2", &status)));
        assert_eq!(says(&mirror), Some(true), "it has gone");
        // A Service that selects others does not care.
        mirror.take(What::Pods, Seen::Changed(injected("web-2", "u2", &status)));
        let mut other = service("web", 8080);
        other["spec"]["selector"] = json!({"app": "other"});
        mirror.take(what("Service"), Seen::Changed(other));
        assert_eq!(says(&mirror), Some(true));
    }
}

/// A sidecar that a program of the pod starts is in nobody's spec. Its registration is lost, and the control plane that saw it, too.
#[tokio::test]
async fn a_pod_whose_program_registered_itself_has_a_sidecar_for_good() {
    let (registry, _folder) = fake::registry().await;
    let own = json!({
        "apiVersion": "remora.dev/v1alpha1", "kind": REGISTRATION, "metadata": {"name": "run-1", "namespace": "shop"},
        "spec": {"services": [], "workload": {"address": "10.0.0.1", "ports": []}, "health": "Ready"},
    });
    let key = Key::new(REGISTRATION, "shop", "run-1");
    let put = Put { key: key.clone(), value: own.to_string().into(), expect: Expect::Any, lease: None };
    let revision = registry.store().put(put).await.unwrap();
    assert!(registry.seen(revision).await);
    let all = |mirror: &mut Mirror| {
        mirror.look();
        everything(mirror, &["u1"]);
    };
    let mut mirror = mirror_of(Arc::clone(&registry), Arc::default());
    all(&mut mirror);
    assert_eq!(says(&mirror), Some(false));
    registry.mirror(std::mem::take(&mut mirror.wanted)).await;

    let revision = registry.store().delete(&key, Expect::Any).await.unwrap();
    assert!(registry.seen(revision).await);
    mirror.look();
    mirror.take(what("EndpointSlice"), Seen::Changed(slice(&["u1"])));
    assert_eq!(says(&mirror), Some(false), "it was seen");
    let mut next = mirror_of(Arc::clone(&registry), Arc::default());
    assert!(registry.get(&own::own("u1").0).is_some_and(|record| is_mirrored(&record)));
    all(&mut next);
    assert_eq!(says(&next), Some(false), "another control plane saw it");
    next.take(What::Pods, Seen::Gone(plain("u1")));
    registry.mirror(std::mem::take(&mut next.wanted)).await;
    assert!(registry.get(&own::own("u1").0).is_none(), "the pod has gone");

    // What was marked and is no more, seen late.
    next.look();
    let (key, body) = own::own("u9");
    let put = Put { key: key.clone(), value: body.to_string().into(), expect: Expect::Any, lease: None };
    registry.store().put(put).await.unwrap();
    let revision = registry.store().delete(&key, Expect::Any).await.unwrap();
    assert!(registry.seen(revision).await);
    next.look();
    assert!(!next.wanted.contains_key(&key), "it is not written again");
}

/// A change of many pods of a slice is one of the slice.
#[tokio::test]
async fn slices_are_told_once_for_what_is_taken_together() {
    let (registry, _folder) = fake::registry().await;
    let mut mirror = mirror_of(registry, Arc::default());
    let uids = ["u1", "u2", "u3"];
    everything(&mut mirror, &uids);
    mirror.wanted.clear();
    for uid in uids {
        let mut ended = plain(uid);
        ended["status"]["phase"] = "Failed".into();
        mirror.take_one(What::Pods, Seen::Changed(ended));
    }
    let key = Key::new("EndpointSlice", "shop", "web-1");
    assert!(!mirror.wanted.contains_key(&key), "nothing is made of it yet");
    assert_eq!(mirror.stale, BTreeSet::from([key.clone()]));
    // It has gone before it was told.
    mirror.take_all([(what("EndpointSlice"), Seen::Gone(slice(&[])))]);
    assert!(mirror.stale.is_empty());
    assert!(mirror.wanted.get(&key).is_some_and(Option::is_none));
}

#[tokio::test]
async fn what_comes_of_a_list_that_is_waited_for_is_progress() {
    let (registry, _folder) = fake::registry().await;
    let mut mirror = mirror_of(registry, Arc::default());
    let slices = what("EndpointSlice");
    assert!(mirror.goes_on(slices, &Seen::Listed(slice(&[]))) && mirror.goes_on(slices, &Seen::End));
    assert!(!mirror.goes_on(slices, &Seen::Begin), "it may begin again and again");
    assert!(!mirror.goes_on(slices, &Seen::Changed(slice(&[]))), "nobody waits for that");
    assert!(!mirror.goes_on(what("FaultPolicy"), &Seen::End), "nor for those");
    list(&mut mirror, slices, None);
    assert!(!mirror.goes_on(slices, &Seen::End), "it is known");
}

/// All that it takes: these pods, which have no sidecar and are in the slice.
fn everything(mirror: &mut Mirror, uids: &[&str]) {
    list(mirror, what("EndpointSlice"), Some(slice(uids)));
    mirror.take(What::Pods, Seen::Begin);
    for uid in uids {
        mirror.take(What::Pods, Seen::Listed(plain(uid)));
    }
    mirror.take(What::Pods, Seen::End);
    for kind in ["Service", "Workload", "AuthorizationPolicy", "AuthenticationPolicy"] {
        list(mirror, what(kind), None);
    }
}

/// The names of the endpoints of the slice, as it was told.
fn names(mirror: &Mirror) -> Vec<String> {
    let slice = mirror.wanted[&Key::new("EndpointSlice", "shop", "web-1")].clone().unwrap();
    let endpoints = slice["endpoints"].as_array().unwrap().clone();
    endpoints.iter().map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap().to_owned()).collect()
}

/// What cannot be listed must not keep endpoints that have gone, and what was once known is not for ever.
#[tokio::test]
async fn while_it_is_not_known_who_has_a_sidecar_slices_lose_endpoints_and_then_their_word() {
    let (registry, _folder) = fake::registry().await;
    let mut mirror = mirror_of(Arc::clone(&registry), Arc::default());
    everything(&mut mirror, &["u1", "u2"]);
    assert_eq!(says(&mirror), Some(true));
    registry.mirror(std::mem::take(&mut mirror.wanted)).await;

    let board = Arc::new(Board::default());
    let mut next = mirror_of(Arc::clone(&registry), Arc::clone(&board));
    next.take(what("EndpointSlice"), Seen::Changed(slice(&["u2", "u3"])));
    assert_eq!(
        (says(&next), names(&next)),
        (Some(true), vec!["web-2".to_owned()]),
        "nobody knows the new one"
    );
    list(&mut next, What::Pods, Some(plain("u2")));
    next.take(What::Pods, Seen::Changed(injected("web-3", "u3", &json!({"phase": "Running"}))));
    assert_eq!(says(&next), Some(false), "that much is known");
    next.take(What::Pods, Seen::Changed(plain("u3")));
    next.give_up();
    assert_eq!((says(&next), names(&next).len()), (Some(false), 2), "that was long ago");
    let waits = ["Service", "EndpointSlice", "Workload", "AuthenticationPolicy", "AuthorizationPolicy"];
    assert_eq!(board.kubernetes()["sidecarsWaitFor"], json!(waits));
    everything(&mut next, &["u2", "u3"]);
    assert_eq!((says(&next), names(&next).len()), (Some(true), 2));
    next.tell();
    assert_eq!(board.kubernetes()["sidecarsWaitFor"], json!([]));

    // Slices that nobody could list.
    let mut last = mirror_of(Arc::clone(&registry), Arc::default());
    last.give_up();
    assert_eq!((says(&last), names(&last).len()), (Some(false), 2));
}

/// Plaintext is a choice that somebody made.
#[tokio::test]
async fn no_slice_says_that_there_are_no_sidecars_where_nobody_allowed_plaintext() {
    let (registry, _folder) = fake::registry().await;
    let allowed = |to: &[&str]| {
        let board = Arc::new(Board::default());
        let mirror = Mirror::new(Arc::clone(&registry), Arc::clone(&board));
        (mirror.plaintext_to(to.iter().map(|to| to.parse().unwrap()).collect()), board)
    };
    for (to, may) in [
        (&[][..], false),
        (&["kube-system", "shop/other"], false),
        (&["kube-system", "shop"], true),
        (&["shop/web"], true),
        (&["*"], true),
    ] {
        let (mut mirror, board) = allowed(to);
        everything(&mut mirror, &["u1"]);
        assert_eq!((says(&mirror), names(&mirror).len()), (Some(may), 1), "{to:?}");
        mirror.tell();
        assert_eq!(board.kubernetes()["plaintextTo"], json!(to));
    }

    // What a control plane kept that was allowed to, and what others have that were.
    let (mut before, _) = allowed(&["*"]);
    everything(&mut before, &["u1"]);
    registry.mirror(std::mem::take(&mut before.wanted)).await;
    let (mut mirror, _) = allowed(&[]);
    mirror.take(what("EndpointSlice"), Seen::Changed(slice(&["u1"])));
    assert_eq!(says(&mirror), Some(false), "it does not wait for what is known of pods");
    let (mut mirror, _) = allowed(&[]);
    mirror.give_up();
    assert_eq!(says(&mirror), Some(false));
}
