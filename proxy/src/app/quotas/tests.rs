//! A stream against a quota service on loopback.

use super::*;
use std::net::SocketAddr;
use std::sync::Mutex;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use remora_xds::client::{Changed, Connecting, Duplex};
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_response::bucket_action::{
    AbandonAction, QuotaAssignmentAction,
};
use remora_xds::pb::envoy::service::rate_limit_quota::v3::rate_limit_quota_service_server::{
    RateLimitQuotaService, RateLimitQuotaServiceServer,
};
use remora_xds::pb::envoy::r#type::v3::RateLimitStrategy;
use remora_xds::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, Strategy as StrategyPb};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::Request;

use crate::traffic::limit::quota::MeterKey;

/// Longest that anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers each report with what it was told to answer.
#[derive(Clone)]
struct Service {
    action: watch::Sender<Option<Action>>,
    reports: Arc<Mutex<Vec<RateLimitQuotaUsageReports>>>,
}

#[tonic::async_trait]
impl RateLimitQuotaService for Service {
    type StreamRateLimitQuotasStream = ReceiverStream<Result<RateLimitQuotaResponse, Status>>;

    async fn stream_rate_limit_quotas(
        &self,
        request: Request<Streaming<RateLimitQuotaUsageReports>>,
    ) -> Result<Response<Self::StreamRateLimitQuotasStream>, Status> {
        let (out, responses) = mpsc::channel(1);
        let (service, mut reports) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                let bucket_id = report.bucket_quota_usages[0].bucket_id.clone();
                service.reports.lock().unwrap().push(report);
                let Some(action) = *service.action.borrow() else { continue };
                let bucket_action = vec![BucketAction { bucket_id, bucket_action: Some(action) }];
                if out.send(Ok(RateLimitQuotaResponse { bucket_action })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct Direct(SocketAddr);

impl Connector for Direct {
    fn servers(&self) -> usize {
        1
    }
    fn connect(&self, _: usize) -> Connecting {
        let address = self.0;
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Duplex>) })
    }
    fn authority(&self) -> &str {
        "quotas"
    }
    fn changed(&self) -> Changed {
        Box::pin(std::future::pending())
    }
}

struct Rig {
    service: Service,
    meter: Arc<Meter>,
    lead: Arc<Lead>,
    wanted: watch::Sender<Led>,
    tasks: Vec<JoinHandle<()>>,
}

impl Rig {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service { action: watch::Sender::new(None), reports: Arc::default() };
        let server = RateLimitQuotaServiceServer::new(service.clone());
        let served = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(server.clone()));
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        let interval = Duration::from_millis(20);
        let lead = Arc::new(Lead { interval, unassigned: Strategy::DenyAll, expired: None });
        let key = MeterKey {
            cluster: "c".into(),
            authority: "a".into(),
            domain: "shop".into(),
            bucket: [("name".to_owned(), "one".to_owned())].into(),
        };
        let meter = Arc::new(Meter::new(key, &lead, Instant::now()));
        let led: Led = [(meter.key().bucket.clone(), (Arc::clone(&meter), Arc::clone(&lead)))].into();
        let (wanted, follows) = watch::channel(led);
        let client = tokio::spawn(keep(Arc::new(Direct(address)), Board::new("shop".into(), follows)));
        Self { service, meter, lead, wanted, tasks: vec![served, client] }
    }

    /// Waits until a request goes on, or does not.
    async fn until_takes(&self, wanted: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.meter.take(Instant::now()) != wanted {
            assert!(Instant::now() < deadline, "never: {wanted}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn reports(&self) -> Vec<BucketQuotaUsage> {
        let reports = self.service.reports.lock().unwrap();
        assert!(reports.iter().all(|report| report.domain == "shop"));
        reports.iter().flat_map(|report| report.bucket_quota_usages.clone()).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// All requests, for so long.
fn share(time: Duration) -> Option<Action> {
    let strategy = Some(StrategyPb::BlanketRule(BlanketRule::AllowAll.into()));
    let seconds = i64::try_from(time.as_secs()).unwrap();
    let nanos = i32::try_from(time.subsec_nanos()).unwrap();
    Some(Action::QuotaAssignmentAction(QuotaAssignmentAction {
        assignment_time_to_live: Some(DurationPb { seconds, nanos }),
        rate_limit_strategy: Some(RateLimitStrategy { strategy }),
    }))
}

#[tokio::test]
async fn a_share_comes_is_renewed_and_ends_when_the_service_says_nothing_more() {
    let rig = Rig::start().await;
    assert!(!rig.meter.take(Instant::now()));
    rig.service.action.send_replace(share(Duration::from_millis(200)));
    rig.until_takes(true).await;
    let first = &rig.reports()[0];
    assert!(first.num_requests_allowed == 0 && first.num_requests_denied > 0, "{first:?}");
    assert!(first.time_elapsed.is_some_and(|elapsed| elapsed.nanos > 0));
    rig.service.action.send_replace(None);
    rig.until_takes(false).await;
    // A request came since: it is asked for again.
    rig.service.action.send_replace(share(Duration::from_millis(200)));
    let deadline = Instant::now() + PATIENCE;
    while !rig.reports().iter().any(|usage| usage.num_requests_allowed > 0) {
        assert!(Instant::now() < deadline, "what went on is never reported: {:?}", rig.reports());
        rig.until_takes(true).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_bucket_that_is_abandoned_is_as_if_nobody_had_asked() {
    let rig = Rig::start().await;
    // It does not end by itself as long as the test waits.
    rig.service.action.send_replace(share(10 * PATIENCE));
    rig.until_takes(true).await;
    rig.service.action.send_replace(Some(Action::AbandonAction(AbandonAction {})));
    rig.until_takes(false).await;
}

#[tokio::test]
async fn an_edit_changes_what_holds_without_a_share() {
    let rig = Rig::start().await;
    rig.until_takes(false).await;
    let lead = Lead { unassigned: Strategy::AllowAll, ..Lead::clone(&rig.lead) };
    let led = (Arc::clone(&rig.meter), Arc::new(lead));
    rig.wanted.send_replace([(rig.meter.key().bucket.clone(), led)].into());
    rig.until_takes(true).await;
}
