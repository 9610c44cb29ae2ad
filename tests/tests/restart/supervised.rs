//! Rows L2 to L5 under `remora proxy --supervise`.

use std::os::unix::fs::PermissionsExt;

use remora_tests::control_plane::ControlPlane;
use remora_tests::process::{children, signal};
use remora_tests::proxy::binary;
use remora_tests::resources::{service, under};
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually, eventually_async, patience};
use tokio::time::Instant;

use super::*;

/// The proxy that the supervisor started last.
fn child(supervisor: &Proxy) -> u32 {
    *children(supervisor.pid()).last().unwrap()
}

/// Waits until another process than `old` is the only one.
async fn replaced(supervisor: &Proxy, old: u32) -> u32 {
    eventually("one other process", || {
        let all = children(supervisor.pid());
        all.len() == 1 && all[0] != old
    })
    .await;
    child(supervisor)
}

/// The program as `path`: a script, so that one can be told from another. `version` is in the environment of what it starts.
fn install(path: &Path, version: &str, does: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, format!("#!/bin/sh\nVERSION={version} {does}\n")).unwrap();
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&next, path).unwrap();
}

fn version_of(pid: u32) -> String {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut all = environment.split(|byte| *byte == 0);
    let version = all.find_map(|one| one.strip_prefix(b"VERSION=")).unwrap_or_default();
    String::from_utf8_lossy(version).into_owned()
}

/// L2 and L3: the binary is replaced while everything runs; one that does not work changes nothing.
#[tokio::test]
async fn l2_a_supervisor_swaps_the_binary_and_nobody_notices() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("remora");
    std::os::unix::fs::symlink(binary().0, &program).unwrap();
    let mut supervisor = scene.proxy().workers(2).program(&program).argument("--supervise").start().await;
    let first = child(&supervisor);
    let load = newcomers(&supervisor, 100).start();
    let clients = scene.clients(&supervisor);

    for version in 2..if long() { 52 } else { 5 } {
        let stream = scene.stream(&supervisor).await;
        let old = child(&supervisor);
        let works = format!("exec {} \"$@\"", binary().0.display());
        install(&program, &version.to_string(), &works);
        supervisor.signal(if version % 2 == 0 { "HUP" } else { "USR2" });
        eventually("the new one serves", || {
            let log = supervisor.stderr();
            log.matches("proxy serves").count() == version
        })
        .await;
        assert_eq!(version_of(child(&supervisor)), version.to_string());
        assert!(children(supervisor.pid()).contains(&old), "the old one has its stream");
        stream.ends(&scene).await;
        for client in &clients {
            client.flows(20).await;
        }
        replaced(&supervisor, old).await;
    }
    let good = child(&supervisor);
    assert_ne!(good, first);

    install(&program, "bad", "exit 3");
    supervisor.signal("HUP");
    eventually("it is told", || {
        supervisor.stderr().contains("ended before it was ready; the old one serves on")
    })
    .await;
    assert_eq!(children(supervisor.pid()), [good]);
    std::fs::remove_file(&program).unwrap();
    supervisor.signal("HUP");
    eventually("it is told", || supervisor.stderr().contains("no new process; what runs goes on")).await;
    for client in &clients {
        client.flows(20).await;
    }
    for client in clients {
        client.lost_nothing("L2, supervised").await;
    }
    load.end().await.with(executed(&scene.origin)).nothing_lost("L2, supervised");

    supervisor.signal("TERM");
    assert_eq!(supervisor.exited().await.code(), Some(0));
    let gone = tokio::net::TcpStream::connect(supervisor.address("ingress")).await;
    assert!(gone.is_err(), "nobody has its sockets");
}

/// L4: the supervisor has the sockets, so the stopped process need not answer. When it goes on, it finishes what it had.
#[tokio::test]
async fn l4_a_stopped_process_is_replaced_and_nothing_is_lost() {
    let scene = Scene::new().await;
    let supervisor = scene.proxy().argument("--supervise").start().await;
    let old = child(&supervisor);
    let load = newcomers(&supervisor, 100).start();
    let stream = scene.stream(&supervisor).await;
    load.sends(50).await;
    signal(old, "STOP");
    supervisor.signal("HUP");
    eventually("the new one serves", || supervisor.stderr().matches("proxy serves").count() == 2).await;
    load.sends(50).await;
    signal(old, "CONT");
    load.sends(20).await;
    stream.ends(&scene).await;
    let ledger = load.end().await.with(executed(&scene.origin));
    ledger.nothing_lost("L4, supervised");
    println!("L4, supervised: nobody was answered for {:.1?}", ledger.gap());
    assert!(ledger.gap() < ms(5000), "2 s on a machine that does nothing else");
    replaced(&supervisor, old).await;
}

/// L5: killed while the control plane is away. What was in flight is lost; who comes afterwards waits for the next process, which has
/// the last good configuration.
#[tokio::test]
async fn l5_a_killed_process_is_started_anew_with_what_it_had() {
    let scene = Scene::new().await;
    let state = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start().await;
    plane.publish(service(scene.origin.address(), 1));
    let supervisor = under(&[plane.address]).argument("--supervise");
    let supervisor = supervisor.argument("--state-dir").argument(state.path().to_str().unwrap());
    let supervisor = supervisor.start().await;
    eventually("saved", || state.path().join("last-good.pb.gz").is_file()).await;
    drop(plane);
    let load = newcomers(&supervisor, 100).start();
    let mut kills = Vec::new();
    for _ in 0..3 {
        load.sends(30).await;
        let old = child(&supervisor);
        signal(old, "KILL");
        let killed = Instant::now();
        kills.push(killed);
        replaced(&supervisor, old).await;
        eventually_async("ready again", async || {
            supervisor.admin("GET", "/ready").await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        println!("L5: ready again after {:.1?}", killed.elapsed());
    }
    load.sends(30).await;
    let ledger = load.end().await.with(executed(&scene.origin));
    ledger.sound("L5");
    println!("L5: nobody was answered for {:.1?}", ledger.gap());
    assert!(ledger.gap() < patience(), "0.5 s on a machine that does nothing else");
    for lost in ledger.lost(false).into_iter().chain(ledger.lost(true)) {
        // A process that is killed has a moment left.
        let in_flight = |killed: &Instant| lost.sent < *killed + ms(100) && lost.sent + lost.took >= *killed;
        assert!(kills.iter().any(in_flight), "it was not in flight at a kill: {lost:?}");
    }
}

/// One that cannot work at all is not tried for ever.
#[tokio::test]
async fn a_proxy_that_never_worked_ends_the_supervisor() {
    let scene = Scene::new().await;
    let wrong = Listener::http("more").manager(serde_json::json!({ "no_such_field": 1 }));
    let (status, stderr) = scene.proxy().listener(wrong).argument("--supervise").refuse().await;
    assert!(status.code() == Some(2) && stderr.contains("no_such_field"), "{stderr}");
}

/// Whoever takes the process away takes all of it.
#[tokio::test]
async fn a_proxy_without_its_supervisor_drains() {
    let scene = Scene::new().await;
    let mut supervisor = scene.proxy().argument("--supervise").start().await;
    let orphan = child(&supervisor);
    let mut idle = supervisor.http1().await;
    assert_eq!(idle.get("/").await.unwrap().status, 200);
    supervisor.signal("KILL");
    supervisor.exited().await;
    eventually("it says so", || supervisor.stderr().contains("the supervisor is gone; draining")).await;
    drop(idle);
    eventually("it ends", || !Path::new(&format!("/proc/{orphan}")).exists()).await;
}
