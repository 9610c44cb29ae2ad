//! HTTP/2 with prior knowledge, on the h2 crate directly.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::net::TcpStream;

use super::Options;

pub(super) struct Client {
    target: SocketAddr,
    request: Request<()>,
    sender: SendRequest<Bytes>,
}

impl Client {
    pub(super) async fn connect(options: &Options) -> anyhow::Result<Self> {
        let uri = format!("http://{}{}", options.authority, options.path);
        let request =
            Request::builder().uri(uri).version(http::Version::HTTP_2).body(()).context("request")?;
        Ok(Self { target: options.target, request, sender: open(options.target).await? })
    }

    /// Another client on the same connection.
    pub(super) fn share(&self) -> Self {
        Self { target: self.target, request: self.request.clone(), sender: self.sender.clone() }
    }

    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.sender = open(self.target).await?;
        Ok(())
    }

    pub(super) async fn request(&mut self) -> anyhow::Result<u64> {
        let mut sender = self.sender.clone().ready().await.context("stream")?;
        let (response, _) = sender.send_request(self.request.clone(), true).context("request")?;
        let response = response.await.context("response")?;
        let status = response.status();
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data.context("body")?;
            length += data.len() as u64;
            body.flow_control().release_capacity(data.len()).context("window")?;
        }
        if status != StatusCode::OK {
            bail!("status {}", status.as_u16());
        }
        Ok(length)
    }
}

async fn open(target: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake(stream)
        .await
        .context("HTTP/2 handshake")?;
    tokio::task::spawn_local(async move {
        // Its failure reaches every stream of the connection, where it is counted.
        let _ = connection.await;
    });
    Ok(sender)
}
