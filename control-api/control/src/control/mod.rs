//! `remora control`: store, registry, REST, compiler and ADS in one process.

mod authority;
mod cluster;
mod folder;
pub(crate) mod own;
mod plane;
mod tls;
mod votes;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use remora_mesh::{Listening, OutboundTraffic};
use remora_proxy::notify;
use tracing_subscriber::EnvFilter;

use crate::ca::root::Files;
use crate::ca::{BundleFile, Overlap, review};
use crate::run::time;

pub(crate) use votes::KIND as CONTROL_PLANE;

pub use cluster::{ClusterOptions, WebhookOptions};
pub use plane::{AuthorityOptions, Options, Plane, StartError};

/// What sidecars can exchange keys by, in Envoy's names.
const GROUPS: [&str; 4] = ["X25519MLKEM768", "X25519", "P-256", "P-384"];

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora control                                     state in ./remora-data, proxies on 15010 and 15012, people on 15014
  remora control --data /var/lib/remora -f /etc/remora/mesh
  remora control --store etcd://10.0.0.1:2379,10.0.0.2:2379
  remora control --ca-cert ca.pem --ca-key ca.key --ca-roots root.pem
  remora control --trust-bundle abroad.example=abroad.pem
  remora control --kubernetes=kubeconfig             documents and pods of a cluster
  remora control --listen-tls 0.0.0.0:15012 --tls-name control.example.com
  remora control --listen-rest 127.0.0.1:0 --address-path ports.json

Documents of the folder (-f) are watched, and written to the store; what leaves the folder is removed. Exit status: 0 after an orderly
end, 1 when it cannot start, 2 for wrong arguments.")]
pub(crate) struct ControlArgs {
    /// Folder of the embedded store and the audit log
    #[arg(long, value_name = "FOLDER", default_value = "./remora-data")]
    data: PathBuf,
    /// Another store: redb:FILE, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Where proxies connect (ADS, plaintext)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    listen_xds: SocketAddr,
    /// Where proxies and their agents connect (CA and ADS, TLS)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15012")]
    listen_tls: SocketAddr,
    /// Name or IP address that the TLS port is called by, besides localhost; may be repeated
    #[arg(long = "tls-name", value_name = "NAME")]
    tls_names: Vec<String>,
    /// Where people and programs connect (REST)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15014")]
    listen_rest: SocketAddr,
    /// Folder (or file) of documents, watched
    #[arg(short, long = "filename", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Write the bound addresses to this file, as JSON
    #[arg(long, value_name = "FILE")]
    address_path: Option<PathBuf>,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    #[command(flatten)]
    authority: AuthorityArgs,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
    /// Certificates of proxies come from elsewhere, into this folder on the machine of each: chain.pem, key.pem and roots.pem
    #[arg(long, value_name = "FOLDER", conflicts_with = "trust_bundles")]
    identity_files: Option<String>,
    /// Key exchange between sidecars, most wanted first; without, what each proxy has by itself: X25519MLKEM768 before the others
    #[arg(long, value_name = "GROUP,...", value_delimiter = ',', value_parser = GROUPS)]
    ecdh_curves: Vec<String>,
    /// Connections of pods and VMs to nobody in the mesh, where rules lead them to the sidecar: ALLOW_ANY lets them go on as they are,
    /// REGISTRY_ONLY closes them
    #[arg(long, value_name = "POLICY", default_value = "ALLOW_ANY", value_enum)]
    outbound_traffic_policy: OutboundTrafficArg,
    /// Proxies listen on any free ports, whatever the documents say: /listeners of their admin page tells which (for tests)
    #[arg(long)]
    ephemeral_ports: bool,
    /// Log level: error, warn, info, debug, or a filter such as remora_control=debug
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info", env = "REMORA_LOG")]
    log_level: String,
}

/// `outboundTrafficPolicy` of Istio's MeshConfig.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutboundTrafficArg {
    #[value(name = "ALLOW_ANY")]
    AllowAny,
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
}

