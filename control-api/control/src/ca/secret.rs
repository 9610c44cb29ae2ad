//! Whom everybody is to trust, as proxies get it over ADS.

use remora_xds::Resource;
use remora_xds::pb::envoy::config::core::v3::DataSource;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret};

use super::authority::Authority;

/// Its name.
pub const ROOTCA: &str = "ROOTCA";

/// All roots, and the revocation lists when there are any: the same bytes on every replica.
pub(super) fn of(authority: &Authority) -> Resource {
    let inline = |text: &str| DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    };
    Resource::new(&Secret {
        name: ROOTCA.into(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(&authority.trusted())),
            crl: authority.revocation_lists().map(inline),
            // A verifier wants a list of every issuer of the chain, and of a CA above those that sign here there is none.
            only_verify_leaf_cert_crl: authority.has_foreign_anchors(),
            ..CertificateValidationContext::default()
        })),
    })
}
