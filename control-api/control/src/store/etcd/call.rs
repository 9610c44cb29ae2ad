//! Calls to etcd.

use std::future::Future;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::tokio_stream::{self, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::store::{LeaseId, StoreError};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
/// A page of a listing, or the changes of one transaction.
const MAX_MESSAGE: usize = 256 << 20;

/// Channels to all members of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    channel: Channel,
}

impl Caller {
    /// For `HOST:PORT[,HOST:PORT…]`.
    pub(super) fn new(hosts: &str) -> Result<Self, StoreError> {
        let mut endpoints = Vec::new();
        for host in hosts.split(',') {
            let endpoint = Endpoint::from_shared(format!("http://{host}"))
                .map_err(|e| StoreError::Unavailable(format!("{host:?} is no HOST:PORT: {e}")))?;
            // Who is gone without a word is noticed, by idle watches too.
            let endpoint = endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(3))
                .keep_alive_while_idle(true);
            endpoints.push(endpoint);
        }
        let channel = match &endpoints[..] {
            [one] => one.connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        Ok(Self { channel })
    }

    async fn ready(&self) -> Result<Grpc<Channel>, StoreError> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let ready = tokio::time::timeout(PATIENCE, grpc.ready()).await;
        ready.map_err(|_| late())?.map_err(|e| StoreError::Unavailable(chain(&e)))?;
        Ok(grpc)
    }

    /// The one answer to `request`.
    pub(super) async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A, StoreError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.ready().await?;
        let call =
            grpc.unary(Request::new(request), PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
        self.in_time(async { call.await.map(tonic::Response::into_inner) }).await
    }

    /// The answers to `request`, whose stream stays open.
    pub(super) async fn stream<Q, A>(
        &self,
        path: &'static str,
        request: Q,
    ) -> Result<Streaming<A>, StoreError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.ready().await?;
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let codec = ProstCodec::<Q, A>::default();
        let call = grpc.streaming(Request::new(requests), PathAndQuery::from_static(path), codec);
        self.in_time(async { call.await.map(tonic::Response::into_inner) }).await
    }

    pub(super) async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(PATIENCE, call).await.map_err(|_| late())?.map_err(failed)
    }
}

fn late() -> StoreError {
    StoreError::Unavailable(format!("etcd does not answer in {} s", PATIENCE.as_secs()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What a status of etcd means (etcd `api/v3rpc/rpctypes/error.go`).
pub(super) fn failed(status: Status) -> StoreError {
    match status.code() {
        // Only leases are found or not; which one it is the caller knows.
        Code::NotFound => StoreError::NoLease(LeaseId(0)),
        Code::ResourceExhausted => StoreError::Full(status.message().to_owned()),
        Code::OutOfRange => StoreError::Compacted { oldest: 0 },
        _ => StoreError::Unavailable(chain(&status)),
    }
}
