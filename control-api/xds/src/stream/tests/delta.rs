use super::*;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

fn stream(limits: Limits) -> DeltaStream {
    DeltaStream::new(7, limits)
}

fn ask(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node(),
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// What a response says: `+` for what it has, `-` for what it removes.
fn said(response: Option<&DeltaDiscoveryResponse>) -> Vec<String> {
    let Some(response) = response else { return vec!["nothing".into()] };
    let has = response.resources.iter().map(|r| format!("+{}", r.name));
    has.chain(response.removed_resources.iter().map(|name| format!("-{name}"))).collect()
}

#[test]
fn an_empty_first_request_asks_for_everything_and_an_ack_is_not_answered() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    assert_eq!(stream.next(now), None, "there is no snapshot yet");
    stream.snapshot(snapshot([cluster("a", ""), cluster("b", ""), listener("l", "")]));
    let first = stream.next(now).unwrap();
    assert_eq!(said(Some(&first)), ["+a", "+b"]);
    stream.request(ack(&first)).unwrap();
    assert_eq!(stream.next(now), None);
    assert_eq!(told(&mut stream), ["accepted a", "accepted b"]);
    stream.snapshot(snapshot([cluster("a", "new"), listener("l", "")]));
    let changed = stream.next(now).unwrap();
    assert_eq!(said(Some(&changed)), ["+a"]);
    stream.request(ack(&changed)).unwrap();
    assert_eq!(stream.next(now), None, "the client may be about to ask for routes");
    let later = stream.deadline(now).unwrap();
    assert_eq!(said(stream.next(later).as_ref()), ["-b"], "what is gone comes last");
}

#[test]
fn a_secret_comes_by_its_name_alone_before_the_rest_and_again_when_it_changes() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    stream.request(ask(SDS, &["ROOTCA"])).unwrap();
    stream.snapshot(snapshot([cluster("a", ""), secret("ROOTCA", "1"), secret("other", "1")]));
    let first = stream.next(now).unwrap();
    assert_eq!((&*first.type_url, said(Some(&first))), (SDS, vec!["+ROOTCA".to_owned()]));
    stream.request(ack(&first)).unwrap();
    assert_eq!(told(&mut stream), ["accepted ROOTCA"]);
    assert_eq!(said(stream.next(now).as_ref()), ["+a"]);

    stream.snapshot(snapshot([cluster("a", ""), secret("ROOTCA", "2"), secret("other", "2")]));
    let second = stream.next(now).unwrap();
    assert_eq!((&*second.type_url, said(Some(&second))), (SDS, vec!["+ROOTCA".to_owned()]));
    stream.request(DeltaDiscoveryRequest { error_detail: error("no"), ..ack(&second) }).unwrap();
    assert_eq!(told(&mut stream), ["refused ROOTCA: no"]);
}

#[test]
fn an_empty_set_is_an_answer_too() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.snapshot(snapshot([]));
    stream.request(ask(LDS, &["*"])).unwrap();
    let first = stream.next(now).unwrap();
    assert!(first.resources.is_empty() && first.removed_resources.is_empty());
    stream.request(ack(&first)).unwrap();
    assert_eq!(stream.next(now), None);
}

#[test]
fn routes_and_endpoints_have_no_legacy_wildcard() {
    let mut stream = stream(Limits::default());
    stream.snapshot(snapshot([route("r", &[])]));
    stream.request(ask(RDS, &[])).unwrap();
    assert_eq!(stream.next(Instant::now()), None);
}

