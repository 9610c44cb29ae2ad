//! Process-lifetime settings from the bootstrap: who this proxy is, and where its admin page listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use remora_xds::diag::{At, Errors};
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::config::core::v3::address::Address;
use remora_xds::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use remora_xds::pb::google::protobuf::value::Kind;

use crate::telemetry::labels::{PeerLabels, UNKNOWN};

/// See the module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `node.id`.
    pub node_id: Arc<str>,
    /// `node.cluster`.
    pub node_cluster: Arc<str>,
    /// Where the admin page listens; None switches it off.
    pub admin: Option<SocketAddr>,
    /// Labels of this workload in metrics, from `node.metadata` with Istio's keys.
    pub workload: PeerLabels,
}

/// Port of the admin page when the bootstrap has an `admin` without an address.
const ADMIN_PORT: u16 = 15_000;

/// Reports what an address of the admin page cannot have: the types of the API allow UDP, which is for DNS listeners.
pub fn check(bootstrap: &Bootstrap, errors: &mut Errors) {
    let address = bootstrap.admin.as_ref().and_then(|admin| admin.address.as_ref()?.address.as_ref());
    if let Some(Address::SocketAddress(socket)) = address
        && socket.protocol != Protocol::Tcp as i32
    {
        let root = At::root();
        let at = root.field("admin");
        let at = at.field("address");
        let at = at.field("socket_address");
        errors.report(&at.field("protocol"), "must be TCP").fix("remove it");
    }
}

/// Reads the settings.
#[must_use]
pub fn settings(bootstrap: &Bootstrap) -> Settings {
    let node = bootstrap.node.clone().unwrap_or_default();
    let admin = bootstrap.admin.as_ref().map(|admin| {
        let socket = admin.address.as_ref().and_then(|a| match &a.address {
            Some(Address::SocketAddress(socket)) => Some(socket),
            _ => None,
        });
        let fallback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);
        socket.map_or(fallback, |socket| {
            let port = match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => u16::try_from(port).unwrap_or(ADMIN_PORT),
                _ => ADMIN_PORT,
            };
            SocketAddr::new(socket.address.parse().unwrap_or_else(|_| fallback.ip()), port)
        })
    });
    Settings {
        workload: workload(&node),
        node_id: node.id.as_str().into(),
        node_cluster: node.cluster.as_str().into(),
        admin,
    }
}

fn workload(node: &Node) -> PeerLabels {
    let text = |key: &str| {
        let value = node.metadata.as_ref()?.fields.get(key)?;
        match &value.kind {
            Some(Kind::StringValue(text)) => Some(Arc::<str>::from(text.as_str())),
            _ => None,
        }
    };
    let unknown = || Arc::<str>::from(UNKNOWN);
    let name = text("WORKLOAD_NAME")
        .unwrap_or_else(|| if node.cluster.is_empty() { unknown() } else { node.cluster.as_str().into() });
    PeerLabels {
        workload: Arc::clone(&name),
        namespace: text("NAMESPACE").unwrap_or_else(unknown),
        principal: text("PRINCIPAL").unwrap_or_else(unknown),
        app: text("APP").unwrap_or_else(|| Arc::clone(&name)),
        version: text("VERSION").unwrap_or_else(unknown),
        canonical_service: text("CANONICAL_SERVICE").unwrap_or(name),
        canonical_revision: text("CANONICAL_REVISION").unwrap_or_else(unknown),
        cluster: text("CLUSTER_ID").unwrap_or_else(unknown),
    }
}

#[cfg(test)]
mod tests {
    use remora_xds::Schema;
    use remora_xds::diag::SourceMap;

    use super::*;

    #[test]
    fn an_admin_page_by_udp_is_refused() {
        let said = |protocol: &str| {
            let text = format!(
                "admin: {{ address: {{ socket_address: {{ {protocol} address: 127.0.0.1, port_value: 0 }} }} }}"
            );
            let bootstrap = Schema::load().parse::<Bootstrap>(&text, "b").unwrap().message;
            let mut errors = Errors::new("b", SourceMap::default());
            check(&bootstrap, &mut errors);
            errors.into_list().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(said("protocol: TCP,"), Vec::<String>::new());
        assert_eq!(
            said("protocol: UDP,"),
            ["b: admin.address.socket_address.protocol: must be TCP (remove it)"]
        );
    }
}
