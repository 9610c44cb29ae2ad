//! Rows L2, L3 and L4 between two processes: `--hot-restart-path`.

use remora_tests::config::{Listener, to_cluster};
use remora_tests::resources::under;
use remora_tests::wait::{eventually, eventually_async};
use serde_json::json;

use super::*;

/// L2: with every restart another number of workers, so that sockets are added, and that workers accept on several.
#[tokio::test]
async fn l2_a_new_process_takes_over_again_and_again_and_nobody_notices() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let mut proxy = scene.at(&path).workers(2).start().await;
    let (ingress, admin) = (proxy.address("ingress"), proxy.admin);
    let load = newcomers(&proxy, 100).start();
    let clients = scene.clients(&proxy);
    for round in 0..if long() { 50 } else { 5 } {
        let stream = scene.stream(&proxy).await;
        let new = scene.at(&path).workers([1, 3, 2, 2][round % 4]).start().await;
        assert_eq!((new.address("ingress"), new.admin), (ingress, admin), "the same sockets");
        // The old process has what it had, until that ends.
        let mut old = std::mem::replace(&mut proxy, new);
        assert!(old.is_running(), "{}", old.stderr());
        stream.ends(&scene).await;
        for client in &clients {
            client.flows(20).await;
        }
        assert_eq!(old.exited().await.code(), Some(0));
    }
    for (client, what) in clients.into_iter().zip(["HTTP/1", "HTTP/2", "HTTP/1 by mTLS", "HTTP/2 by mTLS"]) {
        client.lost_nothing(&format!("L2 {what}")).await;
    }
    load.end().await.with(executed(&scene.origin)).nothing_lost("L2");
}

/// What the new configuration does not have is closed by the old process, and what it has besides is opened.
#[tokio::test]
async fn listeners_may_come_and_go_with_the_new_process() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let mut old = scene.at(&path).start().await;
    let path = path.to_str().unwrap();
    let listener = |name| Listener::http(name).route(to_cluster("/", "origin"));
    let new = Proxy::builder().listener(listener("ingress")).listener(listener("more"));
    let new = new.upstream("origin", &scene.origin).argument("--hot-restart-path").argument(path);
    let new = new.start().await;
    assert_eq!(new.address("ingress"), old.address("ingress"));
    assert_eq!(new.http1().await.get("/").await.unwrap().status, 200);
    let mut more = remora_tests::client::http1::Http1Client::connect(new.address("more")).await;
    assert_eq!(more.get("/").await.unwrap().status, 200);
    eventually_async("nobody listens there any more", async || {
        tokio::net::TcpStream::connect(old.address("secure")).await.is_err()
    })
    .await;
    assert_eq!(old.exited().await.code(), Some(0));
}

/// L3: wrong configurations, a port that somebody else has, and a kill.
#[tokio::test]
async fn l3_a_new_process_that_fails_leaves_the_old_one_as_it_is() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let mut old = scene.at(&path).start().await;
    let load = newcomers(&old, 200).start();
    let clients = scene.clients(&old);
    let stream = scene.stream(&old).await;

    let wrong = Listener::http("more").manager(json!({ "no_such_field": 1 }));
    let (status, stderr) = scene.at(&path).listener(wrong).refuse().await;
    assert!(status.code() == Some(2) && stderr.contains("no_such_field"), "{stderr}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let taken_port = Listener::http("more")
        .route(to_cluster("/", "origin"))
        .with(json!({ "address": { "socket_address": { "port_value": port } } }));
    let (status, stderr) = scene.at(&path).listener(taken_port).refuse().await;
    assert!(status.code() == Some(1) && stderr.contains("listener more"), "{stderr}");

    // A control plane that never answers: the new process waits, whatever it waits for, and is killed, or told to end.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (n, how) in ["KILL", "TERM"].into_iter().enumerate() {
        let waits = under(&[nobody.local_addr().unwrap()]);
        let waits = waits.argument("--hot-restart-path").argument(path.to_str().unwrap());
        let mut waits = waits.launch();
        eventually("the sockets were asked for", || waits.stderr().contains("received from the keeper"))
            .await;
        load.sends(100).await;
        waits.signal(how);
        assert_eq!(waits.exited().await.success(), how == "TERM");
        let noticed = || old.stderr().matches("ended before it took over").count();
        // The one whose port was taken had the sockets, too.
        eventually("it was noticed", || noticed() == n + 2).await;
    }

    assert!(old.is_running());
    assert_eq!(old.admin("GET", "/ready").await.unwrap().status, 200);
    for client in &clients {
        client.flows(20).await;
    }
    // And the next one succeeds.
    let new = scene.at(&path).start().await;
    stream.ends(&scene).await;
    for client in clients {
        client.lost_nothing("L3").await;
    }
    load.end().await.with(executed(&scene.origin)).nothing_lost("L3");
    assert_eq!(old.exited().await.code(), Some(0));
    assert_eq!(new.http1().await.get("/").await.unwrap().status, 200);
}

/// Two at a time: the first to be ready takes over, the other one ends, and takes nothing along.
#[tokio::test]
async fn one_of_two_new_processes_takes_over() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let mut old = scene.at(&path).start().await;
    let load = newcomers(&old, 100).start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let waits = under(&[nobody.local_addr().unwrap()]);
    let mut waits = waits.argument("--hot-restart-path").argument(path.to_str().unwrap()).launch();
    eventually("it has the sockets", || waits.stderr().contains("received from the keeper")).await;
    let new = scene.at(&path).start().await;
    waits.exited().await;
    assert!(waits.stderr().contains("another process has taken over before"), "{}", waits.stderr());
    assert_eq!(old.exited().await.code(), Some(0));
    load.sends(50).await;
    load.end().await.with(executed(&scene.origin)).nothing_lost("two at a time");
    assert_eq!(new.http1().await.get("/").await.unwrap().status, 200);
}

/// L4: nobody can give the sockets away, so new ones are opened, and the old process is ended when the new one is ready.
#[tokio::test]
async fn l4_a_stopped_process_is_replaced() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart.sock");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fixed = || {
        let to = json!({ "address": { "socket_address": { "port_value": port.port() } } });
        let listener = Listener::http("ingress").route(to_cluster("/", "origin")).with(to);
        let proxy = Proxy::builder().listener(listener).upstream("origin", &scene.origin);
        proxy.argument("--hot-restart-path").argument(path.to_str().unwrap())
    };
    let mut old = fixed().start().await;
    let load = newcomers(&old, 100).start();
    load.sends(50).await;
    old.signal("STOP");
    let new = fixed().start().await;
    assert!(!old.exited().await.success());
    assert!(new.stderr().contains("did not answer and was ended"), "{}", new.stderr());
    load.sends(50).await;
    let ledger = load.end().await.with(executed(&scene.origin));
    ledger.sound("L4, no supervisor");
    println!("L4, no supervisor: nobody was answered for {:.1?}", ledger.gap());
    assert!(ledger.gap() < ms(5000), "2 s on a machine that does nothing else");
}

/// Another user's socket is not asked, and a file that is none is not replaced.
#[tokio::test]
async fn a_path_that_is_something_else_is_refused() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "mine").unwrap();
    let (status, stderr) = scene.at(&path).refuse().await;
    assert!(status.code() == Some(1) && stderr.contains("--hot-restart-path"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}
