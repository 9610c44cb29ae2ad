use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry as Subscriber;

use super::logging::Levels;
use super::pages::{Change, PAGES};
use super::*;
use crate::drain::Phase;
use crate::readiness::ReadyGuard;
use crate::telemetry::access_log::LogWriter;
use crate::telemetry::metrics::{Options, Refusal};
use crate::telemetry::record::{self, AccessRecord};
use crate::why::Place;

#[derive(Default)]
struct Source {
    drained: Mutex<Vec<DrainListeners>>,
}

impl AdminSource for Source {
    fn config_dump(&self) -> Vec<Value> {
        let cluster = |name: &str| json!({"version_info": "1", "cluster": {"name": name}});
        vec![
            json!({"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "version_info": "1",
                   "static_clusters": [], "dynamic_active_clusters": [cluster("a"), cluster("b")]}),
            json!({"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                   "dynamic_listeners": [{"name": "a"}]}),
        ]
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let thresholds = Thresholds { connections: 1024, pending_requests: 1, requests: 2, retries: 3 };
        let host = HostStatus {
            address: "10.0.0.1:80".parse().unwrap(),
            hostname: "h".to_owned(),
            stats: HostStats { rq_total: 7, cx_active: 1, ..HostStats::default() },
            health: HealthFlags {
                failed_active_hc: true,
                failed_outlier_check: true,
                ..HealthFlags::default()
            },
            eds_health: EdsHealth::Healthy,
            weight: 1,
            locality: Locality { zone: "z".to_owned(), ..Locality::default() },
            priority: 0,
            success_rate: None,
            local_origin_success_rate: None,
        };
        vec![ClusterStatus {
            name: "c<script>\n".to_owned(),
            observability_name: "c".to_owned(),
            added_via_api: true,
            thresholds: [thresholds; 2],
            hosts: vec![host],
        }]
    }

    fn circuits(&self) -> Vec<CircuitStatus> {
        Vec::new()
    }

    fn set_circuit(&self, _name: &str, _state: &str) -> Result<bool, &'static str> {
        Ok(false)
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        vec![ListenerStatus { name: "in".to_owned(), addresses: vec!["127.0.0.1:15006".parse().unwrap()] }]
    }

    fn certificates(&self) -> Vec<Certificate> {
        vec![Certificate {
            path: "default".to_owned(),
            serial_number: "0a".to_owned(),
            uris: vec!["spiffe://td/ns/a/sa/b".to_owned()],
            days_until_expiration: 3,
            ..Certificate::default()
        }]
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            version: "1<b>".to_owned(),
            uptime: Duration::from_secs(12),
            node: json!({"id": "n"}),
            command_line_options: json!({"concurrency": 2}),
        }
    }

    fn drain_listeners(&self, request: DrainListeners) {
        self.drained.lock().unwrap().push(request);
    }
}

struct Fixture {
    admin: Arc<Admin>,
    source: Arc<Source>,
    startup: Option<ReadyGuard>,
    _writer: LogWriter,
    /// Keeps the reload handle alive.
    _layer: tracing_subscriber::reload::Layer<tracing_subscriber::EnvFilter, Subscriber>,
}

fn fixture() -> Fixture {
    let (readiness, startup) = Readiness::new();
    let writer = LogWriter::start().unwrap();
    let (layer, levels) = Levels::<Subscriber>::new("info,upstream=debug").unwrap();
    let source = Arc::new(Source::default());
    let admin = Admin {
        source: Arc::clone(&source) as Arc<dyn AdminSource>,
        registry: Registry::new(Options::default(), SystemTime::UNIX_EPOCH),
        stories: Arc::default(),
        readiness,
        drain: Drain::new(),
        logs: writer.control(),
        levels: Some(levels),
    };
    Fixture { admin: Arc::new(admin), source, startup: Some(startup), _writer: writer, _layer: layer }
}

impl Fixture {
    fn get(&self, target: &str) -> (StatusCode, String) {
        self.request(&Method::GET, target)
    }

    fn post(&self, target: &str) -> (StatusCode, String) {
        self.request(&Method::POST, target)
    }

