//! What a client wants and has, over all its streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use super::{Refused, Variant, Versions, error_detail};
use crate::any;
use crate::kind::Kind;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::pb::google::protobuf::Any;
use crate::pb::google::rpc::Status;

/// Some servers answer a NACK with what was just refused, at once and for ever: they are told again once in this time.
pub(super) const REFUSED_AGAIN: Duration = Duration::from_secs(1);
/// A server that does not read our answers is not read either.
const UNSENT_ANSWERS: usize = 16;

/// A request of either variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Of the incremental variant.
    Delta(Box<DeltaDiscoveryRequest>),
    /// Of the state-of-the-world variant.
    Sotw(Box<DiscoveryRequest>),
}

/// A response of either variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Of the incremental variant.
    Delta(Box<DeltaDiscoveryResponse>),
    /// Of the state-of-the-world variant.
    Sotw(Box<DiscoveryResponse>),
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Its name. The state-of-the-world variant does not tell; it stands in the resource.
    pub name: Option<Arc<str>>,
    /// Its version, or that of the whole response.
    pub version: Arc<str>,
    /// The resource.
    pub any: Any,
}

/// What a response says.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The kind of its resources.
    pub kind: Kind,
    /// New and changed resources; in the state-of-the-world variant also unchanged ones.
    pub resources: Vec<Incoming>,
    /// Names that are gone.
    pub removed: Vec<Arc<str>>,
    /// What is not among `resources` is gone.
    pub complete: bool,
    /// The first one of its kind on a stream: a server that has just started may not know everything yet.
    pub first: bool,
    nonce: String,
    version: String,
}

