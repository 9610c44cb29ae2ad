//! A node without a data plane: it subscribes as a sidecar does, takes everything, and tells when it heard of what.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use prost::Message as _;
use remora_xds::Kind;
use remora_xds::client::{Batch, Request, Response, Subscriptions, Variant};
use remora_xds::pb::envoy::config::core::v3::Node as PbNode;
use remora_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use remora_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

/// Requests that may wait for the connection; each answers a response, of which one of a kind is in flight.
const REQUESTS: usize = 16;

/// A response that came.
#[derive(Debug)]
pub(crate) struct Heard {
    /// To whom.
    pub(crate) node: usize,
    /// When its last byte was read.
    pub(crate) at: Instant,
    /// Bytes of the encoded message.
    pub(crate) bytes: usize,
    /// Of what.
    pub(crate) kind: Kind,
    /// New and changed resources.
    pub(crate) names: Vec<Arc<str>>,
}

impl Heard {
    /// Whether it says something new of one load assignment and of nothing else.
    pub(crate) fn is_of(&self, assignment: &str) -> bool {
        self.kind == Kind::ClusterLoadAssignment && matches!(&self.names[..], [name] if **name == *assignment)
    }
}

/// What outlives its streams.
#[derive(Debug)]
pub(crate) struct Node {
    number: usize,
    subscriptions: Subscriptions,
    endpoints: BTreeSet<Arc<str>>,
    routes: BTreeSet<Arc<str>>,
}

impl Node {
    /// The sidecar of a workload, which has nothing yet.
    pub(crate) fn new(number: usize, workload: &str) -> Self {
        let node = PbNode {
            id: format!("sidecar~127.0.0.1~{workload}.default~default.svc.cluster.local"),
            user_agent_name: "bench-xds".into(),
            ..PbNode::default()
        };
        let mut subscriptions = Subscriptions::new(Variant::Delta, node, []);
        subscriptions.want_all(Kind::Cluster);
        subscriptions.want_all(Kind::Listener);
        Self { number, subscriptions, endpoints: BTreeSet::new(), routes: BTreeSet::new() }
    }

    /// One stream, until the other side ends it, which is a mistake.
    pub(crate) async fn run(&mut self, to: SocketAddr, heard: &mpsc::Sender<Heard>) -> anyhow::Result<()> {
        let mut stub = AggregatedDiscoveryServiceClient::connect(format!("http://{to}")).await?;
        self.subscriptions.connected();
        let (out, requests) = mpsc::channel(REQUESTS);
        // The server answers when it has something to say, so that the first requests have to be there before.
        self.send(&out).await?;
        let mut responses =
            stub.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
        while let Some(response) = responses.message().await? {
            let (at, bytes) = (Instant::now(), response.encoded_len());
            let batch = self.subscriptions.take(Response::from(response)).map_err(anyhow::Error::msg)?;
            let names = self.take(&batch);
            // Whoever counts has ended when there is nobody.
            let _ = heard.send(Heard { node: self.number, at, bytes, kind: batch.kind, names }).await;
            self.send(&out).await?;
        }
        bail!("the control plane ended the stream")
    }

    /// Accepts everything, and wants what it refers to: routes have the names of outbound listeners, and load assignments those of
    /// outbound clusters.
    fn take(&mut self, batch: &Batch) -> Vec<Arc<str>> {
        let named = batch.resources.iter().filter_map(|r| Some((r.name.clone()?, Arc::clone(&r.version))));
        let accepted: Vec<_> = named.collect();
        let names: Vec<_> = accepted.iter().map(|(name, _)| Arc::clone(name)).collect();
        self.subscriptions.settle(batch.answer(accepted, batch.removed.clone(), Vec::new()), Instant::now());
        let (set, wanted): (_, fn(&str) -> bool) = match batch.kind {
            Kind::Cluster => (&mut self.endpoints, |name| name.starts_with("outbound|")),
            Kind::Listener => (&mut self.routes, |name| name != "inbound"),
            _ => return names,
        };
        set.extend(names.iter().filter(|name| wanted(name)).cloned());
        set.retain(|name| !batch.removed.contains(name));
        self.subscriptions.want(Kind::ClusterLoadAssignment, &self.endpoints);
        self.subscriptions.want(Kind::RouteConfiguration, &self.routes);
        names
    }

    async fn send(&mut self, out: &mpsc::Sender<DeltaDiscoveryRequest>) -> anyhow::Result<()> {
        while let Some(Request::Delta(request)) = self.subscriptions.next_request(Instant::now()) {
            out.send(*request).await.context("the control plane closed the stream")?;
        }
        Ok(())
    }
}