#[test]
fn names_are_subscribed_answered_again_and_unsubscribed() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.snapshot(snapshot([route("r", &[]), route("s", &[]), route("t", &[])]));
    stream.request(ask(RDS, &["r", "s"])).unwrap();
    let first = stream.next(now).unwrap();
    assert_eq!(said(Some(&first)), ["+r", "+s"]);
    stream.request(ack(&first)).unwrap();
    stream.request(ask(RDS, &["r"])).unwrap();
    let again = stream.next(now).unwrap();
    assert_eq!(said(Some(&again)), ["+r"], "the client may have forgotten it");
    let mut gone = ack(&again);
    gone.resource_names_unsubscribe = vec!["r".into()];
    stream.request(gone).unwrap();
    stream.snapshot(snapshot([route("r", &["new"]), route("s", &[])]));
    assert_eq!(stream.next(now), None);
}

#[test]
fn an_unknown_name_is_wanted_and_told_absent_and_may_come_later() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.snapshot(snapshot([]));
    stream.request(ask(CDS, &["a", "b"])).unwrap();
    assert_eq!(stream.next(now), None, "the control plane has some time to make it");
    assert_eq!(told(&mut stream), ["wanted Cluster a,b"]);
    assert_eq!(stream.deadline(now), Some(now + Limits::default().absent_wait));
    stream.snapshot(snapshot([cluster("a", "")]));
    let made = stream.next(now).unwrap();
    assert_eq!(said(Some(&made)), ["+a"]);
    stream.request(ack(&made)).unwrap();
    let absent = stream.next(now + A_WHILE).unwrap();
    assert_eq!(said(Some(&absent)), ["-b"]);
    stream.request(ack(&absent)).unwrap();
    assert_eq!(stream.next(now + A_WHILE), None, "it is told once");
    stream.snapshot(snapshot([cluster("a", ""), cluster("b", "")]));
    assert_eq!(said(stream.next(now).as_ref()), ["+b"]);
}

#[test]
fn a_client_that_comes_back_is_sent_what_differs() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    let (a, b) = (cluster("a", ""), cluster("b", ""));
    let versions = [("a", a.version().to_string()), ("b", "old".into()), ("gone", "x".into())];
    let mut request = ask(CDS, &[]);
    request.initial_resource_versions = versions.map(|(name, v)| (name.to_owned(), v)).into();
    stream.request(request).unwrap();
    stream.snapshot(snapshot([a.clone(), b.clone()]));
    let differs = stream.next(now).unwrap();
    assert_eq!(said(Some(&differs)), ["+b"]);
    assert_eq!(told(&mut stream), ["accepted a"]);
    stream.request(ack(&differs)).unwrap();
    assert_eq!(said(stream.next(now + Limits::default().order_wait).as_ref()), ["-gone"]);

    let mut same = DeltaStream::new(8, Limits::default());
    let mut request = ask(CDS, &[]);
    request.initial_resource_versions =
        [&a, &b].map(|r| (r.name().to_string(), r.version().to_string())).into();
    same.request(request).unwrap();
    same.snapshot(snapshot([a, b]));
    assert_eq!(same.next(now), None);
}

#[test]
fn a_refused_version_is_not_sent_again() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    stream.snapshot(snapshot([cluster("a", "bad"), cluster("b", "")]));
    let response = stream.next(now).unwrap();
    let mut nack = ack(&response);
    nack.error_detail = error("cluster a: too bad");
    stream.request(nack).unwrap();
    assert_eq!(told(&mut stream), ["refused a: cluster a: too bad", "accepted b"]);
    assert_eq!(stream.next(now), None);
    stream.snapshot(snapshot([cluster("a", "bad"), cluster("b", "2")]));
    let other = stream.next(now).unwrap();
    assert_eq!(said(Some(&other)), ["+b"], "only what changed");
    stream.request(ack(&other)).unwrap();
    stream.snapshot(snapshot([cluster("a", "good"), cluster("b", "2")]));
    assert_eq!(said(stream.next(now).as_ref()), ["+a"]);
}

