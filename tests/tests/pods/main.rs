//! The mesh of six pods ([`remora_tests::pods`]) with unmodified programs. Needs root and `tests/pods/setup.sh`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod calls;
mod checks;
mod orders;
mod wire;

use tokio::time::Instant;

use remora_tests::pods::{Rig, skipped};

use self::checks::Checks;
use self::wire::Wire;

#[tokio::test]
async fn a_mesh_of_six_pods() {
    if skipped() {
        return;
    }
    let began = Instant::now();
    let mut rig = Rig::start().await;
    let mut checks = Checks::default();
    let part = |name: &str| eprintln!("----- {:.1} s: {name}", began.elapsed().as_secs_f64());
    part("programs, and what is on the wire");
    let wire = Wire::watch(&rig).await;
    calls::all(&rig, &mut checks);
    wire.judge(&rig, &mut checks).await;
    part("into and out of the mesh");
    wire::borders(&rig, &mut checks);
    wire::identity(&rig, &mut checks);
    // In plaintext as well, after it was seen that there is none.
    calls::clients(&rig, &mut checks);
    part("a job");
    orders::job(&mut rig, &mut checks).await;
    part("a sidecar drains");
    orders::drain(&mut rig, &mut checks).await;
    part("a sidecar is killed");
    orders::crash(&mut rig, &mut checks).await;
    part("REGISTRY_ONLY");
    orders::registry_only(&mut rig, &mut checks).await;
    part("the end");
    checks.end();
}
