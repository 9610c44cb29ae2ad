//! The control plane's own certificates, from its own authority: of the TLS port and of the webhook.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::SanType;
use remora_proxy::tls;
use remora_proxy::tls::material::OwnCertificate;
use remora_proxy::tls::secret::Secret;
use tokio::time::{Instant, sleep_until};
use tracing::error;

use crate::ca::issued::Log;
use crate::ca::{Ca, Refused};
use crate::clock::unix;

/// Between attempts to get a certificate.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Who a port is.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) ca: Arc<Ca>,
    pub(crate) log: Arc<Log>,
    /// DNS names and IP addresses that it is called by.
    pub(crate) names: Vec<String>,
}

/// The certificate that is shown: which root signed it, and when it is replaced.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    root: String,
    /// Half of its life is over.
    until: Instant,
}

impl Own {
    /// A new certificate.
    pub(crate) async fn issue(&self) -> Result<(OwnCertificate, Held), Refused> {
        let name = |name: &String| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
        };
        let names = self.names.iter().map(name).collect::<Result<Vec<_>, rcgen::Error>>()?;
        let root = self.ca.read(|authority| authority.signing().map(|root| root.id.clone()))??;
        let (issued, key) = self.ca.issue_own(&names).await?;
        self.log.write(&issued, self.ca.own_identity()?.as_str(), "control".into(), None).await;
        // With the roots, so that a client that knows nothing but the fingerprint of one finds it: also of the one before.
        let chain = [issued.leaf, issued.intermediates.concat(), issued.roots].concat();
        let own = OwnCertificate::from_pem(chain.as_bytes(), key.as_bytes(), tls::provider());
        let life = Duration::from_secs(issued.not_after.saturating_sub(unix(SystemTime::now())));
        let held = Held { root, until: Instant::now() + life / 2 };
        Ok((own.map_err(|e| Refused::Signing(e.to_string()))?, held))
    }

    /// Whether another root signs than the one that signed it.
    fn is_outdated(&self, held: &Held) -> bool {
        let signing = self.ca.read(|authority| authority.signing().map(|root| root.id == held.root));
        matches!(signing, Ok(Ok(false)))
    }

    /// Replaces the certificate that `port` shows at half of its life, and when another root signs, while there is an authority.
    /// `changed` is called whenever the authority is another one than before.
    pub(crate) async fn renew(
        &self,
        port: &'static str,
        shown: &Secret<OwnCertificate>,
        mut held: Held,
        changed: impl Fn() + Send,
    ) {
        let mut changes = self.ca.changes();
        loop {
            tokio::select! {
                () = sleep_until(held.until) => {}
                more = changes.next() => {
                    changed();
                    if !more {
                        return;
                    }
                    if !self.is_outdated(&held) {
                        continue;
                    }
                }
            }
            match self.issue().await {
                Ok((own, next)) => {
                    shown.set(Arc::new(own));
                    held = next;
                }
                Err(error) => {
                    error!(%error, "the certificate of {port} is not replaced; tried again");
                    held.until = Instant::now() + RETRY;
                }
            }
        }
    }
}
