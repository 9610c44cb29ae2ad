//! What holds for all pods of a cluster.

use std::net::SocketAddr;
use std::str::FromStr;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Image with `/usr/local/bin/remora`.
    pub image: String,
    /// The control plane's TLS port (CA and ADS). An address: the sidecar has no name server of its own for it.
    pub control: SocketAddr,
    /// Trust in the control plane at first: a ConfigMap of the pod's namespace with `roots.pem`.
    pub roots: String,
    /// What the service account token is for (`--token-review-audience` of the control plane).
    pub audience: String,
    /// A sidecar that is an init container.
    pub native: Native,
    /// Version of the cluster, when it is known.
    pub cluster: Option<Version>,
    /// Who makes the rules that lead traffic to the sidecar.
    pub interception: Interception,
    /// Pods that say nothing are injected: the namespace, or who ran the command, has opted in.
    pub by_default: bool,
    /// Worker threads of a sidecar: the CPUs that its cgroup grants are all of the node's, when it has no limit.
    pub concurrency: u16,
}

impl Settings {
    /// With the control plane at `control`, and everything else as it is by default.
    #[must_use]
    pub fn new(control: SocketAddr) -> Self {
        Self {
            image: concat!("remora:", env!("CARGO_PKG_VERSION")).into(),
            control,
            roots: "remora-roots".into(),
            audience: "istio-ca".into(),
            native: Native::Auto,
            cluster: None,
            interception: Interception::Init,
            by_default: true,
            concurrency: 2,
        }
    }

    /// Whether sidecars are init containers, when a pod does not say.
    #[must_use]
    pub fn is_native(&self, native: Native) -> bool {
        match native {
            Native::Yes => true,
            Native::No => false,
            // 1.28 has had no fixes since 2024.
            Native::Auto => self.cluster.is_none_or(|version| version >= NATIVE_SINCE),
        }
    }
}

/// On by default from here (feature gate SidecarContainers).
const NATIVE_SINCE: Version = Version { major: 1, minor: 29 };

/// Whether the sidecar is an init container with `restartPolicy: Always`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Native {
    /// Where the cluster has it.
    Auto,
    /// Yes.
    #[value(name = "true")]
    Yes,
    /// No: a container beside the others.
    #[value(name = "false")]
    No,
}

/// Who makes the rules that lead traffic to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Interception {
    /// An init container with NET_ADMIN.
    Init,
    /// A CNI plugin on the node.
    Cni,
    /// Nobody: programs call 127.0.0.1, callers call the sidecar.
    None,
}

/// Version of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1.
    pub major: u32,
    /// 29.
    pub minor: u32,
}

impl FromStr for Version {
    type Err = String;

    /// `1.29`, `v1.29.4`, `v1.29.4-gke.100`, `1.29+`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write it as 1.29 or v1.29.4".to_owned();
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let major = parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong)?;
        let minor = parts.next().ok_or_else(wrong)?;
        let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        let minor = digits.parse().map_err(|_| wrong())?;
        Ok(Self { major, minor })
    }
}
