//! Resources as a control plane serves them, and the bootstrap that asks for them.

use std::net::SocketAddr;
use std::sync::LazyLock;

use remora_xds::pb::envoy::config::cluster::v3::Cluster;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::listener::v3::Listener as PbListener;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use remora_xds::pb::envoy::service::discovery::v3::Resource as PbResource;
use remora_xds::wire::Wire;
use remora_xds::{Resource, Schema};
use serde_json::{Value, json};

use crate::certs::Identity;
use crate::client::http1::Http1Client;
use crate::config::{Listener, cluster, direct, route_config, to_cluster};
use crate::proxy::{Builder, Proxy};

/// The resource that a JSON text describes.
///
/// # Panics
/// When it describes none.
#[must_use]
pub fn message<M: Wire>(value: &Value) -> M {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::load);
    match SCHEMA.parse::<M>(&value.to_string(), "test") {
        Ok(parsed) => parsed.message,
        Err(errors) => panic!("{}", errors[0]),
    }
}

/// A cluster for [`ControlPlane::publish`](crate::control_plane::ControlPlane::publish).
#[must_use]
pub fn cds(value: &Value) -> Resource {
    Resource::new(&message::<Cluster>(value))
}

/// The endpoints of a cluster.
#[must_use]
pub fn eds(name: &str, endpoints: &[SocketAddr]) -> Resource {
    let value = cluster(name, endpoints)["load_assignment"].clone();
    Resource::new(&message::<ClusterLoadAssignment>(&value))
}

/// A listener.
#[must_use]
pub fn lds(value: impl Into<Value>) -> Resource {
    Resource::new(&message::<PbListener>(&value.into()))
}

/// A route configuration.
#[must_use]
pub fn rds(value: &Value) -> Resource {
    Resource::new(&message::<RouteConfiguration>(value))
}

/// A certificate with its key.
#[must_use]
pub fn own_secret(name: &str, identity: &Identity) -> Resource {
    let pair = json!({
        "certificate_chain": { "inline_string": identity.chain },
        "private_key": { "inline_string": identity.key },
    });
    Resource::new(&message::<Secret>(&json!({ "name": name, "tls_certificate": pair })))
}

/// Certificates of authorities (PEM), and with `revoked` a revocation list (PEM).
#[must_use]
pub fn roots_secret(name: &str, authorities: &str, revoked: Option<&str>) -> Resource {
    let mut context = json!({ "trusted_ca": { "inline_string": authorities } });
    if let Some(list) = revoked {
        context["crl"] = json!({ "inline_string": list });
    }
    Resource::new(&message::<Secret>(&json!({ "name": name, "validation_context": context })))
}

/// A resource as the wire has it, for [`RawStream`](crate::control_plane::RawStream).
#[must_use]
pub fn wire(resource: &Resource) -> PbResource {
    PbResource {
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        resource: Some(resource.any().clone()),
        ..PbResource::default()
    }
}

/// A cluster whose endpoints come by ADS.
#[must_use]
pub fn eds_cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": { "eds_config": { "resource_api_version": "V3", "ads": {} } },
    })
}

/// `rds` of a connection manager, by ADS.
#[must_use]
pub fn rds_by_ads(name: &str) -> Value {
    json!({ "rds": {
        "route_config_name": name,
        "config_source": { "resource_api_version": "V3", "ads": {} },
    }})
}

/// The static cluster of the control planes at these addresses.
#[must_use]
pub fn control_cluster(servers: &[SocketAddr]) -> Value {
    cluster("control", servers)
}

/// `dynamic_resources` with everything by ADS. `api_type` is `DELTA_GRPC` or `GRPC`.
#[must_use]
pub fn by_ads(api_type: &str) -> Value {
    json!({
        "ads_config": {
            "api_type": api_type,
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "control" } }],
        },
        "lds_config": { "resource_api_version": "V3", "ads": {} },
        "cds_config": { "resource_api_version": "V3", "ads": {} },
    })
}

/// `listener` with an HTTP listener's routes by ADS.
#[must_use]
pub fn ingress() -> Resource {
    lds(Listener::http("ingress").manager(rds_by_ads("routes")))
}

/// The routes of [`ingress`]: everything to `cluster`, and `/version` tells the version.
#[must_use]
pub fn routes(cluster: &str, version: u32) -> Resource {
    let version = direct("/version", 200, &version.to_string());
    rds(&route_config("routes", vec![version, to_cluster("/", cluster)]))
}

/// One service: cluster, endpoints, listener, routes.
#[must_use]
pub fn service(origin: SocketAddr, version: u32) -> Vec<Resource> {
    vec![cds(&eds_cluster("origin")), eds("origin", &[origin]), ingress(), routes("origin", version)]
}

/// The version of [`routes`] that a client meets.
///
/// # Panics
/// When there is none.
pub async fn version(client: &mut Http1Client) -> u32 {
    client.get("/version").await.expect("an answer").text().parse().expect("a version")
}

/// A proxy that takes everything from these servers.
#[must_use]
pub fn under(servers: &[SocketAddr]) -> Builder {
    Proxy::builder().cluster(control_cluster(servers)).dynamic(by_ads("DELTA_GRPC"))
}
