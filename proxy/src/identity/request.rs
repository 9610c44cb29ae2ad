//! One request for a certificate: a new key, a CSR without names, and the call.
//!
//! The CA decides who we are by the credential: the certificate that we have, or a token. Nothing in the CSR counts.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use remora_xds::client::Duplex;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::wire::{CREATE, CertificateRequest, CertificateResponse};
use super::{CONTROL_PLANE, Identity, Options, Text};
use crate::route::text::{Place, StringMatch};
use crate::tls::client::{AlpnOffer, ClientParams, ClientTls, Target};
use crate::tls::material::{self, Authorities, OwnCertificate};
use crate::tls::secret::Secret;
use crate::tls::verify::{PeerRules, SanMatch, SanType, Trust};
use crate::upstream::connect::{self, ConnectSpec};

/// For the whole of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer: a chain and some roots.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Requester {
    options: Options,
    /// Of the request that is under way. It stays the same until there is a certificate for it: a token for one use is one
    /// for one key, and an answer that was lost may be asked for again.
    key: Option<KeyPair>,
}

impl Requester {
    pub(super) const fn new(options: Options) -> Self {
        Self { options, key: None }
    }

    /// Asks, with the certificate that there is as the credential, or else with the token.
    pub(super) async fn ask(&mut self, held: Option<&Identity>) -> Result<Identity, String> {
        let identity = self.either_way(held).await?;
        self.key = None;
        Ok(identity)
    }

    async fn either_way(&mut self, held: Option<&Identity>) -> Result<Identity, String> {
        let asked = tokio::time::timeout(PATIENCE, self.call(held)).await;
        let late = || format!("no answer in {} s", PATIENCE.as_secs());
        match (asked.map_err(|_| late()).flatten(), held) {
            // The CA may have forgotten us; a token is another way.
            (Err(error), Some(_)) if self.options.token.is_some() => {
                let asked = tokio::time::timeout(PATIENCE, self.call(None)).await;
                asked.map_err(|_| late()).flatten().map_err(|second| format!("{error}; by token: {second}"))
            }
            (asked, _) => asked,
        }
    }

    fn key(&mut self) -> Result<&KeyPair, String> {
        let key = match self.key.take() {
            Some(key) => key,
            None => KeyPair::generate().map_err(|e| e.to_string())?,
        };
        Ok(self.key.insert(key))
    }

