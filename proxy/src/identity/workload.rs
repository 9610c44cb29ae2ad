//! The identity that a SPIFFE Workload API gives to this process, SPIRE's agent for example: it has the key made and signed, and pushes each
//! new certificate and each new bundle. The only module that knows the crate `spiffe`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use spiffe::transport::Endpoint;
use spiffe::{Certificate, WorkloadApiClient, WorkloadApiError, X509Context};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::{Stream, StreamExt};

use super::request::{check, with_causes};
use super::schedule::{Schedule, Warning};
use super::{Event, Identity, LOOK_EVERY, Text, wall};
use crate::tls::domains::Domains;
use crate::tls::material::{Authorities, key_to_pem, to_pem};
use crate::tls::verify::Trust;

/// An agent that holds its first answer back for longer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where agents say by convention that they are (SPIFFE Workload Endpoint §4).
const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Where a Workload API is (SPIFFE Workload Endpoint §4): `unix:///PATH` or `tcp://IP:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Endpoint);

impl Address {
    /// The one that `SPIFFE_ENDPOINT_SOCKET` names.
    ///
    /// # Errors
    /// It names none.
    pub fn of_environment() -> Result<Self, String> {
        let text = std::env::var(VARIABLE).map_err(|_| format!("give an ADDRESS, or set {VARIABLE}"))?;
        text.parse().map_err(|error| format!("{VARIABLE}: {error}"))
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Endpoint::parse(text) {
            Ok(Endpoint::Tcp { host, .. }) if !host.is_loopback() => {
                Err("the key comes in plaintext, which is for loopback only; use a UNIX socket".into())
            }
            Ok(endpoint) => Ok(Self(endpoint)),
            Err(error) => Err(format!("{error}; write it as unix:///PATH or tcp://IP:PORT")),
        }
    }
}

/// Keeps this process in certificates for as long as somebody listens to `events`.
pub(super) async fn run(address: Address, events: mpsc::Sender<Event>, rng: fastrand::Rng) {
    let schedule = Schedule::new(wall(), None);
    Follower { address, held: None, schedule, events, rng }.run().await;
}

type Updates = Pin<Box<dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send>>;

struct Follower {
    address: Address,
    held: Option<Identity>,
    /// When to ask again after a failure, and what to warn of.
    schedule: Schedule,
    events: mpsc::Sender<Event>,
    rng: fastrand::Rng,
}

/// Why an agent is not followed any more.
enum End {
    /// To be told; it is asked again.
    Failed(String),
    /// Nobody listens.
    Gone,
}

impl Follower {
    async fn run(mut self) {
        while let Err(End::Failed(reason)) = self.follow().await {
            let now = wall();
            self.schedule.failed(now, &mut self.rng);
            let held = self.held.as_ref().is_some_and(|identity| identity.ends() > now);
            if self.say(Event::Failed { reason, held }).await.is_err() || self.pause().await.is_err() {
                return;
            }
        }
    }

    /// Takes what the agent sends.
    async fn follow(&mut self) -> Result<Infallible, End> {
        let asked = tokio::select! {
            asked = tokio::time::timeout(PATIENCE, ask(&self.address)) => asked,
            () = self.events.closed() => return Err(End::Gone),
        };
        let silent = |_| End::Failed(format!("no answer in {} s", PATIENCE.as_secs()));
        let (mut context, mut updates) = asked.map_err(silent)?.map_err(End::Failed)?;
        loop {
            self.take(&context).await?;
            context = self.next(&mut updates).await?;
        }
    }

    /// What the agent sends next.
    async fn next(&mut self, updates: &mut Updates) -> Result<X509Context, End> {
        loop {
            // An agent that is stuck may be well again for who asks anew.
            if self.warn().await?.is_some() {
                return Err(End::Failed("the agent sends no new certificate".into()));
            }
            let left = self.held.as_ref().map_or(LOOK_EVERY, |held| held.ends().saturating_sub(wall()));
            tokio::select! {
                update = updates.next() => {
                    let ended = || Err(End::Failed("the agent has ended the stream".into()));
                    return update.map_or_else(ended, |update| update.map_err(|error| End::Failed(said(&error))));
                }
                () = tokio::time::sleep((left / 3).clamp(Duration::from_secs(1), LOOK_EVERY)) => {}
                () = self.events.closed() => return Err(End::Gone),
            }
        }
    }

    /// An answer. One that cannot be used changes nothing.
    async fn take(&mut self, context: &X509Context) -> Result<(), End> {
        let identity = identity(context).map_err(End::Failed)?;
        let event = match &self.held {
            Some(held) if held.has_pair_of(&identity) && held.believes_as(&identity) => return Ok(()),
            Some(held) if held.has_pair_of(&identity) => Event::Trusting(identity.clone()),
            _ => Event::Renewed(identity.clone()),
        };
        if matches!(event, Event::Renewed(_))
            && !self.schedule.renewed(wall(), identity.ends(), &mut self.rng)
        {
            return Err(End::Failed("the certificate that came has ended".into()));
        }
        self.held = Some(identity);
        self.say(event).await
    }

    /// Waits before the agent is asked again.
    async fn pause(&mut self) -> Result<(), End> {
        loop {
            self.warn().await?;
            let wait = self.schedule.wait(wall());
            if wait.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.events.closed() => return Err(End::Gone),
            }
        }
    }

    async fn warn(&mut self) -> Result<Option<Warning>, End> {
        let warning = self.schedule.warning(wall());
        if let Some(warning) = warning {
            self.say(Event::Ending { ended: warning == Warning::Ended }).await?;
        }
        Ok(warning)
    }

    async fn say(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Gone)
    }
}

/// The first answer, and those to come.
async fn ask(address: &Address) -> Result<(X509Context, Updates), String> {
    let client = WorkloadApiClient::connect(address.0.clone()).await.map_err(|error| said(&error))?;
    let updates = client.stream_x509_contexts().await.map_err(|error| said(&error))?;
    let mut updates: Updates = Box::pin(updates);
    let first = updates.next().await.ok_or("the agent has ended the stream")?;
    Ok((first.map_err(|error| said(&error))?, updates))
}

/// The first SVID of an answer, which is the default one, with the bundle of its own trust domain and of those that are federated with it.
fn identity(context: &X509Context) -> Result<Identity, String> {
    let svid = context.default_svid().ok_or("the answer: there is no X.509-SVID")?;
    let mut domains = Domains::default();
    for (domain, bundle) in context.bundle_set().iter() {
        let bundle = Authorities::new(certificates(bundle.authorities()));
        domains.insert(
            domain.as_ref(),
            bundle.map_err(|error| format!("the answer: the bundle of {domain}: {error}"))?,
        );
    }
    let own = svid.spiffe_id().trust_domain().as_ref();
    let roots = domains.iter().find_map(|(domain, bundle)| (domain == own).then(|| bundle.clone()));
    let roots = roots.ok_or("the answer: there is no bundle of its trust domain")?;
    let identity = Identity::new(Text {
        chain: to_pem(&certificates(svid.cert_chain())),
        key: key_to_pem(svid.private_key().as_bytes()),
        roots: to_pem(&roots.certificates),
    });
    let identity = identity.map_err(|error| format!("the answer: {error}"))?;
    check(&identity, None)?;
    // A bundle vouches for names of its own trust domain alone.
    let trust = Arc::new(Trust { domains: Some(domains), ..Trust::in_roots(roots) });
    Ok(Identity { trust, ..identity })
}

fn certificates(list: &[Certificate]) -> Vec<CertificateDer<'static>> {
    list.iter().map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec())).collect()
}

fn said(error: &WorkloadApiError) -> String {
    match error {
        WorkloadApiError::NoIdentityIssued => {
            "PERMISSION_DENIED: no identity issued; the agent knows no entry for this process".into()
        }
        WorkloadApiError::PermissionDenied(message) => format!("PERMISSION_DENIED: {message}"),
        error => with_causes(error),
    }
}

#[cfg(test)]
mod tests;
