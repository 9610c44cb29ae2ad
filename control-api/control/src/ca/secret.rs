//! Whom everybody is to trust, as proxies get it over ADS.

use remora_xds::Resource;
use remora_xds::any;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig,
};

use super::Bundles;
use super::authority::Authority;

/// Its name.
pub const ROOTCA: &str = "ROOTCA";

fn inline(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() }
}

/// All roots, and the revocation lists when there are any: the same bytes on every replica. With bundles of other trust domains peers
/// are verified by the bundle of their own; the roots of this one, `domain`, stand there, too, for whoever asks this control plane.
pub(super) fn of(authority: &Authority, domain: &str, bundles: &Bundles) -> Resource {
    Resource::new(&Secret {
        name: ROOTCA.into(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(&authority.trusted())),
            crl: authority.revocation_lists().map(inline),
            custom_validator_config: (!bundles.is_empty())
                .then(|| validator(&authority.trusted(), domain, bundles)),
            // A verifier wants a list of every issuer of the chain, and of a CA above those that sign here there is none.
            only_verify_leaf_cert_crl: authority.has_foreign_anchors(),
            ..CertificateValidationContext::default()
        })),
    })
}

/// An authority vouches for names of its own trust domain, and for no others.
fn validator(own: &str, domain: &str, bundles: &Bundles) -> TypedExtensionConfig {
    let domains = std::iter::once((domain, own)).chain(bundles.iter());
    let trust_domains = domains.map(|(name, pem)| TrustDomain {
        name: name.to_owned(),
        trust_bundle: Some(inline(pem)),
        ..TrustDomain::default()
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
        ..SpiffeCertValidatorConfig::default()
    };
    TypedExtensionConfig {
        name: "envoy.tls.cert_validator.spiffe".into(),
        typed_config: Some(any::pack(&config)),
    }
}
