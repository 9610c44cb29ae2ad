//! Who may be which node, where nodes show certificates.

use std::collections::HashMap;

use remora_mesh::{Mesh, NodeRequest};
use remora_proxy::tls::identity::SpiffeId;
use remora_xds::server::Denied;

use super::NodeKey;
use super::node::Node;
use crate::ca::service::Shown;

/// Whether a node may have what it asks for with this certificate: it says that it is of the identity's namespace, and its workload, once
/// it is known, has the identity's service account.
pub(super) fn allowed(mesh: &Mesh, request: &NodeRequest, shown: &Shown) -> Result<(), Denied> {
    let identity = shown.identity.as_ref().map_or("no SPIFFE ID", SpiffeId::as_str);
    let parts = shown.identity.as_ref().and_then(|id| Some((id.trust_domain(), id.service_account()?)));
    let Some((domain, (namespace, account))) = parts else {
        return Err(Denied::Forbidden(format!(
            "ca_peer_identity: the certificate is of {identity}, which is no workload"
        )));
    };
    if request.namespace != namespace {
        let node = &request.namespace;
        let text =
            format!("ca_node_identity: a node of namespace {node} came with the certificate of {identity}");
        return Err(Denied::Forbidden(text));
    }
    let Some(workload) = request.workload.as_deref() else { return Ok(()) };
    let spec = mesh.instance(namespace, workload).map(|instance| &instance.workload.spec);
    if let Some(other) = spec.and_then(|spec| spec.trust_domain.as_deref()).filter(|other| *other != domain) {
        return Err(Denied::Forbidden(format!(
            "ca_node_identity: workload {namespace}/{workload} is of the trust domain {other}, and the certificate is of {identity}"
        )));
    }
    match spec.map(|spec| &*spec.service_account) {
        Some(other) if other != account => Err(Denied::Forbidden(format!(
            "ca_node_identity: workload {namespace}/{workload} has the service account {other}, and the certificate is of {identity}"
        ))),
        _ => Ok(()),
    }
}

/// Ends the streams of nodes whose certificate does not fit them any more: they connect again, and are told.
pub(super) fn keep(
    nodes: &mut HashMap<NodeKey, Node>,
    streams: &mut HashMap<u64, NodeKey>,
    fits: impl Fn(&Node, &Shown) -> bool,
) {
    nodes.retain(|key, node| {
        let stays = key.2.as_ref().is_none_or(|shown| fits(node, shown));
        if !stays {
            streams.retain(|_, of| of != key);
        }
        stays
    });
}
