//! `remora cni install`: comes, stays and goes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use remora_tests::certs::Authority;
use remora_tests::netns::{self, Running, Said};
use remora_tests::proxy::binary;
use remora_tests::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::node::{Api, refusal};

/// The node's folders, and the installer's own.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("remora-test-").tempdir().unwrap();
        for name in ["bin", "net.d", "account"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("account/token"), "first").unwrap();
        std::fs::write(folder.path().join("account/ca.crt"), Authority::new().pem).unwrap();
        Self(folder)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary().0);
        command
            .arg("cni")
            .args(words)
            .arg("--bin-dir")
            .arg(self.at("bin"))
            .arg("--net-dir")
            .arg(self.at("net.d"));
        command.env("HTTPS_PROXY", "no URI").stdin(Stdio::null());
        command
    }

    fn install(&self) -> Child {
        let mut command = self.command(&["install", "--server", "https://10.96.0.1:443", "--every", "50ms"]);
        command.arg("--account").arg(self.at("account")).stderr(Stdio::null()).spawn().unwrap()
    }

    fn is_installed(&self) -> bool {
        netns::runs(&mut self.command(&["installed"]))
    }

    fn list(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.at("net.d").join(name)).unwrap()).unwrap()
    }
}

fn list() -> Value {
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]})
}

/// Beside, and renamed, as the network's own installer does.
fn write(path: &Path, list: &Value) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, list.to_string()).unwrap();
    std::fs::rename(beside, path).unwrap();
}

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

const NAMESPACE: &str = "/api/v1/namespaces/remora-system";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/remora-system/daemonsets/remora-cni";

/// When its pod ends, all stays; when its DaemonSet does, or the namespace of that, or what that was allowed to, nothing does. When nobody
/// says which: rules must not be missing because an API server is.
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
        (stands(), refused(403), false),
        (stands(), refused(500), true),
    ] {
        let case = format!("{daemon_set:?} {namespace:?}");
        let asked = if daemon_set == stands() { vec![DAEMON_SET, NAMESPACE] } else { vec![DAEMON_SET] };
        let host = Host::new();
        write(&host.at("net.d/10-pods.conflist"), &list());
        api.says_to(DAEMON_SET, daemon_set.0, daemon_set.1);
        api.says_to(NAMESPACE, namespace.0, namespace.1);
        let server = format!("http://127.0.0.1:{}", api.port);
        let mut command =
            host.command(&["install", "--daemon-set", "remora-system/remora-cni", "--server", &server]);
        let running = command.arg("--account").arg(host.at("account")).stderr(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&running);
        let mut running = Running::from(running);
        eventually("the list", || host.is_installed()).await;
        kill_process(pid, Signal::TERM).unwrap();
        assert!(running.end("the installer").await.success());
        assert_eq!(host.is_installed(), stays, "{case}");
        let asked: Vec<_> = asked.into_iter().map(|path| format!("GET {path} HTTP/1.1")).collect();
        assert_eq!(api.lines(), asked, "{case}");
        assert!(netns::runs(&mut host.command(&["uninstall"])));
        assert!(!host.is_installed());
        assert_eq!(host.list("10-pods.conflist"), list());
        assert!(netns::runs(&mut host.command(&["uninstall"])), "again");
    }
}

/// At the second question nothing is left to be done for the first.
async fn refused_twice(api: &Api) {
    let _before = api.lines();
    for question in ["a question", "another one"] {
        eventually(question, || !api.lines().is_empty()).await;
    }
}

/// One that is good when the installer's pod, to which its own is bound, is gone; and always a fresh one.
#[tokio::test]
async fn the_plugin_has_a_token_of_its_own() {
    let host = Host::new();
    write(&host.at("net.d/10-pods.conflist"), &list());
    let kubeconfig = host.at("net.d/remora-cni.kubeconfig");
    let holds = |token: &str| {
        let text = std::fs::read_to_string(&kubeconfig).unwrap_or_default();
        text.contains(&format!("\"token\":\"{token}\""))
    };
    let api = Api::start(Value::Null);
    api.refuses(403);
    let server = format!("http://127.0.0.1:{}", api.port);
    let mut command = host.command(&["install", "--server", &server, "--every", "50ms"]);
    command.args(["--service-account", "remora-system/remora-cni"]).arg("--account").arg(host.at("account"));
    let said = host.at("said");
    let running = command.stderr(std::fs::File::create(&said).unwrap()).spawn().unwrap();
    let pid = Pid::from_child(&running);
    let mut running = Running::from(running);
    // Better the installer's own than none; and it is replaced as that one is.
    eventually("the list", || host.is_installed()).await;
    assert!(holds("first"));
    std::fs::write(host.at("account/token"), "second").unwrap();
    eventually("the installer's other token", || holds("second")).await;
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("without a new token of remora-system/remora-cni: no"), "{said}");
    // Nor is it put in the place of what another installer got, as in an update.
    let mut others = host.list("remora-cni.kubeconfig");
    others["users"][0]["user"]["token"] = "another".into();
    write(&kubeconfig, &others);
    std::fs::write(host.at("account/token"), "third").unwrap();
    refused_twice(&api).await;
    assert!(holds("another"));

    let granted = |token: &str| json!({"spec": {"expirationSeconds": 4}, "status": {"token": token}});
    api.says(201, granted("granted"));
    eventually("its own token", || holds("granted")).await;
    let asked = api.asked().pop().unwrap();
    assert_eq!(asked.line, "POST /api/v1/namespaces/remora-system/serviceaccounts/remora-cni/token HTTP/1.1");
    assert_eq!(asked.authorization, "Bearer third", "the installer's own");
    let request: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(
        (&request["kind"], &request["spec"]["boundObjectRef"]),
        (&json!("TokenRequest"), &Value::Null)
    );
    api.says(201, granted("renewed"));
    eventually("another one", || holds("renewed")).await;
    // What is there is good for a while.
    api.refuses(500);
    std::fs::write(host.at("account/token"), "fourth").unwrap();
    refused_twice(&api).await;
    assert!(holds("renewed"));
    kill_process(pid, Signal::TERM).unwrap();
    assert!(running.end("the installer").await.success());
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