#[test]
fn answers_to_other_responses_are_ignored() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    stream.snapshot(snapshot([cluster("a", "1")]));
    let first = stream.next(now).unwrap();
    for (nonce, event) in [("8.1", "foreign"), ("7.99", "stale")] {
        let mut other = ack(&first);
        other.response_nonce = nonce.into();
        stream.request(other).unwrap();
        assert_eq!(told(&mut stream), [event]);
    }
    stream.snapshot(snapshot([cluster("a", "2")]));
    assert_eq!(stream.next(now), None, "still in flight");
    stream.snapshot(snapshot([cluster("a", "3")]));
    stream.request(ack(&first)).unwrap();
    let newest = stream.next(now).unwrap();
    let content: Cluster = decode(newest.resources[0].resource.as_ref().unwrap());
    assert_eq!(content.alt_stat_name, "3", "bursts coalesce");
}

#[test]
fn new_clusters_and_endpoints_come_before_routes_and_old_clusters_go_last() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    for (kind, names) in [(CDS, &["*"][..]), (EDS, &["a", "b"]), (LDS, &["*"]), (RDS, &["r"])] {
        stream.request(ask(kind, names)).unwrap();
    }
    stream.snapshot(snapshot([eds_cluster("a", ""), endpoints("a"), listener("l", "r"), route("r", &["a"])]));
    for wanted in ["+a", "+a", "+l", "+r"] {
        let response = stream.next(now).unwrap();
        assert_eq!(said(Some(&response)), [wanted]);
        assert!(wanted == "+r" || stream.next(now).is_none(), "{wanted} has to be acknowledged first");
        stream.request(ack(&response)).unwrap();
    }
    stream.snapshot(snapshot([eds_cluster("b", ""), endpoints("b"), listener("l", "r"), route("r", &["b"])]));
    let mut order = Vec::new();
    while let Some(response) = stream.next(now) {
        order.push(said(Some(&response)).join(""));
        stream.request(ack(&response)).unwrap();
    }
    assert_eq!(order, ["+b", "+b", "+r", "-a", "-a"]);
}

#[test]
fn what_a_refused_route_replaces_keeps_its_cluster() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    for (kind, names) in [(CDS, &["*"][..]), (LDS, &["*"]), (RDS, &["r"])] {
        stream.request(ask(kind, names)).unwrap();
    }
    let settle = |stream: &mut DeltaStream, refuse: bool| {
        let mut order = Vec::new();
        while let Some(response) = stream.next(now) {
            order.push(said(Some(&response)).join(""));
            let mut answer = ack(&response);
            answer.error_detail = error("no").filter(|_| refuse && response.type_url == RDS);
            stream.request(answer).unwrap();
        }
        order
    };
    stream.snapshot(snapshot([cluster("a", ""), route("r", &["a"])]));
    assert_eq!(settle(&mut stream, false), ["+a", "", "+r"], "the set of listeners is empty");
    stream.snapshot(snapshot([cluster("b", ""), route("r", &["b"])]));
    assert_eq!(settle(&mut stream, true), ["+b", "+r"], "a stays");
    stream.snapshot(snapshot([cluster("b", ""), route("r", &["b", "x"])]));
    assert_eq!(settle(&mut stream, false), ["+r", "-a"]);
}

#[test]
fn a_client_that_never_answers_holds_up_others_for_a_bounded_time() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    stream.request(ask(LDS, &[])).unwrap();
    stream.snapshot(snapshot([cluster("a", ""), listener("l", "")]));
    assert_eq!(said(stream.next(now).as_ref()), ["+a"]);
    assert_eq!(stream.next(now), None);
    let later = stream.deadline(now).unwrap();
    assert_eq!(said(stream.next(later).as_ref()), ["+l"]);
    assert_eq!(stream.deadline(later).filter(|at| *at <= later), None, "no alarm that is over");
}

