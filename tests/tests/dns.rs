//! A listener that answers DNS: the table, the cache, and what it does when the name server fails. The clients are a resolver that others use, and bytes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use remora_tests::config::address;
use remora_tests::control_plane::ControlPlane;
use remora_tests::dns::{NameServer, Reply};
use remora_tests::proxy::Proxy;
use remora_tests::resources::{by_ads, control_cluster, lds, service};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::{eventually_async, within};
use remora_xds::{Kind, Resource};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::Instant;

const WEB: &str = "web.shop.svc.cluster.local";
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A listener with `web` in its table, which asks `server` for the rest.
fn listener(server: SocketAddr, client: &Value) -> Value {
    let mut at = address(([127, 0, 0, 1], 0).into());
    at["socket_address"]["protocol"] = "UDP".into();
    let mut all = json!({
        "max_pending_lookups": 64,
        "resolver_timeout": "1s",
        "typed_dns_resolver_config": {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [address(server)],
            },
        },
    });
    remora_tests::config::merge(&mut all, client.clone());
    json!({
        "name": "dns",
        "address": at,
        "listener_filters": [{
            "name": "envoy.filters.udp.dns_filter",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
                "stat_prefix": "dns",
                "server_config": { "inline_dns_table": { "external_retry_count": 3, "virtual_domains": [{
                    "name": WEB,
                    "endpoint": { "address_list": { "address": ["10.96.0.7"] } },
                    "answer_ttl": "30s",
                }] } },
                "client_config": all,
            },
        }],
    })
}

async fn proxy(server: &NameServer) -> Proxy {
    Proxy::builder().listener(listener(server.address, &json!({}))).start().await
}

/// A resolver without a cache of its own.
fn resolver(proxy: &Proxy, tcp: bool) -> TokioResolver {
    let at = proxy.address("dns");
    let mut connection = if tcp { ConnectionConfig::tcp() } else { ConnectionConfig::udp() };
    connection.port = at.port();
    let mut connections = vec![connection];
    if !tcp {
        // For what is truncated.
        let mut more = ConnectionConfig::tcp();
        more.port = at.port();
        connections.push(more);
    }
    let server = NameServerConfig::new(at.ip(), true, connections);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    (options.cache_size, options.attempts, options.timeout) = (0, 0, Duration::from_secs(10));
    let provider = TokioRuntimeProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(options).build().unwrap()
}

