//! The rules of the protocol from the client's side.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::subscriptions::REFUSED_AGAIN;
use super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::pb::google::protobuf::Any;

fn client(variant: Variant, held: &[(&str, &str)]) -> Subscriptions {
    let node = Node { id: "n".into(), ..Node::default() };
    let held = held.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect();
    let mut client = Subscriptions::new(variant, node, [(Kind::Cluster, held)]);
    client.want_all(Kind::Cluster);
    client.connected();
    client
}

fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn delta(client: &mut Subscriptions) -> Option<DeltaDiscoveryRequest> {
    client.next_request(Instant::now()).map(|request| match request {
        Request::Delta(request) => *request,
        Request::Sotw(_) => panic!("the other variant"),
    })
}

fn sotw(client: &mut Subscriptions) -> Option<DiscoveryRequest> {
    client.next_request(Instant::now()).map(|request| match request {
        Request::Sotw(request) => *request,
        Request::Delta(_) => panic!("the other variant"),
    })
}

fn pushed(kind: Kind, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> Response {
    let resource = |(name, version): &(&str, &str)| Resource {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(Any::default()),
        ..Resource::default()
    };
    Response::Delta(Box::new(DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: nonce.into(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }))
}

/// A state of the world without anything in it.
fn world(version: &str, nonce: &str) -> Response {
    Response::Sotw(Box::new(DiscoveryResponse {
        version_info: version.into(),
        nonce: nonce.into(),
        type_url: Kind::Cluster.type_url().into(),
        ..DiscoveryResponse::default()
    }))
}

/// Takes a batch and accepts all of it but for `bad`.
fn apply(client: &mut Subscriptions, response: Response, bad: &[&str]) -> Batch {
    let batch = client.take(response).unwrap();
    let named = batch.resources.iter().map(|r| (r.name.clone().unwrap_or_default(), r.version.clone()));
    let accepted = named.filter(|(name, _)| !bad.contains(&&**name)).collect();
    let refused = bad.iter().map(|name| Refused { name: (*name).into(), detail: "is bad".into() }).collect();
    client.settle(batch.answer(accepted, batch.removed.clone(), refused), Instant::now());
    batch
}

#[test]
fn the_first_request_has_the_node_and_what_is_held() {
    let mut client = client(Variant::Delta, &[("a", "1")]);
    client.want(Kind::RouteConfiguration, &names(&["r"]));
    let first = delta(&mut client).unwrap();
    assert_eq!(first.node.map(|n| n.id), Some("n".into()));
    assert_eq!(first.type_url, Kind::Cluster.type_url());
    assert!(first.resource_names_subscribe.is_empty(), "the wildcard");
    assert_eq!(first.initial_resource_versions, [("a".to_owned(), "1".to_owned())].into());
    let second = delta(&mut client).unwrap();
    assert_eq!((second.node, second.resource_names_subscribe), (None, vec!["r".to_owned()]));
    assert_eq!(delta(&mut client), None);
}

#[test]
fn good_and_bad_resources_are_answered_together_and_named() {
    let mut client = client(Variant::Delta, &[]);
    delta(&mut client);
    let batch = apply(&mut client, pushed(Kind::Cluster, "n1", &[("a", "1"), ("b", "1")], &[]), &["b"]);
    assert!(batch.first);
    let nack = delta(&mut client).unwrap();
    assert_eq!(nack.response_nonce, "n1");
    let error = nack.error_detail.unwrap();
    assert_eq!((error.message.as_str(), error.details.len()), ("Cluster b: is bad", 1));
    let detail: ResourceError = any::unpack(&error.details[0]).unwrap();
    assert_eq!(detail.resource_name.unwrap().name, "b");
    let second = apply(&mut client, pushed(Kind::Cluster, "n2", &[], &["a"]), &[]);
    assert!(!second.first);
    let ack = delta(&mut client).unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n2", None));
    assert_eq!(delta(&mut client), None);
}

#[test]
fn each_of_two_responses_in_a_row_has_its_answer() {
    let mut client = client(Variant::Delta, &[]);
    delta(&mut client);
    apply(&mut client, pushed(Kind::Cluster, "n1", &[("a", "1")], &[]), &["a"]);
    apply(&mut client, pushed(Kind::Cluster, "n2", &[("b", "1")], &[]), &[]);
    let nack = delta(&mut client).unwrap();
    assert_eq!((nack.response_nonce.as_str(), nack.error_detail.is_some()), ("n1", true));
    let ack = delta(&mut client).unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n2", None));
    assert_eq!(delta(&mut client), None);
}

#[test]
fn a_server_that_reads_no_answers_is_not_read_for_ever() {
    for (variant, stops) in [(Variant::Delta, true), (Variant::Sotw, false)] {
        let mut client = client(variant, &[]);
        client.next_request(Instant::now());
        let mut taken = 0;
        while client.may_take() && taken < 100 {
            let nonce = taken.to_string();
            let response = match variant {
                Variant::Delta => pushed(Kind::Cluster, &nonce, &[], &[]),
                Variant::Sotw => world(&nonce, &nonce),
            };
            apply(&mut client, response, &[]);
            taken += 1;
        }
        assert_eq!(taken < 100, stops, "{variant:?}: only the newest answer counts in a state of the world");
        client.next_request(Instant::now());
        assert!(client.may_take(), "{variant:?}");
    }
}

#[test]
fn a_new_stream_says_what_is_in_force() {
    let mut client = client(Variant::Delta, &[]);
    delta(&mut client);
    apply(&mut client, pushed(Kind::Cluster, "n1", &[("a", "1"), ("b", "2"), ("c", "3")], &[]), &["b"]);
    delta(&mut client);
    apply(&mut client, pushed(Kind::Cluster, "n2", &[], &["c"]), &[]);
    // The answer was not sent: on a new stream nobody waits for it.
    client.connected();
    let first = delta(&mut client).unwrap();
    assert_eq!(first.initial_resource_versions, [("a".to_owned(), "1".to_owned())].into());
    assert_eq!(first.response_nonce, "");
    assert_eq!(delta(&mut client), None);
}

#[test]
fn names_come_and_go_and_what_is_not_wanted_is_forgotten() {
    let mut client = client(Variant::Delta, &[]);
    delta(&mut client);
    client.want(Kind::ClusterLoadAssignment, &names(&["a", "b"]));
    assert_eq!(delta(&mut client).unwrap().resource_names_subscribe, ["a", "b"]);
    apply(&mut client, pushed(Kind::ClusterLoadAssignment, "n1", &[("a", "1"), ("b", "1")], &[]), &[]);
    client.want(Kind::ClusterLoadAssignment, &names(&["b", "c"]));
    let request = delta(&mut client).unwrap();
    assert_eq!(request.resource_names_subscribe, ["c"]);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert_eq!(request.response_nonce, "n1", "one request answers and subscribes");
    client.connected();
    delta(&mut client);
    let again = delta(&mut client).unwrap();
    assert_eq!(again.initial_resource_versions, [("b".to_owned(), "1".to_owned())].into());
}

#[test]
fn the_other_variant_repeats_names_and_keeps_the_version_that_it_has() {
    let mut client = client(Variant::Sotw, &[]);
    sotw(&mut client);
    let batch = apply(&mut client, world("v1", "n1"), &[]);
    assert!(batch.complete);
    let ack = sotw(&mut client).unwrap();
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "n1"));
    apply(&mut client, world("v2", "n2"), &["a"]);
    let nack = sotw(&mut client).unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "n2"));
    assert!(nack.error_detail.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_repeats_what_was_refused_is_not_told_at_once() {
    let mut client = client(Variant::Sotw, &[]);
    sotw(&mut client);
    apply(&mut client, world("v1", "n1"), &["a"]);
    assert!(sotw(&mut client).is_some(), "the first time at once");
    apply(&mut client, world("v1", "n2"), &["a"]);
    assert_eq!(sotw(&mut client), None);
    assert_eq!(client.next_at(), Some(Instant::now() + REFUSED_AGAIN));
    tokio::time::advance(REFUSED_AGAIN).await;
    let nack = sotw(&mut client).unwrap();
    assert_eq!((nack.response_nonce.as_str(), nack.error_detail.is_some()), ("n2", true));
    assert_eq!(client.next_at(), None);
    // Another version is another matter, and so is what is good now.
    for (version, nonce, bad) in [("v2", "n3", &["a"] as &[_]), ("v2", "n4", &[]), ("v2", "n5", &["a"])] {
        apply(&mut client, world(version, nonce), bad);
        assert_eq!(sotw(&mut client).unwrap().response_nonce, nonce);
    }
}

#[test]
fn what_was_not_asked_for_ends_the_stream() {
    let mut client = client(Variant::Delta, &[]);
    delta(&mut client);
    let unasked = client.take(pushed(Kind::Listener, "n1", &[], &[])).unwrap_err();
    assert!(unasked.contains("v3.Listener"), "{unasked}");
}

/// A control plane whose servers come by name, and whose name was not resolved yet.
struct Unresolved {
    servers: tokio::sync::watch::Receiver<usize>,
    attempts: tokio::sync::mpsc::Sender<Instant>,
}

impl Connector for Unresolved {
    fn servers(&self) -> usize {
        *self.servers.borrow()
    }
    fn connect(&self, _: usize) -> Connecting {
        self.attempts.try_send(Instant::now()).unwrap();
        Box::pin(async { Err(std::io::Error::other("nobody is there")) })
    }
    fn authority(&self) -> &'static str {
        "control"
    }
    fn changed(&self) -> Changed {
        let mut servers = self.servers.clone();
        servers.mark_unchanged();
        Box::pin(async move { servers.changed().await.unwrap() })
    }
}

#[tokio::test(start_paused = true)]
async fn other_servers_are_tried_at_once() {
    let (found, servers) = tokio::sync::watch::channel(0);
    let (attempts, mut attempted) = tokio::sync::mpsc::channel(1 << 16);
    let (events, mut said) = tokio::sync::mpsc::channel(1);
    let (_wanted, wants) = tokio::sync::watch::channel(Names::new());
    let settings = Settings::new(Variant::Delta, Node::default(), vec![Kind::Cluster]);
    tokio::spawn(run(settings, Unresolved { servers, attempts }, wants, events));
    tokio::spawn(async move { while said.recv().await.is_some() {} });
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    // By now it waits for up to 30 s between two attempts.
    while attempted.try_recv().is_ok() {}
    let now = Instant::now();
    found.send_replace(1);
    assert!(attempted.recv().await.unwrap() - now < std::time::Duration::from_millis(10));
    assert!(attempted.recv().await.unwrap() - now < std::time::Duration::from_millis(200), "a first failure");
}
