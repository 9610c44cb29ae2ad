//! `envoy.service.rate_limit_quota.v3.RateLimitQuotaService/StreamRateLimitQuotas`: reports come in, shares go out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::BucketAction;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::{
    AbandonAction, BucketAction as Action, QuotaAssignmentAction,
};
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_service_server::{
    RateLimitQuotaService, RateLimitQuotaServiceServer,
};
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_usage_reports::BucketQuotaUsage;
use remora_xds::pb::envoy::service::rate_limit_quota::v3::{
    BucketId, RateLimitQuotaResponse, RateLimitQuotaUsageReports,
};
use remora_xds::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, Strategy};
use remora_xds::pb::envoy::r#type::v3::{RateLimitStrategy, TokenBucket};
use remora_xds::pb::google::protobuf::{Duration as DurationPb, UInt32Value};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::pool::{Answer, Demand, Id, Pool, Share, TTL};
use super::{BucketKey, Owner, Table};
use crate::ca::service::Shown;

/// Bytes of one report.
const MAX_REQUEST: usize = 1 << 20;
/// Streams at one time.
const STREAMS: usize = 10_000;
/// Buckets that one stream may ask for, and one report may speak of.
const BUCKETS: usize = 1000;

/// The service. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    streams: Arc<Semaphore>,
    next: AtomicU64,
    owner: Arc<Owner>,
}

#[derive(Debug, Default)]
struct State {
    limits: Table,
    pools: HashMap<(String, BucketKey), Pool>,
    /// Clients that showed a certificate, for as long as they may have shares.
    shown: HashMap<Id, Shown>,
}

