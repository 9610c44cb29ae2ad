//! The parts of a control plane, started and connected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use remora_mesh::{Credentials, Listening, OutboundTraffic, Profile};
use remora_proxy::tls::identity::{SpiffeId, SpiffeIdError};
use remora_xds::server::{self, AdsService, Settings};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::{self, ClusterOptions};
use super::own::Own;
use super::tls::{self, Port};
use super::votes::Votes;
use super::{authority, folder};
use crate::audit::Audit;
use crate::board::Board;
use crate::ca::root::{Files, Root, Wrong};
use crate::ca::{self, BundleError, BundleFile, Bundles, Ca, Overlap, Reviewer, Tokens, review};
use crate::clock::unix;
use crate::kubernetes;
use crate::publish::{self, Publisher};
use crate::quota;
use crate::registry::instances::Instances;
use crate::registry::{self, Registry};
use crate::rest::{self, App};
use crate::store::{self, StoreError};

/// What the TLS port is called anyway.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the embedded store and the audit log.
    pub data: PathBuf,
    /// Another store; see [`store::open`].
    pub store: Option<String>,
    /// Where proxies connect.
    pub listen_xds: SocketAddr,
    /// Where people connect.
    pub listen_rest: SocketAddr,
    /// Documents as files.
    pub folder: Option<PathBuf>,
    /// Of all identities.
    pub trust_domain: String,
    /// Proxies find chain.pem, key.pem and roots.pem here, on their own machine; a relative path begins at the working directory of
    /// each. None: they get their certificates from the CA.
    pub identity_files: Option<String>,
    /// On which ports proxies listen.
    pub listening: Listening,
    /// Groups of the key exchange between sidecars, by Envoy's names; without any, what each side has by itself.
    pub ecdh_curves: Vec<String>,
    /// What becomes of intercepted connections to nobody in the mesh.
    pub outbound_traffic: OutboundTraffic,
    /// Where proxies and their agents connect by TLS.
    pub listen_tls: SocketAddr,
    /// What that port is called besides `localhost`: DNS names and IP addresses.
    pub tls_names: Vec<String>,
    /// The certificate authority.
    pub authority: AuthorityOptions,
    /// Kubernetes.
    pub cluster: Option<ClusterOptions>,
}

impl Options {
    /// On free ports of loopback, with all of its state in `data`.
    #[must_use]
    pub fn on_loopback(data: PathBuf, trust_domain: &str) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data,
            store: None,
            listen_xds: free,
            listen_rest: free,
            folder: None,
            trust_domain: trust_domain.to_owned(),
            identity_files: None,
            listening: Listening::AsWritten,
            ecdh_curves: Vec::new(),
            outbound_traffic: OutboundTraffic::default(),
            listen_tls: free,
            tls_names: Vec::new(),
            authority: AuthorityOptions::default(),
            cluster: None,
        }
    }
}

/// How the certificate authority is started.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// A root or intermediate in files; without, a root is made at the first start.
    pub files: Option<Files>,
    /// Life of a certificate whose request does not say how long.
    pub ttl: Duration,
    /// Longest life of a certificate.
    pub most_ttl: Duration,
    /// How long a new root is announced before it signs.
    pub overlap: Overlap,
    /// Where Kubernetes is asked whose a service-account token is.
    pub review: Option<review::Options>,
    /// Bundles of other trust domains.
    pub bundles: Vec<BundleFile>,
}

