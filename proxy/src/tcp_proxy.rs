//! `envoy.filters.network.tcp_proxy`: opaque connections. The endpoint is connected at once, before the client has said
//! anything: it may be the server that speaks first (DESIGN rule 1).

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::time::Instant;

use crate::balance::context::LbContext;
use crate::config::names::ClusterId;
use crate::config::spec::{NetworkFilter, TcpSpec};
use crate::error::Reason;
use crate::http::downstream::Downstream;
use crate::io::Io;
use crate::listener::admission::{self, Refused};
use crate::resilience::breaker::{Resource, RoutingPriority};
use crate::resilience::circuit::Pass;
use crate::route::hash_policy::source_ip;
use crate::tcp::{self, Traffic};
use crate::telemetry::record::{self, AccessRecord, Timings};
use crate::upstream::cluster::{Cluster, ClusterPermit, Discovery};
use crate::upstream::endpoint::{ActiveRequest, Endpoint};
use crate::upstream::outcome::{self, Watch};
use crate::upstream::transport::{self, Alpn, Connected};

/// A connection to an endpoint, and what it counts against.
struct Upstream {
    connected: Connected,
    active: ActiveRequest,
    _permit: ClusterPermit,
}

/// Forwards `io` until both sides are done.
pub async fn serve(mut io: Io, read: BytesMut, downstream: Rc<Downstream>, spec: Arc<TcpSpec>) {
    let start = Instant::now();
    let (id, cluster) = choose(&downstream, &spec);
    let changes = downstream.worker.changes.follow();
    let mut refused = admission::admit(&downstream).err();
    let upstream = match &cluster {
        _ if refused.is_some() => Err(Reason::RbacDenied),
        Some(cluster) => connect(&downstream, &spec, cluster).await,
        None => Err(Reason::NoCluster),
    };
    let traffic = Traffic::default();
    let named = id.zip(cluster.as_ref());
    let mut endpoint = None;
    let reason;
    match upstream {
        Err(why) => {
            downstream.worker.metrics.rejected(why);
            reason = Some(why);
        }
        Ok(Upstream { mut connected, active, _permit }) => {
            endpoint = Some(Arc::clone(active.endpoint()));
            let series = downstream.worker.metrics.tcp(&downstream, named, endpoint.as_ref());
            series.opened();
            let name = cluster.as_ref().map(|cluster| &*cluster.spec().name);
            let server = connected.server.as_ref().zip(name);
            let copy = tcp::forward(
                (&mut io, read),
                (&mut connected.io, BytesMut::new()),
                spec.idle_timeout,
                &traffic,
            );
            let copy = admission::while_good(&downstream, server, copy);
            let ended = {
                let copy = pin!(limited(spec.max_duration, copy));
                admission::while_admitted(&downstream, changes, copy).await
            };
            reason = match ended {
                Ok(Some(Some(ended))) => ended.reason(),
                Ok(Some(None)) => Some(Reason::UpstreamTls),
                Ok(None) => Some(Reason::MaxDuration),
                Err(why) => Some(refused.insert(why).reason),
            };
            if reason.is_some() {
                // A side that broke off is told to the other as a reset, not as an end of data; unless that has been told its end.
                if !traffic.client_told.get() {
                    io.abort_on_drop();
                }
                if !traffic.endpoint_told.get() {
                    connected.io.abort_on_drop();
                }
            }
            series.received(traffic.received.get());
            series.sent(traffic.sent.get());
            series.closed();
        }
    }
    close(&Finished {
        downstream: &downstream,
        spec: &spec,
        cluster,
        endpoint,
        traffic,
        reason,
        refused,
        total: start.elapsed(),
    });
}

async fn limited<F: Future>(limit: Option<Duration>, work: F) -> Option<F::Output> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}

/// The cluster of this connection; weights are cumulative. The newest version of its chain says which: since it was accepted, the
/// clusters of the old one may have gone.
fn choose(downstream: &Downstream, spec: &TcpSpec) -> (Option<ClusterId>, Option<Arc<Cluster>>) {
    let snapshot = downstream.worker.snapshot();
    let spec = match snapshot.chain(downstream.chain.id).map(|chain| &chain.filter) {
        Some(NetworkFilter::Tcp(newest)) => newest,
        _ => spec,
    };
    let total = spec.clusters.last().map_or(0, |(_, until)| *until);
    let id = match spec.clusters.as_slice() {
        [] => None,
        [(only, _)] => Some(*only),
        many => {
            let drawn = downstream.worker.with_rng(|rng| rng.u32(0..total.max(1)));
            many.iter().find(|(_, until)| drawn < *until).map(|(id, _)| *id)
        }
    };
    (id, id.and_then(|id| snapshot.cluster(id).cloned()))
}

