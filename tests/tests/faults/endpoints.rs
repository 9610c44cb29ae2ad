//! Endpoints that end: U8, U10, U14.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use remora_tests::config::{budget, cluster, cluster_http2, merge};
use remora_tests::frame::{Frame, PREFACE, flag, kind};
use remora_tests::hpack;
use remora_tests::ledger::{Offer, Outcome, executed2, origin2, receipt};
use remora_tests::origin::Origin;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::{before, careful_listener, in_front_of, ms};

async fn three(folder: &tempfile::TempDir) -> Vec<Origin> {
    let mut origins = Vec::new();
    for n in 0..3 {
        let log = folder.path().join(format!("log-{n}"));
        origins.push(Origin::start(([127, 0, 0, 1], 0).into(), &log, ms(5)).await);
    }
    origins
}

#[tokio::test]
async fn u8_one_of_three_origins_is_killed_and_no_get_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut origins = three(&folder).await;
    let addresses: Vec<_> = origins.iter().map(|o| o.address).collect();
    let proxy = before(&addresses).await;
    let load = Offer::both(proxy.address("ingress"), 200).start();
    load.sends(150).await;
    origins[1].signal("KILL");
    let killed = Instant::now();
    origins[1].ended().await;
    load.lasts(ms(1500)).await;
    let ledger = load.end().await.with(origins.iter().flat_map(Origin::executed));
    ledger.no_get_lost("U8");
    for entry in ledger.lost(true) {
        let ended = entry.sent + entry.took;
        assert!(
            entry.sent < killed + ms(1000) && ended + ms(100) > killed,
            "not in flight when it died: {entry:?}"
        );
    }
}

/// Graceful GOAWAYs under load: what was begun finishes, what is new goes elsewhere.
#[tokio::test]
async fn u10_a_goaway_loses_nothing() {
    let (one, two) = (origin2().await, origin2().await);
    let proxy =
        in_front_of(cluster_http2("origin", &[one.address(), two.address()]), &json!({})).start().await;
    let load = Offer::both(proxy.address("ingress"), 150).start();
    for _ in 0..5 {
        load.sends(40).await;
        one.goaway();
        load.sends(10).await;
        two.goaway();
    }
    let ledger = load.end().await.with([executed2(&one), executed2(&two)].concat());
    ledger.nothing_lost("U10");
    assert!(one.connections() + two.connections() > 5, "the GOAWAYs were seen");
}

/// GOAWAY with last_stream_id 0 on the first connections: none of their streams was processed, so each is sent again, POSTs too.
#[tokio::test]
async fn u10_streams_that_a_goaway_leaves_out_are_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let refuse = if number % 2 == 0 { 3 } else { usize::MAX };
            connections.spawn(goaway_at(stream, refuse, Arc::clone(&counted)));
        }
    });
    let proxy = in_front_of(cluster_http2("origin", &[address]), &json!({})).start().await;
    let ledger = Offer::both(proxy.address("ingress"), 200).during(ms(1000)).await;
    server.abort();
    ledger.nothing_lost("U10 with last_stream_id 0");
    assert!(refused.load(Ordering::Relaxed) > 0);
}

/// Serves one connection; from the `last`th request on it waits for a second one and says that it processed none of them.
async fn goaway_at(mut stream: TcpStream, last: usize, refused: Arc<AtomicUsize>) {
    let _ = stream.set_nodelay(true);
    let mut input = BytesMut::new();
    let mut decoder = hpack::Decoder::default();
    let mut heads = std::collections::BTreeMap::new();
    let mut asked = 0;
    if stream.write_all(&Frame::settings(&[]).encode()).await.is_err() {
        return;
    }
    let mut greeted = false;
    while matches!(stream.read_buf(&mut input).await, Ok(1..)) {
        if !greeted && input.len() >= PREFACE.len() {
            let _preface = input.split_to(PREFACE.len());
            greeted = true;
        }
        while let Some(frame) = greeted.then(|| Frame::take(&mut input)).flatten() {
            if frame.kind == kind::SETTINGS && !frame.has(flag::ACK) {
                let _gone = stream.write_all(&Frame::new(kind::SETTINGS, flag::ACK, 0, b"").encode()).await;
            }
            if frame.kind == kind::HEADERS {
                heads.insert(frame.stream, decoder.decode(&frame.payload).unwrap());
                asked += 1;
            }
            if asked >= last {
                refused.fetch_add(1, Ordering::Relaxed);
                let _gone = stream.write_all(&Frame::goaway(0, 0).encode()).await;
                let _gone = stream.shutdown().await;
                // What is closed unread is reset, and the GOAWAY might be lost with it.
                while matches!(stream.read_buf(&mut input).await, Ok(1..)) {
                    input.clear();
                }
                return;
            }
            if matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(flag::END_STREAM) {
                let head = remora_tests::http1::Fields(heads.remove(&frame.stream).unwrap());
                let text = receipt(head.get(":method").unwrap(), head.get(":path").unwrap());
                let block = hpack::encode(&[(":status", "200")]);
                let answer = [
                    Frame::headers(frame.stream, block, false).encode(),
                    Frame::data(frame.stream, text, true).encode(),
                ];
                let _gone = stream.write_all(&answer.concat()).await;
            }
        }
    }
}

/// Everything is down: errors come at once, and the retries stay within their budget.
#[tokio::test]
async fn u14_when_every_endpoint_is_down_the_answer_is_fast_and_no_storm() {
    let folder = tempfile::tempdir().unwrap();
    let mut origins = three(&folder).await;
    let mut endpoints = cluster("origin", &origins.iter().map(|o| o.address).collect::<Vec<_>>());
    let mut limits = budget(20, 0);
    // As TrafficPolicy has it: of the requests of a while, not of what is in flight, which ends at once here.
    merge(
        &mut limits["circuit_breakers"]["thresholds"][0]["retry_budget"],
        json!({ "budget_interval": "10s" }),
    );
    merge(&mut endpoints, limits);
    let proxy = Proxy::builder().listener(careful_listener(&json!({}))).cluster(endpoints).start().await;
    let load = Offer::both(proxy.address("ingress"), 300).start();
    load.sends(100).await;
    let before = load.end().await;
    before.nothing_lost("U14 before");
    for origin in &mut origins {
        origin.signal("KILL");
        origin.ended().await;
    }
    let retries = "remora_upstream_retries_total{cluster=\"origin\"}";
    let earlier = proxy.count(retries).await;
    let ledger = Offer::both(proxy.address("ingress"), 300).during(ms(2000)).await;
    ledger.sound("U14");
    let (sent, again) = (ledger.entries.len() as u64, proxy.count(retries).await - earlier);
    println!("U14: {again} retries of {sent} requests");
    // The requests of the interval before count, too.
    let all = sent + before.entries.len() as u64;
    assert!(again * 5 <= all, "{again} retries of {all} requests");
    assert!(ledger.entries.iter().all(|e| matches!(e.outcome, Outcome::Refused(503, _))));
    assert!(ledger.quantile(0.5) < ms(5000), "{:?}", ledger.quantile(0.5));
}
