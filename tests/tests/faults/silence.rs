//! Nothing comes: U4, U5, U6, U7, U13.

use std::time::Duration;

use remora_tests::config::{cluster, cluster_http2, keepalive, merge};
use remora_tests::control_plane::ControlPlane;
use remora_tests::hole::Hole;
use remora_tests::ledger::{Offer, Outcome, executed, executed2, origin, origin2};
use remora_tests::origin::Origin;
use remora_tests::relay::{Pace, Relay, Way};
use remora_tests::resources::{cds, eds, eds_cluster, lds, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually, eventually_async};
use serde_json::json;
use tokio::time::Instant;

use crate::{active, careful_listener, in_front_of, ms};

/// One of two endpoints answers no SYN. What was not sent is sent elsewhere, POSTs too.
#[tokio::test]
async fn u4_an_endpoint_that_answers_no_syn_costs_the_connect_timeout() {
    let hole = Hole::open().await.unwrap();
    let well = origin(ms(0)).await;
    let mut endpoints = cluster("origin", &[hole.address, well.address()]);
    merge(&mut endpoints, json!({ "connect_timeout": "0.3s" }));
    let proxy = in_front_of(endpoints, &json!({})).start().await;
    let ledger = Offer::both(proxy.address("ingress"), 60).during(ms(2000)).await.with(executed(&well));
    ledger.nothing_lost("U4");
    let p99 = ledger.quantile(0.99);
    assert!(p99 < ms(800), "connect timeout, back-off and a margin for the machine: {p99:?}");
}

/// The way to one of two HTTP/2 endpoints goes silent with requests in flight. A PING finds out.
#[tokio::test]
async fn u5_a_connection_that_goes_silent_is_given_up() {
    let (one, two) = (origin2().await, origin2().await);
    let (silent, free) =
        (Relay::start(Way::to(one.address())).await, Relay::start(Way::to(two.address())).await);
    let mut endpoints = cluster_http2("origin", &[silent.address, free.address]);
    merge(&mut endpoints, keepalive("0.4s", "0.4s"));
    let proxy = in_front_of(endpoints, &json!({})).start().await;
    let load = Offer::both(proxy.address("ingress"), 100).start();
    load.sends(60).await;
    silent.pace(Pace::Stopped);
    let stopped = Instant::now();
    load.lasts(ms(2000)).await;
    let ledger = load.end().await.with([executed2(&one), executed2(&two)].concat());
    ledger.no_get_lost("U5");
    let detected = ledger.quantile(1.0);
    println!("U5: the longest request took {detected:.1?}");
    assert!(detected > ms(300) && detected < ms(6000), "{detected:?}");
    for entry in ledger.lost(true) {
        assert!(entry.sent + ms(500) > stopped, "lost before anything went silent: {entry:?}");
    }
}

/// The same, and the machine behind it is gone for good; its successor has another address. No file stays open.
#[tokio::test]
async fn u6_a_machine_that_loses_its_power_leaves_no_connection_behind() {
    let one = origin2().await;
    let gone = Relay::start(Way::to(one.address())).await;
    let two = origin2().await;
    let plane = ControlPlane::start().await;
    let mut endpoints = eds_cluster("origin");
    merge(&mut endpoints, keepalive("0.4s", "0.4s"));
    let publish = |address| {
        let listener = lds(careful_listener(&json!({})));
        plane.publish([cds(&endpoints), eds("origin", &[address]), listener]);
    };
    publish(gone.address);
    let proxy = under(&[plane.address]).start().await;
    let load = Offer::both(proxy.address("ingress"), 100).start();
    load.sends(60).await;
    let files = proxy.open_files();
    gone.pace(Pace::Stopped);
    publish(two.address());
    let changed = Instant::now();
    load.lasts(ms(2000)).await;
    let ledger = load.end().await.with([executed2(&one), executed2(&two)].concat());
    ledger.sound("U6");
    // A request keeps the endpoints that it began with (decision 0003).
    let gets = ledger.lost(false);
    assert!(
        gets.iter().all(|e| e.sent < changed + ms(300)),
        "lost though there was a new endpoint: {gets:?}"
    );
    println!("U6: the longest request took {:.1?}", ledger.quantile(1.0));
    eventually("its files are given back", || proxy.open_files() <= files).await;
}

/// The only origin is frozen: 504 at the time limit of a try, no more than `max_requests` wait, and it recovers when it is thawed.
#[tokio::test]
async fn u7_an_origin_that_freezes_holds_no_more_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let frozen = Origin::start(([127, 0, 0, 1], 0).into(), &folder.path().join("log"), ms(2)).await;
    let mut endpoints = cluster("origin", &[frozen.address]);
    merge(&mut endpoints, json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 40 }] } }));
    let listener = careful_listener(&json!({ "num_retries": 0, "per_try_timeout": "0.3s" }));
    let proxy = remora_tests::proxy::Proxy::builder().listener(listener).cluster(endpoints).start().await;
    let load = Offer::both(proxy.address("ingress"), 200).start();
    load.sends(100).await;
    frozen.signal("STOP");
    let mut most = 0;
    let until = Instant::now() + ms(1500);
    eventually_async("the time that it is frozen", async || {
        most = most.max(active(&proxy).await);
        Instant::now() > until
    })
    .await;
    frozen.signal("CONT");
    let recovery = load.recovers(ms(700), ms(3000)).await;
    let ledger = load.end().await.with(frozen.executed());
    ledger.sound("U7");
    println!("U7: at most {most} at once, recovered after {recovery:.1?}");
    assert!(most == 40, "{most} at once");
    assert!(recovery < Duration::from_secs(2), "{recovery:?}");
    let refused = |status| move |o: &Outcome| matches!(o, Outcome::Refused(s, _) if *s == status);
    let (late, over) = (refused(504), refused(503));
    let lost: Vec<_> = ledger.entries.iter().filter(|e| !e.is_answered()).map(|e| &e.outcome).collect();
    assert!(lost.iter().all(|o| late(o) || over(o)), "{:?}", lost.iter().find(|o| !late(o) && !over(o)));
    assert!(lost.iter().any(|o| late(o)) && lost.iter().any(|o| over(o)), "both limits were met");
}

/// Lost packets cost time, and nothing else.
#[tokio::test]
async fn u13_lost_packets_cost_time_only() {
    let lossy = async |percent: u8| {
        let well = origin(ms(0)).await;
        let ways = [Relay::start(Way::to(well.address())).await, Relay::start(Way::to(well.address())).await];
        ways.iter().for_each(|way| way.pace(Pace::Lossy(percent)));
        let proxy =
            in_front_of(cluster("origin", &ways.each_ref().map(|way| way.address)), &json!({})).start().await;
        let ledger = Offer::both(proxy.address("ingress"), 60).during(ms(2000)).await.with(executed(&well));
        ledger.nothing_lost(&format!("U13 with {percent} %"));
    };
    tokio::join!(lossy(1), lossy(5), lossy(20));
}
