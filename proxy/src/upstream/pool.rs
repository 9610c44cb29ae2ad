//! Connection pools: per worker and endpoint, HTTP/1 at rest and HTTP/2 shared.
//!
//! The keep-alive race (features.md B1, pain 1) is met from three sides: a connection at rest is watched and leaves the
//! pool when its server closes it; it is closed from our side before the time after which this server was seen to
//! close; and one that fails before any byte of an answer is reported as such, so that the retry logic may decide.
//!
//! A connection whose server's certificate was revoked takes no further request; those that it has finish.

mod origins;
mod place;
mod pools;
mod shared;
#[cfg(test)]
mod tests;
mod underway;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::origins::Origins;
use self::place::Place;
use self::underway::{Connecting, Underway};
use super::cluster::{Cluster, ClusterPermit, TransportVersion};
use super::connect::Origin;
use super::endpoint::Endpoint;
use super::lease::{H1Lease, H2Slot, IdleConn};
use super::lifespan::{Lifespan, Limits};
use super::server::Server;
use super::transport::{self, Alpn, Connected};
use crate::error::Reason;
use crate::http::h1::conn::Conn;
use crate::http::h2::client as h2_client;
use crate::resilience::breaker::{Resource, RoutingPriority};

pub use pools::Pools;
pub use shared::H2Conn;

/// The connections of one worker to one endpoint; those with a client's address are apart.
#[derive(Debug)]
pub struct EndpointPool {
    endpoint: Arc<Endpoint>,
    /// Whose address its connections have.
    origin: Option<Origin>,
    /// If they have: it, and the pools of other clients.
    clients: Weak<Origins>,
    /// What its connections were made with.
    transport: TransportVersion,
    idle: RefCell<VecDeque<IdleConn>>,
    h2: RefCell<Vec<Rc<H2Conn>>>,
    h2_connecting: Cell<bool>,
    /// What ALPN decided, for clusters that leave it to ALPN.
    alpn_h2: Cell<Option<bool>>,
    open: Cell<u32>,
    /// Those of HTTP/1 and of opaque bytes that are being made.
    connecting: Cell<u32>,
    closed: Cell<bool>,
    /// Requests that wait for one of its connections.
    waiting: Cell<u32>,
    changed: Notify,
    janitor: RefCell<Option<Waker>>,
    limits: Cell<Limits>,
}

/// The right to an open connection: a permit, or the grace of the first connection to an endpoint.
#[derive(Debug)]
pub struct Allowed(Option<ClusterPermit>);

impl Allowed {
    /// Whether giving it up makes room under the limit of a cluster and priority.
    fn is_of(&self, cluster: &Cluster, priority: RoutingPriority) -> bool {
        let breaker = cluster.state().breaker(priority);
        self.0.as_ref().is_some_and(|permit| std::ptr::eq(permit.breaker(), breaker))
    }
}

impl EndpointPool {
    fn new(
        endpoint: Arc<Endpoint>,
        transport: TransportVersion,
        client: Option<(Origin, Weak<Origins>)>,
    ) -> Rc<Self> {
        let (origin, clients) = client.unzip();
        Rc::new(Self {
            endpoint,
            origin,
            clients: clients.unwrap_or_default(),
            transport,
            idle: RefCell::default(),
            h2: RefCell::default(),
            h2_connecting: Cell::new(false),
            alpn_h2: Cell::new(None),
            open: Cell::new(0),
            connecting: Cell::new(0),
            closed: Cell::new(false),
            waiting: Cell::new(0),
            changed: Notify::new(),
            janitor: RefCell::new(None),
            limits: Cell::default(),
        })
    }

    /// The endpoint.
    #[must_use]
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// An HTTP/1 connection: one at rest if there is a live one, else a new one.
    ///
    /// # Errors
    /// [`Reason::UpstreamOverflow`] at the circuit breaker's limits, or why connecting failed.
    pub async fn h1(
        self: &Rc<Self>,
        cluster: &Cluster,
        priority: RoutingPriority,
        fresh: bool,
    ) -> Result<H1Lease, Reason> {
        let (mut fresh, mut place) = (fresh, None);
        let permit = loop {
            if !fresh && let Some(idle) = self.take_idle(cluster).await {
                return Ok(H1Lease::of(idle, Rc::clone(self)));
            }
            if let Some(permit) = self.connection_permit(cluster, priority) {
                break permit;
            }
            // What there is is as good as a new one, which there cannot be.
            if !std::mem::take(&mut fresh) {
                self.wait(cluster, priority, &mut place).await?;
            }
        };
        drop(place);
        self.connect(cluster, (priority, permit), Alpn::Http1).await
    }

