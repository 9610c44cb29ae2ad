//! Row L1: SIGTERM under load.

use remora_tests::wait::{eventually_async, patience};
use tokio::time::Instant;

use super::*;

/// Newcomers come for as long as readiness takes to be noticed; those who are there stay until they are told to leave, and nobody listens any more.
async fn l1(row: &str, scene: &Scene, builder: Builder) {
    let mut proxy = builder.start().await;
    let rate = if long() { 2000 } else { 200 };
    let load = newcomers(&proxy, rate).start();
    let (ingress, secure) = (proxy.address("ingress"), proxy.address("secure"));
    let clients = [
        ("HTTP/1", Steady::while_listening(ingress, Speaks::Http1, 8)),
        ("HTTP/2", Steady::while_listening(ingress, Speaks::Http2, 4)),
        ("HTTP/1 by mTLS", Steady::while_listening(secure, Speaks::Https1(scene.tls.clone()), 4)),
        ("HTTP/2 by mTLS", Steady::while_listening(secure, Speaks::Https2(scene.tls2.clone()), 4)),
    ];
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(scene.stream(&proxy).await);
    }
    load.sends(u64::from(rate / 2)).await;
    proxy.signal("TERM");
    let told = Instant::now();
    eventually_async("readiness off", async || {
        proxy.admin("GET", "/ready").await.is_ok_and(|answer| answer.status == 503)
    })
    .await;
    load.sends(u64::from(rate / 2)).await;
    assert!(told.elapsed() < ms(4500), "the machine is too slow for this test");
    load.end().await.with(executed(&scene.origin)).nothing_lost(row);
    for (what, client) in clients {
        client.ended(&format!("{row} {what}")).await;
    }
    assert!(proxy.is_running(), "streams are open");
    for stream in &mut streams {
        let goaway = stream.client.until_goaway().await;
        assert_eq!((goaway.code, goaway.last_stream), (0, 0x7fff_ffff));
    }
    scene.end_streams.notify_waiters();
    let last = Instant::now();
    for stream in streams {
        stream.ends(scene).await;
    }
    assert_eq!(proxy.exited().await.code(), Some(0));
    println!(
        "{row}: ended {:.1?} after the last stream, {:.1?} after SIGTERM",
        last.elapsed(),
        told.elapsed()
    );
    assert!(last.elapsed() < ms(1000).max(patience() / 2));
}

#[tokio::test]
async fn l1_sigterm_under_load_loses_nothing() {
    let scene = Scene::new().await;
    l1("L1", &scene, scene.proxy()).await;
}

/// The supervisor lets go of its sockets before: nobody waits in a queue that nobody accepts from.
#[tokio::test]
async fn l1_sigterm_to_a_supervisor_loses_nothing() {
    let scene = Scene::new().await;
    l1("L1, supervised", &scene, scene.proxy().workers(2).argument("--supervise")).await;
}
