//! The identity agent: certificates for this process, from whoever issues them.
//!
//! From the control plane's CA (`ca`): `schedule` decides when to ask (pure); `request` makes a key and asks; `store` keeps the newest for
//! the next process, which then starts without a control plane. The private key never leaves this process and its folder, unless
//! [`socket`] is there to give it to programs beside it. From a SPIFFE Workload API (`workload`), such as SPIRE's agent, key and
//! certificates come together, and nothing is kept.

mod ca;
mod request;
mod schedule;
pub mod socket;
mod store;
mod wire;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

pub use self::ca::{Authority, Ca};
pub use self::workload::Address;
use crate::tls::domains::Domains;
use crate::tls::identity::SpiffeId;
use crate::tls::material::{Authorities, MaterialError, OwnCertificate, to_pem};
use crate::tls::verify::Trust;

/// The longest sleep: the wall clock may jump, or the machine may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How the SPIFFE ID of every control plane ends.
pub const CONTROL_PLANE: &str = "/ns/remora-system/sa/remora-control";

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where certificates come from.
    pub issuer: Issuer,
    /// Where programs beside this process take them; see [`socket`].
    pub socket: Option<PathBuf>,
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// The CA of a control plane.
    Ca(Ca),
    /// A SPIFFE Workload API.
    WorkloadApi(Address),
}

/// Who this process is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Certificate and key.
    pub certificate: Arc<OwnCertificate>,
    /// Whom to believe.
    pub trust: Arc<Trust>,
    /// Both as text: chain, key and roots, in PEM.
    text: Text,
}

/// An identity as text.
#[derive(Clone, PartialEq, Eq)]
struct Text {
    chain: String,
    key: String,
    roots: String,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("chain", &self.chain).field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl Identity {
    /// Out of PEM: the chain, its key, and the authorities to believe.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pem(chain: String, key: String, roots: String) -> Result<Self, MaterialError> {
        Self::new(Text { chain, key, roots })
    }

    fn new(text: Text) -> Result<Self, MaterialError> {
        let (chain, key) = (text.chain.as_bytes(), text.key.as_bytes());
        let certificate = Arc::new(OwnCertificate::from_pem(chain, key, crate::tls::provider())?);
        let trust = Arc::new(Trust::in_roots(crate::tls::material::roots(text.roots.as_bytes())?));
        Ok(Self { certificate, trust, text })
    }

    /// The same with other roots.
    fn trusting(&self, roots: &Authorities) -> Self {
        let text = Text { roots: to_pem(&roots.certificates), ..self.text.clone() };
        Self {
            certificate: Arc::clone(&self.certificate),
            trust: Arc::new(Trust::in_roots(roots.clone())),
            text,
        }
    }

    /// Its SPIFFE ID.
    fn spiffe(&self) -> Option<SpiffeId> {
        SpiffeId::parse(self.certificate.uri.as_deref()?).ok()
    }

    /// Bundles of the trust domains that its own one is federated with.
    fn federated(&self) -> impl Iterator<Item = (&str, &[CertificateDer<'static>])> {
        let own = self.spiffe();
        let others = self.trust.domains.iter().flat_map(Domains::iter);
        let others =
            others.filter(move |(name, _)| own.as_ref().is_none_or(|own| own.trust_domain() != *name));
        others.map(|(name, bundle)| (name, &*bundle.certificates))
    }

    /// Whether its certificate and key are those of another.
    fn has_pair_of(&self, other: &Self) -> bool {
        (&self.text.chain, &self.text.key) == (&other.text.chain, &other.text.key)
    }

    /// Whether it believes whom another believes.
    fn believes_as(&self, other: &Self) -> bool {
        self.text.roots == other.text.roots && self.federated().eq(other.federated())
    }

    /// Its private key, PKCS#8 in DER.
    fn key_der(&self) -> Vec<u8> {
        let key = crate::tls::material::private_key(self.text.key.as_bytes());
        key.map(|key| key.secret_der().to_vec()).unwrap_or_default()
    }

    /// When its certificate ends.
    fn ends(&self) -> Duration {
        Duration::from_secs(self.certificate.not_after.try_into().unwrap_or(0))
    }
}

/// What the agent says.
#[derive(Debug)]
pub enum Event {
    /// A certificate from now on.
    Renewed(Identity),
    /// The same one, and other roots.
    Trusting(Identity),
    /// A request failed; `held` is whether there is a certificate that still serves.
    Failed {
        /// Why.
        reason: String,
        /// Whether there is a certificate that has not ended.
        held: bool,
    },
    /// Its certificate is about to end, or has ended, and no new one could be had.
    Ending {
        /// It has.
        ended: bool,
    },
}

/// Roots as the control plane has them now: a new one signs its own certificate long before ours is renewed.
pub type Roots = watch::Receiver<Option<Arc<Trust>>>;

/// Keeps this process in certificates for as long as somebody listens to `events`.
pub async fn run(issuer: Issuer, roots: Roots, events: mpsc::Sender<Event>, rng: fastrand::Rng) {
    match issuer {
        Issuer::Ca(ca) => ca::run(ca, roots, events, rng).await,
        // Whom to believe is for the issuer to say, too.
        Issuer::WorkloadApi(address) => workload::run(address, events, rng).await,
    }
}

/// The wall clock: certificates end by it.
fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
