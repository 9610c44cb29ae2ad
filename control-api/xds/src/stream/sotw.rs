//! The state-of-the-world variant: a response for clusters or listeners holds all of them, one for other kinds those that
//! changed (xDS protocol, "Basic protocol overview").
//!
//! A client that comes back is sent everything again, whatever version it names: after it refused a part of a response, that
//! version is not what it has. Clients compare, and change nothing that is equal.

use std::sync::Arc;

use tokio::time::Instant;

use super::ledger::{Ledger, Push, Settled, Variant};
use super::{Event, Limits, Refusal, Stream, admit, pb_duration, split_wildcard, understands_ttl};
use crate::any;
use crate::kind::Kind;
use crate::node_snapshot::NodeSnapshot;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as PbResource};
use crate::pb::google::protobuf::Any;
use crate::resource::{Resource, content_version};

/// The server's side of `StreamAggregatedResources`.
#[derive(Debug)]
pub struct SotwStream {
    ledger: Ledger,
    ttl: bool,
    began: bool,
    /// For each kind, whether the client has named resources on this stream: an empty list is no wildcard any more.
    named: [bool; Kind::ALL.len()],
}

impl Stream for SotwStream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(id: u64, limits: Limits) -> Self {
        let ledger = Ledger::new(Variant::Sotw, id, limits);
        Self { ledger, ttl: false, began: false, named: Default::default() }
    }

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DiscoveryRequest) -> Result<(), Refusal> {
        let kind = admit(&request.type_url, request.node.as_ref(), !self.began)?;
        self.ttl |= !self.began && understands_ttl(request.node.as_ref());
        self.began = true;
        if !request.resource_locators.is_empty() {
            return Err(Refusal::Locators);
        }
        let first = !self.ledger.is_requested(kind);
        if !request.response_nonce.is_empty() {
            let settled = self.ledger.settle(kind, request.response_nonce, request.error_detail.as_ref());
            // The names of an outdated answer are outdated too: the client repeats them when it answers the newest response. Only
            // on a new stream there is nothing newer.
            if settled == Settled::Ignored && !first {
                return Ok(());
            }
        }
        self.set_names(kind, request.resource_names)
    }

    fn snapshot(&mut self, snapshot: Arc<NodeSnapshot>) {
        self.ledger.snapshot(snapshot);
    }

    fn next(&mut self, now: Instant) -> Option<DiscoveryResponse> {
        let Push { kind, nonce, changed, confirmed, .. } = self.ledger.next(now)?;
        let mut resources: Vec<Any> = Vec::new();
        let version = if kind.is_complete() {
            let all: Vec<_> = self.ledger.held(kind).collect();
            resources.extend(all.iter().map(|resource| self.encode(resource, true)));
            version_of(all.into_iter())
        } else {
            resources.extend(changed.iter().map(|resource| self.encode(resource, true)));
            resources.extend(confirmed.iter().map(|resource| self.encode(resource, false)));
            version_of(changed.iter().chain(&confirmed))
        };
        Some(DiscoveryResponse {
            version_info: version.to_string(),
            resources,
            type_url: kind.type_url().into(),
            nonce,
            ..DiscoveryResponse::default()
        })
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        self.ledger.deadline(now)
    }

    fn take_events(&mut self) -> Vec<Event> {
        self.ledger.take_events()
    }
}

impl SotwStream {
    /// From now on the client wants exactly these.
    fn set_names(&mut self, kind: Kind, names: Vec<String>) -> Result<(), Refusal> {
        let named = &mut self.named[kind.index()];
        let legacy = names.is_empty() && kind.is_complete() && !*named;
        *named |= !names.is_empty();
        let (explicit, names) = split_wildcard(names);
        if explicit || legacy {
            self.ledger.subscribe_all(kind);
        } else if self.ledger.is_wildcard(kind) {
            self.ledger.unsubscribe_all(kind);
        }
        let old = self.ledger.names(kind).clone();
        self.ledger.unsubscribe(kind, old.difference(&names).map(|name| &**name));
        self.ledger.subscribe(kind, names.difference(&old).cloned().collect())
    }

    fn encode(&self, resource: &Resource, content: bool) -> Any {
        let Some(ttl) = resource.ttl().filter(|_| self.ttl) else { return resource.any().clone() };
        any::pack(&PbResource {
            name: resource.name().to_string(),
            version: resource.version().to_string(),
            resource: content.then(|| resource.any().clone()),
            ttl: pb_duration(ttl),
            ..PbResource::default()
        })
    }
}

/// The version of a set, in the order of names.
fn version_of<'r>(resources: impl Iterator<Item = &'r Arc<Resource>>) -> Arc<str> {
    let mut text = String::new();
    for resource in resources {
        text.push_str(resource.name());
        text.push('\0');
        text.push_str(resource.version());
        text.push('\0');
    }
    content_version(text.as_bytes())
}