    /// A new connection for opaque bytes: no request used it, and none will. The first one to an endpoint needs a permit as well: there is no
    /// starving request whose turn would come, and so the limit is exact. Where it leaves no room, `make_room` closes a connection at rest and
    /// says whether there was one. If none rests it is refused: when others of the cluster end is not known here, and tunnels last.
    ///
    /// # Errors
    /// As [`Self::h1`].
    async fn opaque(
        self: &Rc<Self>,
        cluster: &Cluster,
        priority: RoutingPriority,
        make_room: impl Fn() -> bool,
    ) -> Result<H1Lease, Reason> {
        let permit = with_room(cluster, priority, make_room).ok_or(Reason::UpstreamOverflow)?;
        self.connect(cluster, (priority, permit), Alpn::None).await
    }

    async fn connect(
        self: &Rc<Self>,
        cluster: &Cluster,
        (priority, permit): (RoutingPriority, Allowed),
        alpn: Alpn,
    ) -> Result<H1Lease, Reason> {
        self.remember_limits(cluster);
        let underway = Underway::start(self);
        let _pending = cluster.try_acquire(Resource::Pending, priority).ok_or(Reason::UpstreamOverflow)?;
        let connected = Box::pin(transport::connect(cluster, &self.endpoint, alpn, self.origin)).await?;
        drop(underway);
        self.open.set(self.open.get() + 1);
        let conn = IdleConn {
            conn: Conn::shared(connected.io, BytesMut::new()),
            since: Instant::now(),
            life: new_life(),
            server: connected.server,
            permit,
        };
        Ok(H1Lease::of(conn, Rc::clone(self)))
    }

    /// Waits until a connection of this pool may have come free, or until there may be room for one more. `place` is the one among the requests
    /// that are pending: who is told in vain keeps it.
    ///
    /// # Errors
    /// [`Reason::UpstreamOverflow`]: too many wait, or none can come free.
    async fn wait(
        self: &Rc<Self>,
        cluster: &Cluster,
        priority: RoutingPriority,
        place: &mut Option<Box<Place>>,
    ) -> Result<(), Reason> {
        self.awaits_somebody()?;
        if place.is_none() {
            let pending = cluster.try_acquire(Resource::Pending, priority).ok_or(Reason::UpstreamOverflow)?;
            *place = Some(Place::take(self, (cluster, priority), pending));
        }
        self.changed.notified().await;
        Ok(())
    }

    /// Whether a connection of this pool may come free. Those of other clients alone are not waited for: other workers may have them, and tell nobody here.
    fn awaits_somebody(&self) -> Result<(), Reason> {
        let own = self.open.get() > 0 || self.connecting.get() > 0 || self.h2_connecting.get();
        if own || self.origin.is_none() {
            return Ok(());
        }
        // The others who wait wait in vain, too, and nobody else will tell them.
        self.changed.notify_waiters();
        Err(Reason::UpstreamOverflow)
    }

    /// Whether it has no connection, and nobody uses it.
    fn is_unused(self: &Rc<Self>) -> bool {
        self.open.get() == 0 && Rc::strong_count(self) == 1
    }

    /// A connection permit. The first connection to an endpoint needs none, so that no endpoint starves (as in Envoy); not so the first of
    /// each client, of which there may be any number. For them what rests for others is closed: those who came first must not have it all.
    /// Who asks can take nothing of what rests here, such as a connection of the other protocol: that is closed as well.
    fn connection_permit(self: &Rc<Self>, cluster: &Cluster, priority: RoutingPriority) -> Option<Allowed> {
        if let Some(clients) = self.clients.upgrade() {
            return with_room(cluster, priority, || clients.make_room(cluster, priority, Some(self)));
        }
        if self.origin.is_none() && self.open.get() == 0 {
            return Some(Allowed(cluster.try_acquire(Resource::Connections, priority)));
        }
        let own = || origins::make_room(std::iter::once(self), (cluster, priority), Some(self));
        with_room(cluster, priority, own).or_else(|| {
            self.give_up_unused();
            (self.origin.is_none() && self.open.get() == 0).then_some(Allowed(None))
        })
    }

    fn remember_limits(&self, cluster: &Cluster) {
        self.limits.set(Limits::of(&cluster.spec().http));
    }

