//! What one client wants and what it has, and from these and the newest snapshot the next thing to send.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;
use tokio::time::Instant;

use super::blame::blame;
use super::subscription::{Changes, Held, InFlight, Subscription};
use super::{Event, Limits, Refusal};
use crate::kind::Kind;
use crate::node_snapshot::{NodeSnapshot, Resources};
use crate::pb::google::rpc::Status;
use crate::resource::Resource;

/// Which variant of the protocol the ledger is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Delta,
    /// Absence cannot be told but by a complete response, and a complete response cannot be split.
    Sotw,
}

/// Something to send.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) kind: Kind,
    pub(super) nonce: String,
    /// New or changed.
    pub(super) changed: Vec<Arc<Resource>>,
    /// Gone, or asked for and unknown.
    pub(super) removed: Vec<Arc<str>>,
    /// Unchanged, and confirmed before its TTL ends.
    pub(super) confirmed: Vec<Arc<Resource>>,
}

/// What an answer was an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// The response in flight.
    InFlight,
    /// The newest response, which was answered before: this is a change of the subscription.
    Newest,
    /// Neither.
    Ignored,
}

#[derive(Debug)]
pub(super) struct Ledger {
    variant: Variant,
    id: u64,
    limits: Limits,
    snapshot: Option<Arc<NodeSnapshot>>,
    subscriptions: [Subscription; Kind::ALL.len()],
    pushes: u64,
    /// When the stream could send for the first time.
    began: Option<Instant>,
    events: Vec<Event>,
}

impl Ledger {
    pub(super) fn new(variant: Variant, id: u64, limits: Limits) -> Self {
        let subscriptions = Default::default();
        Self {
            variant,
            id,
            limits,
            snapshot: None,
            subscriptions,
            pushes: 0,
            began: None,
            events: Vec::new(),
        }
    }

    pub(super) fn snapshot(&mut self, snapshot: Arc<NodeSnapshot>) {
        for kind in Kind::ALL {
            let same =
                self.snapshot.as_ref().is_some_and(|old| Arc::ptr_eq(old.kind(kind), snapshot.kind(kind)));
            let own = self.at(kind);
            own.settled &= same;
            own.tidy &= same;
        }
        self.snapshot = Some(snapshot);
    }

    /// Whether the client has asked for this kind.
    pub(super) fn is_requested(&self, kind: Kind) -> bool {
        self.of(kind).requested
    }

    pub(super) fn is_wildcard(&self, kind: Kind) -> bool {
        self.of(kind).wildcard
    }

    pub(super) fn names(&self, kind: Kind) -> &BTreeSet<Arc<str>> {
        &self.of(kind).names
    }

    /// What the client has, and is to have for now, in the order of names.
    pub(super) fn held(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.of(kind).held.values().filter_map(|held| match held {
            Held::Sent(resource) => Some(resource),
            Held::Claimed(_) | Held::Absent => None,
        })
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn of(&self, kind: Kind) -> &Subscription {
        &self.subscriptions[kind.index()]
    }

    fn at(&mut self, kind: Kind) -> &mut Subscription {
        &mut self.subscriptions[kind.index()]
    }

    /// Subscribes to everything of a kind, now and later. The client waits for an answer, even an empty one.
    pub(super) fn subscribe_all(&mut self, kind: Kind) {
        let own = self.at(kind);
        own.requested = true;
        if !own.wildcard {
            own.wildcard = true;
            own.settled = false;
            own.owed = true;
        }
    }

    /// Ends the wildcard; what is subscribed by name stays.
    pub(super) fn unsubscribe_all(&mut self, kind: Kind) {
        let own = self.at(kind);
        own.wildcard = false;
        let Subscription { names, held, .. } = own;
        held.retain(|name, _| names.contains(name));
    }

    /// Subscribes to names. Each is answered, even one that the client had before: it may have forgotten it.
    pub(super) fn subscribe(&mut self, kind: Kind, names: BTreeSet<Arc<str>>) -> Result<(), Refusal> {
        self.check_names(kind, names.iter().map(|name| &**name))?;
        let own = self.at(kind);
        own.requested = true;
        own.settled &= names.is_empty();
        for name in names {
            own.held.remove(&name);
            own.asked.insert(Arc::clone(&name), None);
            own.names.insert(name);
        }
        Ok(())
    }

    pub(super) fn unsubscribe<'n>(&mut self, kind: Kind, names: impl IntoIterator<Item = &'n str>) {
        let own = self.at(kind);
        own.requested = true;
        for name in names {
            own.names.remove(name);
            own.asked.remove(name);
            if !own.wildcard {
                own.held.remove(name);
                own.refused.remove(name);
                own.confirm.remove(name);
            }
        }
    }

