//! Compiles `DownstreamTlsContext` and `UpstreamTlsContext`.
//!
//! Certificates and trust are secrets, named (SDS) or written out. Certificate files are read here: a mistake in one is a mistake of the configuration, with the path of the field that
//! names the file. A certificate that has expired is a warning only: everything else of the file still works.

mod material;
mod params;
mod secret;
mod spiffe;
mod validation;

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
};
use rustls_pki_types::DnsName;

use super::Scope;
use super::common::{duration, unsupported};
use super::fields::{boolean, refuse};
use crate::tls::TlsParams;
use crate::tls::client::{ClientParams, ClientTls};
use crate::tls::material::OwnCertificate;
use crate::tls::secret::Secret;
use crate::tls::server::{ServerParams, ServerTls};
use crate::tls::verify::PeerRules;

pub use material::own_certificate;
pub use secret::{compile_secret, files_of_secret};
pub use validation::trust;

/// Compiles the TLS context of a filter chain. None when it has mistakes, which are in `scope.errors`.
pub fn compile_downstream_tls(
    ctx: &DownstreamTlsContext,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<ServerTls>> {
    let before = scope.errors.len();
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // TLS 1.2 session ids are never kept here: tickets carry sessions.
        disable_stateful_session_resumption: _,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = ctx;
    refuse!(scope, at; ocsp_staple_policy);
    let default = ServerParams::default();
    let timeout = duration(session_timeout.as_ref(), &at.field("session_timeout"), scope);
    let common = common(common_tls_context.as_ref(), &at.field("common_tls_context"), scope);
    let params = ServerParams {
        tls: common.tls.clone(),
        require_client_certificate: boolean(require_client_certificate.as_ref(), false),
        require_sni: boolean(require_sni.as_ref(), false),
        full_scan: boolean(full_scan_certs_on_sni_mismatch.as_ref(), false),
        prefer_client_ciphers: *prefer_client_ciphers,
        session_timeout: match session_ticket_keys_type {
            None => timeout.filter(|t| t.as_secs() > 0).or(default.session_timeout),
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(off)) => {
                if *off {
                    None
                } else {
                    timeout.or(default.session_timeout)
                }
            }
            Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
                unsupported(true, &at.field("session_ticket_keys"), scope);
                None
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => {
                unsupported(true, &at.field("session_ticket_keys_sds_secret_config"), scope);
                None
            }
        },
    };
    if scope.errors.len() == before {
        // What is written but broken has been reported already.
        check_server(at, &params, &common, scope);
    }
    if scope.errors.len() > before {
        return None;
    }
    finish(ServerTls::new(params, common.certificates, common.peers), at, scope)
}

fn check_server(at: &At<'_>, params: &ServerParams, common: &Common, scope: &mut Scope<'_>) {
    if common.certificates.is_empty() {
        let (at, field) = (at.field("common_tls_context"), "tls_certificates");
        let error = scope.errors.report(&at.field(field), "a server needs a certificate");
        error.fix("add an entry with certificate_chain and private_key");
    }
    if params.require_client_certificate && common.peers.is_none() {
        let at = at.field("require_client_certificate");
        let error = scope.errors.report(&at, "there is nothing to verify client certificates by");
        error.fix("add common_tls_context.validation_context.trusted_ca");
    }
}

/// Compiles the TLS context of a cluster. None when it has mistakes, which are in `scope.errors`.
///
/// Unlike Envoy, a context that says nothing about verification is refused: verifying nothing must be written down.
pub fn compile_upstream_tls(
    ctx: &UpstreamTlsContext,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<ClientTls>> {
    let before = scope.errors.len();
    #[expect(deprecated, reason = "enforce_rsa_key_usage is taken apart with the rest")]
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        // Envoy ignores it: key usage is always enforced, as it is here.
        enforce_rsa_key_usage: _,
    } = ctx;
    refuse!(scope, at; allow_renegotiation);
    let common_at = at.field("common_tls_context");
    let mut common = common(common_tls_context.as_ref(), &common_at, scope);
    if common.certificates.len() > 1 {
        let at = common_at.field("tls_certificates");
        scope.errors.report(&at, "a client shows one certificate").fix("keep one entry");
    }
    if common.peers.is_none() && scope.errors.len() == before {
        scope
            .errors
            .report(&common_at.field("validation_context"), "the server would not be verified")
            .fix("set trusted_ca, or trust_chain_verification: ACCEPT_UNTRUSTED if that is what you want");
    }
    let params = ClientParams {
        tls: common.tls,
        sni: server_name(sni, &at.field("sni"), scope),
        auto_host_sni: *auto_host_sni,
        verify_sni: *auto_sni_san_validation,
        sessions: match max_session_keys.as_ref().map(|n| n.value) {
            None => ClientParams::default().sessions,
            Some(n) => n.min(1024) as usize,
        },
    };
    if scope.errors.len() > before {
        return None;
    }
    finish(ClientTls::new(params, common.certificates.pop(), common.peers?), at, scope)
}

fn server_name(name: &str, at: &At<'_>, scope: &mut Scope<'_>) -> Option<DnsName<'static>> {
    if name.is_empty() {
        return None;
    }
    match DnsName::try_from(name.to_owned()) {
        Ok(name) => Some(name),
        Err(_) => {
            let message = format!("`{name}` is not a DNS name");
            scope
                .errors
                .report(at, message)
                .fix("leave it out for an address: addresses are not sent (RFC 6066)");
            None
        }
    }
}

fn finish<T>(made: Result<T, rustls::Error>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Arc<T>> {
    match made {
        Ok(made) => Some(Arc::new(made)),
        Err(error) => {
            scope.errors.report(at, error.to_string());
            None
        }
    }
}

/// What both directions have in common.
struct Common {
    tls: TlsParams,
    certificates: Vec<Arc<Secret<OwnCertificate>>>,
    peers: Option<PeerRules>,
}

fn common(ctx: Option<&CommonTlsContext>, at: &At<'_>, scope: &mut Scope<'_>) -> Common {
    let Some(ctx) = ctx else {
        return Common { tls: TlsParams::default(), certificates: Vec::new(), peers: None };
    };
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = ctx;
    refuse!(
        scope, at;
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        custom_handshaker,
        key_log,
    );
    let mut tls = params::compile(tls_params.as_ref(), &at.field("tls_params"), scope);
    tls.alpn = params::alpn(alpn_protocols, &at.field("alpn_protocols"), scope);
    let list = at.field("tls_certificates");
    let mut certificates: Vec<_> = tls_certificates
        .iter()
        .enumerate()
        .filter_map(|(i, c)| material::certificate(c, &tls, &list.index(i), scope))
        .collect();
    let list = at.field("tls_certificate_sds_secret_configs");
    let named = tls_certificate_sds_secret_configs.iter().enumerate();
    certificates.extend(named.filter_map(|(i, sds)| secret::certificate(sds, &list.index(i), scope)));
    let peers = validation::compile(validation_context_type.as_ref(), at, scope);
    Common { tls, certificates, peers }
}

#[cfg(test)]
mod tests;
