//! A rate limit of the whole mesh, leased to sidecars by the control plane: together they stay within it, and whoever is alone has all
//! of it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use remora_control::control::{Options, Plane};
use remora_mesh::{Listening, names};
use remora_tests::certs::Authority;
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, cluster_http2, direct};
use remora_tests::proxy::Proxy;
use remora_tests::resources::under;
use remora_tests::upstream::Upstream;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::reached;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.";
/// Requests a second.
const LIMIT: u32 = 200;
/// A slow machine's control plane takes so long until it gives shares, and two sidecars until they have theirs.
const SETTLED: Duration = Duration::from_secs(30);

/// Two instances of one Service. Their callers have no certificates.
const DOCUMENTS: &str = "apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 8080, targetPort: web}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: one, labels: {app: shop}}
spec: {address: 127.0.0.1, ports: [{name: web, port: PROGRAM}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: two, labels: {app: shop}}
spec: {address: 127.0.0.1, ports: [{name: web, port: PROGRAM}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: plain}
spec: {targetRefs: [{name: shop}], mtls: {mode: Permissive}}
---
apiVersion: remora.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: shop}
spec: {targetRefs: [{name: shop}], limits: [{name: all, scope: Mesh, requests: LIMIT, per: 1s}]}
";

/// A control plane with a runtime of its own: when that is shut down, all connections are closed, as those of a killed process are.
struct Control {
    address: SocketAddr,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Control {
    /// One whose documents have the program at this port.
    async fn start(program: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (started, plane) = oneshot::channel();
        let options = options(&folder, program);
        runtime.spawn(async move {
            let plane = Plane::start(options).await.unwrap();
            started.send(plane.xds).unwrap();
            // It lives as long as its runtime.
            pending::<()>().await;
            drop(plane);
        });
        Self { address: plane.await.unwrap(), runtime: Some(runtime), _folder: folder }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn options(folder: &tempfile::TempDir, program: u16) -> Options {
    let documents = folder.path().join("documents");
    std::fs::create_dir(&documents).unwrap();
    let text = DOCUMENTS.replace("LIMIT", &LIMIT.to_string()).replace("PROGRAM", &program.to_string());
    std::fs::write(documents.join("mesh.yaml"), text).unwrap();
    let options = Options::on_loopback(folder.path().to_owned(), "mesh.test");
    Options {
        folder: Some(documents),
        identity_files: Some("identity".into()),
        listening: Listening::Ephemeral,
        ..options
    }
}

/// The filter before the router: nothing goes on without a share.
fn filters() -> Value {
    let settings = json!({
        "@type": format!("{TYPE}rate_limit_quota.v3.RateLimitQuotaBucketSettings"),
        "bucket_id_builder": { "bucket_id_builder": { "limit": { "string_value": "all" } } },
        "reporting_interval": "0.5s",
        "no_assignment_behavior": { "fallback_rate_limit": { "blanket_rule": "DENY_ALL" } },
        "deny_response_settings": { "http_status": { "code": 503 }, "http_body": "bGF0ZXI=" },
    });
    let typed = json!({
        "@type": format!("{TYPE}rate_limit_quota.v3.RateLimitQuotaFilterConfig"),
        "rlqs_server": { "envoy_grpc": { "cluster_name": "control" } },
        "domain": "default/shop",
        "bucket_matchers": { "on_no_match": { "action": { "name": "bucket", "typed_config": settings } } },
    });
    json!({ "http_filters": [
        { "name": "quota", "typed_config": typed },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": format!("{TYPE}router.v3.Router") } },
    ] })
}

async fn sidecar(control: SocketAddr) -> Proxy {
    let listener = Listener::http("ingress").manager(filters()).route(direct("/", 200, "in"));
    Proxy::builder().listener(listener).cluster(cluster_http2("control", &[control])).start().await
}

/// The sidecar of a workload, with a certificate of its account.
async fn of_workload(control: SocketAddr, authority: &Authority, workload: &str) -> Proxy {
    let id = format!("sidecar~127.0.0.1~{workload}.default~default.svc.cluster.local");
    let builder = under(&[control]).cluster(cluster_http2(names::CONTROL_PLANE, &[control])).node(&id);
    let files = builder.folder().join("identity");
    std::fs::create_dir(&files).unwrap();
    let own = authority.issue(&[&format!("spiffe://mesh.test/ns/default/sa/{workload}")]);
    for (name, text) in [("chain", &own.chain), ("key", &own.key), ("roots", &authority.pem)] {
        std::fs::write(files.join(format!("{name}.pem")), text).unwrap();
    }
    builder.start().await
}

/// More requests than the limit has tokens, without an end: how many went on.
struct Flood {
    passed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Flood {
    /// Of this listener; those that are refused have this body.
    fn on(proxy: &Proxy, listener: &str, refused: &'static str) -> Self {
        let (passed, address) = (Arc::new(AtomicU64::new(0)), proxy.address(listener));
        let count = Arc::clone(&passed);
        let task = tokio::spawn(async move {
            let mut client = Http1Client::connect(address).await;
            let mut ticks = interval(Duration::from_millis(2));
            loop {
                ticks.tick().await;
                let answer = client.get("/").await.unwrap();
                match answer.status {
                    200 => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => assert_eq!(
                        (answer.reason(), answer.text().as_str()),
                        (Some("rate_limit_quota_exceeded"), refused)
                    ),
                }
            }
        });
        Self { passed, task }
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_half(rate: &u64) -> bool {
    let most = u64::from(LIMIT);
    *rate * 10 >= most * 4 && *rate * 10 <= most * 6
}

/// Waits until what goes on within a second satisfies `holds`.
async fn rate(what: &str, floods: &[&Flood], holds: impl Fn(&[u64]) -> bool) {
    let passed = || floods.iter().map(|flood| flood.passed()).collect::<Vec<_>>();
    reached(what, SETTLED, async || {
        let (began, before) = (Instant::now(), passed());
        reached("a second", SETTLED, async || began.elapsed() >= Duration::from_secs(1)).await;
        let rates: Vec<u64> = passed().iter().zip(before).map(|(after, before)| after - before).collect();
        holds(&rates)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sidecars_keep_a_limit_together_and_one_alone_has_all_of_it() {
    let control = Control::start(1).await;
    let (one, two) = (sidecar(control.address).await, sidecar(control.address).await);
    let (most, began) = (u64::from(LIMIT), Instant::now());
    let first = Flood::on(&one, "ingress", "later");
    rate("all of it for one alone", &[&first], |rates| rates[0] * 10 >= most * 9).await;

    let second = Flood::on(&two, "ingress", "later");
    rate("half of it for each of two", &[&first, &second], |rates| rates.iter().all(is_half)).await;

    // From the beginning on: the limit, and the first burst of each sidecar.
    let passed = first.passed() + second.passed();
    let allowed = (began.elapsed().as_secs_f64() + 2.0) * f64::from(LIMIT);
    assert!(passed as f64 <= allowed, "{passed} of {allowed}");

    drop(first);
    drop(one);
    rate("all of it when the other one is gone", &[&second], |rates| rates[0] * 10 >= most * 9).await;

    // Without a control plane the share goes on until it ends, and then nothing is known.
    drop(control);
    rate("nothing without a share", &[&second], |rates| rates[0] == 0).await;
    assert!(!second.task.is_finished(), "it is refused, not broken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_makes_sidecars_keep_a_limit_together_and_each_has_its_part_without_a_control_plane() {
    let program = Http1Upstream::answering(Answer::ok("in")).await;
    let (control, authority) = (Control::start(program.address().port()).await, Authority::new());
    let one = of_workload(control.address, &authority, "one").await;
    let two = of_workload(control.address, &authority, "two").await;
    let first = Flood::on(&one, "inbound", "");
    let most = u64::from(LIMIT);
    rate("all of it for one alone", &[&first], |rates| rates[0] * 10 >= most * 9).await;
    let second = Flood::on(&two, "inbound", "");
    rate("half of it for each of two", &[&first, &second], |rates| rates.iter().all(is_half)).await;
    drop(second);
    rate("all of it again", &[&first], |rates| rates[0] * 10 >= most * 9).await;
    drop(control);
    rate("its part of it without a control plane", &[&first], |rates| is_half(&rates[0])).await;
    let second = Flood::on(&two, "inbound", "");
    rate("the other part", &[&first, &second], |rates| rates.iter().all(is_half)).await;
}
