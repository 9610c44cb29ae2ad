//! `remora control` on a machine of its own, and the part of Kubernetes that it asks whose a token is.

use std::fs::{self, File};
use std::path::PathBuf;

use super::pod::{Files, Spec};
use super::{Network, PODS, python, script};
use crate::certs::Authority;
use crate::netns::{Namespace, Running};
use crate::wait::eventually;

/// A control plane that runs.
#[derive(Debug)]
pub struct Control {
    process: Option<Running>,
    _kubernetes: Running,
    folder: PathBuf,
    binary: PathBuf,
}

impl Control {
    pub(super) async fn start(network: &Network, files: &Files, authority: &Authority) -> Self {
        let folder = files.root.join("control");
        fs::create_dir_all(folder.join("mesh")).expect("folder of the control plane");
        fs::write(folder.join("ca.pem"), &authority.pem).expect("CA");
        fs::write(folder.join("ca.key"), authority.key()).expect("key of the CA");
        let services = concat!(env!("CARGO_MANIFEST_DIR"), "/pods/mesh.yaml");
        fs::copy(services, folder.join("mesh/mesh.yaml")).expect("documents");
        let kubernetes = network.control.command(&["setpriv", "--pdeathsig", "KILL", &python()]);
        let kubernetes = { kubernetes }
            .args([&script(), "token-review", "8001"])
            .stderr(File::create(folder.join("token-review.log")).expect("a log"))
            .spawn()
            .expect("token review");
        let mut control =
            Self { process: None, _kubernetes: kubernetes.into(), folder, binary: files.binary.clone() };
        for spec in &PODS {
            control.add(spec);
        }
        control.run(network, &[]).await;
        control
    }

    /// A Workload for a pod; the control plane looks at its documents twice a second.
    pub(super) fn add(&self, spec: &Spec) {
        let file = self.folder.join("mesh").join(spec.name).with_extension("yaml");
        fs::write(file, spec.workload().to_string()).expect("a Workload");
    }

    /// Starts it with these arguments and its state, in the place of the one that runs.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn run(&mut self, network: &Network, arguments: &[&str]) {
        self.process = None;
        let at = &network.control;
        let path = |name: &str| self.folder.join(name).display().to_string();
        let tls = format!("{}:15012", Network::control_address().v4);
        let log = File::options().create(true).append(true).open(path("log")).expect("a log");
        let mut command = at.command(&["setpriv", "--pdeathsig", "KILL"]);
        command.arg(&self.binary).args(["control", "--data", &path("data"), "--filename", &path("mesh")]);
        command.args(["--listen-tls", &tls, "--tls-name", "10.243.0.10", "--ca-cert", &path("ca.pem")]);
        command.args(["--ca-key", &path("ca.key"), "--token-review", "http://127.0.0.1:8001/tokenreviews"]);
        let process = command.args(arguments).stderr(log).spawn().expect("remora control");
        self.process = Some(process.into());
        eventually("remora control", || at.shell("curl -sf http://127.0.0.1:15014/readyz").status == 0).await;
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// A client command of `remora` on its machine.
    #[must_use]
    pub fn remora(&self, at: &Namespace, arguments: &[&str]) -> crate::netns::Said {
        let mut command = at.command(&[]);
        command.arg(&self.binary).args(arguments).output().expect("remora").into()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- remora control:\n{}", self.log());
        }
    }
}
