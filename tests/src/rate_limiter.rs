//! A rate limit service (`envoy.service.ratelimit.v3.RateLimitService`) that records what it is asked and answers by script.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use remora_xds::pb::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use remora_xds::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use remora_xds::server;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use crate::upstream::Upstream;

type Script = dyn Fn(&RateLimitRequest) -> Option<RateLimitResponse> + Send + Sync;

struct Service {
    script: Box<Script>,
    asked: Arc<Mutex<Vec<RateLimitRequest>>>,
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let response = (self.script)(&request);
        self.asked.lock().expect("no test panicked here").push(request);
        match response {
            Some(response) => Ok(Response::new(response)),
            None => std::future::pending().await,
        }
    }
}

/// The service. Dropping it ends it.
#[derive(Debug)]
pub struct RateLimiter {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<RateLimitRequest>>>,
    server: JoinHandle<()>,
}

impl RateLimiter {
    /// Answers by `script`; None never answers.
    ///
    /// # Panics
    /// When there is no address.
    pub async fn scripted(
        script: impl Fn(&RateLimitRequest) -> Option<RateLimitResponse> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let service = Service { script: Box::new(script), asked: Arc::clone(&asked) };
        let served = tonic::transport::Server::builder()
            .add_service(RateLimitServiceServer::new(service))
            .serve_with_incoming(server::incoming(listener));
        let server = tokio::spawn(async move { drop(served.await) });
        Self { address, asked, server }
    }

    /// Everything that was asked.
    ///
    /// # Panics
    /// When the service panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<RateLimitRequest> {
        self.asked.lock().expect("no test panicked here").clone()
    }
}

impl Upstream for RateLimiter {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_http2(&self) -> bool {
        true
    }
}

impl Drop for RateLimiter {
    fn drop(&mut self) {
        self.server.abort();
    }
}