#[test]
fn endpoints_of_a_changed_cluster_are_sent_again() {
    let now = Instant::now();
    let mut stream = stream(Limits::default());
    stream.request(ask(CDS, &[])).unwrap();
    stream.request(ask(EDS, &["a"])).unwrap();
    stream.snapshot(snapshot([eds_cluster("a", "1"), endpoints("a")]));
    let mut count = 0;
    let mut settle = |stream: &mut DeltaStream| {
        while let Some(response) = stream.next(now) {
            count += usize::from(response.type_url == EDS);
            stream.request(ack(&response)).unwrap();
        }
        count
    };
    assert_eq!(settle(&mut stream), 1);
    stream.snapshot(snapshot([eds_cluster("a", "2"), endpoints("a")]));
    assert_eq!(settle(&mut stream), 2);
}

#[test]
fn a_large_push_is_split_with_new_resources_first() {
    let now = Instant::now();
    let mut stream = stream(Limits { response_bytes: 1000, ..Limits::default() });
    stream.request(ask(CDS, &[])).unwrap();
    let text = "x".repeat(300);
    stream.snapshot(snapshot([cluster("z", &text)]));
    let first = stream.next(now).unwrap();
    stream.request(ack(&first)).unwrap();
    let all = ["a", "b", "c", "d", "e"].map(|name| cluster(name, &text));
    let changed = cluster("A", &"y".repeat(5000));
    stream.snapshot(Arc::new(all.into_iter().chain([cluster("z", "new"), changed]).collect()));
    let mut sizes = Vec::new();
    let mut names = Vec::new();
    while let Some(response) = stream.next(now) {
        sizes.push(response.resources.len());
        names.extend(response.resources.iter().map(|r| r.name.clone()));
        stream.request(ack(&response)).unwrap();
    }
    assert_eq!(sizes, [1, 2, 2, 2], "one that is too large goes alone");
    assert_eq!(names, ["A", "a", "b", "c", "d", "e", "z"]);
}

#[test]
fn a_time_to_live_is_confirmed() {
    let now = Instant::now();
    let ttl = Duration::from_secs(10);
    let short = |node: Node| {
        let mut stream = stream(Limits::default());
        stream.request(DeltaDiscoveryRequest { node: Some(node), ..ask(CDS, &[]) }).unwrap();
        stream.snapshot(snapshot([cluster("a", "").with_ttl(ttl)]));
        let first = stream.next(now).unwrap();
        stream.request(ack(&first)).unwrap();
        (stream, first.resources[0].ttl.as_ref().map(|ttl| ttl.seconds))
    };
    let (_, plain) = short(node().unwrap());
    assert_eq!(plain, None, "this client would not understand");
    let (mut stream, with) = short(Node { client_features: vec![TTL_FEATURE.into()], ..node().unwrap() });
    assert_eq!(with, Some(10));
    assert_eq!(stream.next(now), None);
    let half = stream.deadline(now).unwrap();
    assert_eq!(half, now + ttl / 2);
    let confirmed = stream.next(half).unwrap();
    assert_eq!((said(Some(&confirmed)), &confirmed.resources[0].resource), (vec!["+a".into()], &None));
}

#[test]
fn bad_requests_are_refused_by_name() {
    let mut stream = stream(Limits { subscriptions: 2, name_bytes: 5, ..Limits::default() });
    let refused = |stream: &mut DeltaStream, request| stream.request(request).unwrap_err().to_string();
    let anonymous = DeltaDiscoveryRequest { node: Some(Node::default()), ..ask(CDS, &[]) };
    assert_eq!(refused(&mut stream, anonymous), "the first request of a stream must name its node (node.id)");
    assert_eq!(refused(&mut stream, ask("x/y", &[])), "\"x/y\" is not served here");
    assert_eq!(refused(&mut stream, ask(CDS, &["abcdef"])), "a name of Cluster is longer than 5 bytes");
    assert_eq!(refused(&mut stream, ask(CDS, &["a", "b", "c"])), "more than 2 names of Cluster");
    stream.request(ask(CDS, &["a", "b"])).unwrap();
    stream.request(ask(CDS, &["b"])).unwrap();
    assert_eq!(refused(&mut stream, ask(CDS, &["c"])), "more than 2 names of Cluster");
}
