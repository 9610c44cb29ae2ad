//! The revocation list (RFC 5280 §5) of each root.

use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SerialNumber,
};
use serde::{Deserialize, Serialize};

use super::refused::Refused;
use super::root::{self, Root};

/// How long a list holds at least. It is made anew at half of this.
pub(super) const LIFE: u64 = 7 * 24 * 3600;

/// Why a certificate is revoked (RFC 5280 §5.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Not said.
    #[default]
    Unspecified,
    /// Somebody else has the key.
    KeyCompromise,
    /// There is a newer one.
    Superseded,
    /// The workload is no more.
    CessationOfOperation,
    /// The workload may no longer be what it is.
    PrivilegeWithdrawn,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

/// A certificate that is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// Since when, in seconds since 1970.
    pub at: u64,
    /// When it ends by itself, in seconds since 1970, as far as that is known; it is on the list until then.
    pub until: u64,
    /// Why.
    pub reason: Reason,
}

/// The lists of all roots, made together, so that every replica publishes the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lists {
    /// When they were made, in seconds since 1970.
    pub(super) made: u64,
    /// PEM, one list after the other.
    pub(super) pem: String,
}

/// One list by each of `roots`: a verifier that looks at lists wants one of every issuer.
pub(super) fn make(roots: &[Root], revoked: &[Revoked], number: u64, now: u64) -> Result<Lists, Refused> {
    let date = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(root::LAST.min(seconds));
    let entry = |revoked: &Revoked| {
        Ok(RevokedCertParams {
            serial_number: serial(&revoked.serial)?,
            revocation_time: date(revoked.at),
            reason_code: Some(revoked.reason.into()),
            invalidity_date: None,
        })
    };
    let entries = revoked.iter().map(entry).collect::<Result<Vec<_>, Refused>>()?;
    // Without a control plane nobody is let in when the lists have ended: they hold for as long as what was signed.
    let ends = roots.iter().map(|root| root.signed_until).fold(now + LIFE, u64::max);
    let mut pem = String::new();
    for root in roots {
        let list = CertificateRevocationListParams {
            // Clocks differ.
            this_update: date(now.saturating_sub(super::authority::SKEW)),
            next_update: date(ends),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: entries.clone(),
            key_identifier_method: KeyIdMethod::PreSpecified(root.key_id()?),
        };
        let issuer: Issuer<'_, KeyPair> = root.issuer()?;
        pem.push_str(&super::pem::encode("X509 CRL", list.signed_by(&issuer)?.der()));
    }
    Ok(Lists { made: now, pem })
}

/// The number that [`super::hex`] wrote. Colons, as openssl shows them, are no part of it.
pub(super) fn serial(text: &str) -> Result<SerialNumber, Refused> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits);
    let wrong = || Refused::Serial(text.chars().take(64).collect());
    let fits = (1..=40).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !fits {
        return Err(wrong());
    }
    let even = if digits.len().is_multiple_of(2) { digits.to_owned() } else { format!("0{digits}") };
    let byte = |at: usize| u8::from_str_radix(&even[at..at + 2], 16).map_err(|_| wrong());
    let bytes = (0..even.len()).step_by(2).map(byte).collect::<Result<Vec<_>, _>>()?;
    Ok(SerialNumber::from(bytes))
}
