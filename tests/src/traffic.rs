//! Requests that flow while something else goes wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::certs::ClientTls;
use crate::client::http1::Http1Client;
use crate::proxy::Proxy;
use crate::wait::eventually;

/// Which requests are made.
#[derive(Debug, Clone)]
pub struct Load {
    address: SocketAddr,
    path: String,
    gap: Duration,
    reconnect: bool,
    tls: Option<ClientTls>,
}

/// Requests one after the other, until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
    count: Arc<AtomicUsize>,
}

impl Load {
    /// `GET /` on one connection, without a pause.
    #[must_use]
    pub fn on(address: SocketAddr) -> Self {
        Self { address, path: "/".into(), gap: Duration::ZERO, reconnect: false, tls: None }
    }

    /// Another path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// So much time between two requests.
    #[must_use]
    pub fn gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    /// A connection of its own for each request.
    #[must_use]
    pub fn reconnect(mut self) -> Self {
        self.reconnect = true;
        self
    }

    /// Over TLS.
    #[must_use]
    pub fn tls(mut self, tls: &ClientTls) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    async fn connect(&self) -> std::io::Result<Http1Client> {
        match &self.tls {
            Some(tls) => Http1Client::connect_tls(self.address, tls).await,
            None => Ok(Http1Client::connect(self.address).await),
        }
    }

    /// Begins.
    ///
    /// # Panics
    /// When the first handshake fails.
    pub async fn start(self) -> Traffic {
        let mut client = self.connect().await.expect("the first connection");
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let task = tokio::spawn(async move {
            let mut lost = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match client.get(&self.path).await {
                    Ok(response) if response.status == 200 => {}
                    Ok(response) => lost.push(format!("{} {}", response.status, response.text())),
                    Err(error) => {
                        lost.push(format!("{error:?}"));
                        break;
                    }
                }
                counted.fetch_add(1, Ordering::Relaxed);
                if self.reconnect {
                    match self.connect().await {
                        Ok(connected) => client = connected,
                        Err(error) => {
                            lost.push(format!("no connection: {error}"));
                            break;
                        }
                    }
                }
                if self.gap.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(self.gap).await;
                }
            }
            (counted.load(Ordering::Relaxed), lost)
        });
        Traffic { stop, task, count }
    }
}

impl Traffic {
    /// The plain [`Load`] on listener `ingress`.
    pub async fn start(proxy: &Proxy) -> Self {
        Load::on(proxy.address("ingress")).start().await
    }

    /// Waits for so many more requests.
    pub async fn flows(&self, more: usize) {
        let before = self.count.load(Ordering::Relaxed);
        eventually("traffic", || {
            self.count.load(Ordering::Relaxed) >= before + more || self.task.is_finished()
        })
        .await;
    }

    /// Ends it; gives the number of requests.
    ///
    /// # Panics
    /// When one was not answered with 200.
    pub async fn lost_nothing(self) -> usize {
        self.flows(5).await;
        self.stop.store(true, Ordering::Relaxed);
        let (count, lost) = self.task.await.expect("no panic");
        assert!(
            lost.is_empty(),
            "of {count} requests {} were lost: {:?}",
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        count
    }
}