/// See the module.
#[derive(Debug)]
pub struct Subscriptions {
    variant: Variant,
    node: Node,
    kinds: [State; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct State {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What is in force, from this stream or an earlier one.
    held: Versions,
    // Of the stream:
    requested: bool,
    /// The names that the server knows of.
    told: BTreeSet<Arc<str>>,
    nonce: String,
    version: String,
    /// What to answer: nonces and errors, in the order of the responses. In the state-of-the-world variant only the newest counts.
    answers: VecDeque<(String, Option<Status>)>,
    /// When the answers may be sent, if not at once.
    answer_at: Option<Instant>,
    /// Version of the last response, if it was refused.
    refused: Option<String>,
    answered: bool,
}

impl State {
    fn is_wanted(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }
}

impl Subscriptions {
    /// Nothing is wanted yet. `held` is what is in force from an earlier life.
    #[must_use]
    pub fn new(variant: Variant, node: Node, held: impl IntoIterator<Item = (Kind, Versions)>) -> Self {
        let mut own = Self { variant, node, kinds: Default::default() };
        for (kind, versions) in held {
            own.kinds[kind.index()].held = versions;
        }
        own
    }

    /// Wants all resources of `kind`.
    pub fn want_all(&mut self, kind: Kind) {
        self.kinds[kind.index()].wildcard = true;
    }

    /// Wants exactly these names of `kind`. What is no longer wanted is forgotten.
    pub fn want(&mut self, kind: Kind, names: &BTreeSet<Arc<str>>) {
        let state = &mut self.kinds[kind.index()];
        if state.names != *names {
            state.names.clone_from(names);
            state.held.retain(|name, _| names.contains(name));
        }
    }

    /// A new stream is open: everything has to be said again.
    pub fn connected(&mut self) {
        for state in &mut self.kinds {
            state.requested = false;
            state.told.clear();
            state.nonce.clear();
            state.answers.clear();
            state.answer_at = None;
            state.answered = false;
        }
    }

    /// When a request is due that is not due yet.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.kinds.iter().filter_map(|state| state.answer_at).min()
    }

    /// The next request that is due.
    pub fn next_request(&mut self, now: Instant) -> Option<Request> {
        // Listeners and clusters first: what else is wanted follows from them.
        const ORDER: [Kind; 5] = [
            Kind::Cluster,
            Kind::ClusterLoadAssignment,
            Kind::Listener,
            Kind::RouteConfiguration,
            Kind::Secret,
        ];
        ORDER.into_iter().find_map(|kind| self.request(kind, now))
    }

    fn request(&mut self, kind: Kind, now: Instant) -> Option<Request> {
        // One node a stream, in the first request.
        let first = !self.kinds.iter().any(|state| state.requested);
        let node = first.then(|| self.node.clone());
        let state = &mut self.kinds[kind.index()];
        let begins = !state.requested && state.is_wanted();
        let changed = state.requested && state.told != state.names;
        let answers = !state.answers.is_empty() && state.answer_at.is_none_or(|at| at <= now);
        if !(begins || changed || answers) {
            return None;
        }
        state.answer_at = None;
        let (nonce, error_detail) = state.answers.pop_front().unwrap_or_default();
        state.requested = true;
        let subscribe: Vec<_> = state.names.difference(&state.told).map(ToString::to_string).collect();
        let unsubscribe: Vec<_> = state.told.difference(&state.names).map(ToString::to_string).collect();
        state.told.clone_from(&state.names);
        let type_url = kind.type_url().to_owned();
        Some(match self.variant {
            Variant::Delta => {
                let held = state.held.iter().filter(|_| begins);
                Request::Delta(Box::new(DeltaDiscoveryRequest {
                    node,
                    type_url,
                    resource_names_subscribe: subscribe,
                    resource_names_unsubscribe: unsubscribe,
                    initial_resource_versions: held.map(|(n, v)| (n.to_string(), v.to_string())).collect(),
                    response_nonce: nonce,
                    error_detail,
                    ..DeltaDiscoveryRequest::default()
                }))
            }
            Variant::Sotw => Request::Sotw(Box::new(DiscoveryRequest {
                node,
                type_url,
                version_info: state.version.clone(),
                resource_names: state.names.iter().map(ToString::to_string).collect(),
                response_nonce: state.nonce.clone(),
                error_detail,
                ..DiscoveryRequest::default()
            })),
        })
    }

    /// Takes a response. What it says has to be applied, and answered with [`Self::settle`], before the next one is taken.
    ///
    /// # Errors
    /// It is of a kind that was not asked for: the text goes to the log, the stream is to be ended.
    pub fn take(&mut self, response: Response) -> Result<Batch, String> {
        let url = match &response {
            Response::Delta(response) => &response.type_url,
            Response::Sotw(response) => &response.type_url,
        };
        let kind = Kind::from_type_url(url).filter(|kind| self.kinds[kind.index()].requested);
        let Some(kind) = kind else {
            let url: String = url.chars().take(200).collect();
            return Err(format!("the server sent {url:?}, which was not asked for"));
        };
        let state = &mut self.kinds[kind.index()];
        let first = !std::mem::replace(&mut state.answered, true);
        let batch = match response {
            Response::Delta(response) => {
                let incoming = response.resources.into_iter().filter_map(|resource| {
                    // Without content it only confirms what is there.
                    let any = resource.resource?;
                    let (name, version) = (Some(resource.name.into()), resource.version.into());
                    Some(Incoming { name, version, any })
                });
                let resources = incoming.collect();
                let removed = response.removed_resources.into_iter().map(Into::into).collect();
                let (nonce, version) = (response.nonce, String::new());
                Batch { kind, resources, removed, complete: false, first, nonce, version }
            }
            Response::Sotw(response) => {
                let version: Arc<str> = response.version_info.as_str().into();
                let incoming = response.resources.into_iter();
                let resources = incoming.map(|any| unwrapped(any, &version)).collect();
                let (nonce, version) = (response.nonce, response.version_info);
                Batch {
                    kind,
                    resources,
                    removed: Vec::new(),
                    complete: kind.is_complete(),
                    first,
                    nonce,
                    version,
                }
            }
        };
        state.nonce.clone_from(&batch.nonce);
        Ok(batch)
    }

    /// Says what became of a batch.
    pub fn settle(&mut self, answer: Answer, now: Instant) {
        let Answer { kind, nonce, version, accepted, removed, refused } = answer;
        let state = &mut self.kinds[kind.index()];
        for name in removed {
            state.held.remove(&name);
        }
        if self.variant == Variant::Delta {
            let wanted = |name: &Arc<str>| state.wildcard || state.names.contains(name);
            let accepted = accepted.into_iter().filter(|(name, _)| wanted(name)).collect::<Vec<_>>();
            state.held.extend(accepted);
        }
        // In the incremental variant a response has no version.
        let again = !version.is_empty() && state.refused.as_ref() == Some(&version) && !refused.is_empty();
        state.answer_at = again.then(|| now + REFUSED_AGAIN);
        if refused.is_empty() {
            state.refused = None;
            state.version = version;
        } else {
            state.refused = Some(version);
        }
        if self.variant == Variant::Sotw {
            state.answers.clear();
        }
        state.answers.push_back((nonce, error_detail(kind, &refused)));
    }

    /// Whether a response may be taken: so many have not been answered yet.
    #[must_use]
    pub fn may_take(&self) -> bool {
        self.kinds.iter().map(|state| state.answers.len()).sum::<usize>() < UNSENT_ANSWERS
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
    nonce: String,
    version: String,
    accepted: Vec<(Arc<str>, Arc<str>)>,
    removed: Vec<Arc<str>>,
    refused: Vec<Refused>,
}

/// A resource of a state-of-the-world response: itself, or in a `Resource` that gives it a time to live (xDS protocol, "TTL").
fn unwrapped(any: Any, version: &Arc<str>) -> Incoming {
    let version = Arc::clone(version);
    if any.type_url == any::type_url::<Resource>()
        && let Ok(Resource { name, resource: Some(inner), .. }) = Resource::decode(any.value.as_slice())
    {
        return Incoming { name: Some(name.into()), version, any: inner };
    }
    Incoming { name: None, version, any }
}

impl Batch {
    /// Resources from an earlier life, which nobody waits to have answered.
    #[must_use]
    pub fn restored(kind: Kind, resources: Vec<Incoming>) -> Self {
        let (nonce, version, removed) = (String::new(), String::new(), Vec::new());
        Self { kind, resources, removed, complete: false, first: true, nonce, version }
    }

    /// The answer to it: names and versions that are in force now, names that are no longer, and what was not taken.
    #[must_use]
    pub fn answer(
        &self,
        accepted: Vec<(Arc<str>, Arc<str>)>,
        removed: Vec<Arc<str>>,
        refused: Vec<Refused>,
    ) -> Answer {
        let (nonce, version) = (self.nonce.clone(), self.version.clone());
        Answer { kind: self.kind, nonce, version, accepted, removed, refused }
    }
}

/// The names that a data plane wants, by kind.
pub type Names = BTreeMap<Kind, BTreeSet<Arc<str>>>;
