//! The identity agent: a key of this process's own, and certificates for it from the control plane's CA.
//!
//! `schedule` decides when to ask (pure); `request` makes a key and asks; `store` keeps the newest for the next
//! process, which then starts without a control plane. The private key never leaves this process and its folder, unless
//! [`socket`] is there to give it to programs beside it.

mod request;
mod schedule;
pub mod socket;
mod store;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use self::request::Requester;
use self::schedule::{Schedule, Warning};
use self::store::Store;
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
    /// Where the CA is.
    pub authority: Authority,
    /// Certificates (PEM) by one of which the CA's server is believed before there is a first certificate. Without, the join
    /// token names the root by its fingerprint.
    pub roots: Option<PathBuf>,
    /// A join token or a service account token, read for each request.
    pub token: Option<PathBuf>,
    /// Where key and certificates are kept.
    pub folder: Option<PathBuf>,
    /// Where programs beside this process take them; see [`socket`].
    pub socket: Option<PathBuf>,
}

/// Address of a CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority {
    /// Host and port.
    pub address: SocketAddr,
    /// `https`; `http` is for loopback and tests.
    pub tls: bool,
}

impl std::str::FromStr for Authority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("write it as https://IP:PORT")?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(format!("{scheme}:// is not https:// or http://")),
        };
        let address: SocketAddr = rest.parse().map_err(|_| format!("{rest:?} is no IP:PORT"))?;
        if !tls && !address.ip().is_loopback() {
            return Err("plaintext is for loopback only; write https://".into());
        }
        Ok(Self { address, tls })
    }
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
pub async fn run(options: Options, mut roots: Roots, events: mpsc::Sender<Event>, mut rng: fastrand::Rng) {
    let store = options.folder.clone().map(Store::new);
    // One that has ended still has roots that are newer than those of a token.
    let mut held = restored(store.as_ref());
    let good = held.as_ref().filter(|identity| identity.ends() > wall());
    let mut schedule = Schedule::new(wall(), good.map(Identity::ends));
    if let Some(identity) = good
        && events.send(Event::Renewed(identity.clone())).await.is_err()
    {
        return;
    }
    let mut requester = Requester::new(options);
    loop {
        let now = wall();
        if let Some(warning) = schedule.warning(now)
            && events.send(Event::Ending { ended: warning == Warning::Ended }).await.is_err()
        {
            return;
        }
        let wait = schedule.wait(now);
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK_EVERY)) => {}
                () = events.closed() => return,
                Ok(()) = roots.changed() => {
                    let newest = roots.borrow_and_update().clone();
                    if let Some(identity) = newest.zip(held.as_mut()).and_then(|(trust, held)| retrust(held, &trust)) {
                        keep(store.as_ref(), &identity);
                        if events.send(Event::Trusting(identity)).await.is_err() {
                            return;
                        }
                    }
                }
            }
            continue;
        }
        let event = match requester.ask(held.as_ref(), now).await {
            Ok(identity) if !schedule.renewed(wall(), identity.ends(), &mut rng) => Event::Failed {
                reason: "the certificate that came has ended: this machine's clock is ahead of the CA's"
                    .into(),
                held: held.as_ref().is_some_and(|identity| identity.ends() > now),
            },
            Ok(mut identity) => {
                // A replica of the CA may not know yet what the control plane has sent us.
                if let Some(more) =
                    roots.borrow_and_update().as_deref().and_then(|trust| trust.roots.as_ref())
                    && let Some(own) = &identity.trust.roots
                {
                    identity = identity.trusting(&own.with(more));
                }
                keep(store.as_ref(), &identity);
                held = Some(identity.clone());
                Event::Renewed(identity)
            }
            Err(reason) => {
                schedule.failed(wall(), &mut rng);
                Event::Failed { reason, held: held.as_ref().is_some_and(|identity| identity.ends() > now) }
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Gives `held` other roots, if they are others.
fn retrust(held: &mut Identity, trust: &Trust) -> Option<Identity> {
    // Bundles of trust domains alone do not say which of them is ours.
    let roots = trust.roots.as_ref().filter(|roots| !roots.certificates.is_empty())?;
    let has = held.trust.roots.as_ref().map(|has| &has.certificates);
    if has == Some(&roots.certificates) {
        return None;
    }
    *held = held.trusting(roots);
    Some(held.clone())
}

/// What an earlier process left.
fn restored(store: Option<&Store>) -> Option<Identity> {
    let store = store?;
    match store.load() {
        Ok(identity) => identity,
        Err(error) => {
            tracing::warn!(file = %store.path().display(), error, "the kept identity is not usable");
            None
        }
    }
}

fn keep(store: Option<&Store>, identity: &Identity) {
    if let Some(store) = store
        && let Err(error) = store.save(&identity.text)
    {
        tracing::error!(file = %store.path().display(), %error, "cannot keep the identity");
    }
}

/// The wall clock: certificates end by it.
fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_in_plaintext_is_on_loopback() {
        let parse = |text: &str| text.parse::<Authority>();
        assert!(parse("https://10.0.0.1:15012").unwrap().tls && !parse("http://[::1]:15010").unwrap().tls);
        for wrong in ["http://10.0.0.1:15010", "10.0.0.1:15012", "ftp://127.0.0.1:1", "https://host"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
