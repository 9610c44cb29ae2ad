//! Workload.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{default_name, one, port, some_port};

/// `remora.dev/v1alpha1` Workload: a process on a machine, with a sidecar beside it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Where other sidecars reach this one's.
    pub address: IpAddr,
    /// All its addresses, as a pod with both versions of IP has two. It is known by each of them; endpoints have `address`, which
    /// need not be said again.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Port of the sidecar's inbound listener.
    #[serde(default = "default_inbound", deserialize_with = "port")]
    pub inbound_port: u16,
    /// How the program's connections get to the sidecar.
    #[serde(default)]
    pub interception: Interception,
    /// Where the program listens, on loopback.
    #[serde(default)]
    pub ports: Vec<WorkloadPort>,
    /// The identity is `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// The trust domain of its identity, when it is a workload of another mesh (SPIFFE federation); the mesh's own when it is left out.
    #[serde(default)]
    pub trust_domain: Option<String>,
    /// Its share of the requests, relative to the others of its Services.
    #[serde(default = "one")]
    pub weight: u32,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
    /// What the program calls. Left out: every port of every Service of the namespace that does not select this workload.
    #[serde(default)]
    pub egress: Option<Vec<Egress>>,
    /// An HTTP proxy on loopback, through which the program calls Services by name. `egress` without `localPort` is called through it, and without
    /// `egress` every Service.
    #[serde(default)]
    pub http_proxy: Option<HttpProxy>,
}

impl WorkloadSpec {
    /// Each of its addresses once, `address` first. Those of IPv4 that are written as IPv6 (RFC 4291 section 2.5.5.2) are IPv4.
    #[must_use]
    pub fn all_addresses(&self) -> Vec<IpAddr> {
        let mut all = Vec::with_capacity(1 + self.addresses.len());
        for ip in std::iter::once(&self.address).chain(&self.addresses).map(IpAddr::to_canonical) {
            if !all.contains(&ip) {
                all.push(ip);
            }
        }
        all
    }
}

/// Where a sidecar is an HTTP proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProxy {
    /// A port of 127.0.0.1.
    #[serde(default = "default_http_proxy", deserialize_with = "port")]
    pub port: u16,
}

const fn default_http_proxy() -> u16 {
    15_002
}

/// How connections get to a sidecar. The node says it, too (`INTERCEPTION_MODE`), and there it decides which listeners it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Interception {
    /// They are made to it: the program calls ports of its own loopback.
    #[default]
    None,
    /// Rules of its network namespace lead them to it (`remora init`).
    Redirect,
}

/// A place, from large to small.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Locality {
    /// Region.
    #[serde(default)]
    pub region: String,
    /// Zone of the region.
    #[serde(default)]
    pub zone: String,
    /// Part of the zone.
    #[serde(default)]
    pub sub_zone: String,
}

/// Port of the inbound listener when a Workload names none (Istio's).
pub const INBOUND_PORT: u16 = 15_006;

const fn default_inbound() -> u16 {
    INBOUND_PORT
}

/// A port of a workload.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadPort {
    /// What `targetPort` may say.
    #[serde(default)]
    pub name: Option<String>,
    /// Number.
    #[serde(deserialize_with = "port")]
    pub port: u16,
}

/// A Service that a workload calls, on a port of its own loopback.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// Name of the Service.
    pub service: String,
    /// Its namespace; the workload's when it is left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// A port of it; all of them when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
    /// Where the sidecar listens on 127.0.0.1; the Service's own port when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub local_port: Option<u16>,
}