impl Default for AuthorityOptions {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            files: None,
            ttl: 24 * hour,
            most_ttl: 90 * 24 * hour,
            overlap: Overlap { least: hour, most: 24 * hour },
            review: None,
            bundles: Vec::new(),
        }
    }
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error("--data {0}: {1}")]
    Data(PathBuf, std::io::Error),
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The files of the authority.
    #[error("--ca-cert, --ca-key, --ca-roots: {0}")]
    Authority(#[from] Wrong),
    /// Where tokens are reviewed.
    #[error("--token-review: {0}")]
    Review(Wrong),
    /// Bundles of other trust domains.
    #[error("--trust-bundle {0}")]
    Bundles(#[from] BundleError),
    /// The trust domain.
    #[error("--trust-domain {0}: {1}")]
    TrustDomain(String, SpiffeIdError),
    /// Kubernetes cannot be reached in this way.
    #[error("--kubernetes: {0}")]
    Kubernetes(String),
    /// An address.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

/// A control plane that runs until this is dropped.
#[derive(Debug)]
pub struct Plane {
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where proxies and their agents connect by TLS.
    pub tls: SocketAddr,
    /// Where people connect.
    pub rest: SocketAddr,
    /// Where API servers connect.
    pub webhook: Option<SocketAddr>,
    /// The store, for people.
    pub store: String,
    _tasks: JoinSet<()>,
}

impl Plane {
    /// Starts it. Proxies are served when the store has been read: before that nobody is told that nothing exists.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: Options) -> Result<Self, StartError> {
        std::fs::create_dir_all(&options.data).map_err(|e| StartError::Data(options.data.clone(), e))?;
        let settings = ca_settings(&options)?;
        let bundles = Bundles::read(&options.authority.bundles, &options.trust_domain)?;
        let review = options.authority.review.as_ref();
        let reviewer = review.map(Reviewer::new).transpose().map_err(StartError::Review)?;
        let address = options
            .store
            .clone()
            .unwrap_or_else(|| format!("redb:{}", options.data.join("remora.redb").display()));
        let store = store::open(&address).await?;
        let (xds_listener, xds) = listen(options.listen_xds).await?;
        let (tls_listener, tls) = listen(options.listen_tls).await?;
        let (rest_listener, rest) = listen(options.listen_rest).await?;

        let name = store.describe();
        let registry = Arc::new(Registry::new(store));
        if options.cluster.is_some() {
            registry.reads_kubernetes();
        }
        let board = Arc::new(Board::default());
        let publisher = Arc::new(Publisher::new(profile(&options), Arc::clone(&board)));
        let audit = Arc::new(Audit::at(&options.data.join("audit.jsonl")));
        let ca = Arc::new(Ca::new(Arc::clone(&registry), settings));
        ca.federate(bundles);
        let tokens = Arc::new(Tokens::new(Arc::clone(&registry), Arc::clone(&ca)));
        let log = Arc::new(ca::Log::at(&options.data.join("issued.jsonl")));
        let certificates = ca::Service::new(Arc::clone(&ca), Arc::clone(&tokens), Arc::clone(&log), reviewer);
        let app = App {
            registry: Arc::clone(&registry),
            instances: Arc::new(Instances::new(Arc::clone(&registry))),
            board: Arc::clone(&board),
            audit: Arc::clone(&audit),
            ca: Arc::clone(&ca),
            certificates: certificates.clone(),
            issued: Arc::clone(&log),
            tokens: Arc::clone(&tokens),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(registry::follow(Arc::clone(&registry)));
        tasks.spawn(Arc::clone(&app.instances).keep());
        tasks.spawn(rest::serve(rest_listener, rest::router(app)));
        if !options.authority.bundles.is_empty() {
            tasks.spawn(ca::bundles::follow(Arc::clone(&ca), options.authority.bundles));
        }
        if let Some(path) = options.folder {
            tasks.spawn(folder::follow(path, Arc::clone(&registry), Arc::clone(&board), audit));
        }
        let names = options.tls_names.into_iter().chain(OWN_NAMES.map(str::to_owned)).collect();
        let own = Own { ca: Arc::clone(&ca), log, names };
        let owner = quota_owner(&registry, &mut tasks);
        let in_cluster = options.cluster.is_some();
        let mut webhook = None;
        if let Some(options) = options.cluster {
            let parts =
                cluster::Parts { registry: &registry, board: &board, own: own.clone(), owner: &owner };
            webhook = cluster::start(options, parts, &mut tasks).await?;
        }
        let quotas = quota::Service::new(owner);
        publisher.tell(quotas.clone());
        let port = Port { own, certificates, publisher: Arc::clone(&publisher), quotas };
        let serving = Serving { registry, board, publisher, tokens, port, in_cluster };
        tasks.spawn(serving.serve(xds_listener, tls_listener));
        Ok(Self { xds, tls, rest, webhook, store: name, _tasks: tasks })
    }

    /// Writes `{"xds": "…", "tls": "…", "rest": "…"}`, and `webhook` when there is one; whoever reads it meets all of it or nothing.
    ///
    /// # Errors
    /// I/O.
    pub fn write_addresses(&self, path: &Path) -> std::io::Result<()> {
        let mut addresses = BTreeMap::from([("xds", self.xds), ("tls", self.tls), ("rest", self.rest)]);
        self.webhook.map(|webhook| addresses.insert("webhook", webhook));
        let text = json!(addresses).to_string();
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, path)
    }
}

fn ca_settings(options: &Options) -> Result<ca::Settings, StartError> {
    let domain = &options.trust_domain;
    SpiffeId::parse(&format!("spiffe://{domain}")).map_err(|e| StartError::TrustDomain(domain.clone(), e))?;
    let AuthorityOptions { files, ttl, most_ttl, overlap, .. } = &options.authority;
    let given = files.as_ref().map(|files| Root::read(files, unix(SystemTime::now()))).transpose()?;
    Ok(ca::Settings {
        trust_domain: domain.clone(),
        ttl: *ttl,
        most_ttl: *most_ttl,
        overlap: *overlap,
        given: given.map(Box::new),
    })
}

fn profile(options: &Options) -> Profile {
    let files = |folder: &String| {
        let file = |name: &str| format!("{}/{name}", folder.trim_end_matches('/'));
        Credentials::Files { certificate: file("chain.pem"), key: file("key.pem"), roots: file("roots.pem") }
    };
    Profile {
        trust_domain: options.trust_domain.clone(),
        federated: options.authority.bundles.iter().map(|bundle| bundle.domain.clone()).collect(),
        credentials: options.identity_files.as_ref().map_or(Credentials::Issued, files),
        listening: options.listening,
        ecdh_curves: options.ecdh_curves.clone(),
        outbound_traffic: options.outbound_traffic,
    }
}

pub(super) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|error| StartError::Listen(address, error))
}