/// Addresses, or the code of an answer without any.
async fn ask(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, ResponseCode> {
    match within(name, resolver.lookup(format!("{name}."), kind)).await {
        Ok(found) => Ok(found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Err(none.response_code),
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(code),
        Err(other) => panic!("{name}: {other:?}"),
    }
}

fn counter(name: &str) -> String {
    format!("remora_dns_filter_{name}_total{{stat_prefix=\"dns\"}}")
}

#[tokio::test]
async fn names_of_the_table_are_answered_here_by_udp_and_tcp() {
    let server = NameServer::start().await;
    let proxy = proxy(&server).await;
    let vip = Ok(vec!["10.96.0.7".parse().unwrap()]);
    for tcp in [false, true] {
        let client = resolver(&proxy, tcp);
        assert_eq!(ask(&client, WEB, RecordType::A).await, vip);
        assert_eq!(ask(&client, "WEB.shop.SVC.cluster.local", RecordType::A).await, vip);
        // One family is not there, but the name is.
        assert_eq!(ask(&client, WEB, RecordType::AAAA).await, Err(ResponseCode::NoError));
        assert_eq!(ask(&client, WEB, RecordType::HTTPS).await, Err(ResponseCode::NoError));
    }
    assert_eq!(server.asked(WEB), 0);
    // Others are asked for other types, and cannot say that the name does not exist.
    let client = resolver(&proxy, false);
    assert_eq!(ask(&client, WEB, RecordType::SRV).await, Err(ResponseCode::NoError));
    assert_eq!(server.asked(WEB), 1);
    proxy.counts(&counter("local_a_record_answers"), 4).await;
    proxy.counts(&counter("known_domain_queries"), 9).await;
}

#[tokio::test]
async fn other_names_are_asked_for_once_and_kept() {
    let server = NameServer::start().await;
    server.set("other.test", Reply::Addresses(vec![ELSEWHERE], 60));
    let proxy = proxy(&server).await;
    let client = resolver(&proxy, false);
    for _ in 0..3 {
        assert_eq!(ask(&client, "other.test", RecordType::A).await, Ok(vec![ELSEWHERE.into()]));
    }
    assert_eq!(server.asked("other.test"), 1);
    assert_eq!(ask(&client, "none.test", RecordType::A).await, Err(ResponseCode::NXDomain));
    proxy.counts(&counter("cache_hits"), 2).await;
    proxy.counts(&counter("externally_resolved_queries"), 4).await;
}

#[tokio::test]
async fn clients_that_ask_for_the_same_wait_together() {
    let server = NameServer::start().await;
    server.set("slow.test", Reply::Silence);
    let proxy = proxy(&server).await;
    let ask_slowly = || {
        let client = resolver(&proxy, false);
        tokio::spawn(async move { ask(&client, "slow.test", RecordType::A).await })
    };
    let waiting = [ask_slowly(), ask_slowly()];
    proxy.counts(&counter("coalesced_queries"), 1).await;
    server.set("slow.test", Reply::Addresses(vec![ELSEWHERE], 60));
    for client in waiting {
        assert_eq!(client.await.unwrap(), Ok(vec![ELSEWHERE.into()]));
    }
    proxy.counts(&counter("upstream_queries"), 1).await;
}

#[tokio::test]
async fn what_is_too_long_for_udp_comes_by_tcp_on_both_sides() {
    let server = NameServer::start().await;
    let many: Vec<_> = (1..=200).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
    server.set("many.test", Reply::Addresses(many, 60));
    let proxy = proxy(&server).await;
    let found = ask(&resolver(&proxy, false), "many.test", RecordType::A).await.unwrap();
    assert_eq!(found.len(), 200);
    assert_eq!(server.asked("many.test"), 2, "by UDP, and then by TCP");
    assert!(proxy.count(&counter("downstream_tx_truncated")).await >= 1);
}

#[tokio::test]
async fn the_last_answer_serves_while_the_name_server_fails() {
    let server = NameServer::start().await;
    server.set("short.test", Reply::Addresses(vec![ELSEWHERE], 1));
    let proxy = proxy(&server).await;
    let client = resolver(&proxy, false);
    let good = Ok(vec![IpAddr::from(ELSEWHERE)]);
    assert_eq!(ask(&client, "short.test", RecordType::A).await, good);
    server.set("short.test", Reply::Failure);
    eventually_async("a stale answer", async || {
        assert_eq!(ask(&client, "short.test", RecordType::A).await, good);
        proxy.count(&counter("stale_answers")).await > 0
    })
    .await;
    let moved = Ipv4Addr::new(192, 0, 2, 2);
    server.set("short.test", Reply::Addresses(vec![moved], 60));
    eventually_async("the new answer", async || {
        ask(&client, "short.test", RecordType::A).await == Ok(vec![moved.into()])
    })
    .await;
    server.set("never.test", Reply::Failure);
    for _ in 0..2 {
        assert_eq!(ask(&client, "never.test", RecordType::A).await, Err(ResponseCode::ServFail));
    }
    assert_eq!(server.asked("never.test"), 1, "neither repeated, nor asked again at once");
    assert!(proxy.count(&counter("failures_remembered")).await >= 1);
}

/// A client does not wait for a server that is not there while there is an answer that was good.
#[tokio::test]
async fn the_last_answer_comes_before_a_silent_server_has_had_its_time() {
    let server = NameServer::start().await;
    server.set("short.test", Reply::Addresses(vec![ELSEWHERE], 1));
    let timeout = Duration::from_secs(5);
    let slow = json!({ "resolver_timeout": "5s" });
    let proxy = Proxy::builder().listener(listener(server.address, &slow)).start().await;
    let client = resolver(&proxy, false);
    let good = Ok(vec![IpAddr::from(ELSEWHERE)]);
    assert_eq!(ask(&client, "short.test", RecordType::A).await, good);
    server.set("short.test", Reply::Silence);
    let mut longest = Duration::ZERO;
    eventually_async("a stale answer", async || {
        let asked = Instant::now();
        assert_eq!(ask(&client, "short.test", RecordType::A).await, good);
        longest = longest.max(asked.elapsed());
        proxy.count(&counter("stale_answers")).await > 0
    })
    .await;
    assert!(longest < timeout, "{longest:?}");
}

#[tokio::test]
async fn beyond_the_limit_clients_are_told() {
    let server = NameServer::start().await;
    server.set("silent.test", Reply::Silence);
    let limit = json!({ "max_pending_lookups": 1, "resolver_timeout": "5s" });
    let proxy = Proxy::builder().listener(listener(server.address, &limit)).start().await;
    let waits = resolver(&proxy, false);
    let waiting = tokio::spawn(async move { waits.lookup("silent.test.", RecordType::A).await.is_err() });
    proxy.counts(&counter("upstream_queries"), 1).await;
    let refused = ask(&resolver(&proxy, false), "another.test", RecordType::A).await;
    assert_eq!(refused, Err(ResponseCode::ServFail));
    assert!(proxy.count(&counter("pending_overflow")).await >= 1);
    assert_eq!(server.asked("another.test"), 0);
    // The table needs nobody.
    assert!(ask(&resolver(&proxy, false), WEB, RecordType::A).await.is_ok());
    waiting.abort();
}

#[tokio::test]
async fn a_new_table_keeps_the_cache_and_the_last_listener_goes() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let (plane, server) = (ControlPlane::start().await, NameServer::start().await);
    server.set("other.test", Reply::Addresses(vec![ELSEWHERE], 60));
    let listener_of = |address: &str| {
        let mut listener = listener(server.address, &json!({}));
        let table = &mut listener["listener_filters"][0]["typed_config"]["server_config"]["inline_dns_table"];
        table["virtual_domains"][0]["endpoint"]["address_list"]["address"] = json!([address]);
        lds(listener)
    };
    let publish = |dns: Option<Resource>| plane.publish(service(origin.address(), 1).into_iter().chain(dns));
    publish(Some(listener_of("10.96.0.7")));
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let client = resolver(&proxy, false);
    assert_eq!(ask(&client, WEB, RecordType::A).await, Ok(vec!["10.96.0.7".parse().unwrap()]));
    assert_eq!(ask(&client, "other.test", RecordType::A).await, Ok(vec![ELSEWHERE.into()]));
    publish(Some(listener_of("10.96.0.8")));
    eventually_async("the new address", async || {
        ask(&client, WEB, RecordType::A).await == Ok(vec!["10.96.0.8".parse().unwrap()])
    })
    .await;
    assert_eq!(ask(&client, "other.test", RecordType::A).await, Ok(vec![ELSEWHERE.into()]));
    assert_eq!(server.asked("other.test"), 1);
    publish(None);
    let at = proxy.address("dns");
    eventually_async("nobody listens", async || tokio::net::TcpStream::connect(at).await.is_err()).await;
}

#[tokio::test]
async fn a_listener_that_is_refused_keeps_its_table() {
    let origin = Http1Upstream::answering(Answer::ok("origin")).await;
    let (plane, server) = (ControlPlane::start().await, NameServer::start().await);
    let publish = |port: u16, address: &str| {
        let mut listener = listener(server.address, &json!({}));
        listener["address"]["socket_address"]["port_value"] = port.into();
        let table = &mut listener["listener_filters"][0]["typed_config"]["server_config"]["inline_dns_table"];
        table["virtual_domains"][0]["endpoint"]["address_list"]["address"] = json!([address]);
        plane.publish(service(origin.address(), 1).into_iter().chain([lds(listener)]));
    };
    publish(0, "10.96.0.7");
    let proxy = Proxy::builder()
        .cluster(control_cluster(&[plane.address]))
        .dynamic(by_ads("DELTA_GRPC"))
        .start()
        .await;
    let client = resolver(&proxy, false);
    let first = Ok(vec!["10.96.0.7".parse().unwrap()]);
    assert_eq!(ask(&client, WEB, RecordType::A).await, first);
    // Somebody has that port.
    let held = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    publish(held.local_addr().unwrap().port(), "10.96.0.8");
    let why = plane.refused(Kind::Listener, "dns").await;
    assert!(why.contains("cannot listen") && why.contains("it still listens on"), "{why}");
    assert_eq!(ask(&client, WEB, RecordType::A).await, first);
}

#[tokio::test]
async fn what_is_malformed_is_refused_or_dropped() {
    let server = NameServer::start().await;
    let proxy = proxy(&server).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(proxy.address("dns")).await.unwrap();
    // Half a header, an answer, and at last a question that breaks off.
    for message in
        [&[1, 2, 3][..], &[0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[0, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]]
    {
        socket.send(message).await.unwrap();
    }
    let mut answer = [0; 512];
    let length = within("FORMERR", socket.recv(&mut answer)).await.unwrap();
    assert_eq!(&answer[..length], [0, 2, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    proxy.counts(&counter("downstream_rx_invalid_queries"), 3).await;
    assert!(ask(&resolver(&proxy, false), WEB, RecordType::A).await.is_ok());
}
