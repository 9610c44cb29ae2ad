//! One downstream connection, as everything that serves it sees it.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::snapshot::Snapshot;
use crate::config::spec::{FilterChain, HttpSpec, ListenerSpec, NetworkFilter};
use crate::error::Reason;
use crate::listener::admission::Refused;
use crate::policy::view::ConnectionView;
use crate::telemetry::labels::Peer;
use crate::telemetry::record::{self, AccessRecord};
use crate::tls::TlsSession;
use crate::traffic::limit::Limits;
use crate::upstream::connect::Origin;
use crate::why::Place;
use crate::worker::Worker;
use crate::worker::drain::Registration;

/// What is known of a connection once its filter chain was chosen.
#[derive(Debug)]
pub struct Downstream {
    /// Unique in the process.
    pub id: u64,
    /// Address of the peer.
    pub remote: SocketAddr,
    /// Address it connected to, before any redirection.
    pub local: SocketAddr,
    /// Original destination, when the connection was redirected here.
    pub original_dst: Option<SocketAddr>,
    /// What the TLS handshake said.
    pub tls: Option<TlsSession>,
    /// The peer's labels in metrics.
    pub peer: Peer,
    /// URI SANs of the peer's certificate, joined with `,`.
    pub peer_uri_sans: Option<Arc<str>>,
    /// The listener as it was when the connection came.
    pub listener: Arc<ListenerSpec>,
    /// The filter chain as it was when the connection came; [`Self::http`] gives the newest.
    pub chain: Arc<FilterChain>,
    /// The worker that owns the connection.
    pub worker: Rc<Worker>,
    /// Tells it to finish, with all others or alone.
    pub drain: Registration,
    /// Why the proxy closes the connection.
    pub evicted: OnceCell<Refused>,
    /// Streams started on it.
    pub streams: Cell<u64>,
    /// Rate limits that are for each connection, by the filter's.
    pub limits: RefCell<Vec<(Arc<Limits>, Rc<Limits>)>>,
}

impl Downstream {
    /// Whether `snapshot` would still serve the connection by its chain. One that is gone, or asks for TLS where there is none, serves others.
    #[must_use]
    pub fn is_in_force(&self, snapshot: &Snapshot) -> bool {
        snapshot.chain(self.chain.id).is_some_and(|newest| {
            newest.tls.is_some() == self.is_secure()
                && std::mem::discriminant(&newest.filter) == std::mem::discriminant(&self.chain.filter)
        })
    }

    /// The newest version of the connection manager that serves this connection: new requests on an old connection
    /// obey new configuration. The old one serves until the drain ends when its chain was removed.
    #[must_use]
    pub fn http(&self) -> Option<Arc<HttpSpec>> {
        self.http_of(&self.worker.snapshot())
    }

    /// The same, as `snapshot` has it.
    #[must_use]
    pub fn http_of(&self, snapshot: &Snapshot) -> Option<Arc<HttpSpec>> {
        let chain = snapshot.chain(self.chain.id).unwrap_or(&self.chain);
        match (&chain.filter, &self.chain.filter) {
            (NetworkFilter::Http(http), _) | (_, NetworkFilter::Http(http)) => Some(Arc::clone(http)),
            _ => None,
        }
    }

    /// Whose address the endpoint sees instead of ours: the client's, where the listener says so.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.listener.original_src.map(|mark| Origin { ip: self.remote.ip(), mark })
    }

    /// The connection's own buckets, made like those of a filter.
    pub fn own_limits(&self, of: &Arc<Limits>, now: Instant) -> Rc<Limits> {
        let mut list = self.limits.borrow_mut();
        if let Some((_, own)) = list.iter().find(|(filter, _)| Arc::ptr_eq(filter, of)) {
            return Rc::clone(own);
        }
        // Those of filters that are not in use any more.
        list.retain(|(filter, _)| Arc::strong_count(filter) > 1);
        let own = Rc::new(Limits::new(of.spec().clone(), now));
        list.push((Arc::clone(of), Rc::clone(&own)));
        own
    }

    /// The connection as policy sees it. `client` is the peer, or the client as trusted hops tell it.
    #[must_use]
    pub fn view(&self, client: SocketAddr) -> ConnectionView<'_> {
        let tls = self.tls.as_ref();
        let sni = tls.filter(|_| self.listener.inspect_tls).and_then(|tls| tls.sni.as_deref());
        ConnectionView {
            destination: self.original_dst.unwrap_or(self.local),
            direct_remote: self.remote.ip(),
            remote: client.ip(),
            secure: self.is_secure(),
            server_name: sni.unwrap_or_default(),
            peer: tls.and_then(|tls| tls.peer.as_deref()).filter(|peer| peer.verified),
        }
    }

    /// The connection in records of opaque connections and of refusals.
    #[must_use]
    pub fn record(&self) -> record::Downstream<'_> {
        record::Downstream {
            connection_id: Some(self.id),
            remote: Some(self.remote),
            direct_remote: Some(self.remote),
            local: Some(self.original_dst.unwrap_or(self.local)),
            server_name: self.tls.as_ref().and_then(|tls| tls.sni.as_deref()),
            peer_uri_san: self.peer_uri_sans.as_deref(),
            filter_chain: Some(&self.chain.name),
            ..record::Downstream::default()
        }
    }

    /// Keeps for the operator why the connection as a whole was refused or ended.
    pub fn tell(&self, reason: Reason, details: Option<&str>, rule: Option<&str>) {
        let record = AccessRecord {
            reason: Some(reason),
            termination_details: details,
            downstream: self.record(),
            ..AccessRecord::default()
        };
        self.tell_of(&record, rule);
    }

    /// Keeps for the operator why what `record` says was refused or lost, if it was.
    pub fn tell_of(&self, record: &AccessRecord<'_>, rule: Option<&str>) {
        let Some(reason) = record.reason else { return };
        let place = Place { listener: &self.listener.name, rule, ..Place::default() };
        self.worker.stories.tell(reason, record, &place);
    }

    /// Whether the client speaks TLS to us.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }
}