impl Service {
    /// One that shares limits of domains that are `owner`'s. It has none yet.
    #[must_use]
    pub fn new(owner: Arc<Owner>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            next: AtomicU64::new(0),
            owner,
        }))
    }

    /// Shares these limits from now on, and no others. What was given of those that are gone ends by itself.
    pub fn set(&self, limits: Table) {
        self.0.state().limits = limits;
    }

    /// Ends the streams of clients that showed a certificate which may not have shares any more, when they report next.
    pub fn expel(&self, is_out: impl Fn(&Shown) -> bool) {
        self.0.state().shown.retain(|_, shown| !is_out(shown));
    }

    /// The gRPC service.
    #[must_use]
    pub fn into_server(self) -> RateLimitQuotaServiceServer<Self> {
        RateLimitQuotaServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

impl Inner {
    /// Makes sure that `domain` is shared here.
    async fn enter(&self, domain: &str) -> Result<(), Status> {
        if !self.state().limits.has(domain) || self.owner.opens(domain, Instant::now()).is_some() {
            return Ok(());
        }
        self.owner.take(domain).await.map_err(|why| Status::unavailable(why.to_string()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client of one stream.
struct Client {
    id: Id,
    inner: Arc<Inner>,
    /// The namespace of its certificate; None on the port without TLS.
    namespace: Option<String>,
    has_shown: bool,
    /// Of its first report; later ones need not say it.
    domain: String,
    buckets: HashSet<BucketKey>,
}

impl Client {
    fn new(inner: &Arc<Inner>, shown: Option<&Shown>) -> Self {
        let identity = shown.and_then(|shown| shown.identity.as_ref()?.service_account());
        let id = inner.next.fetch_add(1, Ordering::Relaxed);
        inner.state().shown.extend(shown.map(|shown| (id, shown.clone())));
        Self {
            id,
            inner: Arc::clone(inner),
            has_shown: shown.is_some(),
            namespace: identity.map(|(namespace, _)| namespace.to_owned()),
            domain: String::new(),
            buckets: HashSet::new(),
        }
    }

    /// Takes a message. The domain is that of the first one.
    async fn take(
        &mut self,
        reports: RateLimitQuotaUsageReports,
    ) -> Result<Option<RateLimitQuotaResponse>, Status> {
        if self.domain.is_empty() {
            self.inner.enter(&reports.domain).await?;
        }
        self.answer(reports, Instant::now())
    }

    /// A limit is the matter of its namespace: nobody else takes a share of it away.
    fn may_ask(&self) -> Result<(), Status> {
        let of = self.domain.split_once('/').map_or("", |(namespace, _)| namespace);
        match &self.namespace {
            Some(own) if own != of => {
                let text = format!("domain {:?} is not of namespace {own:?}", self.domain);
                Err(Status::permission_denied(text))
            }
            _ => Ok(()),
        }
    }

    /// What one message is answered with; None when there is nothing to say.
    fn answer(
        &mut self,
        reports: RateLimitQuotaUsageReports,
        now: Instant,
    ) -> Result<Option<RateLimitQuotaResponse>, Status> {
        let RateLimitQuotaUsageReports { domain, bucket_quota_usages } = reports;
        if self.domain.is_empty() {
            self.domain = domain;
        } else if !domain.is_empty() && domain != self.domain {
            return Err(Status::invalid_argument("a stream has one domain; open another one"));
        }
        if self.domain.is_empty() {
            return Err(Status::invalid_argument("the first report needs a domain"));
        }
        if self.has_shown && !self.inner.state().shown.contains_key(&self.id) {
            return Err(Status::unauthenticated("the certificate was revoked"));
        }
        self.may_ask()?;
        if bucket_quota_usages.len() > BUCKETS {
            return Err(Status::invalid_argument(format!("a report has at most {BUCKETS} buckets")));
        }
        let mut bucket_action = Vec::new();
        for usage in bucket_quota_usages {
            bucket_action.extend(self.usage(usage, now)?);
        }
        Ok((!bucket_action.is_empty()).then_some(RateLimitQuotaResponse { bucket_action }))
    }

    fn usage(&mut self, usage: BucketQuotaUsage, now: Instant) -> Result<Option<BucketAction>, Status> {
        let bucket: BucketKey = usage.bucket_id.map(|id| id.bucket.into_iter().collect()).unwrap_or_default();
        if bucket.is_empty() {
            return Err(Status::invalid_argument("a report needs a bucket_id"));
        }
        // A bucket without a limit is one of which the documents do not speak yet, or no more.
        let Some(limit) = self.inner.state().limits.get(&self.domain, &bucket) else { return Ok(None) };
        let opens = self.inner.owner.opens(&self.domain, now);
        // It goes to the one that does.
        let opens = opens.ok_or_else(|| Status::unavailable("another control plane shares this domain"))?;
        if !self.buckets.contains(&bucket) {
            if self.buckets.len() >= BUCKETS {
                return Err(Status::resource_exhausted(format!("a stream has at most {BUCKETS} buckets")));
            }
            self.buckets.insert(bucket.clone());
        }
        let requests = usage.num_requests_allowed.saturating_add(usage.num_requests_denied);
        let demand = Demand { requests, elapsed: elapsed(usage.time_elapsed.as_ref()) };
        let mut state = self.inner.state();
        let pool = state.pools.entry((self.domain.clone(), bucket.clone()));
        let pool = pool.or_insert_with(|| Pool::new(limit, opens));
        if pool.opens() != opens {
            // The domain was another's meanwhile: what is known is out of date, and over before this one opens.
            *pool = Pool::new(limit, opens);
        }
        pool.set_limit(limit);
        let answer = pool.report(self.id, demand, now);
        drop(state);
        if answer == Some(Answer::Abandon) {
            self.buckets.remove(&bucket);
        }
        Ok(answer.map(|answer| action(bucket, answer)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.inner.state();
        state.shown.remove(&self.id);
        for bucket in self.buckets.drain() {
            if let Some(pool) = state.pools.get_mut(&(self.domain.clone(), bucket)) {
                pool.leave(self.id, now);
            }
        }
        // Those whose last holder left some time ago.
        state.pools.retain(|_, pool| !pool.is_empty(now));
    }
}

fn elapsed(pb: Option<&DurationPb>) -> Duration {
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    pb.map_or(Duration::ZERO, |pb| {
        Duration::from_secs(part(pb.seconds)).saturating_add(Duration::from_nanos(part(pb.nanos.into())))
    })
}

fn action(bucket: BucketKey, answer: Answer) -> BucketAction {
    let action = match answer {
        Answer::Use(share) => Action::QuotaAssignmentAction(assignment(share)),
        Answer::Abandon => Action::AbandonAction(AbandonAction {}),
    };
    BucketAction {
        bucket_id: Some(BucketId { bucket: bucket.into_iter().collect() }),
        bucket_action: Some(action),
    }
}

fn assignment(share: Share) -> QuotaAssignmentAction {
    let strategy = match share {
        Share { max: 0, .. } => Strategy::BlanketRule(BlanketRule::DenyAll.into()),
        Share { max, per_fill, interval } => Strategy::TokenBucket(TokenBucket {
            max_tokens: max,
            tokens_per_fill: Some(UInt32Value { value: per_fill }),
            fill_interval: Some(duration(interval)),
        }),
    };
    QuotaAssignmentAction {
        assignment_time_to_live: Some(duration(TTL)),
        rate_limit_strategy: Some(RateLimitStrategy { strategy: Some(strategy) }),
    }
}

fn duration(time: Duration) -> DurationPb {
    DurationPb {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    }
}

/// Answers until the client ends. A share is made only when there is room for it: it does not grow old here.
async fn serve(
    mut client: Client,
    mut reports: Streaming<RateLimitQuotaUsageReports>,
    out: mpsc::Sender<Result<RateLimitQuotaResponse, Status>>,
) {
    loop {
        let Ok(permit) = out.reserve().await else { return };
        let received = tokio::select! {
            received = reports.message() => received,
            () = out.closed() => return,
        };
        let answer = match received {
            Ok(Some(reports)) => client.take(reports).await,
            Ok(None) => return,
            Err(status) => Err(status),
        };
        match answer {
            Ok(Some(response)) => permit.send(Ok(response)),
            Ok(None) => {}
            Err(status) => return permit.send(Err(status)),
        }
    }
}

#[tonic::async_trait]
impl RateLimitQuotaService for Service {
    type StreamRateLimitQuotasStream = ReceiverStream<Result<RateLimitQuotaResponse, Status>>;

    async fn stream_rate_limit_quotas(
        &self,
        request: Request<Streaming<RateLimitQuotaUsageReports>>,
    ) -> Result<Response<Self::StreamRateLimitQuotasStream>, Status> {
        let permit = Arc::clone(&self.0.streams).try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted(format!("{STREAMS} streams are open already")))?;
        let shown = request.extensions().get::<Shown>();
        let client = Client::new(&self.0, shown);
        let (out, responses) = mpsc::channel(1);
        tokio::spawn(async move {
            serve(client, request.into_inner(), out).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Limit;
    use crate::quota::pool::GRACE;
    use crate::registry::Registry;
    use crate::store;
    use remora_proxy::tls::identity::SpiffeId;

    fn key(name: &str) -> BucketKey {
        [("name".to_owned(), name.to_owned())].into()
    }

    fn client(service: &Service) -> Client {
        Client::new(&service.0, None)
    }

    fn of_namespace(service: &Service, namespace: &str) -> Client {
        let identity = SpiffeId::parse(&format!("spiffe://mesh.test/ns/{namespace}/sa/web")).ok();
        Client::new(&service.0, Some(&Shown { identity, serial: String::new(), ends: 0 }))
    }

    fn reports(domain: &str, bucket: &str) -> RateLimitQuotaUsageReports {
        let usage = BucketQuotaUsage {
            bucket_id: Some(BucketId { bucket: key(bucket).into_iter().collect() }),
            time_elapsed: Some(duration(Duration::from_secs(1))),
            num_requests_allowed: 5,
            num_requests_denied: 50,
        };
        RateLimitQuotaUsageReports { domain: domain.into(), bucket_quota_usages: vec![usage] }
    }

    fn tokens(response: &RateLimitQuotaResponse) -> u32 {
        let [BucketAction { bucket_action: Some(Action::QuotaAssignmentAction(action)), .. }] =
            &response.bucket_action[..]
        else {
            panic!("one assignment: {response:?}")
        };
        match action.rate_limit_strategy.as_ref().and_then(|strategy| strategy.strategy) {
            Some(Strategy::TokenBucket(bucket)) => bucket.max_tokens,
            Some(Strategy::BlanketRule(_)) => 0,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_client_is_answered_about_the_buckets_of_its_domain() {
        let mut table = Table::default();
        for domain in ["shop", "web/shop"] {
            table.set(domain, key("pay"), Limit { requests: 40, per: Duration::from_secs(1) });
        }
        let start = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let store =
            store::open(&format!("redb:{}", folder.path().join("remora.redb").display())).await.unwrap();
        let owner = Owner::new(Arc::new(Registry::new(store)), start);
        let service = Service::new(Arc::new(owner));
        service.set(table);
        let mut one = client(&service);
        assert_eq!(one.answer(reports("shop", "pay"), start).unwrap(), None, "others may have shares");
        let later = start + TTL + GRACE;
        let response = one.answer(reports("", "pay"), later).unwrap().unwrap();
        assert_eq!(tokens(&response), 40);
        assert_eq!(one.answer(reports("shop", "unknown"), later).unwrap(), None);
        assert!(one.answer(reports("other", "pay"), later).is_err(), "one domain each");
        assert!(client(&service).answer(reports("", "pay"), later).is_err());
        let nameless = RateLimitQuotaUsageReports {
            domain: "shop".into(),
            bucket_quota_usages: vec![BucketQuotaUsage::default()],
        };
        assert!(client(&service).answer(nameless, later).is_err());
        let mut many = reports("shop", "pay");
        many.bucket_quota_usages = vec![many.bucket_quota_usages[0].clone(); BUCKETS + 1];
        assert!(client(&service).answer(many, later).is_err());

        assert!(of_namespace(&service, "web").answer(reports("web/shop", "pay"), later).unwrap().is_some());
        for (namespace, domain) in [("other", "web/shop"), ("web", "shop"), ("web", "webshop/x")] {
            let refused = of_namespace(&service, namespace).answer(reports(domain, "pay"), later);
            assert_eq!(refused.unwrap_err().code(), tonic::Code::PermissionDenied, "{domain}");
        }

        let mut revoked = of_namespace(&service, "web");
        let mut other = of_namespace(&service, "web");
        service.expel(|shown| shown.serial == "none");
        assert!(revoked.answer(reports("web/shop", "pay"), later).is_ok());
        let first = revoked.id;
        service.0.state().shown.get_mut(&first).unwrap().serial = "1f".into();
        service.expel(|shown| shown.serial == "1f");
        let refused = revoked.answer(reports("web/shop", "pay"), later).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert!(other.answer(reports("web/shop", "pay"), later).is_ok());
        drop((revoked, other));
        assert!(service.0.state().shown.is_empty());

        service.set(Table::default());
        assert_eq!(
            one.answer(reports("shop", "pay"), later).unwrap(),
            None,
            "there is no such limit any more"
        );
    }
}
