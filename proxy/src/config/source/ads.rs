//! The control plane: which cluster it is, and connections to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use remora_xds::client::{Changed, Connecting, Connector, Duplex, Variant};
use remora_xds::diag::{At, Errors};
use remora_xds::pb::envoy::config::core::v3::api_config_source::ApiType;
use remora_xds::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use remora_xds::pb::envoy::config::core::v3::{ApiConfigSource, ApiVersion, GrpcService, Node};
use tokio::sync::watch;

use crate::tls::client::{AlpnOffer, Target};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect;

/// `dynamic_resources.ads_config`.
#[derive(Debug, Clone)]
pub struct AdsSpec {
    /// `api_type`.
    pub variant: Variant,
    /// `grpc_services[0].envoy_grpc.cluster_name`: a static cluster. Its endpoints are the servers.
    pub cluster: Arc<str>,
    /// `grpc_services[0].envoy_grpc.authority`, or the name of the cluster.
    pub authority: Arc<str>,
    /// `node`, with the name of this program.
    pub node: Node,
}

/// Compiles `ads_config`. `clusters` are the static ones. None when it has mistakes, which are in `errors`.
pub fn compile_ads_config(
    pb: &ApiConfigSource,
    node: Option<&Node>,
    clusters: &[&str],
    at: &At<'_>,
    errors: &mut Errors,
) -> Option<AdsSpec> {
    let before = errors.len();
    let at = at.field("ads_config");
    let variant = match ApiType::try_from(pb.api_type) {
        Ok(ApiType::DeltaGrpc) => Variant::Delta,
        Ok(ApiType::Grpc) => Variant::Sotw,
        _ => {
            errors.report(&at.field("api_type"), "is not supported").fix("DELTA_GRPC or GRPC");
            return None;
        }
    };
    if !matches!(ApiVersion::try_from(pb.transport_api_version), Ok(ApiVersion::Auto | ApiVersion::V3)) {
        errors.report(&at.field("transport_api_version"), "is not supported").fix("V3");
    }
    let services = at.field("grpc_services");
    let [service] = pb.grpc_services.as_slice() else {
        errors
            .report(&services, format!("has {} entries", pb.grpc_services.len()))
            .fix("name one cluster; each of its endpoints is tried");
        return None;
    };
    let at = services.index(0);
    unsupported_for_streams(service, &at, errors);
    let Some(TargetSpecifier::EnvoyGrpc(grpc)) = &service.target_specifier else {
        errors.report(&at, "names no cluster").fix("envoy_grpc: {cluster_name: …}");
        return None;
    };
    let at = at.field("envoy_grpc");
    let name = grpc.cluster_name.as_str();
    if !clusters.contains(&name) {
        errors
            .report(&at.field("cluster_name"), format!("{name:?} is not among static_resources.clusters"))
            .fix("define it there, with the address of the control plane");
    }
    let node = node.filter(|node| !node.id.is_empty());
    if node.is_none() {
        errors.report(&At::root().field("node"), "has no id").fix("a control plane has to know who asks");
    }
    let authority = if grpc.authority.is_empty() { name } else { &grpc.authority };
    if authority.parse::<http::uri::Authority>().is_err() {
        errors
            .report(&at.field("authority"), format!("{authority:?} is no host name to ask for"))
            .fix("name the control plane's host; without this field the name of the cluster is used");
    }
    if errors.len() > before {
        return None;
    }
    let mut node = node.cloned().unwrap_or_default();
    node.user_agent_name = "remora".into();
    Some(AdsSpec { variant, cluster: name.into(), authority: authority.into(), node })
}

/// What is for calls of one answer.
fn unsupported_for_streams(service: &GrpcService, at: &At<'_>, errors: &mut Errors) {
    if service.timeout.is_some() {
        errors
            .report(&at.field("timeout"), "this field is not supported")
            .fix("remove it: a stream has none");
    }
    if !service.initial_metadata.is_empty() {
        errors.report(&at.field("initial_metadata"), "this field is not supported").fix("remove it");
    }
}

/// Opens connections to the endpoints of a static cluster as they are at the moment: DNS may find others.
#[derive(Debug)]
pub struct ClusterConnector {
    cluster: watch::Receiver<Arc<Cluster>>,
    authority: Arc<str>,
}

impl ClusterConnector {
    /// Connects to `cluster`.
    #[must_use]
    pub const fn new(cluster: watch::Receiver<Arc<Cluster>>, authority: Arc<str>) -> Self {
        Self { cluster, authority }
    }
}

impl Connector for ClusterConnector {
    fn servers(&self) -> usize {
        self.cluster.borrow().endpoints().len()
    }

    fn connect(&self, server: usize) -> Connecting {
        let cluster = Arc::clone(&self.cluster.borrow());
        Box::pin(async move {
            let endpoints = cluster.endpoints().endpoints();
            let endpoint = server.checked_rem(endpoints.len()).and_then(|n| endpoints.get(n)).cloned();
            let endpoint = endpoint.ok_or_else(|| io::Error::other("the cluster has no endpoints"))?;
            let opened = open(&cluster, endpoint.spec.address, endpoint.spec.hostname.as_deref());
            tokio::time::timeout(cluster.spec().connect.timeout, opened)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn changed(&self) -> Changed {
        let mut cluster = self.cluster.clone();
        cluster.mark_unchanged();
        Box::pin(async move {
            // Without a sender there is nobody who could change it.
            if cluster.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }
}

async fn open(cluster: &Cluster, address: SocketAddr, host: Option<&str>) -> io::Result<Box<dyn Duplex>> {
    let spec = cluster.spec();
    let tcp = connect::connect(address, &spec.connect).await.map_err(io::Error::other)?;
    let Some(tls) = &spec.tls else { return Ok(Box::new(tcp)) };
    let target = Target { host, ..Target::new(address, AlpnOffer::Http2) };
    let (stream, _) = tls.connect(tcp, target).await.map_err(io::Error::other)?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_xds::diag::SourceMap;
    use remora_xds::pb::envoy::config::core::v3::HeaderValue;
    use remora_xds::pb::envoy::config::core::v3::grpc_service::EnvoyGrpc;
    use remora_xds::pb::google::protobuf::Duration;

    #[test]
    fn a_stream_has_neither_a_limit_nor_metadata() {
        let target = EnvoyGrpc { cluster_name: "control".into(), ..Default::default() };
        let service = GrpcService {
            timeout: Some(Duration::default()),
            initial_metadata: vec![HeaderValue::default()],
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        };
        let source = ApiConfigSource {
            api_type: ApiType::Grpc.into(),
            grpc_services: vec![service],
            ..Default::default()
        };
        let node = Node { id: "n".into(), ..Default::default() };
        let mut errors = Errors::new("t", SourceMap::default());
        let spec = compile_ads_config(&source, Some(&node), &["control"], &At::root(), &mut errors);
        assert!(spec.is_none());
        let paths: Vec<_> = errors.into_list().iter().map(|e| e.path.to_string()).collect();
        assert_eq!(
            paths,
            ["ads_config.grpc_services[0].timeout", "ads_config.grpc_services[0].initial_metadata"]
        );
    }
}
