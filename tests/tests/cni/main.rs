//! `remora-cni` as a container runtime calls it, in real network namespaces (needs root), and its installer. The API server is a stand-in that
//! has one pod. With `REMORA_CNITOOL` (tests/cni/setup.sh builds it) the reference implementation calls it, too.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod host;
mod install;
mod node;
mod token;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use node::{Node, POD, connected, injected, made, pod};
use remora_control::inject::Interception;
use remora_tests::netns::Said;
use remora_tests::proxy::binary;
use serde_json::{Value, json};

/// The error on standard output: its code.
fn refused(said: &Said) -> u64 {
    assert_eq!(said.status, 1, "{said:?}");
    let error: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(error["cniVersion"], "1.1.0", "{error}");
    assert!(!error["msg"].as_str().unwrap().is_empty() && error["details"].is_string(), "{error}");
    error["code"].as_u64().unwrap()
}

#[test]
fn add_makes_the_rules_of_init() {
    let Some(node) = Node::new() else { return };
    let said = node.call("ADD");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap(), made(), "the result of the plugins before");
    assert!(said.err.contains("192.0.2.1:9 was redirected"), "{said:?}");
    assert_eq!(node.api.lines(), [format!("GET {POD} HTTP/1.1")]);

    let other = connected();
    let annotations = &pod(Interception::Cni)["metadata"]["annotations"];
    let words: Vec<String> = serde_json::from_str(annotations["remora.dev/cni"].as_str().unwrap()).unwrap();
    let remora = binary().0;
    let mut line = vec![remora.to_str().unwrap(), "init"];
    line.extend(words.iter().map(String::as_str));
    let init = other.run(&line);
    assert_eq!(init.status, 0, "{init:?}");
    assert_eq!(node.rules(), other.must("nft -s list ruleset"));
    assert!(node.rules().contains("tcp dport 3306 return"), "{}", node.rules());

    // What the pod's init container does.
    let proof: Vec<_> = ["setpriv", "--reuid", "65532", "--clear-groups", "--bounding-set", "-all"]
        .into_iter()
        .chain(line)
        .chain(["--check"])
        .collect();
    let shown = node.pod.run(&proof);
    assert_eq!(shown.status, 0, "{shown:?}");
    assert!(shown.out.contains("192.0.2.1:9 was redirected"), "{shown:?}");
    let shown = connected().run(&proof);
    assert_eq!(shown.status, 1, "without rules: {shown:?}");
    assert!(shown.err.contains("the CNI plugin of this node is missing"), "{shown:?}");
    assert!(shown.err.contains("Delete the pod"), "{shown:?}");

    // Again, as after a runtime that was interrupted.
    let before = node.rules();
    assert_eq!(node.call("ADD").status, 0);
    assert_eq!(node.rules(), before);
    let check = node.call("CHECK");
    assert_eq!((check.status, check.out.as_str()), (0, ""), "{check:?}");
    node.pod.must("nft flush chain $(nft list tables | sed -n 's/^table //p') outbound");
    assert_eq!(refused(&node.call("CHECK")), 101);
    let del = node.call("DEL");
    assert_eq!((del.status, del.out.as_str()), (0, ""), "{del:?}");
    let gone = node.call_with("DEL", "shop", &node.configuration(), "");
    assert_eq!(gone.status, 0, "its namespace is gone: {gone:?}");
    for command in ["GC", "STATUS"] {
        let said = node.call(command);
        assert_eq!((said.status, said.out.as_str()), (0, ""), "{command}: {said:?}");
    }
    let version: Value = serde_json::from_str(&node.call("VERSION").out).unwrap();
    assert_eq!(
        version,
        json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

/// What an installer of another version wrote does not keep a pod from its end.
#[test]
fn an_end_is_not_refused() {
    let Some(node) = Node::new() else { return };
    let mut other = node.configuration();
    other["ofAnotherVersion"] = true.into();
    other.as_object_mut().unwrap().remove("kubeconfig");
    for command in ["DEL", "GC"] {
        let said = node.call_with(command, "shop", &other, "");
        assert_eq!((said.status, said.out.as_str()), (0, ""), "{command}: {said:?}");
    }
    assert_eq!(refused(&node.call_with("ADD", "shop", &other, &node.netns())), 2);
    other["cniVersion"] = "2.0.0".into();
    assert_eq!(node.call_with("DEL", "shop", &other, "").status, 1);
}

/// As some runtimes have it: `lo` comes up beside or after.
#[test]
fn rules_are_made_before_loopback_is_up() {
    let Some(node) = Node::new() else { return };
    node.pod.must("ip link set lo down");
    let said = node.call("ADD");
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.err.contains("only read back"), "{said:?}");
    assert!(node.rules().contains("redirect to :15001"), "{}", node.rules());
}

/// To every name server: on the node, whose files the plugin sees, nothing names the pod's.
#[test]
fn dns_is_captured_where_a_pod_asks_for_it() {
    let Some(node) = Node::new() else { return };
    node.api.says(200, injected(Interception::Cni, &json!({"remora.dev/capture-dns": "true"})));
    let said = node.call("ADD");
    assert_eq!(said.status, 0, "{said:?}");
    let rules = node.rules();
    for protocol in ["udp", "tcp"] {
        let begins = format!("{protocol} dport 53 ");
        let is_rule = |line: &str| line.starts_with(&begins) && line.ends_with(" redirect to :15053");
        assert!(rules.lines().any(|line| is_rule(line.trim())), "{rules}");
    }
    assert_eq!(node.call("CHECK").status, 0);
}

