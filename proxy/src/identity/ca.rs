//! Certificates from the CA of a control plane: a key of this process's own, a request, and another one at half of the certificate's life.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::request::Requester;
use super::schedule::{Schedule, Warning};
use super::store::Store;
use super::{Event, Identity, LOOK_EVERY, Roots, wall};
use crate::tls::verify::Trust;

/// How a CA is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ca {
    /// Where the CA is.
    pub authority: Authority,
    /// Certificates (PEM) by one of which the CA's server is believed before there is a first certificate. Without, the join
    /// token names the root by its fingerprint.
    pub roots: Option<PathBuf>,
    /// A join token or a service account token, read for each request.
    pub token: Option<PathBuf>,
    /// Where key and certificates are kept.
    pub folder: Option<PathBuf>,
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

/// Keeps this process in certificates for as long as somebody listens to `events`.
pub(super) async fn run(ca: Ca, mut roots: Roots, events: mpsc::Sender<Event>, mut rng: fastrand::Rng) {
    let store = ca.folder.clone().map(Store::new);
    // One that has ended still has roots that are newer than those of a token.
    let mut held = restored(store.as_ref());
    let good = held.as_ref().filter(|identity| identity.ends() > wall());
    let mut schedule = Schedule::new(wall(), good.map(Identity::ends));
    if let Some(identity) = good
        && events.send(Event::Renewed(identity.clone())).await.is_err()
    {
        return;
    }
    let mut requester = Requester::new(ca);
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
