//! `custom_validator_config`: the one validator there is, `envoy.tls.cert_validator.spiffe`.

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SpiffeCertValidatorConfig,
};

use super::material::{read, report};
use crate::config::compile::Scope;
use crate::config::compile::fields::{refuse, unpack};
use crate::tls::domains::Domains;
use crate::tls::identity::SpiffeId;
use crate::tls::material::roots;

/// Trust domains of one validator.
const MOST_DOMAINS: usize = 256;

/// The bundle of each trust domain. None when there are mistakes, which are in `scope.errors`.
pub(super) fn domains(pb: &TypedExtensionConfig, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Domains> {
    let before = scope.errors.len();
    let at = at.field("typed_config");
    let Some(config) = &pb.typed_config else {
        scope.errors.report(&at, "is missing").fix("a SPIFFECertValidatorConfig");
        return None;
    };
    let SpiffeCertValidatorConfig { trust_domains, trust_bundles } =
        &unpack::<SpiffeCertValidatorConfig>(config, &at, scope)?;
    refuse!(scope, at; trust_bundles);
    let list = at.field("trust_domains");
    if trust_domains.is_empty() || trust_domains.len() > MOST_DOMAINS {
        scope.errors.report(&list, format!("must have 1 to {MOST_DOMAINS} entries"));
        return None;
    }
    let mut domains = Domains::default();
    for (i, pb) in trust_domains.iter().enumerate() {
        add(pb, &mut domains, &list.index(i), scope);
    }
    (scope.errors.len() == before).then_some(domains)
}

fn add(pb: &TrustDomain, domains: &mut Domains, at: &At<'_>, scope: &mut Scope<'_>) -> Option<()> {
    let TrustDomain { name, trust_bundle, workload_trust_domain } = pb;
    refuse!(scope, at; workload_trust_domain);
    let name_at = at.field("name");
    let is_domain = SpiffeId::parse(&format!("spiffe://{name}")).is_ok_and(|id| id.path().is_empty());
    if !is_domain {
        let error = scope.errors.report(&name_at, format!("{name:?} is no trust domain"));
        error.fix("the name alone, in lower case, without spiffe://");
        return None;
    }
    let at = at.field("trust_bundle");
    let source = read(trust_bundle.as_ref(), &at, scope)?;
    let bundle = roots(&source.content).map_err(|error| report(&error, source.name, &at, scope)).ok()?;
    if domains.insert(name, bundle).is_some() {
        scope.errors.report(&name_at, format!("{name} occurs twice")).fix("put all roots into one bundle");
        return None;
    }
    Some(())
}

/// Where the bundles of a context come from.
pub(super) fn bundles(context: &CertificateValidationContext) -> Vec<DataSource> {
    let config = context.custom_validator_config.as_ref().and_then(|pb| pb.typed_config.as_ref());
    let validator =
        config.and_then(|config| remora_xds::any::unpack::<SpiffeCertValidatorConfig>(config).ok());
    let domains = validator.into_iter().flat_map(|validator| validator.trust_domains);
    domains.filter_map(|domain| domain.trust_bundle).collect()
}
