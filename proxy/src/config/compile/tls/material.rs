//! `TlsCertificate` and `DataSource`: files are read here.

use bytes::Bytes;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::DataSource;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;

use crate::config::compile::Scope;
use crate::config::compile::common::data_source;
use crate::config::compile::fields::refuse;
use crate::tls::TlsParams;
use crate::tls::material::{MaterialError, OwnCertificate};

/// More than any bundle of CAs; a mistyped path must not fill the memory.
const MAX_BYTES: usize = 4 << 20;

/// Reads one entry of `tls_certificates`.
pub(super) fn certificate(
    pb: &TlsCertificate,
    tls: &TlsParams,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<OwnCertificate> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = pb;
    refuse!(
        scope, at;
        pkcs12, watched_directory, private_key_provider, password, ocsp_staple, signed_certificate_timestamp, tls_params,
    );
    let (chain_at, key_at) = (at.field("certificate_chain"), at.field("private_key"));
    let chain = read(certificate_chain.as_ref(), &chain_at, scope);
    let key = read(private_key.as_ref(), &key_at, scope);
    let (chain, key) = chain.zip(key)?;
    match OwnCertificate::from_pem(&chain.content, &key.content, &tls.provider) {
        Ok(own) => {
            let now = rustls_pki_types::UnixTime::now().as_secs();
            if let Some(warning) = own.warning(i64::try_from(now).unwrap_or(i64::MAX)) {
                tracing::warn!(path = %chain_at, source = chain.name, "{warning}");
            }
            Some(own)
        }
        Err(error) => {
            let (at, name) = if error.is_about_key() { (&key_at, key.name) } else { (&chain_at, chain.name) };
            report(&error, name, at, scope);
            None
        }
    }
}

/// Reports what is wrong with the material at `at`.
pub(super) fn report(error: &MaterialError, name: String, at: &At<'_>, scope: &mut Scope<'_>) {
    scope.errors.report(at, format!("{name}: {error}")).fix(error.fix());
}

/// Bytes, and what to call their source in a message.
pub(super) struct Source {
    pub(super) content: Bytes,
    pub(super) name: String,
}

/// The bytes behind a `DataSource`.
pub(super) fn read(source: Option<&DataSource>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Source> {
    let Some(source) = source else {
        scope.errors.report(at, "is missing").fix("add filename or inline_string");
        return None;
    };
    let content = data_source(source, MAX_BYTES, at, scope)?;
    let name = match &source.specifier {
        Some(Specifier::Filename(name) | Specifier::EnvironmentVariable(name)) => name.clone(),
        _ => "the inline text".to_owned(),
    };
    Some(Source { content, name })
}
