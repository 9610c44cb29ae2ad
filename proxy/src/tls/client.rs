//! TLS towards upstream.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;

use crate::config::compile::Scope;

/// A compiled `UpstreamTlsContext`.
#[derive(Debug)]
pub struct ClientTls;

/// Compiles an upstream TLS context.
pub fn compile_upstream_tls(
    _ctx: &UpstreamTlsContext,
    _at: &At<'_>,
    _scope: &mut Scope<'_>,
) -> Option<Arc<ClientTls>> {
    Some(Arc::new(ClientTls))
}
