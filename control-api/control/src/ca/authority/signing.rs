//! What the authority signs.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use remora_proxy::tls::identity::SpiffeId;

use super::super::csr::Csr;
use super::super::refused::Refused;
use super::super::root::{Phase, Root, lives};
use super::super::{Source, hex};
use super::{Authority, SKEW};

/// A certificate that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// In hexadecimal.
    pub serial: String,
    /// In seconds since 1970.
    pub not_after: u64,
    /// The certificate, in PEM.
    pub leaf: String,
    /// Those between it and a root, each in PEM.
    pub intermediates: Vec<String>,
    /// All roots that are trusted, in PEM.
    pub roots: String,
}

/// What is asked to be signed.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The one URI name.
    pub identity: &'a SpiffeId,
    /// Names of a server besides it: DNS names and IP addresses.
    pub names: &'a [SanType],
    /// How long it should hold; never beyond the end of the root.
    pub ttl: Duration,
}

impl Authority {
    /// Makes room for certificates of `ttl`: notes that the root that signs signs until then. Half as much again is added, so that not every
    /// certificate is a write. False: there is room.
    ///
    /// # Errors
    /// No root signs.
    pub fn reserve(&mut self, ttl: Duration, now: u64) -> Result<bool, Refused> {
        let until = self.end(ttl, now)?;
        let signing = self.roots.iter_mut().find(|root| root.phase == Phase::Signing);
        let Some(root) = signing.filter(|root| root.signed_until < until) else { return Ok(false) };
        root.signed_until = (until + ttl.as_secs() / 2 + 1).min(root.not_after);
        Ok(true)
    }

    /// When a certificate of `ttl` ends.
    fn end(&self, ttl: Duration, now: u64) -> Result<u64, Refused> {
        let root = self.signing()?;
        if root.not_after <= now {
            return Err(Refused::Signing(format!("the root {} has expired", root.short())));
        }
        Ok(now.saturating_add(ttl.as_secs().max(1)).min(root.not_after))
    }

    /// Signs the key of `csr` for the identity of `order`. Nothing that the CSR asks for becomes a part of the certificate.
    ///
    /// # Errors
    /// The CSR asks for another identity, or the identity is revoked.
    pub fn issue(
        &self,
        csr: &Csr,
        order: Order<'_>,
        now: u64,
        source: &mut impl Source,
    ) -> Result<Issued, Refused> {
        csr.admit(order.identity)?;
        self.sign(&csr.key, order, now, source)
    }

    /// Signs a new key of this process. The answer is the certificate and the key, in PEM.
    ///
    /// # Errors
    /// See [`Self::issue`].
    pub fn issue_own(
        &self,
        order: Order<'_>,
        now: u64,
        source: &mut impl Source,
    ) -> Result<(Issued, String), Refused> {
        let key: KeyPair = source.key()?;
        let issued = self.sign(&key, order, now, source)?;
        Ok((issued, key.serialize_pem()))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        order: Order<'_>,
        now: u64,
        source: &mut impl Source,
    ) -> Result<Issued, Refused> {
        if self.is_barred(order.identity) {
            return Err(Refused::IdentityRevoked(order.identity.to_string()));
        }
        let root = self.signing()?;
        // What was not reserved would not be waited for when the root retires.
        let not_after = self.end(order.ttl, now)?.min(root.signed_until);
        if not_after <= now {
            return Err(Refused::Signing("the time of the certificate was not reserved".into()));
        }
        let serial = source.serial()?;
        let mut params = CertificateParams::default();
        lives(&mut params, now.saturating_sub(SKEW).max(root.not_before), not_after);
        params.serial_number = Some(serial.to_vec().into());
        // Without a subject the names are critical (RFC 5280 §4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        let uri = order.identity.as_str().try_into()?;
        params.subject_alt_names =
            [SanType::URI(uri)].into_iter().chain(order.names.iter().cloned()).collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &root.issuer()?)?.pem();
        Ok(Issued {
            serial: hex(&serial),
            not_after,
            leaf,
            intermediates: self.between(root),
            roots: self.trusted(),
        })
    }

    /// What is sent behind a leaf that `root` signed, each in PEM: so much that who trusts any one of the roots before it believes it.
    fn between(&self, root: &Root) -> Vec<String> {
        let mut all: Vec<_> = root.intermediates().cloned().collect();
        let mut at = root;
        // No chain is longer than there are roots, whatever the store holds.
        for _ in 1..self.roots.len() {
            let Some(cross) = at.cross() else { break };
            let Some(by) = self.roots.iter().find(|root| root.id == cross.by) else { break };
            all.push(cross.certificate.clone());
            all.extend(by.intermediates().cloned());
            at = by;
        }
        all
    }
}