    /// The most recently used live connection at rest.
    async fn take_idle(&self, cluster: &Cluster) -> Option<IdleConn> {
        poll_fn(|cx| {
            loop {
                let Some(idle) = self.idle.borrow_mut().pop_back() else { return Poll::Ready(None) };
                if idle.conn.borrow_mut().io.poll_disturbed(cx).is_ready() {
                    self.endpoint.state.idle_closed(idle.since.elapsed());
                } else if !is_revoked(idle.server.as_ref(), cluster) {
                    self.endpoint.state.idle_survived(idle.since.elapsed());
                    return Poll::Ready(Some(idle));
                }
                self.released();
            }
        })
        .await
    }

    /// A connection comes to rest.
    pub(super) fn put(self: &Rc<Self>, idle: IdleConn) {
        if self.closed.get() || idle.life.is_over(&self.limits.get(), idle.since) {
            self.released();
            return;
        }
        let waker = self.janitor.borrow().clone();
        match waker {
            // The janitor is told when the server closes or speaks; until then it costs nothing.
            Some(waker) => {
                let mut cx = Context::from_waker(&waker);
                if idle.conn.borrow_mut().io.poll_disturbed(&mut cx).is_ready() {
                    self.released();
                    return;
                }
                self.idle.borrow_mut().push_back(idle);
            }
            None => {
                self.idle.borrow_mut().push_back(idle);
                self.start_janitor();
            }
        }
        self.tell();
    }

    /// A connection is gone.
    pub(super) fn released(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        self.tell();
    }

    /// Those who wait look again: one of this pool first, and of other clients.
    fn tell(&self) {
        self.changed.notify_one();
        self.tell_others();
    }

    /// A connection of this client rests, or is gone: others may have waited for that.
    fn tell_others(&self) {
        if let Some(clients) = self.clients.upgrade() {
            clients.queue.tell();
        }
    }

    fn close(&self) {
        self.closed.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        // Each takes itself out of the list.
        let conns = self.h2.borrow().clone();
        for conn in conns {
            conn.retire();
        }
        // Those who were told of these wait for others now, or hear that there are none.
        self.open.set(self.open.get().saturating_sub(idle.len() as u32));
        drop(idle);
        self.changed.notify_waiters();
        self.tell_others();
        if let Some(waker) = self.janitor.borrow_mut().take() {
            waker.wake();
        }
    }

