//! A UNIX socket on which programs beside this process, and other proxies, take its identity: the SPIFFE Workload API
//! (`workload_api`) and SDS (`sds`). Who may open the socket may have the key.

mod sds;
pub(super) mod workload_api;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use remora_xds::server::AdsService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::codegen::Service;

use self::sds::Secrets;
use self::workload_api::WorkloadApi;
use super::Identity;

/// Connections at one time; a program needs one.
const MAX_CONNECTIONS: usize = 128;
/// A quiet connection is probed: a program that was frozen must not keep its place for ever.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Process and group: who is in neither gets no key.
const MODE: u32 = 0o660;

/// The newest identity; None before the first.
pub type Newest = watch::Receiver<Option<Arc<Identity>>>;

/// The socket, bound. Its file goes with this value.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: a new process may put its own in the place.
    file: Option<(u64, u64)>,
}

impl Socket {
    /// Binds `path`. A socket that an earlier process left there is replaced, anything else is not.
    ///
    /// # Errors
    /// I/O, or the path is something else.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there and is no socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
        Ok(Self { listener, path: path.to_owned(), file: file_at(path) })
    }

    /// Serves until it is dropped.
    pub async fn serve(self, newest: Newest) {
        let secrets = AdsService::new(Secrets::follow(newest.clone()), sds::settings()).into_secret_server();
        let services = Services { workload_api: WorkloadApi::new(newest), secrets };
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let services = services.clone();
                    tokio::spawn(async move {
                        connection(stream, services).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(socket = %self.path.display(), %error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.file.is_some() && file_at(&self.path) == self.file {
            // Gone in this moment is gone as well.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

async fn connection(stream: UnixStream, services: Services) {
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .max_concurrent_streams(16)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(services))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the identity socket broke");
    }
}

/// A trust domain as a SPIFFE ID: the name of its bundle.
fn bundle_name(domain: &str) -> String {
    format!("spiffe://{domain}")
}

/// Both services, told apart by path.
#[derive(Clone)]
struct Services {
    workload_api: WorkloadApi,
    secrets: sds::Server,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let (service, method) =
            request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
        match service {
            workload_api::SERVICE => {
                let (api, method) = (self.workload_api.clone(), method.to_owned());
                Box::pin(async move { Ok(api.call(&method, request).await) })
            }
            _ => self.secrets.call(request),
        }
    }
}

#[cfg(test)]
mod tests;
