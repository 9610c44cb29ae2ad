//! This worker's shard of the metrics, and whose traffic it counts: the labels of the two sides of a request.

use std::cell::RefCell;
use std::sync::Arc;

use foldhash::HashMap;

use crate::config::names::ClusterId;
use crate::config::spec::Direction;
use crate::error::Reason;
use crate::http::context::RequestCtx;
use crate::http::downstream::Downstream;
use crate::policy::rbac::Verdict;
use crate::resilience::retry::RetryKind;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::labels::{
    Peer, PeerLabels, PolicyLabels, Reporter, RequestKey, RequestLabels, RequestProtocol, SecurityPolicy,
    ServiceLabels, TcpKey, TcpLabels, UNKNOWN,
};
use crate::telemetry::metrics::{ClusterCount, Decision, Refusal, RequestSample, TcpSeries, WorkerMetrics};
use crate::telemetry::record::AccessRecord;
use crate::tls::TlsSession;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::{Endpoint, EndpointKey};

/// See the module.
#[derive(Debug)]
pub struct WorkerTelemetry {
    /// The counters.
    pub counters: WorkerMetrics,
    own: Peer,
    unknown: Peer,
    endpoints: RefCell<HashMap<EndpointKey, Peer>>,
}

impl WorkerTelemetry {
    /// Telemetry of the workload `own`.
    #[must_use]
    pub fn new(counters: WorkerMetrics, own: &PeerLabels) -> Self {
        let own = counters.peer(own);
        let unknown = counters.peer(&PeerLabels::default());
        Self { counters, own, unknown, endpoints: RefCell::default() }
    }

    /// The labels of a peer by its certificate.
    #[must_use]
    pub fn peer(&self, tls: Option<&TlsSession>) -> Peer {
        let Some(spiffe) = tls.and_then(|t| t.peer.as_ref()).and_then(|p| p.spiffe.as_ref()) else {
            return self.unknown.clone();
        };
        let text = spiffe.to_string();
        let mut parts = text.split('/').skip_while(|p| *p != "ns").skip(1);
        let namespace = parts.next().unwrap_or(UNKNOWN);
        let account = parts.nth(1).unwrap_or(UNKNOWN);
        self.counters.peer(&PeerLabels {
            workload: account.into(),
            namespace: namespace.into(),
            principal: text.as_str().into(),
            canonical_service: account.into(),
            ..PeerLabels::default()
        })
    }

    /// The labels of an endpoint.
    fn of_endpoint(&self, endpoint: &Endpoint, cluster: Option<&Cluster>) -> Peer {
        if let Some(peer) = self.endpoints.borrow().get(&endpoint.key) {
            return peer.clone();
        }
        let peer = endpoint.spec.labels.as_deref().map_or_else(
            || self.unknown.clone(),
            |text| self.counters.peer(&endpoint_labels(text, &service(cluster))),
        );
        self.endpoints.borrow_mut().insert(endpoint.key, peer.clone());
        peer
    }

    /// Forgets labels that may have changed with the configuration.
    pub fn forget_labels(&self) {
        self.endpoints.borrow_mut().clear();
        self.counters.forget_labels();
    }

    fn sides(
        &self,
        downstream: &Downstream,
        endpoint: Option<&Arc<Endpoint>>,
        cluster: Option<&Cluster>,
    ) -> (Peer, Peer) {
        if downstream.listener.direction == Direction::Inbound {
            (downstream.peer.clone(), self.own.clone())
        } else {
            (
                self.own.clone(),
                endpoint.map_or_else(|| self.unknown.clone(), |e| self.of_endpoint(e, cluster)),
            )
        }
    }

    /// Counts a finished request.
    pub fn request(&self, ctx: &RequestCtx, record: &AccessRecord<'_>) {
        let grpc = ctx.is_grpc();
        let (source, destination) = self.sides(
            &ctx.downstream,
            ctx.active.as_ref().map(crate::upstream::endpoint::ActiveRequest::endpoint),
            ctx.cluster.as_deref(),
        );
        let status = record.status_code();
        let key = RequestKey {
            chain: ctx.downstream.chain.id,
            cluster: ctx.cluster_id,
            source: source.id,
            destination: destination.id,
            status,
            grpc: if grpc { record.grpc_status().and_then(|s| u8::try_from(s).ok()) } else { None },
            flags: record.all_flags(),
            protocol: if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            security: security(&ctx.downstream),
        };
        // What became a tunnel lasts as long as a connection, and is counted as one besides.
        let opened = ctx.answered.filter(|_| ctx.tunnel.is_some());
        let sample = RequestSample {
            duration: opened.or(record.timings.total).unwrap_or_default(),
            request_bytes: record.bytes_received,
            response_bytes: record.bytes_sent,
        };
        self.counters.request(&key, &sample, || RequestLabels {
            reporter: reporter(&ctx.downstream),
            source: source.labels,
            destination: destination.labels,
            service: service(ctx.cluster.as_deref()),
            status: key.status,
            grpc: key.grpc,
            flags: key.flags,
            protocol: key.protocol,
            security: key.security,
        });
        if let Some(reason) = ctx.reason {
            self.counters.local_reply(reason);
        }
    }

