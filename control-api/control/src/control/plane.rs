//! The parts of a control plane, started and connected.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use remora_mesh::{Credentials, Listening, Profile};
use remora_xds::server::{self, AdsService, Settings};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::folder;
use crate::audit::Audit;
use crate::board::Board;
use crate::publish::{self, Publisher};
use crate::registry::instances::Instances;
use crate::registry::{self, Registry};
use crate::rest::{self, App};
use crate::store::{self, StoreError};

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
    /// Where proxies find chain.pem, key.pem and roots.pem. A relative path begins at the working directory of each proxy.
    pub identity_files: String,
    /// On which ports proxies listen.
    pub listening: Listening,
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
    /// An address.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

/// A control plane that runs until this is dropped.
#[derive(Debug)]
pub struct Plane {
    /// Where proxies connect.
    pub xds: SocketAddr,
    /// Where people connect.
    pub rest: SocketAddr,
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
        let address = options
            .store
            .clone()
            .unwrap_or_else(|| format!("redb:{}", options.data.join("remora.redb").display()));
        let store = store::open(&address).await?;
        let (xds_listener, xds) = listen(options.listen_xds).await?;
        let (rest_listener, rest) = listen(options.listen_rest).await?;

        let name = store.describe();
        let registry = Arc::new(Registry::new(store));
        let board = Arc::new(Board::default());
        let publisher = Arc::new(Publisher::new(profile(&options), Arc::clone(&board)));
        let audit = Arc::new(Audit::at(&options.data.join("audit.jsonl")));
        let app = App {
            registry: Arc::clone(&registry),
            instances: Arc::new(Instances::new(Arc::clone(&registry))),
            board: Arc::clone(&board),
            audit: Arc::clone(&audit),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(registry::follow(Arc::clone(&registry)));
        tasks.spawn(Arc::clone(&app.instances).keep());
        tasks.spawn(rest::serve(rest_listener, rest::router(app)));
        if let Some(path) = options.folder {
            tasks.spawn(folder::follow(path, Arc::clone(&registry), board, audit));
        }
        tasks.spawn(async move {
            registry.filled().await;
            let (ready, all_taken) = oneshot::channel();
            let serve = async {
                if all_taken.await.is_ok() {
                    serve_xds(xds_listener, Arc::clone(&publisher)).await;
                }
            };
            tokio::join!(publish::follow(registry, Arc::clone(&publisher), ready), serve);
        });
        Ok(Self { xds, rest, store: name, _tasks: tasks })
    }

    /// Writes `{"xds": "…", "rest": "…"}`; whoever reads it meets all of it or nothing.
    ///
    /// # Errors
    /// I/O.
    pub fn write_addresses(&self, path: &Path) -> std::io::Result<()> {
        let text = json!({"xds": self.xds.to_string(), "rest": self.rest.to_string()}).to_string();
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, path)
    }
}

fn profile(options: &Options) -> Profile {
    let file = |name: &str| format!("{}/{name}", options.identity_files.trim_end_matches('/'));
    Profile {
        trust_domain: options.trust_domain.clone(),
        credentials: Credentials::Files {
            certificate: file("chain.pem"),
            key: file("key.pem"),
            roots: file("roots.pem"),
        },
        listening: options.listening,
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|error| StartError::Listen(address, error))
}

async fn serve_xds(listener: TcpListener, publisher: Arc<Publisher>) {
    let settings = Settings::default();
    let service = AdsService::new(publisher, settings.clone()).into_server();
    let served = AdsService::<Arc<Publisher>>::transport(&settings)
        .add_service(service)
        .serve_with_incoming(server::incoming(listener))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the ADS server has ended");
    }
}
