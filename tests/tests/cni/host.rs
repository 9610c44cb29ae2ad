//! A node's folders, and the installer that writes there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use remora_tests::certs::Authority;
use remora_tests::netns::{self, Running};
use remora_tests::proxy::binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The node's folders, and the installer's own.
pub(crate) struct Host(tempfile::TempDir);

/// An installer that runs.
pub(crate) struct Installer {
    process: Running,
    pid: Pid,
}

impl Installer {
    /// As a kubelet ends it.
    pub(crate) async fn end(mut self) {
        kill_process(self.pid, Signal::TERM).unwrap();
        assert!(self.process.end("the installer").await.success());
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("remora-test-").tempdir().unwrap();
        for name in ["bin", "net.d", "account"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("account/token"), "first").unwrap();
        std::fs::write(folder.path().join("account/ca.crt"), Authority::new().pem).unwrap();
        Self(folder)
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
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

    pub(crate) fn install(&self) -> Child {
        let mut command = self.command(&["install", "--server", "https://10.96.0.1:443", "--every", "50ms"]);
        command.arg("--account").arg(self.at("account")).stderr(Stdio::null()).spawn().unwrap()
    }

    /// As the DaemonSet has it: with a token of its own for the plugin. What it says is in `said`.
    pub(crate) fn installer(&self, port: u16, more: &[&str]) -> Installer {
        let server = format!("http://127.0.0.1:{port}");
        let mut command =
            self.command(&["install", "--server", &server, "--service-account", "remora-system/remora-cni"]);
        command.args(["--daemon-set", "remora-system/remora-cni"]).args(more);
        command.arg("--account").arg(self.at("account"));
        let running = command.stderr(std::fs::File::create(self.at("said")).unwrap()).spawn().unwrap();
        Installer { pid: Pid::from_child(&running), process: Running::from(running) }
    }

    /// What the last one said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.at("said")).unwrap_or_default()
    }

    /// Whether the plugin has this token.
    pub(crate) fn holds(&self, token: &str) -> bool {
        let text = std::fs::read_to_string(self.at("net.d/remora-cni.kubeconfig")).unwrap_or_default();
        text.contains(&format!("\"token\":\"{token}\""))
    }

    pub(crate) fn is_installed(&self) -> bool {
        netns::runs(&mut self.command(&["installed"]))
    }

    pub(crate) fn list(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.at("net.d").join(name)).unwrap()).unwrap()
    }
}

pub(crate) fn list() -> Value {
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]})
}

/// Beside, and renamed, as the network's own installer does.
pub(crate) fn write(path: &Path, list: &Value) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, list.to_string()).unwrap();
    std::fs::rename(beside, path).unwrap();
}