impl From<OutboundTrafficArg> for OutboundTraffic {
    fn from(arg: OutboundTrafficArg) -> Self {
        match arg {
            OutboundTrafficArg::AllowAny => Self::AllowAny,
            OutboundTrafficArg::RegistryOnly => Self::RegistryOnly,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Certificate authority")]
struct AuthorityArgs {
    /// Certificate of a CA to sign with, in PEM, and those between it and its root; without, a root is made at the first start
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// What is trusted, when --ca-cert is an intermediate
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_roots: Option<PathBuf>,
    /// Life of a certificate whose request does not say how long
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = life)]
    cert_ttl: Duration,
    /// Longest life of a certificate
    #[arg(long, value_name = "TIME", default_value = "2160h", value_parser = life)]
    max_cert_ttl: Duration,
    /// A new root is announced for at least so long before it signs
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
    root_overlap: Duration,
    /// It signs after so long even if a connected proxy does not trust it yet
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
    root_overlap_max: Duration,
    /// Authorities of another trust domain, in PEM, watched: whom they sign for in that domain may call, as rules allow; may be repeated
    #[arg(long = "trust-bundle", value_name = "DOMAIN=FILE")]
    trust_bundles: Vec<BundleFile>,
    /// Where Kubernetes is asked whose a service-account token is; without, such tokens are refused
    #[arg(long, value_name = "URL")]
    token_review: Option<String>,
    /// What such a token must be for
    #[arg(long, value_name = "AUDIENCE", default_value = "istio-ca", requires = "token_review")]
    token_review_audience: String,
    /// Roots of the API server; those of the pod, when it is left out
    #[arg(long, value_name = "FILE", requires = "token_review")]
    token_review_ca: Option<PathBuf>,
    /// Token of the control plane itself; that of the pod, when it is left out
    #[arg(long, value_name = "FILE", requires = "token_review")]
    token_review_token: Option<PathBuf>,
}

/// Certificates have whole seconds.
fn life(text: &str) -> Result<Duration, String> {
    let life = time(text)?;
    if life < Duration::from_secs(1) { Err("a certificate lives for 1s at least".into()) } else { Ok(life) }
}

impl AuthorityArgs {
    fn options(self) -> AuthorityOptions {
        let files = self.ca_cert.zip(self.ca_key);
        AuthorityOptions {
            files: files.map(|(certificate, key)| Files { certificate, key, roots: self.ca_roots }),
            ttl: self.cert_ttl.min(self.max_cert_ttl),
            most_ttl: self.max_cert_ttl,
            overlap: Overlap { least: self.root_overlap, most: self.root_overlap_max },
            review: self.token_review.map(|url| review::Options {
                url,
                audience: self.token_review_audience,
                roots: self.token_review_ca,
                token: self.token_review_token,
            }),
            bundles: self.trust_bundles,
        }
    }
}

pub(crate) fn run(args: ControlArgs) -> ExitCode {
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("remora control: --log-level: {error}");
            return ExitCode::from(2);
        }
    };
    // A program that embeds this may have set its own subscriber, which then stays.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal());
    let _ = log.with_writer(std::io::stderr).try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("remora control: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let cluster = args.cluster.options(&args.authority.token_review_audience);
        let options = Options {
            cluster,
            data: args.data,
            store: args.store,
            listen_xds: args.listen_xds,
            listen_rest: args.listen_rest,
            folder: args.folder,
            trust_domain: args.trust_domain,
            identity_files: args.identity_files,
            listen_tls: args.listen_tls,
            tls_names: args.tls_names,
            authority: args.authority.options(),
            listening: if args.ephemeral_ports { Listening::Ephemeral } else { Listening::AsWritten },
            ecdh_curves: args.ecdh_curves,
            outbound_traffic: args.outbound_traffic_policy.into(),
        };
        let plane = match Plane::start(options).await {
            Ok(plane) => plane,
            Err(error) => {
                eprintln!("remora control: {error}");
                return ExitCode::FAILURE;
            }
        };
        if let Some(path) = &args.address_path
            && let Err(error) = plane.write_addresses(path)
        {
            eprintln!("remora control: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        tracing::info!(xds = %plane.xds, tls = %plane.tls, rest = %plane.rest, webhook = ?plane.webhook, store = plane.store, "serving");
        notify::ready(std::env::var_os(notify::SOCKET));
        stop_signal().await;
        tracing::info!("stopping");
        ExitCode::SUCCESS
    })
}

/// SIGTERM or SIGINT. A control plane has nothing to finish: writes that were answered are in the store, and proxies go on with what
/// they have.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
