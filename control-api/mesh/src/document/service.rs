//! Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use super::{Kept, Unsupported, port};

/// `v1` Service: a name for the workloads that its selector matches.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Labels that a workload of the same namespace must have. Empty: no workloads, only HTTPRoutes lead somewhere.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `ClusterIP` or nothing.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Names outside of the mesh are not supported.
    #[serde(default)]
    pub external_name: Option<Unsupported>,
    /// Its address, as Kubernetes or its author chose it: intercepted callers connect to it. `None` or nothing: it has none.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Vip,
    /// The same, with one of the other version of IP.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<Vip>,
    #[serde(default, rename = "ipFamilies")]
    _ip_families: Kept,
    #[serde(default, rename = "ipFamilyPolicy")]
    _ip_family_policy: Kept,
    #[serde(default, rename = "internalTrafficPolicy")]
    _internal_traffic_policy: Kept,
    /// `None` or nothing.
    #[serde(default)]
    pub session_affinity: Option<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name, needed when there are several.
    #[serde(default)]
    pub name: Option<String>,
    /// The number that callers know.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Number or name of the port of the workload; `port` when it is left out.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// What is spoken. Left out, the beginning of the name says it (`http`, `http2`, `grpc`, `tcp`), else it is TCP.
    #[serde(default)]
    pub app_protocol: Option<AppProtocol>,
    /// Only TCP.
    #[serde(default)]
    pub protocol: Transport,
}

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Transport {
    /// The only one.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
}

/// `appProtocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum AppProtocol {
    /// HTTP/1 to the application.
    #[serde(rename = "http", alias = "HTTP")]
    Http,
    /// HTTP/2 with prior knowledge to the application.
    #[serde(rename = "kubernetes.io/h2c", alias = "http2", alias = "h2c")]
    Http2,
    /// HTTP/2, and requests are gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// Opaque bytes.
    #[serde(rename = "tcp", alias = "TCP")]
    Tcp,
}

impl ServiceSpec {
    /// Its addresses.
    #[must_use]
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.cluster_ips.iter().chain([&self.cluster_ip]).filter_map(|vip| vip.0).collect()
    }
}

/// `clusterIP`: an address, or `None` or nothing for a Service without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vip(pub Option<IpAddr>);

impl<'de> Deserialize<'de> for Vip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text == "None" {
            return Ok(Self(None));
        }
        let usable = |ip: &IpAddr| !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast());
        let found = text.parse().ok().filter(usable);
        found.map(|ip| Self(Some(ip))).ok_or_else(|| {
            Error::custom(format_args!("{text:?} is no address of a Service: an IP address, or None"))
        })
    }
}

crate::schema::written!(Vip, "Vip", { "type": "string" });

impl ServicePort {
    /// What is spoken on the port.
    #[must_use]
    pub fn speaks(&self) -> AppProtocol {
        let by_name = || match self.name.as_deref()?.split('-').next()? {
            "http" => Some(AppProtocol::Http),
            "http2" => Some(AppProtocol::Http2),
            "grpc" => Some(AppProtocol::Grpc),
            _ => None,
        };
        self.app_protocol.or_else(by_name).unwrap_or(AppProtocol::Tcp)
    }
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name that the workload gives it.
    Name(String),
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = TargetPort;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the number or the name of a port")
            }
            fn visit_i128<E: Error>(self, value: i128) -> Result<TargetPort, E> {
                let number = u16::try_from(value).ok().filter(|n| *n > 0);
                number
                    .map(TargetPort::Number)
                    .ok_or_else(|| E::custom(format_args!("{value} is no port: 1 to 65535")))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

crate::schema::written!(TargetPort, "TargetPort", { "x-kubernetes-int-or-string": true });
