//! What a board tells.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;

use super::*;
use crate::document::Record;
use crate::store::Entry;

fn route() -> Record {
    let value = r#"{"metadata":{"generation":3}}"#;
    Record::of(&Entry {
        key: Key::new("HTTPRoute", "default", "a"),
        value: value.into(),
        revision: 1,
        lease: None,
    })
    .unwrap()
}

fn conditions(board: &Board) -> Vec<(String, String)> {
    let status = board.standing().of(&route());
    let list = status["conditions"].as_array().unwrap().iter();
    list.map(|c| {
        (
            format!("{}={}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap()),
            c["message"].as_str().unwrap().to_owned(),
        )
    })
    .collect()
}

#[test]
fn a_refusal_is_told_to_the_author_until_the_proxy_takes_the_resource() {
    let board = Board::default();
    board.followed(1);
    let resource = |name: &str| {
        Arc::new(Resource::new(&RouteConfiguration { name: name.into(), ..RouteConfiguration::default() }))
    };
    let (route_r, other) = (resource("r"), resource("s"));
    let snapshot: NodeSnapshot = [Arc::clone(&route_r)].into_iter().collect();
    let snapshots = tokio::sync::watch::Sender::new(Some(Arc::new(snapshot)));
    board.opened(1, Proxy { node: "sidecar~a".into(), ..Proxy::default() }, snapshots.subscribe());
    assert_eq!(board.proxies()[0].state, "Syncing");
    let refusal = Refusal {
        kind: "RouteConfiguration".into(),
        name: "r".into(),
        version: route_r.version().to_string(),
        reason: "no such cluster".into(),
        documents: vec!["HTTPRoute/default/a".into()],
    };
    board.refused(1, &route_r, refusal.clone());
    assert_eq!(board.proxies()[0].state, "Refused");
    let told = conditions(&board);
    assert_eq!(told[1].0, "Programmed=False");
    assert_eq!(told[2], ("RefusedBy=True".into(), "sidecar~a: RouteConfiguration r: no such cluster".into()));

    board.accepted(1, &route_r);
    assert_eq!((board.proxies()[0].state.as_str(), board.proxies()[0].in_force), ("Synced", 1));
    assert_eq!(conditions(&board).len(), 2);

    // What it refuses and is to have no longer is nobody's trouble.
    board.refused(1, &route_r, refusal);
    snapshots.send_replace(Some(Arc::new([other].into_iter().collect())));
    assert_eq!(board.proxies()[0].state, "Syncing");
    assert_eq!(conditions(&board).len(), 2);
    board.closed(1);
    assert!(board.proxies().is_empty());
}

#[test]
fn a_document_that_is_left_out_says_why() {
    let board = Board::default();
    board.left_out(1, BTreeMap::from([(route().key, vec![Flaw::unreadable("there is no Service".into())])]));
    assert_eq!(conditions(&board)[0], ("Accepted=False".into(), "there is no Service".into()));
    assert_eq!(conditions(&board)[1].0, "Programmed=False");
}

#[test]
fn a_document_is_in_force_when_it_is_compiled_and_every_proxy_has_it() {
    let board = Board::default();
    let programmed = |board: &Board| conditions(board)[1].clone();
    assert_eq!(programmed(&board).1, "it is being compiled");
    board.followed(1);
    assert_eq!(programmed(&board).0, "Programmed=True", "no proxy uses it");

    let routes = RouteConfiguration { name: "r".into(), ..RouteConfiguration::default() };
    let resource = Arc::new(Resource::new(&routes).with_origin("HTTPRoute/default/a Service/default/b"));
    let snapshot: NodeSnapshot = [Arc::clone(&resource)].into_iter().collect();
    let snapshots = tokio::sync::watch::Sender::new(Some(Arc::new(snapshot)));
    for (stream, node) in [(1, "sidecar~a"), (2, "sidecar~b")] {
        board.opened(stream, Proxy { node: node.into(), ..Proxy::default() }, snapshots.subscribe());
    }
    assert_eq!(programmed(&board), ("Programmed=False".into(), "on its way to sidecar~a, sidecar~b".into()));
    board.accepted(1, &resource);
    assert_eq!(programmed(&board).1, "on its way to sidecar~b");
    board.accepted(2, &resource);
    assert_eq!(programmed(&board).0, "Programmed=True");
    // Also when it was seen to be everywhere before.
    let next = Arc::new(Resource::new(&Cluster::default()).with_origin("HTTPRoute/default/a"));
    snapshots.send_replace(Some(Arc::new([resource, next].into_iter().collect())));
    assert_eq!(programmed(&board).1, "on its way to sidecar~a, sidecar~b");
    board.closed(1);
    board.closed(2);
    assert_eq!(programmed(&board).0, "Programmed=True");
}

#[test]
fn what_cannot_be_sent_to_a_proxy_is_told_to_its_author() {
    let board = Board::default();
    board.followed(1);
    let document =
        remora_mesh::Key::new(remora_mesh::Kind::HttpRoute, remora_mesh::Name::new("default", "a"));
    let problem = Problem { document, message: "port 8080 is taken".into() };
    board.set_problems("sidecar~a", &[problem]);
    assert_eq!(conditions(&board)[1], ("Programmed=False".into(), "sidecar~a: port 8080 is taken".into()));
    board.set_problems("sidecar~a", &[]);
    assert_eq!(conditions(&board)[1].0, "Programmed=True");
}
