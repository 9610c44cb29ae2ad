//! Answers that break, come too early or make no sense: U1, U2, U3, U9, U12.

use std::collections::BTreeSet;

use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Outcome as Stream, request};
use remora_tests::config::{Listener, to_cluster};
use remora_tests::http1::Broken;
use remora_tests::ledger::{Offer, Outcome, answer, executed, origin, receipt};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::upstream::http2::{Answer as Answer2, Http2Upstream};
use remora_tests::wait::eventually;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{before, ms};

/// One origin resets what it has read, another resets at once; two are well.
#[tokio::test]
async fn u1_a_reset_before_the_answer_costs_no_get_and_repeats_no_post() {
    let (one, two) = (origin(ms(0)).await, origin(ms(0)).await);
    let late = Http1Upstream::answering(Answer::nothing().reset()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let early = listener.local_addr().unwrap();
    let resets = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            remora_tests::client::Io::Tcp(stream).reset();
        }
    });
    let proxy = before(&[one.address(), late.address(), early, two.address()]).await;
    let ledger = Offer::both(proxy.address("ingress"), 200).during(ms(1500)).await;
    resets.abort();
    let ledger = ledger.with([executed(&one), executed(&late), executed(&two)].concat());
    ledger.no_get_lost("U1");
    for entry in ledger.lost(true) {
        assert!(
            matches!(&entry.outcome, Outcome::Refused(503, reason) if reason.starts_with("upstream_")),
            "{entry:?}"
        );
    }
    assert!(!late.requests().is_empty());
}

/// A third of the answers ends in the middle, by Content-Length, by chunks, by FIN and by RST in turns.
#[tokio::test]
async fn u2_an_answer_that_is_cut_off_never_looks_whole() {
    let origin = Http1Upstream::scripted(|request, n| {
        let text = receipt(request.method(), request.target());
        let half = &text[..text.len() / 2];
        let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{half}", text.len());
        let chunks =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{half}\r\n", half.len());
        match n % 12 {
            0 => Answer::raw(length).pause(ms(5)).reset(),
            3 => Answer::raw(chunks).pause(ms(5)).reset(),
            6 => Answer::raw(length).close(),
            9 => Answer::raw(chunks).close(),
            _ => answer(request),
        }
    })
    .await;
    let proxy = before(&[origin.address()]).await;
    let ledger = Offer::both(proxy.address("ingress"), 200).during(ms(1500)).await.with(executed(&origin));
    ledger.sound("U2");
    let cut = ledger.entries.iter().filter(|e| !e.is_answered());
    let mut count = 0;
    for entry in cut {
        count += 1;
        assert!(
            matches!(entry.outcome, Outcome::Broken(Broken::Truncated(_) | Broken::Reset(_))),
            "{entry:?}"
        );
    }
    assert_eq!(count, origin.requests().len().div_ceil(3), "each that was cut, and no other");
}

/// The same for gRPC: UNAVAILABLE in the trailers, or no end of the stream at all.
#[tokio::test]
async fn u2_a_grpc_answer_that_is_cut_off_is_unavailable() {
    let cut = Answer2::status(200).field("content-type", "application/grpc").data("\0\0\0\0\x05hel");
    let origin = Http2Upstream::answering(cut.pause(ms(5)).reset(h2::Reason::INTERNAL_ERROR)).await;
    let proxy = Proxy::in_front_of(&origin).await;
    let mut client = proxy.http2().await;
    for _ in 0..20 {
        let mut fields = request("POST", "/a.Service/Call").to_vec();
        fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
        let stream = client.open(&fields, true).await;
        match client.outcome(stream).await {
            Stream::Answer(answer) => {
                assert_eq!(answer.trailers.get("grpc-status"), Some("14"), "{answer:?}")
            }
            Stream::Reset(code, stream) => assert!(code != 0 && stream.heads.len() < 2, "{code} {stream:?}"),
            other @ Stream::ConnectionEnded(_) => panic!("{other:?}"),
        }
    }
}

