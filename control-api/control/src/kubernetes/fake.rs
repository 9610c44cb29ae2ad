//! What unit tests of this module need of a cluster: an API server that is a function, and a registry.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tonic::codegen::{BoxFuture, Service};

use crate::registry::{self, Registry};
use crate::store::redb::{Options, RedbStore};

/// Code and body of the answer to a method, a path and a body.
type Answers = dyn Fn(&Method, &str, &Value) -> (u16, Value) + Send + Sync;

struct Server(Arc<Answers>);

impl Service<Request<Body>> for Server {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answers = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = answers(&head.method, head.uri.path(), &body);
            let mut response = Response::new(Full::new(answer.to_string().into()));
            *response.status_mut() = code.try_into().expect("a status");
            Ok(response)
        })
    }
}

/// A client of such a server.
pub(super) fn client(
    answers: impl Fn(&Method, &str, &Value) -> (u16, Value) + Send + Sync + 'static,
) -> Client {
    Client::new(Server(Arc::new(answers)), "default")
}

/// An answer that is no success.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "code": code,
    });
    (code, status)
}

/// A registry of a control plane that reads Kubernetes, and the folder of its store.
pub(super) async fn registry() -> (Arc<Registry>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&folder.path().join("remora.redb"), Options::default()).await.unwrap();
    let registry = Arc::new(Registry::new(Arc::new(store)));
    registry.reads_kubernetes();
    tokio::spawn(registry::follow(Arc::clone(&registry)));
    registry.filled().await;
    (registry, folder)
}
