use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use tokio::time::Instant;

use super::*;
use crate::config::names::{ChainId, ClusterId};
use crate::error::Reason;
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::labels::*;

fn registry(max_series: usize) -> Arc<Registry> {
    Registry::new(Options { max_series, ..Options::default() }, SystemTime::UNIX_EPOCH)
}

fn key(status: u16) -> RequestKey {
    RequestKey {
        chain: ChainId::from_index(1),
        cluster: Some(ClusterId::from_index(2)),
        source: PeerId::default(),
        destination: PeerId::default(),
        status,
        grpc: None,
        flags: ResponseFlags::NONE,
        protocol: RequestProtocol::Http,
        security: SecurityPolicy::MutualTls,
    }
}

fn labels(status: u16) -> RequestLabels {
    RequestLabels {
        reporter: Reporter::Destination,
        source: Arc::default(),
        destination: Arc::default(),
        service: Arc::new(ServiceLabels { host: "a.b.svc".into(), name: "a".into(), namespace: "b".into() }),
        status,
        grpc: None,
        flags: ResponseFlags::NONE,
        protocol: RequestProtocol::Http,
        security: SecurityPolicy::MutualTls,
    }
}

fn request(worker: &WorkerMetrics, status: u16) {
    let sample =
        RequestSample { duration: Duration::from_micros(300), request_bytes: 10, response_bytes: 2000 };
    worker.request(&key(status), &sample, || labels(status));
}

/// `name` with the label `response_code`, or None when there is no such line.
fn value(text: &str, name: &str, code: &str) -> Option<f64> {
    let label = format!("response_code=\"{code}\"");
    let line = text
        .lines()
        .find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with('{')) && l.contains(&label))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn total(text: &str, code: &str) -> Option<f64> {
    value(text, "remora_requests_total", code)
}

#[test]
fn keys_are_small() {
    assert!(size_of::<RequestKey>() <= 40, "{}", size_of::<RequestKey>());
}

