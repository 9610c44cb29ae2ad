//! The REST API of the control plane, on one connection that is kept open.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub(crate) struct Rest {
    to: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Rest {
    pub(crate) async fn connect(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).await.context("REST")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("REST")?;
        tokio::spawn(connection);
        Ok(Self { to, sender })
    }

    async fn request(&mut self, method: Method, path: &str, body: String) -> anyhow::Result<Bytes> {
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "control")
            .header("content-type", "application/json")
            .body(Full::from(body))?;
        if self.sender.ready().await.is_err() {
            // It was idle for longer than the server allows.
            *self = Self::connect(self.to).await?;
        }
        let response = self.sender.send_request(request).await.with_context(|| path.to_owned())?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Writes documents.
    pub(crate) async fn apply(&mut self, text: &str) -> anyhow::Result<()> {
        let body = json!({ "files": [{ "name": "mesh.yaml", "text": text }] });
        self.request(Method::POST, "/remora/v1/apply", body.to_string()).await.map(drop)
    }

    /// Registers an instance, or what it says of itself now.
    pub(crate) async fn register(&mut self, name: &str, said: &Value) -> anyhow::Result<()> {
        let path = format!("/remora/v1/namespaces/default/instances/{name}");
        self.request(Method::PUT, &path, said.to_string()).await.map(drop)
    }

    /// A join token for as many certificates as anybody wants within the hour.
    pub(crate) async fn token(&mut self, namespace: &str, account: &str) -> anyhow::Result<String> {
        let terms = json!({
            "namespace": namespace, "serviceAccount": account, "ttlSeconds": 3600, "uses": 1000,
        });
        let made = self.request(Method::POST, "/remora/v1/tokens", terms.to_string()).await?;
        let made: Value = serde_json::from_slice(&made)?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&mut self, name: &str) -> anyhow::Result<u64> {
        let body = self.request(Method::GET, "/metrics", String::new()).await?;
        let text = String::from_utf8_lossy(&body);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.with_context(|| format!("no metric {name}"))?.trim().parse()?;
        Ok(value as u64)
    }

    /// The connected proxies: how many, how many of them are in sync, and the resources that all of them are to have.
    pub(crate) async fn proxies(&mut self) -> anyhow::Result<(usize, usize, u64)> {
        let body = self.request(Method::GET, "/status", String::new()).await?;
        let status: Value = serde_json::from_slice(&body)?;
        let proxies = status["proxies"].as_array().context("/status has no proxies")?;
        let synced = proxies.iter().filter(|proxy| proxy["state"] == "Synced").count();
        let wanted = proxies.iter().filter_map(|proxy| proxy["wanted"].as_u64()).sum();
        Ok((proxies.len(), synced, wanted))
    }
}
