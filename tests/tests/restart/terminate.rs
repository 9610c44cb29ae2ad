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

/// Whoever waits for the server to speak while the listener waits for the client's first word: closed at last, and not without a word.
#[tokio::test]
async fn who_says_nothing_until_the_end_is_refused_by_name() {
    let scene = Scene::new().await;
    let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let silent = Listener::http("silent").route(to_cluster("/", "origin")).with(json!({
        "listener_filters_timeout": "0s",
        "listener_filters": [{ "name": "tls_inspector", "typed_config": { "@type": inspector } }],
    }));
    let proxy = scene.proxy().listener(silent).start().await;
    // The process has something to wait for.
    let stream = scene.stream(&proxy).await;
    let _client = tokio::net::TcpStream::connect(proxy.address("silent")).await.unwrap();
    proxy.counts(r#"remora_downstream_connections_total{listener="silent"}"#, 1).await;
    proxy.signal("TERM");
    proxy.counts(r#"remora_downstream_rejected_total{reason="draining"}"#, 1).await;
    let story = proxy.admin("GET", "/why?reason=draining").await.unwrap().text();
    assert!(story.contains("silent"), "{story}");
    stream.ends(&scene).await;
}
