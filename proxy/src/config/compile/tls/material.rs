//! `TlsCertificate` and `DataSource`: files are read here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::{DataSource, WatchedDirectory};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate;
use rustls::crypto::CryptoProvider;

use crate::config::compile::Scope;
use crate::config::compile::common::data_source;
use crate::config::compile::fields::refuse;
use crate::config::secrets::{Files, Recipe, Written};
use crate::tls::TlsParams;
use crate::tls::material::{MaterialError, OwnCertificate};
use crate::tls::secret::Secret;

/// More than any bundle of CAs; a mistyped path must not fill the memory.
const MAX_BYTES: usize = 4 << 20;

/// One entry of `tls_certificates`. Entries that say the same are one; those with files are read again when these change.
pub(super) fn certificate(
    pb: &TlsCertificate,
    tls: &TlsParams,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<Secret<OwnCertificate>>> {
    // A key is made for a provider; contexts with groups or suites of their own have one of their own.
    let provider = Arc::as_ptr(&tls.provider).addr().to_string();
    let hash = hash_of(&format!("certificate {provider}"), &pb.encode_to_vec());
    if let Some(Recipe::Certificate(_, _, secret)) = scope.names.secrets.written(hash)
        && let Some(secret) = secret.upgrade()
    {
        return Some(secret);
    }
    let files = files_of(pb);
    let secret = Secret::inline(own_certificate(pb, &tls.provider, at, scope)?);
    let recipe =
        Recipe::Certificate(Box::new(pb.clone()), Arc::clone(&tls.provider), Arc::downgrade(&secret));
    scope.names.secrets.write(hash, Written { recipe, files });
    Some(secret)
}

/// Reads a `TlsCertificate`.
pub fn own_certificate(
    pb: &TlsCertificate,
    provider: &CryptoProvider,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<OwnCertificate> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory: _, // of `files`
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = pb;
    refuse!(scope, at; private_key_provider, ocsp_staple, signed_certificate_timestamp, tls_params);
    let password = match password {
        Some(source) => Some(read_password(source, &at.field("password"), scope)?),
        None => None,
    };
    let (at, name, own) = if let Some(store) = pkcs12 {
        let store_at = at.field("pkcs12");
        if certificate_chain.is_some() || private_key.is_some() {
            let fix = "name the certificates in one way only";
            scope.errors.report(&store_at, "stands beside `certificate_chain` or `private_key`").fix(fix);
            return None;
        }
        let store = read(Some(store), &store_at, scope)?;
        let own =
            OwnCertificate::from_pkcs12(&store.content, password.as_deref().unwrap_or_default(), provider);
        (store_at, store.name, own)
    } else {
        let (chain_at, key_at) = (at.field("certificate_chain"), at.field("private_key"));
        let chain = read(certificate_chain.as_ref(), &chain_at, scope);
        let key = read(private_key.as_ref(), &key_at, scope);
        let (chain, key) = chain.zip(key)?;
        let own = match &password {
            Some(password) => {
                OwnCertificate::from_encrypted_pem(&chain.content, &key.content, password, provider)
            }
            None => OwnCertificate::from_pem(&chain.content, &key.content, provider),
        };
        match own {
            Err(error) if error.is_about_key() => (key_at, key.name, Err(error)),
            own => (chain_at, chain.name, own),
        }
    };
    match own {
        Ok(own) => {
            let now = rustls_pki_types::UnixTime::now().as_secs();
            if let Some(warning) = own.warning(i64::try_from(now).unwrap_or(i64::MAX)) {
                tracing::warn!(path = %at, "{name}: {warning}");
            }
            Some(own)
        }
        Err(error) => {
            report(&error, name, &at, scope);
            None
        }
    }
}

/// A password. Files of passwords end with a line break that is not part of it.
pub(super) fn read_password(source: &DataSource, at: &At<'_>, scope: &mut Scope<'_>) -> Option<String> {
    let Source { content, name } = read(Some(source), at, scope)?;
    let Ok(text) = std::str::from_utf8(&content) else {
        scope.errors.report(at, format!("{name}: is not text")).fix("give the password as UTF-8");
        return None;
    };
    let text = text.strip_suffix('\n').unwrap_or(text);
    Some(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Tells apart what is written in contexts.
pub(super) fn hash_of(kind: &str, bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, bytes).hash(&mut hasher);
    hasher.finish()
}

/// The files that a `TlsCertificate` names.
pub(super) fn files_of(pb: &TlsCertificate) -> Files {
    let sources = [&pb.certificate_chain, &pb.private_key, &pb.pkcs12, &pb.password];
    files(sources.map(Option::as_ref), pb.watched_directory.as_ref())
}

/// The files among data sources. Their own directories are watched without `watched`.
pub(super) fn files<'a>(
    sources: impl IntoIterator<Item = Option<&'a DataSource>>,
    watched: Option<&WatchedDirectory>,
) -> Files {
    let named = sources.into_iter().flatten().filter_map(|source| match &source.specifier {
        Some(Specifier::Filename(path)) => Some(PathBuf::from(path)),
        _ => None,
    });
    Files::new(named.collect(), watched.map(|watched| PathBuf::from(&watched.path)))
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
