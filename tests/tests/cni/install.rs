//! `remora cni install`: comes, stays and goes.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use remora_tests::netns::{self, Running, Said};
use remora_tests::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::host::{Host, list, write};
use crate::node::{Api, DAEMON_SET, NAMESPACE, refusal};

#[tokio::test]
async fn the_installer_comes_and_goes() {
    let host = Host::new();
    let running = host.install();
    let pid = Pid::from_child(&running);
    let mut running = Running::from(running);
    eventually("the program", || host.at("bin/remora-cni").is_file()).await;
    assert!(!host.is_installed(), "there is no network yet");
    // Later by name: not in force.
    write(&host.at("net.d/20-other.conflist"), &list());
    eventually("the only list", || host.is_installed()).await;
    write(&host.at("net.d/10-pods.conflist"), &list());
    eventually("the first list", || host.list("10-pods.conflist")["plugins"][2]["type"] == "remora-cni")
        .await;
    let entry = &host.list("10-pods.conflist")["plugins"][2];
    assert_eq!(entry["kubeconfig"], "/etc/cni/net.d/remora-cni.kubeconfig");
    // The network's own installer writes its list anew.
    write(&host.at("net.d/10-pods.conflist"), &list());
    eventually("the list again", || host.is_installed()).await;
    // Another token.
    let kubeconfig = host.at("net.d/remora-cni.kubeconfig");
    std::fs::write(host.at("account/token"), "second").unwrap();
    eventually("the token", || {
        std::fs::read_to_string(&kubeconfig).is_ok_and(|text| text.contains("second"))
    })
    .await;
    assert_eq!(std::fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(host.at("bin/remora-cni")).unwrap().permissions().mode() & 0o777, 0o755);

    kill_process(pid, Signal::TERM).unwrap();
    assert!(running.end("the installer").await.success());
    for name in ["10-pods.conflist", "20-other.conflist"] {
        assert_eq!(host.list(name), list(), "{name}");
    }
    let left: Vec<_> =
        ["bin", "net.d"].iter().flat_map(|name| std::fs::read_dir(host.at(name)).unwrap()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(host.at("bin/remora-cni").is_file(), "for the end of pods that are there");
}

/// Every pod that is made before the plugin is there has to be deleted.
#[tokio::test]
async fn a_list_that_comes_or_changes_is_seen_at_once() {
    let host = Host::new();
    let mut command = host.command(&["install", "--server", "https://10.96.0.1:443", "--every", "1h"]);
    command.arg("--account").arg(host.at("account")).stderr(Stdio::null());
    let mut running = Running::from(command.spawn().unwrap());
    // It has looked once.
    eventually("the kubeconfig", || host.at("net.d/remora-cni.kubeconfig").is_file()).await;
    for name in ["20-other.conflist", "10-pods.conflist", "10-pods.conflist"] {
        write(&host.at("net.d").join(name), &list());
        eventually(name, || host.is_installed() && host.list(name) != list()).await;
    }
    assert!(running.ended().is_none(), "it goes on");
}

/// Cilium, say.
#[tokio::test]
async fn who_takes_the_plugin_out_again_is_told_of() {
    let host = Host::new();
    let network = host.at("net.d/05-network.conflist");
    write(&network, &list());
    let said = host.at("said");
    let mut command = host.command(&["install", "--server", "https://10.96.0.1:443", "--every", "50ms"]);
    command.arg("--account").arg(host.at("account")).stderr(std::fs::File::create(&said).unwrap());
    let mut running = Running::from(command.spawn().unwrap());
    let said = || std::fs::read_to_string(&said).unwrap();
    eventually("the list", || host.is_installed()).await;
    write(&network, &list());
    eventually("the list again", || host.is_installed()).await;
    assert!(!said().contains("cni.exclusive"), "as when a node starts: {}", said());
    eventually("the hint", || {
        if host.list("05-network.conflist") != list() {
            write(&network, &list());
        }
        said().contains("cni.exclusive")
    })
    .await;
    assert!(running.ended().is_none(), "it goes on");
}

/// In an update the new one comes before the old one goes, and may have other words for the list.
#[tokio::test]
async fn two_installers_do_not_write_against_each_other() {
    let host = Host::new();
    let file = host.at("net.d/10-pods.conflist");
    write(&file, &list());
    let start = |excluded: &str, said: &str| {
        let mut command =
            host.command(&["install", "--server", "https://10.96.0.1:443", "--exclude-namespaces", excluded]);
        command.args(["--every", "50ms"]).arg("--account").arg(host.at("account"));
        Running::from(command.stderr(std::fs::File::create(host.at(said)).unwrap()).spawn().unwrap())
    };
    let has =
        |namespace: &str| host.list("10-pods.conflist")["plugins"][2]["excludeNamespaces"][0] == namespace;
    let mut old = start("old", "said-old");
    eventually("the old one's", || has("old")).await;
    let mut new = start("new", "said-new");
    eventually("the new one's", || has("new")).await;
    // Each has looked after that: the program is written by a look before the list is.
    for number in 0..5 {
        std::fs::remove_file(host.at("bin/remora-cni")).unwrap();
        eventually("a look", || host.at("bin/remora-cni").is_file()).await;
        assert!(has("new"), "{number}");
    }
    // Taken out, it comes back; and what came behind it is before it.
    write(&file, &list());
    eventually("the list again", || host.list("10-pods.conflist") != list()).await;
    let mut moved = host.list("10-pods.conflist");
    moved["plugins"].as_array_mut().unwrap().push(json!({"type": "tuning"}));
    write(&file, &moved);
    eventually("the end of the list", || {
        let list = host.list("10-pods.conflist");
        list["plugins"][2]["type"] == "tuning" && list["plugins"][3]["type"] == "remora-cni"
    })
    .await;
    assert!(old.ended().is_none() && new.ended().is_none());
    for said in ["said-old", "said-new"] {
        let said = std::fs::read_to_string(host.at(said)).unwrap();
        assert!(!said.contains("cni.exclusive"), "{said}");
    }
}

/// CRI-O keeps the list of a pod until its end, and calls every plugin that it names.
#[tokio::test]
async fn pods_end_when_the_plugin_is_gone() {
    let host = Host::new();
    write(&host.at("net.d/10-pods.conflist"), &list());
    let running = host.install();
    let pid = Pid::from_child(&running);
    let mut running = Running::from(running);
    eventually("the list", || host.is_installed()).await;
    let mut kept = host.list("10-pods.conflist")["plugins"][2].clone();
    kept["cniVersion"] = "1.0.0".into();
    kept["name"] = "pods".into();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(running.end("the installer").await.success());
    assert!(!host.at("net.d/remora-cni.kubeconfig").exists());

    let configuration = host.at("kept");
    std::fs::write(&configuration, kept.to_string()).unwrap();
    let mut del = Command::new(host.at("bin/remora-cni"));
    del.envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
    let said = Said::from(del.stdin(std::fs::File::open(&configuration).unwrap()).output().unwrap());
    assert_eq!((said.status, said.out.as_str()), (0, ""), "{said:?}");

    assert!(netns::runs(&mut host.command(&["uninstall"])));
    assert!(host.at("bin/remora-cni").exists());
    assert!(netns::runs(&mut host.command(&["uninstall", "--program"])));
    assert!(!host.at("bin/remora-cni").exists());
    assert!(netns::runs(&mut host.command(&["uninstall", "--program"])), "again");
}

/// When its pod ends, all stays; when its DaemonSet does, or the namespace of that, or, for good, what that was allowed to, nothing does. When
/// nobody says which: rules must not be missing because an API server is.
#[tokio::test]
async fn the_daemon_set_decides_at_the_end() {
    let stands = || (200, json!({"metadata": {"name": "it"}}));
    let going = || (200, json!({"metadata": {"name": "it", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let refused = |status| (status, refusal(status));
    let api = Api::start(Value::Null);
    for (daemon_set, namespace, stays) in [
        (stands(), stands(), true),
        (going(), stands(), false),
        (refused(404), stands(), false),
        (refused(403), stands(), false),
        (refused(401), stands(), false),
        (refused(500), stands(), true),
        // Pods go first.
        (stands(), going(), false),
        (stands(), refused(404), false),
        (stands(), refused(401), false),
        // The right came with a later version, and goes with a rollback.
        (stands(), refused(403), true),
        (refused(404), refused(403), false),
        (stands(), refused(500), true),
        (refused(404), refused(500), false),
    ] {
        let case = format!("{daemon_set:?} {namespace:?}");
        let decides = namespace == going() || matches!(namespace.0, 401 | 404);
        let asked = if decides { vec![NAMESPACE] } else { vec![NAMESPACE, DAEMON_SET] };
        let is_refused = namespace.0 == 401 || !decides && matches!(daemon_set.0, 401 | 403);
        let host = Host::new();
        write(&host.at("net.d/10-pods.conflist"), &list());
        api.says_to(DAEMON_SET, daemon_set.0, daemon_set.1);
        api.says_to(NAMESPACE, namespace.0, namespace.1);
        let server = format!("http://127.0.0.1:{}", api.port);
        let mut command =
            host.command(&["install", "--daemon-set", "remora-system/remora-cni", "--server", &server]);
        command.args(["--decide-within", "2s"]);
        let running = command.arg("--account").arg(host.at("account")).stderr(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&running);
        let mut running = Running::from(running);
        eventually("the list", || host.is_installed()).await;
        kill_process(pid, Signal::TERM).unwrap();
        assert!(running.end("the installer").await.success());
        assert_eq!(host.is_installed(), stays, "{case}");
        let asked: Vec<_> = asked.into_iter().map(|path| format!("GET {path} HTTP/1.1")).collect();
        let lines = api.lines();
        let again: Vec<_> = lines.chunks(asked.len()).collect();
        assert!(again.iter().all(|again| *again == asked), "{case}: {lines:?}");
        assert_eq!(again.len() > 1, is_refused, "{case}: {lines:?}");
        assert!(netns::runs(&mut host.command(&["uninstall"])));
        assert!(!host.is_installed());
        assert_eq!(host.list("10-pods.conflist"), list());
        assert!(netns::runs(&mut host.command(&["uninstall"])), "again");
    }
}

/// A network of one plugin is named, and a list is waited for: who repairs it need not know of the installer.
#[tokio::test]
async fn a_network_that_cannot_be_chained_to_is_waited_for() {
    let host = Host::new();
    write(&host.at("net.d/10-pods.conf"), &json!({"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}));
    let said = host.at("said");
    let mut command = host.command(&["install", "--server", "https://10.96.0.1:443", "--every", "50ms"]);
    command.arg("--account").arg(host.at("account")).stderr(std::fs::File::create(&said).unwrap());
    let running = command.spawn().unwrap();
    let pid = Pid::from_child(&running);
    let mut running = Running::from(running);
    eventually("the file's name", || {
        std::fs::read_to_string(&said).is_ok_and(|text| text.contains("10-pods.conf has one plugin"))
    })
    .await;
    assert!(!host.is_installed());
    write(&host.at("net.d/10-pods.conflist"), &list());
    std::fs::remove_file(host.at("net.d/10-pods.conf")).unwrap();
    eventually("the list", || host.is_installed()).await;
    kill_process(pid, Signal::TERM).unwrap();
    assert!(running.end("the installer").await.success());
    assert_eq!(host.list("10-pods.conflist"), list());
}