    fn request(&self, method: &Method, target: &str) -> (StatusCode, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let answer = self.admin.handle(method, path, query);
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    fn json(&self, target: &str) -> Value {
        let (status, body) = self.get(target);
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[test]
fn ready_names_what_it_waits_for() {
    let mut f = fixture();
    assert_eq!(
        f.get("/ready"),
        (StatusCode::SERVICE_UNAVAILABLE, "PRE_INITIALIZING\nwaiting for: startup\n".to_owned())
    );
    drop(f.startup.take());
    assert_eq!(f.get("/ready"), (StatusCode::OK, "LIVE\n".to_owned()));
    assert_eq!(f.post("/healthcheck/fail").0, StatusCode::OK);
    assert_eq!(f.get("/healthz/ready").0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(f.get("/healthcheck"), (StatusCode::OK, "OK\n".to_owned()));
    assert_eq!(f.json("/server_info")["state"], "DRAINING");
    f.post("/healthcheck/ok");
    assert_eq!(f.get("/ready").0, StatusCode::OK);
}

#[test]
fn server_info_has_envoys_fields() {
    let info = fixture().json("/server_info");
    assert_eq!(info["uptime_current_epoch"], "12s");
    assert_eq!(info["command_line_options"]["concurrency"], 2);
    assert_eq!((&info["version"], &info["node"]["id"]), (&json!("1<b>"), &json!("n")));
}

#[test]
fn clusters_are_text_lines_or_json() {
    let f = fixture();
    let (_, text) = f.get("/clusters");
    for line in [
        "c<script>\u{fffd}::observability_name::c",
        "c<script>\u{fffd}::default_priority::max_connections::1024",
        "c<script>\u{fffd}::high_priority::max_retries::3",
        "c<script>\u{fffd}::added_via_api::true",
        "c<script>\u{fffd}::10.0.0.1:80::rq_active::0",
        "c<script>\u{fffd}::10.0.0.1:80::rq_total::7",
        "c<script>\u{fffd}::10.0.0.1:80::health_flags::/failed_active_hc/failed_outlier_check",
        "c<script>\u{fffd}::10.0.0.1:80::zone::z",
        "c<script>\u{fffd}::10.0.0.1:80::success_rate::-1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let status = &f.json("/clusters?format=json")["cluster_statuses"][0];
    let host = &status["host_statuses"][0];
    assert_eq!(status["circuit_breakers"]["thresholds"][1]["priority"], "HIGH");
    assert_eq!(host["address"]["socket_address"], json!({"address": "10.0.0.1", "port_value": 80}));
    assert!(
        host["stats"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "rq_total", "value": "7", "type": "COUNTER"}))
    );
    assert_eq!(host["health_status"]["failed_active_health_check"], true);
    assert_eq!(f.get("/clusters?format=xml").0, StatusCode::BAD_REQUEST);
}

#[test]
fn listeners_and_certificates() {
    let f = fixture();
    assert_eq!(f.get("/listeners").1, "in::127.0.0.1:15006\n");
    let status = &f.json("/listeners?format=json")["listener_statuses"][0];
    assert_eq!(status["local_address"]["socket_address"]["port_value"], 15006);
    let chain = &f.json("/certs")["certificates"][0]["cert_chain"][0];
    assert_eq!(chain["subject_alt_names"], json!([{"uri": "spiffe://td/ns/a/sa/b"}]));
    assert_eq!(chain["days_until_expiration"], "3");
}

#[test]
fn config_dump_gives_all_one_list_or_some_names() {
    let f = fixture();
    assert_eq!(f.json("/config_dump")["configs"].as_array().unwrap().len(), 2);
    let one = f.json("/config_dump?resource=dynamic_active_clusters");
    assert_eq!(one["configs"][1]["cluster"]["name"], "b");
    let named = f.json("/config_dump?resource=dynamic_active_clusters&name_regex=b|x");
    assert_eq!(named["configs"].as_array().unwrap().len(), 1);
    let named = f.json("/config_dump?name_regex=a");
    assert_eq!(named["configs"][0]["dynamic_active_clusters"].as_array().unwrap().len(), 1);
    assert_eq!(named["configs"][1]["dynamic_listeners"].as_array().unwrap().len(), 1);
    assert_eq!(f.get("/config_dump?resource=nope").0, StatusCode::NOT_FOUND);
    assert_eq!(f.get("/config_dump?name_regex=(").0, StatusCode::BAD_REQUEST);
    let (status, body) = f.get("/config_dump?mask=x");
    assert_eq!((status, body.as_str()), (StatusCode::BAD_REQUEST, "unknown query parameter `mask`\n"));
}

#[test]
fn stats_in_three_formats() {
    let f = fixture();
    f.admin.registry.worker().refused(Refusal::Overloaded);
    let line = "remora_downstream_rejected_total{reason=\"overloaded\"}";
    assert!(f.get("/stats").1.contains(&format!("{line}: 1\n")));
    assert_eq!(f.get("/stats?usedonly&filter=rejected").1, format!("{line}: 1\n"));
    let stats = f.json("/stats?format=json&filter=overloaded%22");
    assert_eq!(stats["stats"][0], json!({"name": line, "value": 1.0}));
    for target in ["/metrics", "/stats/prometheus", "/stats?format=prometheus"] {
        assert!(f.get(target).1.contains(&format!("{line} 1\n")), "{target}");
    }
    assert_eq!(f.get("/stats?filter=(").0, StatusCode::BAD_REQUEST);
}

#[test]
fn why_is_a_list_or_everything_about_one() {
    let f = fixture();
    assert_eq!(f.json("/why?format=json"), json!({ "stories": [] }));
    assert_eq!(
        f.get("/why").1,
        "TIME                      REASON                             STATUS  ID                                    RULE                              LISTENER\n"
    );
    let known =
        record::Downstream { connection_id: Some(7), server_name: Some("a\nb"), ..Default::default() };
    let record = AccessRecord { downstream: known, ..AccessRecord::default() };
    f.admin.stories.worker().tell(
        Refusal::DetectTimeout,
        &record,
        &Place { listener: "in", ..Place::default() },
    );
    let lines: Vec<String> = f.get("/why").1.lines().map(str::to_owned).collect();
    let words: Vec<_> = lines[1].split_whitespace().skip(1).collect();
    assert_eq!(words, ["detect_timeout", "-", "7", "-", "in"]);
    let (status, one) = f.get("/why/7");
    assert_eq!(status, StatusCode::OK);
    assert!(one.contains("\nserver_name: a\u{fffd}b\nmeans: The first bytes"), "{one}");
    assert_eq!(f.get("/why?id=7").1, one);
    assert_eq!(f.json("/why?format=json&reason=detect_timeout")["stories"][0]["connection_id"], 7);
    assert_eq!(f.json("/why?format=json&reason=no_route"), json!({ "stories": [] }));
    let (status, unknown) = f.get("/why/8?format=json");
    assert!(
        status == StatusCode::NOT_FOUND && unknown.contains("\"error\": \"not refused here"),
        "{unknown}"
    );
    for wrong in ["/why?reason=x", "/why/7?id=8", "/why?x", "/why?format=xml"] {
        assert_eq!(f.get(wrong).0, StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert_eq!(f.get("/whys").0, StatusCode::NOT_FOUND);
}

#[test]
fn changes_need_post() {
    let f = fixture();
    for page in PAGES {
        let (got, posted) = match page.change {
            Change::Never => (true, false),
            Change::WithParameters => (true, true),
            Change::Always => (false, true),
        };
        assert_eq!(f.get(page.path).0 != StatusCode::METHOD_NOT_ALLOWED, got, "GET {}", page.path);
        assert_eq!(f.post(page.path).0 != StatusCode::METHOD_NOT_ALLOWED, posted, "POST {}", page.path);
        assert_eq!(f.request(&Method::DELETE, page.path).0, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(f.admin.drain.phase(), Phase::Forced, "quitquitquit was posted");
    assert_eq!(f.get("/logging?level=debug").0, StatusCode::METHOD_NOT_ALLOWED);
    let refused = f.get("/quitquitquit").1;
    assert_eq!(refused, "Method GET not allowed, POST required.\n");
}

#[test]
fn draining_listeners_is_passed_on() {
    let f = fixture();
    assert_eq!(f.post("/drain_listeners?graceful&inboundonly").0, StatusCode::OK);
    assert_eq!(f.post("/drain_listeners").0, StatusCode::OK);
    assert_eq!(f.post("/drain_listeners?skip_exit").0, StatusCode::BAD_REQUEST);
    let wanted = |graceful, inbound_only| DrainListeners { graceful, inbound_only };
    assert_eq!(*f.source.drained.lock().unwrap(), [wanted(true, true), wanted(false, false)]);
}

#[test]
fn log_levels_are_shown_and_set() {
    let f = fixture();
    assert_eq!(f.get("/logging").1, "active loggers:\n  all: info\n  remora_proxy::upstream: debug\n");
    let (status, body) = f.post("/logging?paths=tls:trace,h2:off");
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("  h2: off\n") && body.contains("  remora_proxy::tls: trace\n"), "{body}");
    assert_eq!(f.post("/logging?level=warning").1, "active loggers:\n  all: warn\n");
    assert_eq!(f.post("/logging?tls=loud").0, StatusCode::BAD_REQUEST);
    assert_eq!(f.post("/logging?a%2Cb=info").0, StatusCode::BAD_REQUEST);
    let levels = f.admin.levels.as_ref().unwrap();
    assert_eq!(levels.levels(), [(String::new(), LevelFilter::WARN)]);
    for i in 0..100 {
        let result = levels.set(Some(&format!("m{i}")), LevelFilter::INFO);
        assert_eq!(result.is_ok(), i < 64);
    }
}

#[test]
fn every_page_is_in_the_documentation_and_in_the_help() {
    let f = fixture();
    let (home, help) = (f.get("/").1, f.get("/help").1);
    for page in PAGES {
        assert!(include_str!("mod.rs").contains(&format!("| `{}` |", page.path)), "{}", page.path);
        assert!(home.contains(&format!("\"{}\"", page.path)) && help.contains(page.path), "{}", page.path);
    }
    assert!(home.contains("Remora 1&lt;b&gt;"), "escaped");
    assert_eq!(f.get("/nope").0, StatusCode::NOT_FOUND);
}

async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _closed_early = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn served(pages: Pages, talk: impl AsyncFnOnce(SocketAddr, &Fixture)) {
    let f = fixture();
    let bound = f.admin.bind("127.0.0.1:0".parse().unwrap(), pages).await.unwrap();
    let address = bound.address;
    tokio::select! {
        () = bound.serve() => unreachable!("it serves until it is dropped"),
        () = talk(address, &f) => {}
    }
}

#[tokio::test]
async fn over_a_socket_with_the_headers_of_a_careful_server() {
    served(Pages::All, async |address, f| {
        let answer = raw(address, "GET /listeners HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n").await;
        let lower = answer.to_ascii_lowercase();
        assert!(lower.starts_with("http/1.1 200 ok\r\n"), "{answer}");
        assert!(lower.contains("content-type: text/plain; charset=utf-8\r\n"));
        assert!(lower.contains("x-content-type-options: nosniff\r\n"));
        assert!(answer.ends_with("\r\n\r\nin::127.0.0.1:15006\n"), "{answer}");

        let post = |host: &str, origin: &str| {
            format!("POST /healthcheck/fail HTTP/1.1\r\nHost: {host}\r\n{origin}Content-Length: 0\r\nConnection: close\r\n\r\n")
        };
        for (host, origin, expected) in [
            ("evil.example", "", "403"),
            ("127.0.0.1:1", "Origin: http://evil.example\r\n", "403"),
            ("127.0.0.1:1", "Origin: null\r\n", "403"),
            ("127.0.0.1:1", "Origin: http://127.0.0.1:1\r\n", "200"),
            ("[::1]:1", "", "200"),
        ] {
            let answer = raw(address, &post(host, origin)).await;
            assert_eq!(answer.get(9..12), Some(expected), "{host} {origin}: {answer}");
        }
        assert_eq!(f.admin.readiness.reasons(), ["healthcheck/fail", "startup"]);
    })
    .await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    served(Pages::All, async |address, _| {
        let answer = raw(
            address,
            &format!("GET /ready HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)),
        )
        .await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn small_servers_have_few_pages() {
    for (pages, path, other) in [
        (Pages::Readiness, "/healthz/ready", "/metrics"),
        (Pages::Metrics, "/stats/prometheus", "/config_dump"),
    ] {
        served(pages, async |address, f| {
            f.admin.readiness.set_failed(false);
            let get =
                |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
            assert!(!raw(address, &get(path)).await.starts_with("HTTP/1.1 404"));
            assert!(raw(address, &get(other)).await.starts_with("HTTP/1.1 404"));
            assert!(raw(address, &get("/quitquitquit")).await.starts_with("HTTP/1.1 404"));
        })
        .await;
    }
}
