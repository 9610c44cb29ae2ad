//! A control plane and a client of its REST interface.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use remora_control::control::{Options, Plane};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Longest that anything takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {selector: {app: shop}, ports: [{name: http, port: 8080}]}\n";
pub(crate) const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n  \
                                parentRefs: [{kind: Service, name: shop}]\n  rules:\n  - backendRefs: [{name: shop, port: 8080}]\n";
pub(crate) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(crate) const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes";

pub(crate) struct Rig {
    pub(crate) plane: Plane,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn options(data: &Path) -> Options {
    Options { identity_files: Some("/identity".into()), ..Options::on_loopback(data.to_owned(), "test") }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With other options.
    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path());
        change(&mut options);
        let plane = Plane::start(options).await.unwrap();
        let rig = Self { plane, folder };
        rig.until("it is ready", async || rig.get("/readyz").await.0 == StatusCode::OK).await;
        rig
    }

    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        until(what, holds).await;
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, "", "").await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: &str,
    ) -> (StatusCode, Value) {
        let answer = open(self.plane.rest, method, path, kind, body).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Applies YAML documents as `remora apply` does.
    pub(crate) async fn apply(&self, text: &str, query: &str) -> (StatusCode, Value) {
        let body = json!({"files": [{"name": "mesh.yaml", "text": text}]}).to_string();
        self.send(Method::POST, &format!("/remora/v1/apply{query}"), "application/json", &body).await
    }

    pub(crate) async fn watch(&self, path: &str) -> Lines {
        let answer = open(self.plane.rest, Method::GET, path, "", "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        Lines { body: answer.into_body(), rest: Vec::new() }
    }
}

/// The port without TLS.
pub(crate) async fn plaintext(rig: &Rig) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", rig.plane.xds)).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn open(
    to: SocketAddr,
    method: Method,
    path: &str,
    kind: &str,
    body: &str,
) -> http::Response<Incoming> {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.to_string())
        .header("content-type", kind)
        .header("x-remora-actor", "ada@test")
        .header(
            "origin",
            if path.contains("evil") { "http://evil.test".to_owned() } else { format!("http://{to}") },
        )
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap();
    sender.send_request(request).await.unwrap()
}

/// A body of lines of JSON.
pub(crate) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// `type` and `object` of the next event; None at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event");
            self.rest.extend_from_slice(frame?.unwrap().data_ref().unwrap());
        }
    }
}