    /// Counters of an opaque connection.
    #[must_use]
    pub fn tcp(
        &self,
        downstream: &Downstream,
        cluster: Option<(ClusterId, &Arc<Cluster>)>,
        endpoint: Option<&Arc<Endpoint>>,
    ) -> TcpSeries {
        let (source, destination) = self.sides(downstream, endpoint, cluster.map(|(_, cluster)| &**cluster));
        let key = TcpKey {
            chain: downstream.chain.id,
            cluster: cluster.map(|(id, _)| id),
            source: source.id,
            destination: destination.id,
            flags: ResponseFlags::NONE,
            security: security(downstream),
        };
        self.counters.tcp(&key, || TcpLabels {
            reporter: reporter(downstream),
            source: source.labels,
            destination: destination.labels,
            service: service(cluster.map(|(_, c)| &**c)),
            flags: key.flags,
            security: key.security,
        })
    }

    /// A connection was refused before any request.
    pub fn refused(&self, why: Refusal) {
        self.counters.refused(why);
    }

    /// A request or connection was refused for `reason`.
    pub fn rejected(&self, reason: Reason) {
        if reason == Reason::Flood {
            self.counters.flooded();
        }
        self.counters.local_reply(reason);
    }

    /// A policy decided something about a request or connection.
    pub fn decided(&self, downstream: &Downstream, verdict: &Verdict<'_>, decision: Decision) {
        self.counters.decided((downstream.chain.id, verdict.id), decision, || PolicyLabels {
            listener: Arc::clone(&downstream.listener.name),
            stat_prefix: Arc::clone(verdict.stat_prefix),
            policy: verdict.policy.map_or_else(|| "none".into(), Arc::clone),
        });
    }

    /// A request is tried again.
    pub fn retried(&self, id: Option<ClusterId>, cluster: &Cluster, kind: RetryKind) {
        let Some(id) = id else { return };
        let series = self.counters.cluster(id, || Arc::clone(&cluster.spec().stat_name));
        series.count(ClusterCount::Retries);
        if kind == RetryKind::Transparent {
            series.count(ClusterCount::ReuseRaces);
        }
    }

    /// Something happened to a cluster.
    pub fn cluster(&self, id: Option<ClusterId>, cluster: &Cluster, what: ClusterCount) {
        if let Some(id) = id {
            self.counters.cluster(id, || Arc::clone(&cluster.spec().stat_name)).count(what);
        }
    }
}

fn reporter(downstream: &Downstream) -> Reporter {
    if downstream.listener.direction == Direction::Inbound { Reporter::Destination } else { Reporter::Source }
}

fn security(downstream: &Downstream) -> SecurityPolicy {
    if downstream.listener.direction != Direction::Inbound {
        return SecurityPolicy::Unknown;
    }
    let verified = downstream.tls.as_ref().and_then(|t| t.peer.as_ref()).is_some_and(|p| p.verified);
    if verified { SecurityPolicy::MutualTls } else { SecurityPolicy::None }
}

/// The labels of an endpoint of a service; see [`EndpointSpec::labels`](crate::upstream::endpoint::EndpointSpec::labels).
fn endpoint_labels(text: &str, service: &ServiceLabels) -> PeerLabels {
    let mut fields = text.split(';');
    let mut next = |usual: &str| Arc::from(fields.next().filter(|field| !field.is_empty()).unwrap_or(usual));
    let (workload, namespace) = (next(UNKNOWN), next(&service.namespace));
    let (canonical_service, canonical_revision): (Arc<str>, Arc<str>) = (next(&service.name), next("latest"));
    PeerLabels {
        workload,
        namespace,
        app: Arc::clone(&canonical_service),
        version: Arc::clone(&canonical_revision),
        canonical_service,
        canonical_revision,
        cluster: next(UNKNOWN),
        ..PeerLabels::default()
    }
}

/// The service behind a cluster: its metadata under `istio` names it, or else the cluster's name does.
fn service(cluster: Option<&Cluster>) -> Arc<ServiceLabels> {
    let Some(cluster) = cluster else { return Arc::default() };
    let spec = cluster.spec();
    let first =
        spec.metadata.as_ref().and_then(|m| m.get("istio", &["services"])?.as_array()?.first().cloned());
    let field = |name: &str| first.as_ref().and_then(|s| s.get(name)?.as_str().map(Arc::<str>::from));
    Arc::new(ServiceLabels {
        host: field("host").unwrap_or_else(|| Arc::clone(&spec.name)),
        name: field("name").unwrap_or_else(|| Arc::clone(&spec.name)),
        namespace: field("namespace").unwrap_or_else(|| UNKNOWN.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_does_not_say_is_its_services() {
        let service =
            ServiceLabels { host: "shop.prod.svc".into(), name: "shop".into(), namespace: "prod".into() };
        let of = |text: &str| {
            let PeerLabels { workload, namespace, app, version, canonical_service, cluster, .. } =
                endpoint_labels(text, &service);
            [workload, namespace, app, version, canonical_service, cluster].map(|label| label.to_string())
        };
        assert_eq!(of("shop-1"), ["shop-1", "prod", "shop", "latest", "shop", UNKNOWN]);
        assert_eq!(of("shop-1;;;v2"), ["shop-1", "prod", "shop", "v2", "shop", UNKNOWN]);
        assert_eq!(of("cart-v1;eu;cart;v1;c1"), ["cart-v1", "eu", "cart", "v1", "cart", "c1"]);
    }
}