async fn connect(
    downstream: &Downstream,
    spec: &TcpSpec,
    cluster: &Arc<Cluster>,
) -> Result<Upstream, Reason> {
    let permit = cluster
        .try_acquire(Resource::Connections, RoutingPriority::Default)
        .ok_or(Reason::UpstreamOverflow)?;
    let mut tried = Vec::new();
    let mut last = Reason::NoHealthyUpstream;
    for _ in 0..spec.max_connect_attempts.max(1) {
        let now = Instant::now();
        let endpoint = pick(downstream, spec, cluster, &tried, now)?;
        tried.push(endpoint.key);
        let active = endpoint.begin();
        let over = Cell::new(None);
        let passes = [None, pass(cluster, now)?];
        let watch = Watch::begin(cluster, &endpoint, &over, passes, now);
        let connected = transport::connect(cluster, &endpoint, Alpn::None, downstream.origin()).await;
        if let Some(watch) = watch {
            let failed = connected.as_ref().err();
            watch.ended(failed.map_or(outcome::Ended::Connected, |reason| outcome::Ended::Failed(*reason)));
        }
        match connected {
            Ok(connected) => return Ok(Upstream { connected, active, _permit: permit }),
            // Another endpoint would need a file, too.
            Err(Reason::Overloaded) => return Err(Reason::Overloaded),
            Err(reason) => last = reason,
        }
    }
    Err(last)
}

/// What the cluster's circuit breaker says.
fn pass(cluster: &Cluster, now: Instant) -> Result<Option<Pass>, Reason> {
    let asked = cluster.spec().circuit.as_ref().map(|circuit| circuit.try_acquire(now));
    asked.transpose().map_err(|_| Reason::CircuitOpen)
}

fn pick(
    downstream: &Downstream,
    spec: &TcpSpec,
    cluster: &Arc<Cluster>,
    tried: &[crate::upstream::endpoint::EndpointKey],
    now: Instant,
) -> Result<Arc<Endpoint>, Reason> {
    if let Discovery::OriginalDst(original) = &cluster.spec().discovery {
        let address =
            original.destination(None, downstream.original_dst).ok_or(Reason::NoOriginalDestination)?;
        return Ok(downstream.worker.original_endpoint(cluster, original, address));
    }
    let context = LbContext {
        exclude: tried,
        hash: spec.hash_source_ip.then(|| source_ip(downstream.remote)),
        subset: spec.subset.as_deref(),
        ..LbContext::default()
    };
    downstream.worker.pick(cluster, context, now).ok_or(Reason::NoHealthyUpstream)
}

struct Finished<'a> {
    downstream: &'a Downstream,
    spec: &'a TcpSpec,
    cluster: Option<Arc<Cluster>>,
    endpoint: Option<Arc<Endpoint>>,
    traffic: Traffic,
    reason: Option<Reason>,
    refused: Option<Refused>,
    total: Duration,
}

/// Access log, and why it ended if that was not in order.
fn close(done: &Finished<'_>) {
    if done.spec.access_log.is_empty() && done.reason.is_none() {
        return;
    }
    let downstream = done.downstream;
    let record = AccessRecord {
        start: SystemTime::now().checked_sub(done.total),
        reason: done.reason,
        termination_details: done.refused.as_ref().map(|refused| &*refused.details),
        bytes_received: done.traffic.received.get(),
        bytes_sent: done.traffic.sent.get(),
        timings: Timings { total: Some(done.total), ..Timings::default() },
        attempts: 1,
        downstream: downstream.record(),
        upstream: record::Upstream {
            remote: done.endpoint.as_ref().map(|e| e.spec.address),
            cluster: done.cluster.as_ref().map(|c| &*c.spec().name),
            ..record::Upstream::default()
        },
        ..AccessRecord::default()
    };
    downstream.tell_of(&record, done.refused.as_ref().and_then(|refused| refused.rule.as_deref()));
    downstream.worker.access_log(&done.spec.access_log, &record);
}
