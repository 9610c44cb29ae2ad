//! The certificate authority of the mesh (docs/decisions/0010): whom it believes, what it signs, and whom everybody is to trust.
//!
//! [`authority`] is pure: its state is one value of the store, and `now` and chance are arguments. [`keeper`] is what one control plane
//! does with that value: it changes it by compare-and-swap, so that any number of replicas may issue.

pub mod authority;
pub mod bundles;
pub mod csr;
pub mod issued;
pub mod keeper;
pub mod refused;
pub mod review;
pub mod root;
pub mod secret;
pub mod service;
pub mod tokens;

mod crl;
mod failures;
mod pem;
#[cfg(test)]
mod tests;

use rcgen::KeyPair;

pub use authority::{Authority, Overlap};
pub use bundles::{BundleError, BundleFile, Bundles};
pub use csr::Csr;
pub use issued::Log;
pub use keeper::{Ca, Settings};
pub use refused::Refused;
pub use review::Reviewer;
pub use root::{Phase, Root};
pub use service::Service;
pub use tokens::Tokens;

/// Where keys and serial numbers come from.
pub trait Source {
    /// A new key pair for a root.
    ///
    /// # Errors
    /// The machine has no random numbers.
    fn key(&mut self) -> Result<KeyPair, Refused>;

    /// Fills `bytes` with what nobody can guess.
    ///
    /// # Errors
    /// The machine has no random numbers.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Refused>;

    /// A serial number: 16 bytes (RFC 5280 §4.1.2.2 allows 20), positive, without zeros at the beginning.
    ///
    /// # Errors
    /// The machine has no random numbers.
    fn serial(&mut self) -> Result<[u8; 16], Refused> {
        let mut serial = [0; 16];
        self.fill(&mut serial)?;
        serial[0] = serial[0] & 0x7f | 0x40;
        Ok(serial)
    }
}

/// The random numbers of the process's crypto.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Source for System {
    fn key(&mut self) -> Result<KeyPair, Refused> {
        Ok(KeyPair::generate()?)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Refused> {
        let random = remora_proxy::tls::provider().secure_random;
        random.fill(bytes).map_err(|_| Refused::Signing("there are no random numbers".into()))
    }
}

/// Lower-case hexadecimal, as serial numbers and fingerprints are shown.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
