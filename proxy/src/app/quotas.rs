//! Shares of rate limits (`envoy.filters.http.rate_limit_quota`): one stream to each quota service and domain, for as long as somebody
//! asks for one of its buckets.

use std::collections::{BTreeMap, HashMap};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use remora_xds::client::{self, Connector, Failover};
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::BucketAction as Action;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_service_client::RateLimitQuotaServiceClient;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_usage_reports::BucketQuotaUsage;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::{
    BucketId, RateLimitQuotaResponse, RateLimitQuotaUsageReports,
};
use remora_xds::pb::google::protobuf::Duration as DurationPb;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::clock::at;
use crate::config::snapshot::Snapshot;
use crate::config::source::ads::ClusterConnector;
use crate::config::spec::{HttpFilter, NetworkFilter};
use crate::traffic::limit::quota::{Lead, Meter, Strategy, Tracker, Usage};
use crate::upstream::cluster::Cluster;

/// Bytes of one response.
const MAX_RESPONSE: usize = 1 << 20;
/// A silent connection is probed after the first time, and given up after the second.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(8));

/// A service and a domain of it: cluster, authority, domain.
type Target = (Arc<str>, Arc<str>, Arc<str>);
/// Buckets, and how they are led.
type Led = BTreeMap<BTreeMap<String, String>, (Arc<Meter>, Arc<Lead>)>;

type Trackers = BTreeMap<BTreeMap<String, String>, Tracker>;

/// The streams.
#[derive(Debug, Default)]
pub(super) struct Quotas(HashMap<Target, Followed>);

#[derive(Debug)]
struct Followed {
    cluster: watch::Sender<Arc<Cluster>>,
    buckets: watch::Sender<Led>,
    task: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Quotas {
    /// Follows the buckets that `snapshot` has, and no others.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        let mut named = named(snapshot);
        self.0.retain(|target, _| named.contains_key(target));
        for (target, followed) in &self.0 {
            let Some(led) = named.remove(target) else { continue };
            followed.buckets.send_replace(led);
            if let Some(cluster) = snapshot.cluster_by_name(&target.0) {
                followed.cluster.send_if_modified(|old| {
                    let differs = !Arc::ptr_eq(old, cluster);
                    *old = Arc::clone(cluster);
                    differs
                });
            }
        }
        for (target, led) in named {
            // The listener waits for its clusters: it comes again when this one is there.
            let Some(cluster) = snapshot.cluster_by_name(&target.0) else { continue };
            let (cluster, servers) = watch::channel(Arc::clone(cluster));
            let (buckets, wanted) = watch::channel(led);
            let connector = ClusterConnector::new(servers, Arc::clone(&target.1));
            let board = Board::new(Arc::clone(&target.2), wanted);
            let task = tokio::spawn(keep(Arc::new(connector), board)).abort_handle();
            self.0.insert(target, Followed { cluster, buckets, task });
        }
    }
}

fn named(snapshot: &Snapshot) -> HashMap<Target, Led> {
    let mut out: HashMap<Target, Led> = HashMap::new();
    let chains = snapshot.listeners.iter().flat_map(|listener| &listener.chains);
    let filters = chains.flat_map(|chain| match &chain.filter {
        NetworkFilter::Http(http) => &http.filters[..],
        NetworkFilter::Tcp(_) => &[],
    });
    for filter in filters {
        let HttpFilter::Quota(_, filter) = filter else { continue };
        for bucket in filter.matcher.buckets() {
            let key = bucket.meter.key();
            let target = (Arc::clone(&key.cluster), Arc::clone(&key.authority), Arc::clone(&key.domain));
            let led = (Arc::clone(&bucket.meter), Arc::clone(&bucket.lead));
            let old = out.entry(target).or_default().insert(key.bucket.clone(), led);
            if old.is_some_and(|(_, old)| old != bucket.lead) {
                tracing::warn!(domain = &*key.domain, bucket = ?key.bucket, "two filters lead a bucket differently; the last one holds");
            }
        }
    }
    out
}

/// The buckets of one stream.
struct Board {
    domain: Arc<str>,
    wanted: watch::Receiver<Led>,
    trackers: Trackers,
}

impl Board {
    fn new(domain: Arc<str>, wanted: watch::Receiver<Led>) -> Self {
        let mut board = Self { domain, wanted, trackers: BTreeMap::new() };
        board.take_wanted(Instant::now());
        board
    }

    fn take_wanted(&mut self, now: Instant) {
        let led = self.wanted.borrow_and_update().clone();
        self.trackers.retain(|key, tracker| {
            led.get(key).is_some_and(|(meter, _)| Arc::ptr_eq(meter, tracker.meter()))
        });
        for (key, (meter, lead)) in led {
            let fresh = || Tracker::new(meter, Arc::clone(&lead), now);
            self.trackers.entry(key).or_insert_with(fresh).lead(&lead, now);
        }
    }

    fn is_active(&self) -> bool {
        self.trackers.values().any(Tracker::is_active)
    }

    /// Until something ends, is due, or is asked for the first time; what ends has ended then. Nothing is lost when this is dropped.
    async fn next(&mut self, reporting: bool) {
        let due = |tracker: &Tracker| if reporting { tracker.next() } else { tracker.end() };
        let due = self.trackers.values().filter_map(due).min();
        let is_other = tokio::select! {
            () = at(due) => false,
            () = first_asked(&self.trackers) => false,
            Ok(()) = self.wanted.changed() => true,
        };
        let now = Instant::now();
        if is_other {
            self.take_wanted(now);
        }
        self.trackers.values_mut().for_each(|tracker| tracker.turn(now));
    }