#[test]
fn pods_without_sidecar_are_left_alone() {
    let Some(node) = Node::new() else { return };
    let mut plain = pod(Interception::Cni);
    plain["spec"].as_object_mut().unwrap().remove("initContainers");
    for other in [plain, pod(Interception::None), pod(Interception::Init)] {
        node.api.says(200, other);
        let said = node.call("ADD");
        assert_eq!(said.status, 0, "{said:?}");
        assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap(), made());
        assert_eq!(node.rules(), "");
    }
    // Nobody is asked.
    let _before = node.api.lines();
    node.api.refuses(500);
    let said = node.call_with("ADD", "kube-system", &node.configuration(), &node.netns());
    assert_eq!(said.status, 0, "{said:?}");
    assert!(node.api.lines().is_empty());
    // Not chained.
    let mut alone = node.configuration();
    alone.as_object_mut().unwrap().remove("prevResult");
    let said = node.call_with("ADD", "kube-system", &alone, &node.netns());
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap(), json!({"cniVersion": "1.1.0"}));
}

#[test]
fn a_pod_that_cannot_get_its_rules_is_not_made() {
    let Some(node) = Node::new() else { return };
    for status in [401, 403, 404, 500, 503] {
        node.api.refuses(status);
        let said = node.call("ADD");
        assert_eq!(refused(&said), 11, "{status}");
        assert_eq!(said.out.contains("see the installer's log"), status == 401, "{said:?}");
    }
    let mut another = pod(Interception::Cni);
    another["metadata"]["uid"] = "v".into();
    node.api.says(200, another);
    assert_eq!(refused(&node.call("ADD")), 11, "another pod of this name");
    let mut wrong = pod(Interception::Cni);
    wrong["metadata"]["annotations"]["remora.dev/cni"] = r#"["--inbound-port","x"]"#.into();
    node.api.says(200, wrong);
    assert_eq!(refused(&node.call("ADD")), 100);
    node.api.says(200, pod(Interception::Cni));
    assert_eq!(
        refused(&node.call_with("ADD", "shop", &node.configuration(), "/run/netns/remora-nowhere")),
        101
    );
    assert_eq!(
        refused(&node.call_with("ADD", "shop", &node.configuration(), "/etc/passwd")),
        101,
        "no namespace"
    );
    assert_eq!(node.rules(), "");
    node.pod.must("nft 'add table ip nat; add chain ip nat ISTIO_OUTPUT'");
    let before = node.rules();
    assert_eq!(refused(&node.call("ADD")), 101);
    assert_eq!(node.rules(), before, "rules of another mesh: nothing was changed");
    let mut lost = node.configuration();
    lost["kubeconfig"] = "/nowhere".into();
    assert_eq!(refused(&node.call_with("ADD", "shop", &lost, &node.netns())), 11);
    let status = node.call_with("STATUS", "shop", &lost, "");
    assert_eq!((status.status, status.out.as_str()), (0, ""), "excluded namespaces need none: {status:?}");
    lost["ofAnotherVersion"] = true.into();
    assert_eq!(refused(&node.call_with("STATUS", "shop", &lost, "")), 2, "and now no pod is");
}

/// By the reference implementation of runtimes, behind another plugin.
#[test]
fn libcni_takes_it() {
    let Some(tool) = std::env::var_os("REMORA_CNITOOL").map(PathBuf::from) else {
        // Not captured by the test runner.
        let _ = writeln!(std::io::stderr(), "SKIPPED: cni: REMORA_CNITOOL names no cnitool");
        return;
    };
    let Some(node) = Node::new() else { return };
    let at = node.folder.path();
    std::os::unix::fs::symlink(binary().0, at.join("remora-cni")).unwrap();
    let first = at.join("first");
    std::fs::write(&first, format!(
        "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in\nADD) echo '{}';;\nVERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.1.0\"]}}';;\nesac\n",
        made()
    )).unwrap();
    std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut ours = node.configuration();
    for name in ["cniVersion", "name", "prevResult"] {
        ours.as_object_mut().unwrap().remove(name);
    }
    let list = json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "first"}, ours]});
    std::fs::write(at.join("10-pods.conflist"), list.to_string()).unwrap();
    let run = |command: &str| -> Said {
        let mut tool = Command::new(&tool);
        tool.args([command, "pods", &node.netns()]).env("NETCONFPATH", at).env("CNI_PATH", at);
        tool.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u");
        tool.output().unwrap().into()
    };
    let said = run("add");
    assert_eq!(said.status, 0, "{said:?}");
    let result: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(result["ips"][0]["address"], "198.51.100.1/24");
    assert!(node.rules().contains("redirect to :15001"));
    for command in ["check", "status", "gc", "del"] {
        let said = run(command);
        assert_eq!(said.status, 0, "{command}: {said:?}");
    }
    node.api.refuses(503);
    let said = run("add");
    assert_ne!(said.status, 0, "{said:?}");
    assert!(format!("{}{}", said.out, said.err).contains("the pod shop/web cannot be read"), "{said:?}");
}