    async fn call(&mut self, held: Option<&Identity>) -> Result<Identity, String> {
        let (csr, key) = {
            let key = self.key()?;
            let csr = CertificateParams::default().serialize_request(key).and_then(|csr| csr.pem());
            (csr, key.serialize_pem())
        };
        let request = CertificateRequest { csr: csr.map_err(|e| e.to_string())?, validity_duration: 0 };
        let mut request = Request::new(request);
        if !(held.is_some() && self.options.authority.tls) {
            let token = format!("Bearer {}", self.token()?);
            let value = token.parse().map_err(|_| "the token has characters that no token has")?;
            request.metadata_mut().insert("authorization", value);
        }
        let dial = Dial { address: self.options.authority.address, tls: self.tls(held).await? };
        let endpoint = Endpoint::from_static("http://remora-control");
        let channel: Channel = endpoint.connect_with_connector(dial).await.map_err(|e| with_causes(&e))?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|e| with_causes(&e))?;
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(CREATE), codec).await;
        let answer = answer.map_err(|status| said(&status))?.into_inner();
        let Parts { chain, roots } = parts(&answer.cert_chain.join("\n"))?;
        let text = Text { chain, key, roots };
        let identity = Identity::new(text).map_err(|e| format!("the answer: {e}"))?;
        if identity.certificate.uri.is_none() {
            return Err("the answer: the certificate has no URI name".into());
        }
        Ok(identity)
    }

    fn token(&self) -> Result<String, String> {
        let path = self.options.token.as_ref().ok_or("there is neither a certificate nor a token")?;
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// TLS to the CA: it is believed by the roots that we have, and shown our certificate, if that is to prove who we are.
    async fn tls(&self, held: Option<&Identity>) -> Result<Option<ClientTls>, String> {
        if !self.options.authority.tls {
            return Ok(None);
        }
        let mut pem = held.map(|held| held.text.roots.clone()).unwrap_or_default();
        if let Some(path) = &self.options.roots {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            pem.push_str(&text);
        }
        let roots = if pem.is_empty() {
            self.pinned().await?
        } else {
            material::roots(pem.as_bytes()).map_err(|e| format!("roots of the CA: {e}"))?
        };
        let name = StringMatch::text(Place::Suffix, CONTROL_PLANE, false);
        let sans = vec![SanMatch { san: SanType::Uri, text: name }];
        client_tls(Trust { sans, ..Trust::in_roots(roots) }, held).map(Some)
    }

    /// The root that the token names by its fingerprint: the CA shows it behind its own certificate. Nothing is said on that
    /// connection, and nothing else that was shown on it is believed.
    async fn pinned(&self) -> Result<Authorities, String> {
        let token = self.token()?;
        let pin = token.rsplit('-').next().filter(|pin| pin.len() == 64);
        let pin = pin.ok_or("neither --ca-roots nor the token says whom to believe")?;
        let address = self.options.authority.address;
        let anyone = Trust { roots: None, ..Trust::in_roots(Authorities::none()) };
        let tls = client_tls(anyone, None)?;
        let tcp = connect::connect(address, &ConnectSpec::default()).await.map_err(|e| e.to_string())?;
        let target = Target::new(address, AlpnOffer::Http2);
        let (stream, _) = tls.connect(tcp, target).await.map_err(|e| e.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let root = shown.iter().find(|der| material::fingerprint_hex(der).is_some_and(|found| found == pin));
        let root = root.ok_or("the server of the CA does not show the root that the token names")?;
        Authorities::new(vec![root.clone().into_owned()]).map_err(|e| e.to_string())
    }
}

fn client_tls(trust: Trust, held: Option<&Identity>) -> Result<ClientTls, String> {
    let own = held.map(|held| {
        let own: Arc<Secret<OwnCertificate>> = Secret::awaited("own".into());
        own.set(Arc::clone(&held.certificate));
        own
    });
    let params = ClientParams { sessions: 0, ..ClientParams::default() };
    ClientTls::new(params, own, PeerRules::inline(trust)).map_err(|e| e.to_string())
}

/// An answer taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) chain: String,
    pub(super) roots: String,
}

/// Self-signed certificates are roots, the others are the chain.
pub(super) fn parts(pem: &str) -> Result<Parts, String> {
    let mut parts = Parts { chain: String::new(), roots: String::new() };
    for block in pem.split_inclusive("-----END CERTIFICATE-----").filter(|block| block.contains("BEGIN")) {
        let der = material::certificates(block.as_bytes()).map_err(|e| e.to_string())?;
        let into = if material::is_self_signed(&der[0]) { &mut parts.roots } else { &mut parts.chain };
        into.push_str(block.trim_start());
        into.push('\n');
    }
    Ok(parts)
}

/// Opens the connection of a channel.
struct Dial {
    address: SocketAddr,
    tls: Option<ClientTls>,
}

type Dialled = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Duplex>>>> + Send>>;

impl Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = io::Error;
    type Future = Dialled;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Dialled {
        let (address, tls) = (self.address, self.tls.take());
        Box::pin(async move {
            let tcp = connect::connect(address, &ConnectSpec::default()).await.map_err(io::Error::other)?;
            let io: Box<dyn Duplex> = match tls {
                None => Box::new(tcp),
                Some(tls) => {
                    let target = Target::new(address, AlpnOffer::Http2);
                    Box::new(tls.connect(tcp, target).await.map_err(io::Error::other)?.0)
                }
            };
            Ok(TokioIo::new(io))
        })
    }
}

fn said(status: &Status) -> String {
    format!("{:?}: {}{}", status.code(), status.message(), causes(status))
}

fn with_causes(error: &dyn Error) -> String {
    format!("{error}{}", causes(error))
}

fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Ca, uri};

    #[test]
    fn an_answer_is_taken_apart_whatever_its_order() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let leaf = old.leaf(&[uri("spiffe://a/b")], |_| {}).chain;
        let Parts { chain, roots } = parts(&format!("{}\n{leaf}\n\n{}", old.pem, new.pem)).unwrap();
        assert_eq!(material::certificates(chain.as_bytes()).unwrap().len(), 1);
        assert_eq!(material::certificates(roots.as_bytes()).unwrap().len(), 2);
        assert!(parts("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----").is_err());
    }
}