    /// One task per pool with connections at rest: removes those that the server closed, and those that rested long enough.
    fn start_janitor(self: &Rc<Self>) {
        let pool = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let mut sleep = Box::pin(tokio::time::sleep(Duration::from_secs(1)));
            poll_fn(|cx| {
                let Some(next) = Weak::upgrade(&pool).and_then(|p| p.sweep(cx)) else {
                    return Poll::Ready(());
                };
                sleep.as_mut().reset(next);
                // A deadline that is due already is swept on the next turn.
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            })
            .await;
        });
    }

    /// Sweeps once; the time of the next sweep, or None when nothing rests any more.
    fn sweep(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let limit = self.endpoint.state.idle_limit(self.limits.get().idle);
        let now = Instant::now();
        let before = self.idle.borrow().len();
        self.idle.borrow_mut().retain(|idle| {
            if idle.conn.borrow_mut().io.poll_disturbed(cx).is_ready() {
                self.endpoint.state.idle_closed(now - idle.since);
                return false;
            }
            now - idle.since < limit
        });
        for _ in self.idle.borrow().len()..before {
            self.released();
        }
        let oldest = self.idle.borrow().front().map(|idle| idle.since + limit);
        let waker = if oldest.is_some() { Some(cx.waker().clone()) } else { None };
        *self.janitor.borrow_mut() = waker;
        oldest.filter(|_| !self.closed.get())
    }

    /// A stream slot on a shared HTTP/2 connection.
    ///
    /// # Errors
    /// As [`Self::h1`].
    pub async fn h2(
        self: &Rc<Self>,
        cluster: &Cluster,
        priority: RoutingPriority,
        fresh: bool,
    ) -> Result<(SendRequest<Bytes>, H2Slot), Reason> {
        let (mut fresh, mut place) = (fresh, None);
        loop {
            if !fresh && let Some(found) = self.take_h2(cluster) {
                return Ok(found);
            }
            if self.h2_connecting.get() {
                // Everybody waits for the one that connects, then looks again.
                self.wait(cluster, priority, &mut place).await?;
                fresh = false;
                continue;
            }
            let Some(permit) = self.connection_permit(cluster, priority) else {
                // What there is is as good as a new one, which there cannot be.
                if !std::mem::take(&mut fresh) {
                    self.wait(cluster, priority, &mut place).await?;
                }
                continue;
            };
            drop(place);
            // Boxed, as all that few requests do: it would make the future of every request larger.
            return Box::pin(self.connect_h2(cluster, permit)).await;
        }
    }

    async fn connect_h2(
        self: &Rc<Self>,
        cluster: &Cluster,
        permit: Allowed,
    ) -> Result<(SendRequest<Bytes>, H2Slot), Reason> {
        let connecting = Connecting::start(self);
        let connected = transport::connect(cluster, &self.endpoint, Alpn::Http2, self.origin).await?;
        let conn = self.adopt_h2(connected, cluster, permit).await?;
        drop(connecting);
        Ok(conn.slot())
    }

    async fn adopt_h2(
        self: &Rc<Self>,
        connected: Connected,
        cluster: &Cluster,
        permit: Allowed,
    ) -> Result<Rc<H2Conn>, Reason> {
        self.remember_limits(cluster);
        let (sender, driver) = h2_client::handshake(connected.io, &cluster.spec().http.http2).await?;
        self.open.set(self.open.get() + 1);
        let conn = Rc::new(H2Conn {
            sender,
            pool: Rc::downgrade(self),
            clients: Weak::clone(&self.clients),
            active: Cell::new(0),
            life: Cell::new(new_life()),
            max_streams: cluster.spec().http.http2.max_streams,
            retired: Cell::new(false),
            server: connected.server,
            permit,
        });
        let weak = Rc::downgrade(&conn);
        tokio::task::spawn_local(async move {
            driver.await;
            if let Some(conn) = weak.upgrade() {
                conn.retire();
            }
        });
        self.h2.borrow_mut().push(Rc::clone(&conn));
        Ok(conn)
    }

    /// Whether this endpoint speaks HTTP/2, asked by ALPN with the first connection, which is then used.
    ///
    /// # Errors
    /// As [`Self::h1`].
    pub async fn speaks_h2(
        self: &Rc<Self>,
        cluster: &Cluster,
        priority: RoutingPriority,
    ) -> Result<bool, Reason> {
        if let Some(known) = self.alpn_h2.get() {
            return Ok(known);
        }
        let permit = self.connection_permit(cluster, priority).ok_or(Reason::UpstreamOverflow)?;
        let underway = Underway::start(self);
        let connected = transport::connect(cluster, &self.endpoint, Alpn::Any, self.origin).await?;
        self.alpn_h2.set(Some(connected.is_h2));
        if connected.is_h2 {
            self.adopt_h2(connected, cluster, permit).await?;
        } else {
            self.open.set(self.open.get() + 1);
            self.remember_limits(cluster);
            let conn = Conn::shared(connected.io, BytesMut::new());
            let server = connected.server;
            self.put(IdleConn { conn, since: Instant::now(), life: new_life(), server, permit });
        }
        // Not before it is there, or is known to fail.
        drop(underway);
        Ok(self.alpn_h2.get() == Some(true))
    }

    fn take_h2(&self, cluster: &Cluster) -> Option<(SendRequest<Bytes>, H2Slot)> {
        let (limits, now) = (self.limits.get(), Instant::now());
        let is_over = |conn: &&Rc<H2Conn>| {
            conn.life.get().is_over(&limits, now) || is_revoked(conn.server.as_ref(), cluster)
        };
        let over = self.h2.borrow().iter().find(is_over).cloned();
        if let Some(over) = over {
            // Its streams finish; the next call finds the next one.
            over.retire();
            return self.take_h2(cluster);
        }
        let conns = self.h2.borrow();
        let best = conns.iter().filter(|c| c.has_room()).min_by_key(|c| c.active.get())?;
        Some(best.slot())
    }
}

/// A permit; where the limit leaves no room, `make_room` closes a connection that nobody uses and says whether there was one.
fn with_room(cluster: &Cluster, priority: RoutingPriority, make_room: impl Fn() -> bool) -> Option<Allowed> {
    loop {
        // Each time there is one less.
        while cluster.is_open(Resource::Connections, priority) && make_room() {}
        if let Some(permit) = cluster.try_acquire(Resource::Connections, priority) {
            return Some(Allowed(Some(permit)));
        }
        // Another worker was faster.
        if !make_room() {
            return None;
        }
    }
}

fn is_revoked(server: Option<&Server>, cluster: &Cluster) -> bool {
    server.is_some_and(|server| server.is_revoked(cluster))
}

fn new_life() -> Lifespan {
    Lifespan::new(Instant::now(), fastrand::f64())
}
