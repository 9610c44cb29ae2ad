//! C10: somebody else in the control plane's place, and what even the right one may not push.

use remora_tests::certs::Authority;
use remora_tests::config::{Listener, direct, merge, mutual_tls};
use remora_tests::control_plane::{ControlPlane, RawControlPlane};
use remora_tests::proxy::Proxy;
use remora_tests::relay::{Relay, Way};
use remora_tests::resources::{by_ads, control_cluster, lds, message, service, under, version, wire};
use remora_tests::traffic::Traffic;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually;
use remora_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use remora_xds::pb::envoy::config::listener::v3::Listener as PbListener;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{DownstreamTlsContext, SdsSecretConfig};
use remora_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use remora_xds::{Kind, Resource, any};

use super::{RECONNECTED, converged, says_why};

const PLANE: &str = "spiffe://mesh.test/ns/system/sa/control";
const PROXY: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const OTHER: &str = "spiffe://mesh.test/ns/shop/sa/mallory";

/// The proxy knows its control plane by its SPIFFE id. Nobody else is told anything or believed: not a workload with a certificate of
/// the same authority, not the right name from another authority, and not a server in plaintext.
#[tokio::test]
async fn only_the_control_plane_is_believed() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (origin, trap) = (
        Http1Upstream::answering(Answer::ok("origin")).await,
        Http1Upstream::answering(Answer::ok("trap")).await,
    );
    let (plane, hostile) = (ControlPlane::start().await, ControlPlane::start().await);
    plane.publish(service(origin.address(), 1));
    hostile.publish(service(trap.address(), 666));
    let real = Way::to(plane.address).behind(&authority.issue(&[PLANE]), &authority);
    let relay = Relay::start(real.clone()).await;
    let mut cluster = control_cluster(&[relay.address]);
    merge(&mut cluster, mutual_tls(&authority.issue(&[PROXY]), &authority, PLANE));
    let proxy = Proxy::builder().cluster(cluster).dynamic(by_ads("DELTA_GRPC")).start().await;
    let traffic = Traffic::start(&proxy).await;

    let way = Way::to(hostile.address);
    let hostile_ways = [
        (way.clone().behind(&authority.issue(&[OTHER]), &authority), "tls_certificate_name"),
        (way.clone().behind(&foreign.issue(&[PLANE]), &authority), "tls_certificate_untrusted"),
        (way, "tls_not_tls"),
    ];
    for (way, reason) in hostile_ways {
        relay.lead(way);
        says_why(&proxy, reason).await;
        eventually("the reason in the log", || proxy.stderr().contains(reason)).await;
        traffic.flows(20).await;
        assert_eq!(version(&mut proxy.http1().await).await, 1, "{reason}");
    }
    assert_eq!(hostile.said(), [], "no stream came about");
    assert_eq!(trap.requests().len(), 0);

    plane.publish(service(origin.address(), 2));
    relay.lead(real);
    let recovery = converged(&proxy, 2, RECONNECTED).await;
    println!("C10: three impostors refused; the control plane was accepted {recovery:?} after it was back");
    traffic.lost_nothing().await;
}

/// A listener that wants a secret of the process's own.
fn with_secret(listener: Listener) -> Resource {
    let mut pb = message::<PbListener>(&listener.into());
    let socket = pb.filter_chains[0].transport_socket.as_mut().unwrap();
    let Some(ConfigType::TypedConfig(config)) = &mut socket.config_type else { panic!("{socket:?}") };
    let mut tls = any::unpack::<DownstreamTlsContext>(config).unwrap();
    let common = tls.common_tls_context.as_mut().unwrap();
    common.tls_certificates.clear();
    common
        .tls_certificate_sds_secret_configs
        .push(SdsSecretConfig { name: OTHER.into(), ..SdsSecretConfig::default() });
    *config = any::pack(&tls);
    Resource::new(&pb)
}

/// Secrets are taken when a context asks for them: a static one that the process does not have is refused, and one that nobody
/// asked for ends the stream.
#[tokio::test]
async fn only_secrets_that_were_asked_for_are_taken() {
    let mut plane = RawControlPlane::start().await;
    let address = [plane.address];
    let listener = || Listener::http("ingress").route(direct("/version", 200, "1"));
    let (proxy, mut stream) = tokio::join!(under(&address).start(), async {
        let mut stream = plane.stream().await;
        stream.push(Kind::Cluster, Vec::new()).await;
        stream.push(Kind::Listener, vec![wire(&lds(listener()))]).await;
        stream
    });
    let authority = Authority::new();
    let tls = listener().mutual_tls(&authority.issue(&[OTHER]), &authority, OTHER);
    let answer = stream.push(Kind::Listener, vec![wire(&with_secret(tls))]).await;
    let refusal = answer.error_detail.unwrap().message;
    assert!(refusal.contains("tls_certificate_sds_secret_configs"), "{refusal}");

    let type_url = Kind::Secret.type_url().to_owned();
    stream.send_raw(DeltaDiscoveryResponse { type_url, ..DeltaDiscoveryResponse::default() }).await;
    eventually("the reason in the log", || {
        let log = proxy.stderr();
        log.contains("v3.Secret") && log.contains("was not asked for")
    })
    .await;
    assert_eq!(version(&mut proxy.http1().await).await, 1);
}
