//! `SdsSecretConfig`, and the `Secret` that comes by it.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{SdsSecretConfig, Secret as SecretPb};

use super::{material, validation};
use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::config::compile::listener::source_of;
use crate::config::secrets::{Material, SecretFiles, SecretSource};
use crate::tls::material::OwnCertificate;
use crate::tls::secret::Secret;
use crate::tls::verify::Trust;

/// The certificate that a context names.
pub(super) fn certificate(
    pb: &SdsSecretConfig,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<Secret<OwnCertificate>>> {
    let source = source(pb, at, scope)?;
    let found = scope.names.secrets.certificate(&source, &pb.name);
    or_report(found, at, scope)
}

/// The trust that a context names.
pub(super) fn trust(pb: &SdsSecretConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Arc<Secret<Trust>>> {
    let source = source(pb, at, scope)?;
    let found = scope.names.secrets.trust(&source, &pb.name);
    or_report(found, at, scope)
}

fn or_report<T>(found: Result<T, String>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            scope.errors.report(&at.field("name"), error);
            None
        }
    }
}

fn source(pb: &SdsSecretConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SecretSource> {
    let SdsSecretConfig { name, sds_config } = pb;
    if name.is_empty() {
        scope.errors.report(&at.field("name"), "is missing");
        return None;
    }
    match sds_config {
        None => Some(None),
        Some(config) => {
            let source = source_of(config, &at.field("sds_config"), scope)?;
            Some(scope.names.secrets.source(source))
        }
    }
}

/// Compiles a `Secret`. None when it has mistakes, which are in `scope.errors`.
pub fn compile_secret(pb: &SecretPb, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Material> {
    if pb.name.is_empty() {
        scope.errors.report(&at.field("name"), "is missing");
        return None;
    }
    match &pb.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            let at = at.field("tls_certificate");
            let own = material::own_certificate(certificate, crate::tls::provider(), &at, scope)?;
            Some(Material::Certificate(Arc::new(own)))
        }
        Some(Type::ValidationContext(context)) => {
            let at = at.field("validation_context");
            let trust = validation::trust(context, &at, scope)?;
            if trust.roots.is_none() {
                // Contexts that name it ask for names, which would mean nothing.
                let error = scope.errors.report(&at.field("trust_chain_verification"), "verifies nobody");
                error.fix("write it into the context that is to be so");
                return None;
            }
            Some(Material::Trust(Arc::new(trust)))
        }
        Some(Type::SessionTicketKeys(_)) => {
            unsupported(true, &at.field("session_ticket_keys"), scope);
            None
        }
        Some(Type::GenericSecret(_)) => {
            unsupported(true, &at.field("generic_secret"), scope);
            None
        }
        None => {
            let error = scope.errors.report(at, "holds nothing");
            error.fix("add tls_certificate or validation_context");
            None
        }
    }
}

/// The files that a `Secret` names; None when it names none.
#[must_use]
pub fn files_of_secret(pb: &SecretPb) -> Option<SecretFiles> {
    let files = match &pb.r#type {
        Some(Type::TlsCertificate(own)) => material::files_of(own),
        Some(Type::ValidationContext(context)) => validation::files_of(context),
        _ => return None,
    };
    (!files.is_empty()).then(|| SecretFiles { secret: Box::new(pb.clone()), files })
}