    /// Notes what a client that connects says it has.
    pub(super) fn claim(
        &mut self,
        kind: Kind,
        versions: impl ExactSizeIterator<Item = (Arc<str>, Arc<str>)>,
    ) -> Result<(), Refusal> {
        let limit = self.limits.subscriptions;
        if versions.len() > limit {
            return Err(Refusal::Subscriptions { kind, limit });
        }
        for (name, version) in versions {
            self.check_names(kind, [&*name])?;
            let own = self.at(kind);
            own.tidy = false;
            if own.wildcard || own.names.contains(&name) {
                own.held.insert(name, Held::Claimed(version));
            }
            own.owed = false;
        }
        Ok(())
    }

    fn check_names<'n>(&self, kind: Kind, names: impl IntoIterator<Item = &'n str>) -> Result<(), Refusal> {
        let Limits { subscriptions, name_bytes, .. } = self.limits;
        let own = self.of(kind);
        let mut new = 0;
        for name in names {
            if name.len() > name_bytes {
                return Err(Refusal::Name { kind, limit: name_bytes });
            }
            new += usize::from(!own.names.contains(name));
        }
        if own.names.len() + new > subscriptions {
            return Err(Refusal::Subscriptions { kind, limit: subscriptions });
        }
        Ok(())
    }

    /// Takes the answer to the response with this nonce: an ACK, or a NACK with `error`.
    pub(super) fn settle(&mut self, kind: Kind, nonce: String, error: Option<&Status>) -> Settled {
        let prefix = format!("{:x}.", self.id);
        let own = &mut self.subscriptions[kind.index()];
        let Some(answered) = own.in_flight.take_if(|in_flight| in_flight.nonce == nonce) else {
            if own.newest == nonce {
                return Settled::Newest;
            }
            let ours = nonce.starts_with(&prefix);
            let nonce = nonce.chars().take(64).collect();
            self.events.push(if ours { Event::Stale(kind, nonce) } else { Event::Foreign(kind, nonce) });
            return Settled::Ignored;
        };
        let blamed = match error {
            Some(error) => blame(error, &answered.sent),
            None => vec![None; answered.sent.len()],
        };
        for (resource, blamed) in answered.sent.into_iter().zip(blamed) {
            match blamed {
                Some(detail) => {
                    own.refused.insert(Arc::clone(resource.name()), Arc::clone(resource.version()));
                    self.events.push(Event::Refused(resource, detail));
                }
                None => {
                    own.refused.remove(resource.name());
                    self.events.push(Event::Accepted(resource));
                }
            }
        }
        Settled::InFlight
    }

    /// The next thing to send.
    pub(super) fn next(&mut self, now: Instant) -> Option<Push> {
        let snapshot = self.snapshot.clone()?;
        self.began.get_or_insert(now);
        for kind in Kind::ALL {
            if self.of(kind).in_flight.is_none()
                && let Some(changes) = self.changes(kind, snapshot.kind(kind), now)
            {
                return Some(self.push(kind, changes, now));
            }
            if self.holds_up_others(kind, snapshot.kind(kind), now) {
                break;
            }
        }
        for kind in Kind::ALL {
            let own = self.at(kind);
            own.tidy = own.tidy || own.gone(snapshot.kind(kind)).next().is_none();
        }
        for kind in Kind::ALL {
            if self.may_remove(kind, &snapshot, now) {
                let removed = self.removals(kind, snapshot.kind(kind));
                if self.tells_absence(kind) {
                    return Some(self.push(kind, Changes { removed, ..Changes::default() }, now));
                }
            }
        }
        self.confirmation(&snapshot, now)
    }

    /// Whether a client can be told that there is no resource of a name.
    fn tells_absence(&self, kind: Kind) -> bool {
        self.variant == Variant::Delta || kind.is_complete()
    }

    /// Whether the client is about to learn of resources that it does not have yet, so that later kinds have to wait.
    fn holds_up_others(&self, kind: Kind, resources: &Resources, now: Instant) -> bool {
        let own = self.of(kind);
        own.in_flight.as_ref().is_some_and(|in_flight| {
            now < in_flight.since + self.limits.order_wait
                && (in_flight.introduces
                    || (!own.settled && own.wanted(resources).iter().any(|r| own.lacks(r))))
        })
    }

    /// New and changed resources, as far as a response may hold them; None when there is nothing to say.
    fn changes(&mut self, kind: Kind, resources: &Resources, now: Instant) -> Option<Changes> {
        let own = self.of(kind);
        if !own.requested {
            return None;
        }
        let mut changes = Changes::default();
        if !own.settled {
            self.differences(kind, resources, &mut changes);
        }
        self.absences(kind, resources, now, &mut changes);
        let empty = changes.changed.is_empty() && changes.removed.is_empty();
        (!empty || std::mem::take(&mut self.at(kind).owed)).then_some(changes)
    }

    fn differences(&mut self, kind: Kind, resources: &Resources, changes: &mut Changes) {
        let splits = self.variant == Variant::Delta || !kind.is_complete();
        let limit = if splits { self.limits.response_bytes } else { usize::MAX };
        let own = &mut self.subscriptions[kind.index()];
        let mut changed = Vec::new();
        for resource in own.wanted(resources) {
            match own.held.get(resource.name()) {
                Some(Held::Claimed(version)) if version == resource.version() => {
                    own.held.insert(Arc::clone(resource.name()), Held::Sent(Arc::clone(resource)));
                    self.events.push(Event::Accepted(Arc::clone(resource)));
                }
                Some(held) if held.version() == Some(resource.version()) => {}
                _ => changed.push(resource),
            }
        }
        // New ones first, so that what refers to them can follow soon.
        changed.sort_by_key(|resource| !own.lacks(resource));
        let mut bytes = 0;
        own.settled = true;
        for resource in changed {
            bytes += resource.any().encoded_len();
            if bytes > limit && !changes.changed.is_empty() {
                own.settled = false;
                break;
            }
            changes.introduces |= own.lacks(resource);
            changes.changed.push(Arc::clone(resource));
        }
    }

    /// Names that were asked for in vain.
    fn absences(&mut self, kind: Kind, resources: &Resources, now: Instant, changes: &mut Changes) {
        let absent_at = now + self.limits.absent_wait;
        let tells_absence = self.tells_absence(kind);
        let mut unknown = Vec::new();
        self.at(kind).asked.retain(|name, at| {
            if resources.contains_key(name) {
                return false;
            }
            if at.is_none() {
                unknown.push(Arc::clone(name));
            }
            let due = *at.get_or_insert(absent_at) <= now && tells_absence;
            if due {
                changes.removed.push(Arc::clone(name));
            }
            !due
        });
        if !unknown.is_empty() {
            self.events.push(Event::Wanted(kind, unknown));
        }
    }

    /// Whether what is gone from `kind` may be removed: everything that may refer to it has what replaces it.
    fn may_remove(&self, kind: Kind, snapshot: &NodeSnapshot, now: Instant) -> bool {
        let own = self.of(kind);
        // A client that comes back asks for one kind after the other: what it will ask for may refer to this one.
        let all_asked = self.asks_until().is_none_or(|until| until <= now);
        own.requested
            && !own.tidy
            && own.in_flight.is_none()
            && kind.referrers().iter().all(|referrer| {
                let other = self.of(*referrer);
                let resources = snapshot.kind(*referrer);
                let refuses = other
                    .refused
                    .iter()
                    .any(|(name, version)| resources.get(name).is_some_and(|r| r.version() == version));
                if other.requested {
                    other.in_flight.is_none() && other.settled && other.tidy && !refuses
                } else {
                    all_asked
                }
            })
    }

    /// When a client that comes back has had the time to ask for all kinds.
    fn asks_until(&self) -> Option<Instant> {
        self.began.map(|began| began + self.limits.order_wait)
    }

    /// What the client has and the snapshot has not.
    fn removals(&mut self, kind: Kind, resources: &Resources) -> Vec<Arc<str>> {
        let tells_absence = self.tells_absence(kind);
        let own = self.at(kind);
        let gone: Vec<_> = own.gone(resources).cloned().collect();
        own.tidy = true;
        if !tells_absence {
            // It cannot be said; the client unsubscribes when nothing refers to it any more.
            for name in &gone {
                own.forget(name);
            }
        }
        gone
    }

    fn confirmation(&mut self, snapshot: &NodeSnapshot, now: Instant) -> Option<Push> {
        for kind in Kind::ALL {
            let own = self.at(kind);
            if own.in_flight.is_some() {
                continue;
            }
            let due: Vec<_> =
                own.confirm.iter().filter(|(_, at)| **at <= now).map(|(name, _)| Arc::clone(name)).collect();
            let mut confirmed = Vec::new();
            for name in due {
                let resource = snapshot.get(kind, &name);
                match resource.and_then(|r| Some((r, r.ttl()?))) {
                    Some((resource, ttl)) => {
                        own.confirm.insert(name, now + ttl / 2);
                        confirmed.push(Arc::clone(resource));
                    }
                    None => {
                        own.confirm.remove(&name);
                    }
                }
            }
            if !confirmed.is_empty() {
                let mut push = self.push(kind, Changes::default(), now);
                push.confirmed = confirmed;
                return Some(push);
            }
        }
        None
    }

    /// Notes what is about to be sent.
    fn push(&mut self, kind: Kind, changes: Changes, now: Instant) -> Push {
        let Changes { changed, removed, introduces } = changes;
        self.pushes += 1;
        let nonce = format!("{:x}.{:x}", self.id, self.pushes);
        let mut updated_endpoints = Vec::new();
        let own = self.at(kind);
        for resource in &changed {
            let name = resource.name();
            let old = own.held.insert(Arc::clone(name), Held::Sent(Arc::clone(resource)));
            own.asked.remove(name);
            match resource.ttl() {
                Some(ttl) => own.confirm.insert(Arc::clone(name), now + ttl / 2),
                None => own.confirm.remove(name),
            };
            if old.is_some()
                && let Some(endpoints) = resource.endpoints()
            {
                updated_endpoints.push(Arc::clone(endpoints));
            }
        }
        for name in &removed {
            own.forget(name);
        }
        own.newest.clone_from(&nonce);
        own.owed = false;
        let mut sent = changed.clone();
        if self.variant == Variant::Sotw && kind.is_complete() {
            sent.extend(self.of(kind).refused_before(&changed));
        }
        let own = self.at(kind);
        own.in_flight = Some(InFlight { nonce: nonce.clone(), since: now, sent, introduces });
        // A client builds a changed cluster anew, and the new one waits for endpoints (envoyproxy/envoy#13009).
        let endpoints = self.at(Kind::ClusterLoadAssignment);
        for name in updated_endpoints {
            endpoints.held.remove(&name);
            endpoints.settled = false;
        }
        Push { kind, nonce, changed, removed, confirmed: Vec::new() }
    }

    /// When [`Self::next`] may have something although nothing changed.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let of = |own: &Subscription| {
            let order = own.in_flight.as_ref().map(|in_flight| in_flight.since + self.limits.order_wait);
            let absent = own.asked.values().flatten().copied();
            // What is due now is held up by something else, whose end is an event of its own.
            order.into_iter().chain(absent).chain(own.confirm.values().copied()).filter(|at| *at > now).min()
        };
        let untidy = self.subscriptions.iter().any(|own| own.requested && !own.tidy);
        let asked = self.asks_until().filter(|at| untidy && *at > now);
        self.subscriptions.iter().filter_map(of).chain(asked).min()
    }
}