#[test]
fn workers_are_added_up() {
    let registry = registry(100);
    let (a, b) = (registry.worker(), registry.worker());
    for _ in 0..3 {
        request(&a, 200);
    }
    request(&b, 200);
    request(&b, 503);
    let text = registry.encode(Instant::now()).unwrap();
    assert_eq!((total(&text, "200"), total(&text, "503")), (Some(4.0), Some(1.0)));
    assert_eq!(value(&text, "remora_request_duration_milliseconds_count", "200"), Some(4.0));
    assert_eq!(value(&text, "remora_request_duration_milliseconds_sum", "200"), Some(1.2));
    assert_eq!(value(&text, "remora_response_bytes_sum", "200"), Some(8000.0));
    let bucket = |le: &str| {
        let le = format!("le=\"{le}\"");
        let line = text.lines().find(|l| {
            l.starts_with("remora_request_duration_milliseconds_bucket")
                && l.contains("=\"200\"")
                && l.contains(&le)
        });
        line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!((bucket("0.25").as_str(), bucket("0.5").as_str(), bucket("+Inf").as_str()), ("0", "4", "4"));
    let line = text.lines().find(|l| l.starts_with("remora_requests_total{")).unwrap();
    for name in RequestLabels::NAMES {
        assert!(line.contains(&format!("{name}=\"")), "{name}");
    }
    assert!(
        line.contains("reporter=\"destination\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
    );
    assert!(line.contains("destination_service=\"a.b.svc\"") && line.contains("response_flags=\"-\""));
}

#[test]
fn labels_are_asked_for_once_for_each_worker_and_key() {
    let registry = registry(100);
    let worker = registry.worker();
    let mut asked = 0;
    for _ in 0..5 {
        worker.request(&key(200), &RequestSample::default(), || {
            asked += 1;
            labels(200)
        });
    }
    assert_eq!(asked, 1);
    worker.forget_labels();
    request(&worker, 200);
    assert_eq!(total(&registry.encode(Instant::now()).unwrap(), "200"), Some(6.0));
}

#[test]
fn two_keys_with_the_same_labels_are_one_series() {
    let registry = registry(100);
    let worker = registry.worker();
    for chain in 0..4 {
        let key = RequestKey { chain: ChainId::from_index(chain), ..key(200) };
        worker.request(&key, &RequestSample::default(), || labels(200));
    }
    let text = registry.encode(Instant::now()).unwrap();
    assert_eq!(text.lines().filter(|l| l.starts_with("remora_requests_total{")).count(), 1);
    assert_eq!(total(&text, "200"), Some(4.0));
}

#[test]
fn beyond_the_cap_requests_are_counted_as_other() {
    let registry = registry(2);
    let (a, b) = (registry.worker(), registry.worker());
    for status in 200..210 {
        request(&a, status);
        request(&b, status);
        request(&b, status);
    }
    let text = registry.encode(Instant::now()).unwrap();
    assert_eq!((total(&text, "200"), total(&text, "201"), total(&text, "202")), (Some(3.0), Some(3.0), None));
    assert_eq!(total(&text, "other"), Some(24.0));
    let refused = text.lines().find(|l| l.contains("overflow_total{family=\"requests\"}")).unwrap();
    assert!(!refused.ends_with(" 0"), "{refused}");
    // Nothing is lost: every request is in exactly one series.
    let all: f64 = text
        .lines()
        .filter(|l| l.starts_with("remora_requests_total{"))
        .map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum();
    assert!((all - 30.0).abs() < f64::EPSILON);
}

#[test]
fn a_quiet_series_expires_and_makes_room() {
    let registry = registry(1);
    let worker = registry.worker();
    let start = Instant::now();
    request(&worker, 200);
    request(&worker, 404);
    let at = |seconds| registry.encode(start + Duration::from_secs(seconds)).unwrap();
    assert_eq!(total(&at(0), "200"), Some(1.0));
    assert_eq!(total(&at(599), "200"), Some(1.0));
    assert_eq!(total(&at(601), "200"), None, "quiet for ten minutes");
    request(&worker, 404);
    let text = at(602);
    assert_eq!((total(&text, "404"), total(&text, "other")), (Some(1.0), Some(1.0)), "there is room again");
    // The old series begins again at zero.
    request(&worker, 404);
    assert_eq!(total(&at(700), "404"), Some(2.0));
    assert_eq!(total(&at(1299), "404"), Some(2.0));
    assert_eq!(total(&at(1300), "404"), None);
    request(&worker, 200);
    assert_eq!(total(&at(1301), "200"), Some(1.0));
}

#[test]
fn what_an_open_connection_counts_after_its_series_expired_is_not_lost() {
    let registry = registry(10);
    let worker = registry.worker();
    let key = TcpKey {
        chain: ChainId::from_index(0),
        cluster: None,
        source: PeerId::default(),
        destination: PeerId::default(),
        flags: ResponseFlags::NONE,
        security: SecurityPolicy::None,
    };
    let series = worker.tcp(&key, || TcpLabels {
        reporter: Reporter::Source,
        source: Arc::default(),
        destination: Arc::default(),
        service: Arc::default(),
        flags: ResponseFlags::NONE,
        security: SecurityPolicy::None,
    });
    series.opened();
    series.sent(100);
    let start = Instant::now();
    let sum = |text: &str, name: &str| -> Option<f64> {
        text.lines().find(|l| l.starts_with(&format!("{name}{{")))?.rsplit_once(' ')?.1.parse().ok()
    };
    let at = |seconds| registry.encode(start + Duration::from_secs(seconds)).unwrap();
    assert_eq!(sum(&at(0), "remora_tcp_sent_bytes_total"), Some(100.0));
    assert_eq!(sum(&at(600), "remora_tcp_sent_bytes_total"), None);
    series.sent(7);
    series.closed();
    drop(series);
    let text = at(610);
    assert_eq!(sum(&text, "remora_tcp_sent_bytes_total"), Some(7.0));
    assert_eq!(sum(&text, "remora_tcp_connections_closed_total"), Some(1.0));
    assert_eq!(sum(&text, "remora_tcp_connections_opened_total"), Some(0.0));
}

#[test]
fn gauges_of_open_connections_do_not_expire() {
    let registry = registry(10);
    let worker = registry.worker();
    let listener = worker.listener(&"l1".into());
    listener.count(ListenerCount::Accepted);
    let start = Instant::now();
    let at = |seconds| registry.encode(start + Duration::from_secs(seconds)).unwrap();
    for seconds in [0, 10_000] {
        let text = at(seconds);
        assert!(text.contains("remora_downstream_connections{listener=\"l1\"} 1\n"));
    }
    listener.count(ListenerCount::Closed);
    assert!(at(10_001).contains("remora_downstream_connections{listener=\"l1\"} 0\n"));
    assert!(!at(20_000).contains("\"l1\""));
}

#[test]
fn fixed_counters_and_the_process_are_there() {
    let registry = registry(10);
    let worker = registry.worker();
    worker.refused(Refusal::NoFilterChain);
    worker.local_reply(Reason::NoRoute);
    worker.flooded();
    registry.control.config_accepted(ResourceKind::Cluster, 3);
    registry.control.config_rejected(ResourceKind::Listener, 1);
    registry.control.config_published(7, SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    let text = registry.encode(Instant::now()).unwrap();
    for line in [
        "remora_downstream_rejected_total{reason=\"no_filter_chain\"} 1",
        "remora_local_replies_total{reason=\"no_route\",party=\"proxy\"} 1",
        "remora_http2_flood_closes_total 1",
        "remora_config_updates_accepted_total{type=\"cluster\"} 3",
        "remora_config_updates_rejected_total{type=\"listener\"} 1",
        "remora_config_version 7",
        "remora_config_last_update_timestamp_seconds 5",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}");
    }
    for name in ["remora_build_info{", "process_resident_memory_bytes ", "process_cpu_seconds_total "] {
        assert!(text.lines().any(|l| l.starts_with(name)), "{name}");
    }
}

#[test]
fn every_name_is_exposed_once_with_one_type() {
    let registry = registry(10);
    let worker = registry.worker();
    request(&worker, StatusCode::OK.as_u16());
    let text = registry.encode(Instant::now()).unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn sources_of_the_same_family_are_joined() {
    struct One(&'static str);
    impl Collect for One {
        fn collect(&self, out: &mut Vec<MetricFamily>) {
            out.push(gauges("remora_x", "X.", [(vec![("who", self.0)], 1.0)]));
        }
    }
    let registry = registry(10);
    registry.add(Arc::new(One("a")));
    registry.add(Arc::new(One("b\"\n")));
    let text = registry.encode(Instant::now()).unwrap();
    assert_eq!(text.matches("# TYPE remora_x gauge").count(), 1);
    assert!(text.contains("remora_x{who=\"a\"} 1\nremora_x{who=\"b\\\"\\n\"} 1\n"));
}

#[test]
fn peers_have_stable_numbers() {
    let registry = registry(10);
    let (a, b) = (registry.worker(), registry.worker());
    let labels = PeerLabels { principal: "spiffe://td/ns/x/sa/y".into(), ..PeerLabels::default() };
    let first = a.peer(&labels);
    assert_eq!(first.id, b.peer(&labels).id);
    assert_eq!(first.id, a.peer(&labels).id);
    assert_ne!(first.id, a.peer(&PeerLabels::default()).id);
    assert_eq!(a.peer(&PeerLabels::default()).id, PeerId::default());
}

#[test]
fn the_prefix_may_be_istios() {
    let options = Options { istio_prefix: "istio_".into(), ..Options::default() };
    let registry = Registry::new(options, SystemTime::UNIX_EPOCH);
    request(&registry.worker(), 200);
    let text = registry.encode(Instant::now()).unwrap();
    assert_eq!(value(&text, "istio_requests_total", "200"), Some(1.0));
}

#[test]
fn every_refusal_has_a_cell_and_a_name_of_its_own() {
    let cells: std::collections::BTreeSet<_> = Refusal::all().map(Refusal::cell).collect();
    let names: std::collections::BTreeSet<_> = Refusal::all().map(|refusal| refusal.as_str()).collect();
    assert_eq!(cells, (0..Refusal::COUNT).collect());
    assert_eq!(names.len(), Refusal::COUNT);
}