/// 413 while the client goes on sending: it is delivered, and what still comes is never a request.
#[tokio::test]
async fn u3_an_answer_before_the_end_of_the_request_desynchronises_nobody() {
    let origin = Http1Upstream::scripted(|request, _| match request.target() {
        "/upload" => Answer::raw("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").early(),
        _ => answer(request),
    })
    .await;
    let proxy = before(&[origin.address()]).await;
    let address = proxy.address("ingress");
    let load = Offer::both(address, 200).start();
    let mut uploads = JoinSet::new();
    for _ in 0..20 {
        uploads.spawn(async move {
            let mut client = Http1Client::connect(address).await;
            client.send("POST /upload HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n").await;
            client.send("GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n".repeat(200)).await;
            let response = client.response().await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (413, "big"));
            client.send("GET /admin HTTP/1.1\r\nHost: a.example\r\n\r\n".repeat(200)).await;
        });
    }
    while let Some(upload) = uploads.join_next().await {
        upload.unwrap();
    }
    load.sends(100).await;
    let ledger = load.end().await.with(executed(&origin));
    ledger.nothing_lost("U3");
    // `requests` has checked that each is a request; these are the ones that were sent as such.
    assert!(origin.requests().iter().all(|r| r.target() != "/admin"));
    let interrupted: BTreeSet<_> =
        origin.requests().iter().filter(|r| !r.complete).map(|r| r.connection).collect();
    eventually("the connections of the uploads end", || {
        let ends = origin.ends();
        interrupted.iter().all(|connection| ends[*connection].is_some())
    })
    .await;
}

/// The origin closes each connection a few milliseconds after an answer, by FIN and by RST in turns: just when the next request comes.
#[tokio::test]
async fn u9_connections_that_close_when_they_are_used_again_cost_no_get_and_repeat_no_post() {
    let origin = Http1Upstream::scripted(|request, n| {
        let answer = answer(request).pause(ms(n as u64 % 8));
        if n % 2 == 0 { answer.close() } else { answer.reset() }
    })
    .await;
    // Without any retry policy: this one is the proxy's own.
    let proxy = Proxy::in_front_of(&origin).await;
    let ledger = Offer::both(proxy.address("ingress"), 300).during(ms(3000)).await.with(executed(&origin));
    ledger.no_get_lost("U9");
    for entry in ledger.lost(true) {
        assert_eq!(ledger.executions(entry), 0, "lost though it was executed: {entry:?}");
    }
    let races = proxy.count("remora_upstream_reuse_races_total{cluster=\"origin\"}").await;
    println!("U9: {races} races");
    assert!(races > 0, "no race: the test proves nothing");
}

/// Every fourth answer is none. It is 502, and its connection is never used again.
#[tokio::test]
async fn u12_answers_that_make_no_sense_reach_nobody() {
    const BAD: [&str; 6] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "220 smtp.example ESMTP\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
        "header bomb",
        "many 1xx",
    ];
    let origin = Http1Upstream::scripted(|request, n| {
        if n % 4 != 3 {
            return answer(request);
        }
        match BAD[n / 4 % BAD.len()] {
            "header bomb" => {
                Answer::raw(format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\n\r\n", "b".repeat(1 << 20)))
            }
            "many 1xx" => Answer::raw("HTTP/1.1 102 Processing\r\n\r\n".repeat(1000)),
            bad => Answer::raw(bad),
        }
        .hang()
    })
    .await;
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    let began = Instant::now();
    let ledger = Offer::both(proxy.address("ingress"), 100).during(ms(2000)).await.with(executed(&origin));
    ledger.sound("U12");
    let bad: Vec<_> = ledger.entries.iter().filter(|e| !e.is_answered()).collect();
    assert!(bad.iter().all(|e| matches!(e.outcome, Outcome::Refused(502, _))), "{bad:?}");
    assert_eq!(bad.len(), origin.requests().len() / 4, "after {:?}", began.elapsed());
    let mut last = std::collections::BTreeMap::new();
    for (n, request) in origin.requests().iter().enumerate() {
        let before = last.insert(request.connection, n);
        assert!(before.is_none_or(|before| before % 4 != 3), "a connection was used after nonsense");
    }
}
