//! mTLS between sidecars: TLS 1.3, certificates from the CA or from files, identities by SPIFFE ID.

use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use remora_xds::pb::envoy::config::core::v3::{ConfigSource, DataSource, TransportSocket};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SdsSecretConfig, SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext,
};
use remora_xds::pb::envoy::r#type::matcher::v3::StringMatcher;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::{Credentials, Profile, names, parts};
use crate::document::KeyServer;

/// The authorities of the machine, where most distributions and images have them.
const PUBLIC_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whose certificate is accepted.
pub(super) enum Peers {
    /// Anybody of the trust domain, and of those that are federated with it.
    Domains,
    /// These identities only.
    Exactly(Vec<String>),
}

fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..DataSource::default() }
}

fn common(profile: &Profile, peers: Peers, alpn: &[&str]) -> CommonTlsContext {
    let patterns: Vec<_> = match peers {
        Peers::Domains => {
            let all = std::iter::once(&profile.trust_domain).chain(&profile.federated);
            all.map(|domain| MatchPattern::Prefix(format!("spiffe://{domain}/"))).collect()
        }
        Peers::Exactly(names) => names.into_iter().map(MatchPattern::Exact).collect(),
    };
    let names = patterns.into_iter().map(|pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    });
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: names.collect(),
        ..CertificateValidationContext::default()
    };
    let context = CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ecdh_curves: profile.ecdh_curves.clone(),
            ..TlsParameters::default()
        }),
        alpn_protocols: alpn.iter().map(|p| (*p).to_owned()).collect(),
        ..CommonTlsContext::default()
    };
    with_credentials(context, validation, profile)
}

/// Adds where the certificate and the roots come from.
fn with_credentials(
    context: CommonTlsContext,
    validation: CertificateValidationContext,
    profile: &Profile,
) -> CommonTlsContext {
    match &profile.credentials {
        Credentials::Files { certificate, key, roots } => CommonTlsContext {
            tls_certificates: vec![TlsCertificate {
                certificate_chain: Some(file(certificate)),
                private_key: Some(file(key)),
                ..TlsCertificate::default()
            }],
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext { trusted_ca: Some(file(roots)), ..validation },
            )),
            ..context
        },
        Credentials::Issued => CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![secret(names::OWN_SECRET, None)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    validation_context_sds_secret_config: Some(secret(
                        names::ROOTS_SECRET,
                        Some(parts::ads()),
                    )),
                    ..CombinedCertificateValidationContext::default()
                },
            )),
            ..context
        },
    }
}

fn secret(name: &str, sds_config: Option<ConfigSource>) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config }
}

fn transport_socket(config: remora_xds::pb::google::protobuf::Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

/// In front of a program: the client must show a certificate of a trust domain that is known.
pub(super) fn downstream(profile: &Profile, alpn: &[&str]) -> TransportSocket {
    transport_socket(parts::pack(&DownstreamTlsContext {
        common_tls_context: Some(common(profile, Peers::Domains, alpn)),
        require_client_certificate: parts::flag(true),
        ..DownstreamTlsContext::default()
    }))
}

/// Towards the sidecars of a Service: one of `identities`, and nobody else.
pub(super) fn upstream(
    profile: &Profile,
    identities: Vec<String>,
    sni: String,
    alpn: &[&str],
) -> TransportSocket {
    transport_socket(parts::pack(&UpstreamTlsContext {
        common_tls_context: Some(common(profile, Peers::Exactly(identities), alpn)),
        sni,
        ..UpstreamTlsContext::default()
    }))
}

/// Towards a server outside of the mesh, which is verified by its name and by authorities that everybody knows, or by `roots` (PEM).
pub(super) fn public(server: KeyServer<'_>, roots: Option<&str>) -> TransportSocket {
    let (san_type, name, sni) = match server.address() {
        Some(address) => (SanType::IpAddress, address.to_string(), String::new()),
        None => (SanType::Dns, server.host.to_owned(), server.host.to_owned()),
    };
    let matcher =
        StringMatcher { match_pattern: Some(MatchPattern::Exact(name)), ..StringMatcher::default() };
    let inline = |text: &str| DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    };
    let validation = CertificateValidationContext {
        trusted_ca: Some(roots.map_or_else(|| file(PUBLIC_ROOTS), inline)),
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: san_type.into(),
            matcher: Some(matcher),
            ..SubjectAltNameMatcher::default()
        }],
        ..CertificateValidationContext::default()
    };
    transport_socket(parts::pack(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..TlsParameters::default()
            }),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        sni,
        ..UpstreamTlsContext::default()
    }))
}

/// For gRPC libraries (gRFC A29): certificate and roots from a provider of their bootstrap file.
pub(super) fn provider(instance: &str, identities: Vec<String>) -> TransportSocket {
    let from = |certificate: &str| {
        Some(CertificateProviderPluginInstance {
            instance_name: instance.to_owned(),
            certificate_name: certificate.to_owned(),
        })
    };
    let exact =
        |name| StringMatcher { match_pattern: Some(MatchPattern::Exact(name)), ..StringMatcher::default() };
    #[expect(deprecated, reason = "the only matcher of names that gRPC libraries look at")]
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: from(names::ROOTS_SECRET),
        match_subject_alt_names: identities.into_iter().map(exact).collect(),
        ..CertificateValidationContext::default()
    };
    transport_socket(parts::pack(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: from(names::OWN_SECRET),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    }))
}
