//! mTLS between sidecars: TLS 1.3, certificates from files, identities by SPIFFE ID.

use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use remora_xds::pb::envoy::config::core::v3::{DataSource, TransportSocket};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters, UpstreamTlsContext,
};
use remora_xds::pb::envoy::r#type::matcher::v3::StringMatcher;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::{Sidecar, parts};

/// Whose certificate is accepted.
pub(super) enum Peers {
    /// Anybody of the trust domain.
    Domain,
    /// These identities only.
    Exactly(Vec<String>),
}

fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..DataSource::default() }
}

fn common(sidecar: &Sidecar, peers: Peers, alpn: &[&str]) -> CommonTlsContext {
    let patterns = match peers {
        Peers::Domain => vec![MatchPattern::Prefix(format!("spiffe://{}/", sidecar.trust_domain))],
        Peers::Exactly(names) => names.into_iter().map(MatchPattern::Exact).collect(),
    };
    let names = patterns.into_iter().map(|pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    });
    let credentials = &sidecar.credentials;
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..TlsParameters::default()
        }),
        tls_certificates: vec![TlsCertificate {
            certificate_chain: Some(file(&credentials.certificate)),
            private_key: Some(file(&credentials.key)),
            ..TlsCertificate::default()
        }],
        alpn_protocols: alpn.iter().map(|p| (*p).to_owned()).collect(),
        validation_context_type: Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(file(&credentials.roots)),
                match_typed_subject_alt_names: names.collect(),
                ..CertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

fn transport_socket(config: remora_xds::pb::google::protobuf::Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

/// In front of a program: the client must show a certificate of the trust domain.
pub(super) fn downstream(sidecar: &Sidecar, alpn: &[&str]) -> TransportSocket {
    transport_socket(parts::pack(&DownstreamTlsContext {
        common_tls_context: Some(common(sidecar, Peers::Domain, alpn)),
        require_client_certificate: parts::flag(true),
        ..DownstreamTlsContext::default()
    }))
}

/// Towards the sidecars of a Service: one of `identities`, and nobody else.
pub(super) fn upstream(
    sidecar: &Sidecar,
    identities: Vec<String>,
    sni: String,
    alpn: &[&str],
) -> TransportSocket {
    transport_socket(parts::pack(&UpstreamTlsContext {
        common_tls_context: Some(common(sidecar, Peers::Exactly(identities), alpn)),
        sni,
        ..UpstreamTlsContext::default()
    }))
}
