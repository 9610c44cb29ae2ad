//! The server's side of an xDS stream, as pure state machines: requests, snapshots and the time go in, responses come out.
//!
//! [`DeltaStream`] and [`SotwStream`] speak the two variants of the protocol; what they have in common (who has what, what comes
//! before what) is one ledger. A stream sends the difference between what its client has and what the newest snapshot says:
//! bursts coalesce by themselves, and a slow client costs no queue.
//!
//! - One response of a kind is in flight at a time. An ACK or NACK settles it; a version that was refused is not sent again
//!   until it changes.
//! - New resources come before what refers to them (CDS, EDS, LDS, RDS). A later kind waits for the ACK of new resources of an
//!   earlier one, for up to [`Limits::order_wait`]. Removals come last, each kind after the kinds that refer to it, when those
//!   have been acknowledged; while a client refuses a referrer, what the old one may use stays.
//! - A name that does not exist is answered after [`Limits::absent_wait`], which is the time that a control plane has to make it.

mod blame;
mod delta;
mod ledger;
mod sotw;
mod subscription;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub use delta::DeltaStream;
pub use sotw::SotwStream;
use tokio::time::Instant;

use crate::kind::Kind;
use crate::node_snapshot::NodeSnapshot;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::google::protobuf::Duration as PbDuration;
use crate::resource::Resource;

/// What asks for all resources of a kind.
const WILDCARD: &str = "*";

/// Bounds of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Names that a client may subscribe to, or claim to have, of each kind.
    pub subscriptions: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Bytes of resources after which a response ends and the rest goes into the next one. gRPC clients refuse 4 MiB, and both sides
    /// keep a buffer of the longest message for as long as the stream lasts. One resource is never split, and neither is a state-of-the-world response of clusters or listeners.
    pub response_bytes: usize,
    /// How long a kind waits for the ACK of what it may refer to.
    pub order_wait: Duration,
    /// How long a subscribed name may be unknown before the client is told.
    pub absent_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subscriptions: 50_000,
            name_bytes: 1024,
            response_bytes: 256 << 10,
            order_wait: Duration::from_secs(5),
            absent_wait: Duration::from_millis(50),
        }
    }
}

/// Why a stream is ended. The text says which request was wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first request has no node, or a node without id.
    #[error("the first request of a stream must name its node (node.id)")]
    NoNode,
    /// A resource type that is not served here.
    #[error("{0:?} is not served here")]
    Type(String),
    /// More names than [`Limits::subscriptions`].
    #[error("more than {limit} names of {kind}")]
    Subscriptions {
        /// Of this kind.
        kind: Kind,
        /// The limit.
        limit: usize,
    },
    /// A name longer than [`Limits::name_bytes`].
    #[error("a name of {kind} is longer than {limit} bytes")]
    Name {
        /// Of this kind.
        kind: Kind,
        /// The limit.
        limit: usize,
    },
    /// `xdstp` locators.
    #[error("resource locators are not supported; subscribe by name")]
    Locators,
}

/// What a stream learned.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The client has this resource: it acknowledged it, or had it when it connected.
    Accepted(Arc<Resource>),
    /// The client refused this resource, and why.
    Refused(Arc<Resource>, Arc<str>),
    /// The client asks for names that its snapshot does not have.
    Wanted(Kind, Vec<Arc<str>>),
    /// An answer to a response that is no longer in flight; ignored.
    Stale(Kind, String),
    /// An answer to a response of another stream; ignored.
    Foreign(Kind, String),
}

/// One variant of the protocol.
pub trait Stream: Sized {
    /// A request of the client.
    type Request: Send + 'static;
    /// A response to it.
    type Response: Send + 'static;

    /// A new stream. `id` is different for every stream of the process, and goes into its nonces.
    fn new(id: u64, limits: Limits) -> Self;

    /// The node of a request.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Takes a request.
    ///
    /// # Errors
    /// The stream must end.
    fn request(&mut self, request: Self::Request) -> Result<(), Refusal>;

    /// Takes a snapshot: from now on this is what the client is to have.
    fn snapshot(&mut self, snapshot: Arc<NodeSnapshot>);

    /// The next response, if one is due. Ask again after each, and after every change.
    fn next(&mut self, now: Instant) -> Option<Self::Response>;

    /// When to ask for the next response although nothing changes.
    fn deadline(&self, now: Instant) -> Option<Instant>;

    /// What was learned since the last call.
    fn take_events(&mut self) -> Vec<Event>;
}

/// The feature that a client announces when it understands the TTL of a resource.
const TTL_FEATURE: &str = "xds.config.supports-resource-ttl";

fn understands_ttl(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.client_features.iter().any(|feature| feature == TTL_FEATURE))
}

fn pb_duration(duration: Duration) -> Option<PbDuration> {
    let nanos = i32::try_from(duration.subsec_nanos()).ok()?;
    Some(PbDuration { seconds: i64::try_from(duration.as_secs()).ok()?, nanos })
}

/// The kind of a request; the first one must name its node.
fn admit(type_url: &str, node: Option<&Node>, first: bool) -> Result<Kind, Refusal> {
    if first && node.is_none_or(|node| node.id.is_empty()) {
        return Err(Refusal::NoNode);
    }
    Kind::from_type_url(type_url).ok_or_else(|| Refusal::Type(type_url.chars().take(200).collect()))
}

/// Splits names into the wildcard and the rest.
fn split_wildcard(names: Vec<String>) -> (bool, BTreeSet<Arc<str>>) {
    let mut wildcard = false;
    let mut rest = BTreeSet::new();
    for name in names {
        if name == WILDCARD {
            wildcard = true;
        } else {
            rest.insert(name.into());
        }
    }
    (wildcard, rest)
}