    /// A new stream knows nothing.
    fn subscribe(&mut self) {
        let now = Instant::now();
        self.trackers.values_mut().for_each(|tracker| tracker.subscribe(now));
    }

    fn is_due(&self, now: Instant) -> bool {
        self.trackers.values().any(|tracker| tracker.is_due(now))
    }

    /// What is to be reported now.
    fn reports(&mut self) -> Option<RateLimitQuotaUsageReports> {
        let now = Instant::now();
        let usage = |(key, tracker): (&BTreeMap<String, String>, &mut Tracker)| {
            let Usage { elapsed, allowed, denied } = tracker.report(now)?;
            Some(BucketQuotaUsage {
                bucket_id: Some(BucketId { bucket: key.clone().into_iter().collect() }),
                time_elapsed: Some(duration(elapsed)),
                num_requests_allowed: allowed,
                num_requests_denied: denied,
            })
        };
        let usages: Vec<_> = self.trackers.iter_mut().filter_map(usage).collect();
        (!usages.is_empty()).then(|| RateLimitQuotaUsageReports {
            domain: self.domain.to_string(),
            bucket_quota_usages: usages,
        })
    }

    fn obey(&mut self, response: RateLimitQuotaResponse) {
        let now = Instant::now();
        for BucketAction { bucket_id, bucket_action } in response.bucket_action {
            let key: BTreeMap<_, _> = bucket_id.map(|id| id.bucket.into_iter().collect()).unwrap_or_default();
            let Some(tracker) = self.trackers.get_mut(&key) else { continue };
            match bucket_action {
                Some(Action::QuotaAssignmentAction(action)) => {
                    let lasts = action.assignment_time_to_live.as_ref().map(length);
                    match Strategy::of(action.rate_limit_strategy.as_ref()) {
                        Some(strategy) => tracker.assign(strategy, lasts, now),
                        None => tracing::debug!(bucket = ?key, ?action, "a share that cannot be counted"),
                    }
                }
                Some(Action::AbandonAction(_)) => tracker.abandon(now),
                None => {}
            }
        }
    }
}

/// Until there is a request of a bucket that nobody asked for.
async fn first_asked(trackers: &Trackers) {
    let waiting = trackers.values().filter(|tracker| !tracker.is_active());
    let mut asked: Vec<_> = waiting.map(|tracker| Box::pin(tracker.meter().asked())).collect();
    poll_fn(|cx| match asked.iter_mut().any(|asked| asked.as_mut().poll(cx).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn duration(time: Duration) -> DurationPb {
    DurationPb {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    }
}

/// A share is for a day at most: whoever means longer says so again.
fn length(pb: &DurationPb) -> Duration {
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    let time =
        Duration::from_secs(part(pb.seconds)).saturating_add(Duration::from_nanos(part(pb.nanos.into())));
    time.min(Duration::from_secs(86_400))
}

/// Keeps a stream open while a bucket is asked for.
async fn keep(connector: Arc<dyn Connector>, mut board: Board) {
    let mut rng = fastrand::Rng::new();
    let mut failover = Failover::new(&mut rng);
    let mut told = false;
    loop {
        while !board.is_active() {
            board.next(false).await;
        }
        let mut answered = false;
        let number = failover.server(connector.servers());
        let reason = stream(&connector, number, &mut board, &mut answered).await;
        if answered {
            failover.healthy();
            told = false;
        }
        let domain = &*board.domain;
        if !told {
            tracing::warn!(domain, reason, "no quota service; the last shares hold until they end");
            told = true;
        }
        let wait = failover.failed(connector.servers(), &mut rng);
        let mut pause = pin!(tokio::time::sleep(wait));
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = board.next(false) => {}
            }
        }
    }
}

type Opened<'o> =
    Pin<&'o mut (dyn Future<Output = Result<Response<Streaming<RateLimitQuotaResponse>>, Status>> + Send)>;

/// One stream, to its end: why it ended.
async fn stream(
    connector: &Arc<dyn Connector>,
    number: usize,
    board: &mut Board,
    answered: &mut bool,
) -> String {
    let channel = {
        let mut opening = pin!(client::open(Arc::clone(connector), number, KEEPALIVE));
        loop {
            tokio::select! {
                channel = &mut opening => break channel,
                () = board.next(false) => {}
            }
        }
    };
    let channel = match channel {
        Ok(channel) => channel,
        Err(reason) => return reason,
    };
    let mut service = RateLimitQuotaServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let (out, reports) = mpsc::channel(1);
    let mut opened = pin!(service.stream_rate_limit_quotas(ReceiverStream::new(reports)));
    let mut responses = None;
    board.subscribe();
    loop {
        let due = board.is_due(Instant::now());
        tokio::select! {
            received = receive(opened.as_mut(), &mut responses) => match received {
                Ok(None) => {}
                Ok(Some(response)) => {
                    *answered = true;
                    board.obey(response);
                }
                Err(status) => return status.to_string(),
            },
            permit = out.reserve(), if due => match (permit, board.reports()) {
                (Ok(permit), Some(reports)) => permit.send(reports),
                (Ok(_), None) => {}
                (Err(_), _) => return "the service reads no more reports".to_owned(),
            },
            () = board.next(!due) => {}
        }
    }
}

/// The next response; None when the stream is open: a service may open it only when it has something to say.
async fn receive(
    opened: Opened<'_>,
    responses: &mut Option<Streaming<RateLimitQuotaResponse>>,
) -> Result<Option<RateLimitQuotaResponse>, Status> {
    let Some(responses) = responses else {
        *responses = Some(opened.await?.into_inner());
        return Ok(None);
    };
    let response = responses.message().await?;
    response.map(Some).ok_or_else(|| Status::unavailable("the service ended the stream"))
}

#[cfg(test)]
mod tests;
