//! `CertificateValidationContext`.

use std::net::IpAddr;

use std::sync::Arc;

use prost::Message as _;
use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType as SanTypePb;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SubjectAltNameMatcher,
};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::material::{files, hash_of, read, report};
use super::{secret, spiffe};
use crate::config::compile::Scope;
use crate::config::compile::common::{string_match, unsupported};
use crate::config::compile::fields::refuse;
use crate::config::secrets::{Files, Recipe, Written};
use crate::tls::material::{Authorities, revocation_lists, roots};
use crate::tls::secret::Secret;
use crate::tls::verify::{PeerRules, SanMatch, SanType, Trust};

/// What to ask of peers. None when the context says nothing, or (reported) is wrong.
pub(super) fn compile(
    context: Option<&ValidationContextType>,
    common: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<PeerRules> {
    #[expect(deprecated, reason = "deprecated variants are refused with the rest")]
    let refused = match context? {
        ValidationContextType::ValidationContext(context) => {
            let trust = written(context, &common.field("validation_context"), scope)?;
            return Some(PeerRules { trust, sans: Arc::new([]), send_ca_names: true });
        }
        ValidationContextType::ValidationContextSdsSecretConfig(sds) => {
            let at = common.field("validation_context_sds_secret_config");
            let trust = secret::trust(sds, &at, scope)?;
            return Some(PeerRules { trust, sans: Arc::new([]), send_ca_names: true });
        }
        ValidationContextType::CombinedValidationContext(both) => {
            return combined(both, &common.field("combined_validation_context"), scope);
        }
        ValidationContextType::ValidationContextCertificateProvider(_) => {
            "validation_context_certificate_provider"
        }
        ValidationContextType::ValidationContextCertificateProviderInstance(_) => {
            "validation_context_certificate_provider_instance"
        }
    };
    unsupported(true, &common.field(refused), scope);
    None
}

/// Names that the context itself asks for, and trust from a secret.
fn combined(
    both: &CombinedCertificateValidationContext,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<PeerRules> {
    #[expect(deprecated, reason = "deprecated fields are refused with the rest")]
    let CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = both;
    refuse!(
        scope, at;
        validation_context_certificate_provider, validation_context_certificate_provider_instance,
    );
    let default = CertificateValidationContext::default();
    let own = default_validation_context.as_ref().unwrap_or(&default);
    let own_at = at.field("default_validation_context");
    let of_secret = [
        ("trusted_ca", own.trusted_ca.is_some()),
        ("crl", own.crl.is_some()),
        ("custom_validator_config", own.custom_validator_config.is_some()),
    ];
    for (field, set) in of_secret {
        if set {
            let error = scope.errors.report(&own_at.field(field), "comes from the secret");
            error.fix("remove it, or use validation_context alone");
        }
    }
    let own = rules(own, &own_at, scope)?;
    let sds_at = at.field("validation_context_sds_secret_config");
    let Some(sds) = validation_context_sds_secret_config else {
        scope.errors.report(&sds_at, "is missing").fix("name the secret with the trusted CAs");
        return None;
    };
    if own.roots.is_none() {
        let at = own_at.field("trust_chain_verification");
        scope.errors.report(&at, "the secret would mean nothing").fix("remove it");
        return None;
    }
    let trust = secret::trust(sds, &sds_at, scope)?;
    Some(PeerRules { trust, sans: own.sans.into(), send_ca_names: own.send_ca_names })
}

/// A context as it is written. Contexts that say the same are one; those with files are read again when these change.
fn written(
    context: &CertificateValidationContext,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<Arc<Secret<Trust>>> {
    let hash = hash_of("trust", &context.encode_to_vec());
    if let Some(Recipe::Trust(_, secret)) = scope.names.secrets.written(hash)
        && let Some(secret) = secret.upgrade()
    {
        return Some(secret);
    }
    let files = files_of(context);
    let secret = Secret::inline(trust(context, at, scope)?);
    let recipe = Recipe::Trust(Box::new(context.clone()), Arc::downgrade(&secret));
    scope.names.secrets.write(hash, Written { recipe, files });
    Some(secret)
}

/// The files that a context names.
pub(super) fn files_of(context: &CertificateValidationContext) -> Files {
    let bundles = spiffe::bundles(context);
    let sources = [context.trusted_ca.as_ref(), context.crl.as_ref()];
    files(sources.into_iter().chain(bundles.iter().map(Some)), context.watched_directory.as_ref())
}

/// Reads a complete `CertificateValidationContext`.
pub fn trust(context: &CertificateValidationContext, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Trust> {
    let mut trust = rules(context, at, scope)?;
    if let Some(validator) = &context.custom_validator_config {
        let at = at.field("custom_validator_config");
        if trust.roots.is_none() {
            scope.errors.report(&at, "means nothing under ACCEPT_UNTRUSTED").fix("use VERIFY_TRUST_CHAIN");
            return None;
        }
        trust.domains = Some(spiffe::domains(validator, &at, scope)?);
    }
    let ca_at = at.field("trusted_ca");
    if context.trusted_ca.is_some() {
        let roots = trusted(read(context.trusted_ca.as_ref(), &ca_at, scope)?, &ca_at, scope)?;
        trust.roots = trust.roots.map(|_| roots);
    } else if trust.roots.is_some() && trust.domains.is_none() {
        scope
            .errors
            .report(&ca_at, "is missing: certificates would not be verified")
            .fix("set it, or trust_chain_verification: ACCEPT_UNTRUSTED if that is what you want");
        return None;
    }
    if context.crl.is_some() {
        let at = at.field("crl");
        let source = read(context.crl.as_ref(), &at, scope)?;
        let lists = revocation_lists(&source.content);
        trust.revoked = lists.map_err(|error| report(&error, source.name, &at, scope)).ok()?;
    }
    Some(trust)
}

/// Everything but the CAs, bundles and revocation lists: `roots` is an empty store where some are to come.
fn rules(context: &CertificateValidationContext, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Trust> {
    #[expect(deprecated, reason = "match_subject_alt_names is refused with the rest")]
    let CertificateValidationContext {
        trusted_ca: _,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _, // of `files`
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl: _,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config: _,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = context;
    refuse!(
        scope, at;
        ca_certificate_provider_instance,
        verify_certificate_spki,
        verify_certificate_hash,
        require_signed_certificate_timestamp,
        allow_expired_certificate,
        max_verify_depth,
    );
    if system_root_certs.is_some() {
        let at = at.field("system_root_certs");
        scope
            .errors
            .report(&at, "is not supported")
            .fix("trusted_ca: {filename: /etc/ssl/certs/ca-certificates.crt}");
    }
    if !match_subject_alt_names.is_empty() {
        let at = at.field("match_subject_alt_names");
        scope.errors.report(&at, "is deprecated and not supported").fix("use match_typed_subject_alt_names");
    }
    let untrusted = *trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32;
    let list_at = at.field("match_typed_subject_alt_names");
    if untrusted && !match_typed_subject_alt_names.is_empty() {
        scope
            .errors
            .report(&list_at, "names mean nothing under ACCEPT_UNTRUSTED")
            .fix("use VERIFY_TRUST_CHAIN");
    }
    let sans = match_typed_subject_alt_names.iter().enumerate();
    let sans = sans.filter_map(|(i, pb)| san(pb, &list_at.index(i), scope)).collect();
    Some(Trust {
        roots: (!untrusted).then(Authorities::none),
        domains: None,
        revoked: Vec::new(),
        only_leaf_revocation: *only_verify_leaf_cert_crl,
        sans,
        send_ca_names: !suppress_client_ca_list,
    })
}

fn trusted(source: super::material::Source, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Authorities> {
    roots(&source.content).map_err(|error| report(&error, source.name, at, scope)).ok()
}

fn san(pb: &SubjectAltNameMatcher, at: &At<'_>, scope: &mut Scope<'_>) -> Option<SanMatch> {
    let SubjectAltNameMatcher { san_type, matcher, oid } = pb;
    refuse!(scope, at; oid);
    let san = match SanTypePb::try_from(*san_type) {
        Ok(SanTypePb::Email) => SanType::Email,
        Ok(SanTypePb::Dns) => SanType::Dns,
        Ok(SanTypePb::Uri) => SanType::Uri,
        Ok(SanTypePb::IpAddress) => SanType::Ip,
        Ok(SanTypePb::OtherName | SanTypePb::Unspecified) | Err(_) => {
            let at = at.field("san_type");
            scope
                .errors
                .report(&at, "is not a type that is supported")
                .fix("use URI, DNS, IP_ADDRESS or EMAIL");
            return None;
        }
    };
    let at = at.field("matcher");
    let Some(matcher) = matcher else {
        scope.errors.report(&at, "is missing").fix("add exact, prefix, suffix, contains or safe_regex");
        return None;
    };
    let text = string_match(matcher, &at, scope)?;
    check(san, matcher.match_pattern.as_ref(), &at, scope);
    Some(SanMatch { san, text })
}

/// Matchers that would accept more, or less, than they look like.
fn check(san: SanType, pattern: Option<&MatchPattern>, at: &At<'_>, scope: &mut Scope<'_>) {
    if let (SanType::Uri, Some(MatchPattern::Prefix(prefix))) = (san, pattern)
        && let Some(rest) = prefix.strip_prefix("spiffe://")
        && !rest.contains('/')
    {
        let message = format!("`{prefix}` also begins the names of other trust domains");
        scope.errors.report(&at.field("prefix"), message).fix(format!("end the trust domain: {prefix}/"));
    }
    if let (SanType::Ip, Some(MatchPattern::Exact(address))) = (san, pattern)
        && address.parse::<IpAddr>().is_ok_and(|ip| ip.to_string() != *address)
    {
        let error = scope.errors.report(&at.field("exact"), "would never match: it is not the usual form");
        error.fix("write the address as RFC 5952 does");
    }
}