/// What of several control planes one does, for each thing the same one.
fn quota_owner(registry: &Arc<Registry>, tasks: &mut JoinSet<()>) -> Arc<quota::Owner> {
    let owner = Arc::new(quota::Owner::new(Arc::clone(registry), Instant::now()));
    let kept = Arc::clone(&owner);
    tasks.spawn(async move { kept.keep().await });
    owner
}

/// What proxies are served with.
struct Serving {
    registry: Arc<Registry>,
    board: Arc<Board>,
    publisher: Arc<Publisher>,
    tokens: Arc<Tokens>,
    port: Port,
    /// Kubernetes is a source.
    in_cluster: bool,
}

impl Serving {
    /// For ever.
    async fn serve(self, xds: TcpListener, tls: TcpListener) {
        let Self { registry, board, publisher, tokens, port, in_cluster } = self;
        let ca = Arc::clone(&port.own.ca);
        registry.filled().await;
        ca.begin().await;
        if let Ok(secret) = ca.secret() {
            publisher.trust(&secret);
        }
        let (ready, all_taken) = oneshot::channel();
        let plaintext = (port.certificates.clone(), port.quotas.clone());
        let votes = Votes::new(Arc::clone(&registry));
        let log = Arc::clone(&port.own.log);
        let parts = authority::Parts { ca: Arc::clone(&ca), tokens, log, board, votes };
        let trust = authority::keep(parts, Arc::clone(&publisher), port.quotas.clone());
        let publish = async {
            if in_cluster {
                kubernetes::read_once(&registry).await;
            }
            publish::follow(Arc::clone(&registry), Arc::clone(&publisher), ready).await;
        };
        let serve = async {
            if all_taken.await.is_ok() {
                tokio::join!(serve_xds(xds, Arc::clone(&publisher), plaintext), tls::serve(tls, port));
            }
        };
        tokio::join!(publish, ca.follow(), trust, serve);
    }
}

async fn serve_xds(
    listener: TcpListener,
    publisher: Arc<Publisher>,
    (certificates, quotas): (ca::Service, quota::Service),
) {
    let settings = Settings::default();
    let service = AdsService::new(publisher, settings.clone()).into_server();
    let served = AdsService::<Arc<Publisher>>::transport(&settings)
        .add_service(service)
        .add_service(certificates)
        .add_service(quotas.into_server())
        .serve_with_incoming(server::incoming(listener))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the ADS server has ended");
    }
}
