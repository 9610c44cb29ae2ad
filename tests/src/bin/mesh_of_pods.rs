//! The mesh of six pods to play with: `just pods`. It stays until Ctrl-C, and leaves nothing behind.

use remora_tests::netns::Namespace;
use remora_tests::pods::{Rig, skipped};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    if skipped() {
        std::process::exit(1);
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    println!("building the mesh …");
    let rig = tokio::select! {
        rig = Rig::start() => rig,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    show(&rig);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("removing it …");
    Ok(())
}

fn show(rig: &Rig) {
    let enter = |namespace: &Namespace| format!("ip netns exec {}", namespace.name());
    for pod in &rig.pods {
        let own = pod.spec.addresses();
        let program =
            if pod.spec.ports.is_empty() { "clients".into() } else { format!("ports {:?}", pod.spec.ports) };
        println!("{:8} node{}  {:12} {:18} {program}", pod.spec.name, pod.spec.node, own.v4, own.v6);
        println!("         {} bash", enter(&pod.namespace));
    }
    let outside = remora_tests::pods::Network::outside_address();
    println!("outside         {:12} {:18} port 80, and no part of the mesh", outside.v4, outside.v6);
    println!("         {} bash", enter(&rig.network.outside));
    let (shell, remora) = (enter(&rig.pod("shell").namespace), rig.files.binary.display());
    println!("\nfiles and logs: {}\n\ntry, as any user but 1337:", rig.files.root.display());
    for words in [
        "curl -s http://web/",
        "redis-cli -h cache ping",
        "mariadb -h db -uapp -psecret -e 'SELECT 1'",
        "curl -s http://outside/",
    ] {
        println!("  {shell} {words}");
    }
    println!("  {} {remora} status", enter(&rig.network.control));
    for number in 1..=3 {
        println!("  {} tcpdump -ni any tcp", enter(rig.network.node(number)));
    }
    println!("\nCtrl-C removes all of it.");
}
