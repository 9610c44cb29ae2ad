//! A mesh of six pods on three nodes, in network namespaces: real programs, sidecars by `remora inject`, a control plane. Needs root.
//!
//! ```text
//! node1 10.244.1.0/24       node2 10.244.2.0/24       node3 10.244.3.0/24       control 10.243.0.10    outside 10.243.0.20
//!   web-1  .2  nginx          web-2  .2  nginx          db    .2  MariaDB
//!   shell  .3  clients        cache  .3  Redis          echo  .3  gRPC, WebSocket
//! ─────┴───────────────────────────┴───────────────────────────┴────────────────────────┴──────────────────────┴── 10.243.0.0/24
//! ```
//!
//! IPv6 is the same under fd00:243:: and fd00:244:NODE::. Services have addresses of 10.96.0.0/24 and fd00:96::/64
//! (`tests/pods/mesh.yaml`), which nobody but a sidecar knows: there is no kube-proxy.

pub mod capture;
mod control;
pub mod network;
mod pod;
mod programs;

use std::path::PathBuf;

pub use self::control::Control;
pub use self::network::{Addresses, Network};
pub use self::pod::{Files, Pod, Spec, USER};
pub use self::programs::{python, script};
use crate::certs::Authority;
use crate::netns::{Running, Said, skipped as cannot};
use crate::proxy::binary;

/// The pods, in the order in which [`Rig::pods`] has them.
pub const PODS: [Spec; 6] = [
    Spec {
        name: "web-1",
        app: "web",
        node: 1,
        number: 2,
        ports: &[8080, 8081, 8082, 8083],
        shows_clients: true,
    },
    Spec {
        name: "web-2",
        app: "web",
        node: 2,
        number: 2,
        ports: &[8080, 8081, 8082, 8083],
        shows_clients: false,
    },
    Spec { name: "shell", app: "shell", node: 1, number: 3, ports: &[], shows_clients: false },
    Spec { name: "cache", app: "cache", node: 2, number: 3, ports: &[6379], shows_clients: false },
    Spec { name: "db", app: "db", node: 3, number: 2, ports: &[3306], shows_clients: true },
    Spec { name: "echo", app: "echo", node: 3, number: 3, ports: &[50051, 8765], shows_clients: false },
];

const TOOLS: [&str; 12] = [
    "ip",
    "nft",
    "ss",
    "setpriv",
    "curl",
    "nginx",
    "redis-server",
    "redis-cli",
    "mariadbd",
    "mariadb",
    "mariadb-install-db",
    "tcpdump",
];

/// Says aloud why there is no such mesh here, if so.
#[must_use]
pub fn skipped() -> bool {
    cannot("pods", &TOOLS) || programs::no_python()
}

/// All of it; removed when dropped.
#[derive(Debug)]
pub struct Rig {
    /// By their place in [`PODS`]; later ones behind.
    pub pods: Vec<Pod>,
    /// The control plane.
    pub control: Control,
    /// The machines.
    pub network: Network,
    /// What pods share.
    pub files: Files,
    /// The server there.
    outside: Option<Running>,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// Builds the mesh, and waits until every pod is ready.
    ///
    /// # Panics
    /// When something does not come up.
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("remora-pods-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("temporary folder");
        let authority = Authority::named("pods");
        let files = Files {
            root: folder.path().to_owned(),
            roots: authority.pem.clone(),
            binary: for_everybody(folder.path().join("remora")),
        };
        let network = Network::new();
        let control = Control::start(&network, &files, &authority).await;
        let pods = PODS.map(|spec| Pod::new(spec, &network, &files, &hosts())).into();
        let mut rig = Self { pods, control, network, files, outside: None, _folder: folder };
        rig.network.outside.names(&hosts());
        rig.pods.iter_mut().for_each(Pod::start_sidecar);
        rig.start_programs();
        for pod in &mut rig.pods {
            pod.sidecar_ready(&rig.network).await;
        }
        rig.programs_listen().await;
        rig
    }

    /// A pod by its name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.spec.name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// The same, to change.
    ///
    /// # Panics
    /// When there is none.
    pub fn pod_mut(&mut self, name: &str) -> &mut Pod {
        self.pods.iter_mut().find(|pod| pod.spec.name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// Adds a pod that has neither sidecar nor program yet.
    pub fn add(&mut self, spec: Spec) {
        self.control.add(&spec);
        self.pods.push(Pod::new(spec, &self.network, &self.files, &hosts()));
    }

    /// Curl in the pod `shell`: its answer, or `error N` with its status.
    #[must_use]
    pub fn curl(&self, arguments: &[&str]) -> String {
        answer(self.pod("shell").run(&[&["curl", "-s", "-m", "5"], arguments].concat()))
    }

    /// Curl on the machine outside.
    #[must_use]
    pub fn curl_from_outside(&self, arguments: &[&str]) -> String {
        answer(self.network.outside.run(&[&["curl", "-s", "-m", "5"], arguments].concat()))
    }
}

fn answer(said: Said) -> String {
    if said.status == 0 { said.out } else { format!("error {}", said.status) }
}

/// Names of everything, in IPv4 and IPv6.
fn hosts() -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    let mut add = |name: &str, own: Addresses| text += &format!("{} {name}\n{} {name}\n", own.v4, own.v6);
    for spec in PODS {
        add(&format!("{}.pod", spec.name), spec.addresses());
    }
    add("outside", Network::outside_address());
    let services = [("web", 10), ("open", 11), ("plain", 12), ("cache", 20), ("db", 30), ("echo", 40)];
    for (name, number) in services {
        // Of IPv6 the digits are those of IPv4, as in mesh.yaml.
        text += &format!("10.96.0.{number} {name}\nfd00:96::{number} {name}\n");
    }
    text
}

/// The binary under test where every user finds it.
fn for_everybody(path: PathBuf) -> PathBuf {
    let built = binary().0;
    if std::fs::hard_link(&built, &path).is_err() {
        std::fs::copy(&built, &path).expect("a copy of remora");
    }
    path
}
