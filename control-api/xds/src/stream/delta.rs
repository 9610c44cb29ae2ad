//! The incremental variant: each response holds what changed (xDS protocol, "Incremental xDS").

use std::sync::Arc;

use tokio::time::Instant;

use super::ledger::{Ledger, Push, Variant};
use super::{Event, Limits, Refusal, Stream, WILDCARD, admit, pb_duration, split_wildcard, understands_ttl};
use crate::node_snapshot::NodeSnapshot;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as PbResource,
};
use crate::resource::Resource;

/// The server's side of `DeltaAggregatedResources`.
#[derive(Debug)]
pub struct DeltaStream {
    ledger: Ledger,
    ttl: bool,
    began: bool,
}

impl Stream for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(id: u64, limits: Limits) -> Self {
        Self { ledger: Ledger::new(Variant::Delta, id, limits), ttl: false, began: false }
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Refusal> {
        let kind = admit(&request.type_url, request.node.as_ref(), !self.began)?;
        self.ttl |= !self.began && understands_ttl(request.node.as_ref());
        self.began = true;
        if !request.resource_locators_subscribe.is_empty()
            || !request.resource_locators_unsubscribe.is_empty()
        {
            return Err(Refusal::Locators);
        }
        let first = !self.ledger.is_requested(kind);
        if !request.response_nonce.is_empty() {
            // Whatever it answers: the change of the subscription counts.
            self.ledger.settle(kind, request.response_nonce, request.error_detail.as_ref());
        }
        let unsubscribe = request.resource_names_unsubscribe;
        if unsubscribe.iter().any(|name| name == WILDCARD) {
            self.ledger.unsubscribe_all(kind);
        }
        self.ledger.unsubscribe(kind, unsubscribe.iter().map(String::as_str));
        let legacy = first && kind.is_complete() && request.resource_names_subscribe.is_empty();
        let (explicit, names) = split_wildcard(request.resource_names_subscribe);
        if explicit || legacy {
            self.ledger.subscribe_all(kind);
        }
        self.ledger.subscribe(kind, names)?;
        if first {
            let versions = request.initial_resource_versions.into_iter();
            self.ledger.claim(kind, versions.map(|(name, version)| (name.into(), version.into())))?;
        }
        Ok(())
    }

    fn snapshot(&mut self, snapshot: Arc<NodeSnapshot>) {
        self.ledger.snapshot(snapshot);
    }

    fn next(&mut self, now: Instant) -> Option<DeltaDiscoveryResponse> {
        let Push { kind, nonce, changed, removed, confirmed } = self.ledger.next(now)?;
        let resources = changed.iter().map(|resource| self.encode(resource, true));
        let confirmed = confirmed.iter().map(|resource| self.encode(resource, false));
        Some(DeltaDiscoveryResponse {
            resources: resources.chain(confirmed).collect(),
            type_url: kind.type_url().into(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        })
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.ledger.deadline(now)
    }

    fn take_events(&mut self) -> Vec<Event> {
        self.ledger.take_events()
    }
}

impl DeltaStream {
    /// Without its content a resource only confirms what the client has (xDS protocol, "TTL").
    fn encode(&self, resource: &Resource, content: bool) -> PbResource {
        PbResource {
            name: resource.name().to_string(),
            version: resource.version().to_string(),
            resource: content.then(|| resource.any().clone()),
            ttl: resource.ttl().filter(|_| self.ttl).and_then(pb_duration),
            ..PbResource::default()
        }
    }
}
