//! `CertificateValidationContext`.

use std::net::IpAddr;

use remora_xds::diag::At;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType as SanTypePb;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SubjectAltNameMatcher,
};
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use rustls::RootCertStore;

use super::material::{read, report};
use crate::config::compile::Scope;
use crate::config::compile::common::{string_match, unsupported};
use crate::config::compile::fields::refuse;
use crate::tls::material::roots;
use crate::tls::verify::{PeerPolicy, SanMatch, SanType};

/// What to ask of peers. None when the context says nothing, or (reported) is wrong.
pub(super) fn compile(
    context: Option<&ValidationContextType>,
    common: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<PeerPolicy> {
    #[expect(deprecated, reason = "deprecated variants are refused with the rest")]
    let refused = match context? {
        ValidationContextType::ValidationContext(context) => {
            return policy(context, &common.field("validation_context"), scope);
        }
        ValidationContextType::ValidationContextSdsSecretConfig(_) => "validation_context_sds_secret_config",
        ValidationContextType::CombinedValidationContext(_) => "combined_validation_context",
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

fn policy(context: &CertificateValidationContext, at: &At<'_>, scope: &mut Scope<'_>) -> Option<PeerPolicy> {
    #[expect(deprecated, reason = "match_subject_alt_names is refused with the rest")]
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = context;
    refuse!(
        scope, at;
        ca_certificate_provider_instance,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        custom_validator_config,
        only_verify_leaf_cert_crl,
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
    let ca_at = at.field("trusted_ca");
    let roots = match trusted_ca {
        Some(_) => trusted(read(trusted_ca.as_ref(), &ca_at, scope)?, &ca_at, scope)?,
        None if untrusted => RootCertStore::empty(),
        None => {
            scope
                .errors
                .report(&ca_at, "is missing: certificates would not be verified")
                .fix("set it, or trust_chain_verification: ACCEPT_UNTRUSTED if that is what you want");
            return None;
        }
    };
    let list_at = at.field("match_typed_subject_alt_names");
    if untrusted && !match_typed_subject_alt_names.is_empty() {
        scope
            .errors
            .report(&list_at, "names mean nothing under ACCEPT_UNTRUSTED")
            .fix("use VERIFY_TRUST_CHAIN");
    }
    let sans = match_typed_subject_alt_names.iter().enumerate();
    let sans = sans.filter_map(|(i, pb)| san(pb, &list_at.index(i), scope)).collect();
    Some(PeerPolicy { roots: (!untrusted).then_some(roots), sans, send_ca_names: !suppress_client_ca_list })
}

fn trusted(source: super::material::Source, at: &At<'_>, scope: &mut Scope<'_>) -> Option<RootCertStore> {
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
