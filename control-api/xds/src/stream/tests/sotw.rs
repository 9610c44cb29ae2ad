use super::*;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

fn stream() -> SotwStream {
    SotwStream::new(7, Limits::default())
}

fn ask(type_url: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        node: node(),
        type_url: type_url.into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

/// As clients write it: the names once more, the new version.
fn ack(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        ..ask(&response.type_url, names)
    }
}

fn said(response: Option<&DiscoveryResponse>) -> Vec<String> {
    let Some(response) = response else { return vec!["nothing".into()] };
    let name = |any| match &*response.type_url {
        CDS => decode::<Cluster>(any).name,
        EDS => decode::<ClusterLoadAssignment>(any).cluster_name,
        LDS => decode::<Listener>(any).name,
        SDS => decode::<Secret>(any).name,
        _ => decode::<RouteConfiguration>(any).name,
    };
    response.resources.iter().map(name).collect()
}

#[test]
fn a_secret_comes_by_its_name_alone_before_the_rest_and_again_when_it_changes() {
    let now = Instant::now();
    let mut stream = stream();
    stream.request(ask(CDS, &[])).unwrap();
    stream.request(ask(SDS, &["ROOTCA"])).unwrap();
    stream.snapshot(snapshot([cluster("a", ""), secret("ROOTCA", "1"), secret("other", "1")]));
    let first = stream.next(now).unwrap();
    assert_eq!((&*first.type_url, said(Some(&first))), (SDS, vec!["ROOTCA".to_owned()]));
    stream.request(ack(&first, &["ROOTCA"])).unwrap();
    assert_eq!(told(&mut stream), ["accepted ROOTCA"]);
    assert_eq!(said(stream.next(now).as_ref()), ["a"]);

    stream.snapshot(snapshot([cluster("a", ""), secret("ROOTCA", "2"), secret("other", "2")]));
    let second = stream.next(now).unwrap();
    assert_eq!((&*second.type_url, said(Some(&second))), (SDS, vec!["ROOTCA".to_owned()]));
    assert_ne!(first.version_info, second.version_info);
    stream.request(DiscoveryRequest { error_detail: error("no"), ..ack(&second, &["ROOTCA"]) }).unwrap();
    assert_eq!(told(&mut stream), ["refused ROOTCA: no"]);
}

#[test]
fn clusters_always_come_all_together_and_endpoints_as_they_change() {
    let now = Instant::now();
    let mut stream = stream();
    stream.request(ask(CDS, &[])).unwrap();
    stream.snapshot(snapshot([cluster("a", ""), cluster("b", ""), endpoints("a"), endpoints("b")]));
    let first = stream.next(now).unwrap();
    assert_eq!(said(Some(&first)), ["a", "b"]);
    stream.request(ack(&first, &[])).unwrap();
    assert_eq!(stream.next(now), None, "an ACK is not answered");

    stream.request(ask(EDS, &["a"])).unwrap();
    let one = stream.next(now).unwrap();
    assert_eq!(said(Some(&one)), ["a"]);
    stream.request(ack(&one, &["a", "b"])).unwrap();
    let two = stream.next(now).unwrap();
    assert_eq!(said(Some(&two)), ["b"]);
    stream.request(ack(&two, &["a", "b"])).unwrap();

    stream.snapshot(snapshot([cluster("a", "new"), cluster("b", ""), endpoints("a"), endpoints("b")]));
    assert_eq!(said(stream.next(now).as_ref()), ["a", "b"]);
}

#[test]
fn grpc_asks_by_name_from_the_listener_on() {
    let now = Instant::now();
    let mut stream = stream();
    stream.snapshot(snapshot([
        listener("l", "r"),
        listener("other", ""),
        route("r", &["a"]),
        cluster("a", ""),
    ]));
    for (kind, name) in [(LDS, "l"), (RDS, "r"), (CDS, "a")] {
        stream.request(ask(kind, &[name])).unwrap();
        let response = stream.next(now).unwrap();
        assert_eq!(said(Some(&response)), [name]);
        stream.request(ack(&response, &[name])).unwrap();
        assert_eq!(stream.next(now), None);
    }
    // A listener that goes away is told by a response without it.
    stream.snapshot(snapshot([listener("other", ""), route("r", &["a"]), cluster("a", "")]));
    let gone = stream.next(now).unwrap();
    assert_eq!((gone.type_url.as_str(), gone.resources.len()), (LDS, 0));
    stream.request(ack(&gone, &["l"])).unwrap();
    assert_eq!(stream.next(now), None);
}

#[test]
fn the_old_cluster_stays_in_the_set_until_routes_have_left_it() {
    let now = Instant::now();
    let mut stream = stream();
    for (kind, names) in [(CDS, &[][..]), (LDS, &[]), (RDS, &["r"])] {
        stream.request(ask(kind, names)).unwrap();
    }
    let settle = |stream: &mut SotwStream| {
        let mut order = Vec::new();
        while let Some(response) = stream.next(now) {
            order.push(said(Some(&response)).join(","));
            let names: &[&str] = if response.type_url == RDS { &["r"] } else { &[] };
            stream.request(ack(&response, names)).unwrap();
        }
        order
    };
    stream.snapshot(snapshot([cluster("a", ""), route("r", &["a"])]));
    assert_eq!(settle(&mut stream), ["a", "", "r"], "the set of listeners is empty");
    stream.snapshot(snapshot([cluster("b", ""), route("r", &["b"])]));
    assert_eq!(settle(&mut stream), ["a,b", "r", "b"]);
}

#[test]
fn a_refusal_is_reported_and_not_repeated() {
    let now = Instant::now();
    let mut stream = stream();
    stream.request(ask(CDS, &[])).unwrap();
    stream.snapshot(snapshot([cluster("a", ""), cluster("b", "")]));
    let response = stream.next(now).unwrap();
    let nack = DiscoveryRequest {
        version_info: String::new(),
        error_detail: error("b is bad"),
        ..ack(&response, &[])
    };
    stream.request(nack).unwrap();
    assert_eq!(stream.next(now), None);
    assert_eq!(told(&mut stream), ["accepted a", "refused b: b is bad"]);
}

#[test]
fn an_outdated_answer_is_ignored_with_its_names() {
    let now = Instant::now();
    let mut stream = stream();
    stream.request(ask(EDS, &["a"])).unwrap();
    stream.snapshot(snapshot([endpoints("a"), endpoints("b")]));
    let first = stream.next(now).unwrap();
    stream.request(ack(&first, &["a", "b"])).unwrap();
    let second = stream.next(now).unwrap();
    stream.request(ack(&first, &["a"])).unwrap();
    assert_eq!(told(&mut stream), ["accepted a", "stale"]);
    stream.request(ack(&second, &["a", "b"])).unwrap();
    assert_eq!(stream.next(now), None);
    assert_eq!(told(&mut stream), ["accepted b"]);
}
