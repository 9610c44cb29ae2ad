//! A small HTTP/1 client for one address, with kept-alive connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longer than any answer of the demo should take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `x-remora-reason`: why the proxy made the answer itself.
    pub(super) reason: Option<String>,
    pub(super) body: Bytes,
}

#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, idle: Arc::default() }
    }

    /// The answer to a GET.
    pub(super) async fn get(&self, host: &str, path: &str) -> anyhow::Result<Answer> {
        tokio::time::timeout(PATIENCE, self.exchange(host, path)).await.context("no answer in 30 s")?
    }

    /// A GET whose answer does not end.
    pub(super) async fn open(&self, host: &str, path: &str) -> anyhow::Result<Incoming> {
        let response = async {
            let request = Request::get(path).header(http::header::HOST, host).body(Empty::new())?;
            Ok::<_, anyhow::Error>(self.connection().await?.send_request(request).await?)
        };
        let response = tokio::time::timeout(PATIENCE, response).await.context("no answer in 30 s")??;
        anyhow::ensure!(response.status() == StatusCode::OK, "{path} answers {}", response.status());
        Ok(response.into_body())
    }

    async fn exchange(&self, host: &str, path: &str) -> anyhow::Result<Answer> {
        let mut sender = self.connection().await?;
        let request = Request::get(path).header(http::header::HOST, host).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let reason =
            response.headers().get("x-remora-reason").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Ok(Answer { status, reason, body })
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end shows at the sender.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }
}
