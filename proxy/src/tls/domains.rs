//! Trust domains, each with a bundle of its own (SPIFFE federation; Envoy's `envoy.tls.cert_validator.spiffe`): an authority
//! vouches for names of its own domain, and for no others.

use std::collections::BTreeMap;
use std::fmt;

use webpki::CertRevocationList;

use super::identity::SpiffeId;
use super::material::Authorities;

/// The bundle of each trust domain.
#[derive(Debug, Clone, Default)]
pub struct Domains(BTreeMap<Box<str>, Authorities>);

impl Domains {
    /// Adds a domain. The answer is the bundle that it had.
    pub fn insert(&mut self, domain: &str, bundle: Authorities) -> Option<Authorities> {
        self.0.insert(domain.into(), bundle)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The domains by name, each with its bundle.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Authorities)> {
        self.0.iter().map(|(name, bundle)| (&**name, bundle))
    }

    /// The names of the domains.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }

    /// The bundles.
    pub fn bundles(&self) -> impl Iterator<Item = &Authorities> {
        self.0.values()
    }

    /// The bundle that a certificate with this SPIFFE ID is verified by.
    ///
    /// # Errors
    /// There is none.
    pub fn bundle(&self, id: Option<&SpiffeId>) -> Result<&Authorities, NoBundle> {
        let domain = id.map(SpiffeId::trust_domain);
        let found = domain.and_then(|domain| self.0.get(domain));
        found.ok_or_else(|| NoBundle { domain: domain.map(Into::into) })
    }
}

/// Whether revocation lists are about the certificates of a bundle: one is of an authority in it, or of the one that signed the leaf,
/// whose name in DER is `issuer`. A domain without lists revokes nothing, and the lists of others must not refuse its certificates.
pub(super) fn is_covered(bundle: &Authorities, issuer: &[u8], lists: &[CertRevocationList<'_>]) -> bool {
    lists.iter().filter(|list| !list.issuer().is_empty()).any(|list| {
        // A list has the issuer's name without tag and length, as an anchor has its subject.
        let anchors = &bundle.store.roots;
        issuer.ends_with(list.issuer())
            || anchors.iter().any(|anchor| anchor.subject.as_ref() == list.issuer())
    })
}

/// A certificate of a trust domain that nobody has named here.
#[derive(Debug)]
pub struct NoBundle {
    domain: Option<Box<str>>,
}

impl fmt::Display for NoBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.domain {
            Some(domain) => write!(f, "there is no bundle of its trust domain {domain}"),
            None => f.write_str("it has no SPIFFE ID, and so no trust domain"),
        }
    }
}

impl std::error::Error for NoBundle {}
