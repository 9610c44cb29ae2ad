//! Sidecars that start late, leave, end and crash, with requests under way.

use tokio::time::Instant;

use remora_tests::pods::{Network, Pod, Rig, Spec, python, script};
use remora_tests::process::signal;
use remora_tests::wait::eventually;
use serde_json::Value;

use super::checks::Checks;

/// Of the load. What is under way at a sidecar that is killed may have been processed, and is not sent again.
const CONNECTIONS: u64 = 8;

/// A pod that does its work and ends.
const JOB: Spec = Spec { name: "job", app: "job", node: 2, number: 4, ports: &[], shows_clients: false };

/// The program starts first; the sidecar later, and it ends when the program says so.
pub(crate) async fn job(rig: &mut Rig, checks: &mut Checks) {
    rig.add(JOB);
    let (network, pods) = (&rig.network, &mut rig.pods);
    let job = pods.last_mut().unwrap();
    let get = ["curl", "-s", "-m", "5", "-w", " %{exitcode}", "http://web/"];
    let before = job.run(&get);
    checks.that("before the sidecar nothing passes by", before.status == 7, &before.out);
    // A program that tries until it gets an answer, as most do.
    job.start(
        "early",
        &["curl", "-s", "--retry", "1000", "--retry-delay", "1", "--retry-connrefused", "http://web/"],
    );
    job.start_sidecar();
    job.sidecar_ready(network).await;
    let status = job.program("early").end("curl in the job").await;
    checks.answer("a program that started before its sidecar", &job.log("early"), "web-", &["sa/job"]);
    checks.that("it ends well", status.success(), &status.to_string());
    let load = Load::start(job).await;
    load.more(job, 200).await;
    load.end(job, checks, "requests of the job", 0).await;
    let said = job.run(&["curl", "-s", "-X", "POST", "http://127.0.0.1:15000/quitquitquit"]);
    let status = job.sidecar().end("the sidecar of the job").await;
    checks.that("/quitquitquit ends the sidecar", status.success(), &format!("{status} {}", said.out));
    rig.pods.pop();
}

/// SIGTERM to one of two sidecars while both are in use. Nothing is lost.
pub(crate) async fn drain(rig: &mut Rig, checks: &mut Checks) {
    let load = Load::start(rig.pod_mut("shell")).await;
    load.more(rig.pod("shell"), 200).await;
    let began = Instant::now();
    signal(rig.pod_mut("web-2").sidecar().pid(), "TERM");
    let status = rig.pod_mut("web-2").sidecar().end("the drained sidecar").await;
    eprintln!("      drained in {:?}", began.elapsed());
    checks.that("a drained sidecar ends well", status.success(), &status.to_string());
    load.more(rig.pod("shell"), 200).await;
    back(rig, "web-2").await;
    load.more(rig.pod("shell"), 200).await;
    load.end(rig.pod_mut("shell"), checks, "one of two sidecars drains and comes back", 0).await;
}

/// Killed, while the control plane is away: it starts from what it has.
pub(crate) async fn crash(rig: &mut Rig, checks: &mut Checks) {
    rig.control.stop();
    let load = Load::start(rig.pod_mut("shell")).await;
    load.more(rig.pod("shell"), 200).await;
    signal(rig.pod_mut("web-2").sidecar().pid(), "KILL");
    let _status = rig.pod_mut("web-2").sidecar().end("the killed sidecar").await;
    load.more(rig.pod("shell"), 200).await;
    back(rig, "web-2").await;
    load.more(rig.pod("shell"), 200).await;
    load.end(rig.pod_mut("shell"), checks, "one of two sidecars is killed and comes back", CONNECTIONS).await;
    let own = rig.pod("web-2").spec.addresses().v4;
    let answer = rig.curl(&[&format!("http://{own}:8080/")]);
    checks.answer("the killed sidecar is back", &answer, "web-2", &["sa/shell"]);
    // And that of the caller.
    signal(rig.pod_mut("shell").sidecar().pid(), "KILL");
    let _status = rig.pod_mut("shell").sidecar().end("the killed sidecar").await;
    checks.refused("while the caller's sidecar is away nothing passes by", &rig.curl(&["http://web/"]));
    back(rig, "shell").await;
    checks.answer("the caller's sidecar is back", &rig.curl(&["http://web/"]), "web-", &["sa/shell"]);
}

async fn back(rig: &mut Rig, name: &str) {
    let (network, pods) = (&rig.network, &mut rig.pods);
    let pod = pods.iter_mut().find(|pod| pod.spec.name == name).unwrap();
    pod.drop_sidecar();
    pod.start_sidecar();
    pod.sidecar_ready(network).await;
}

/// With `REGISTRY_ONLY` programs reach the mesh and nobody else.
pub(crate) async fn registry_only(rig: &mut Rig, checks: &mut Checks) {
    let (control, network) = (&mut rig.control, &rig.network);
    control.run(network, &["--outbound-traffic-policy", "REGISTRY_ONLY"]).await;
    let mut answer = String::new();
    let outside = Network::outside_address();
    for address in [outside.v4.to_string(), format!("[{}]", outside.v6)] {
        eventually("REGISTRY_ONLY", || {
            answer = rig.curl(&[&format!("http://{address}/")]);
            answer.starts_with("error")
        })
        .await;
        checks.refused(&format!("REGISTRY_ONLY: out of the mesh: {address}"), &answer);
    }
    checks.answer("REGISTRY_ONLY: a Service", &rig.curl(&["http://web/"]), "web-", &["sa/shell"]);
}

/// Requests of a pod to `web`, one after the other over eight connections.
struct Load {
    stop: String,
}

impl Load {
    async fn start(pod: &mut Pod) -> Self {
        let stop = pod.folder.join("program/stop").display().to_string();
        let _old = std::fs::remove_file(&stop);
        let _old = std::fs::remove_file(format!("{stop}.asked"));
        let _old = std::fs::remove_file(pod.folder.join("load.log"));
        pod.start("load", &[&python(), "-B", &script(), "load", "web", "/", &stop]);
        let load = Self { stop };
        load.more(pod, 1).await;
        load
    }

    fn asked(&self) -> u64 {
        let text = std::fs::read_to_string(format!("{}.asked", self.stop)).unwrap_or_default();
        text.parse().unwrap_or_default()
    }

    /// Waits for so many requests from now on.
    async fn more(&self, pod: &Pod, requests: u64) {
        let wanted = self.asked() + requests;
        eventually(&format!("{requests} requests of {}: {}", pod.spec.name, pod.log("load")), || {
            self.asked() >= wanted
        })
        .await;
    }

    /// `may_lose`: at most so many.
    async fn end(self, pod: &mut Pod, checks: &mut Checks, what: &str, may_lose: u64) {
        std::fs::write(&self.stop, "").unwrap();
        let _status = pod.program("load").end("the load").await;
        let log = pod.log("load");
        let counted: Value = serde_json::from_str(&log).unwrap_or_default();
        let (asked, lost) = (counted["asked"].as_u64().unwrap_or(0), counted["lost"].as_u64());
        let holds = asked > 0 && lost.is_some_and(|lost| lost <= may_lose);
        let lost = &counted["lost"];
        checks.that(&format!("{what}: {asked} requests, lost {lost}"), holds, &log);
    }
}
