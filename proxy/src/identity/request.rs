//! One request for a certificate: a new key, a CSR without names, and the call.
//!
//! The CA decides who we are by the credential: the certificate that we have, or a token. Nothing in the CSR counts.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use remora_xds::client::Duplex;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::wire::{CREATE, CertificateRequest, CertificateResponse};
use super::{CONTROL_PLANE, Ca, Identity, Text};
use crate::route::text::{Place, StringMatch};
use crate::tls::client::{AlpnOffer, ClientParams, ClientTls, Target};
use crate::tls::material::{self, Authorities, OwnCertificate};
use crate::tls::secret::Secret;
use crate::tls::verify::{self, PeerRules, SanMatch, SanType, Trust};
use crate::upstream::connect::{self, ConnectSpec};

/// For the whole of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer: a chain and some roots.
const MAX_ANSWER: usize = 1 << 20;

/// What is known of the CA and of us.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    /// Proves who we are; without it the token does.
    credential: Option<&'a Identity>,
    /// Has the newest roots, and the trust domain.
    newest: Option<&'a Identity>,
}

#[derive(Debug)]
pub(super) struct Requester {
    ca: Ca,
    /// Of the request that is under way. It stays the same until there is a certificate for it: a token for one use is one
    /// for one key, and an answer that was lost may be asked for again.
    key: Option<KeyPair>,
}

impl Requester {
    pub(super) const fn new(ca: Ca) -> Self {
        Self { ca, key: None }
    }

    /// Asks, with the certificate that there is as the credential while it is good, or else with the token. The roots of one that
    /// has ended are still the newest that we know.
    pub(super) async fn ask(&mut self, held: Option<&Identity>, now: Duration) -> Result<Identity, String> {
        let good = held.filter(|held| held.ends() > now && self.ca.authority.tls);
        let mut asked = self.in_time(Known { credential: good, newest: held }).await;
        if let (Err(first), Some(_), Some(_)) = (&asked, good, &self.ca.token) {
            // The CA may have forgotten us; a token is another way.
            let second = self.in_time(Known { credential: None, newest: held }).await;
            asked = second.map_err(|second| format!("{first}; by token: {second}"));
        }
        if asked.is_ok() {
            self.key = None;
        }
        asked
    }

    async fn in_time(&mut self, known: Known<'_>) -> Result<Identity, String> {
        let asked = tokio::time::timeout(PATIENCE, self.call(known)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs())))
    }

    fn key(&mut self) -> Result<&KeyPair, String> {
        let key = match self.key.take() {
            Some(key) => key,
            None => KeyPair::generate().map_err(|e| e.to_string())?,
        };
        Ok(self.key.insert(key))
    }

    async fn call(&mut self, known: Known<'_>) -> Result<Identity, String> {
        let (csr, key) = {
            let key = self.key()?;
            let csr = CertificateParams::default().serialize_request(key).and_then(|csr| csr.pem());
            (csr, key.serialize_pem())
        };
        let request = CertificateRequest { csr: csr.map_err(|e| e.to_string())?, validity_duration: 0 };
        let mut request = Request::new(request);
        if known.credential.is_none() {
            let token = format!("Bearer {}", self.token()?);
            let value = token.parse().map_err(|_| "the token has characters that no token has")?;
            request.metadata_mut().insert("authorization", value);
        }
        let connection = self.connect(known).await?;
        let origin = Uri::from_static("http://remora-control");
        let mut grpc = Grpc::with_origin(connection, origin).max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|e| with_causes(&e))?;
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(CREATE), codec).await;
        let answer = answer.map_err(|status| said(&status))?.into_inner();
        let Parts { chain, roots } = parts(&answer.cert_chain.join("\n"))?;
        let text = Text { chain, key, roots };
        let identity = Identity::new(text).map_err(|e| format!("the answer: {e}"))?;
        check(&identity, known.newest)?;
        Ok(identity)
    }

    /// One connection. There is no second one: what was verified of it is verified of everything that is said on it.
    async fn connect(&self, known: Known<'_>) -> Result<Connection, String> {
        let address = self.ca.authority.address;
        let tls = self.tls(known).await?;
        let tcp = connect::connect(address, &ConnectSpec::default()).await.map_err(|e| e.to_string())?;
        let io: Box<dyn Duplex> = match &tls {
            None => Box::new(tcp),
            Some(tls) => {
                let target = Target::new(address, AlpnOffer::Http2);
                Box::new(tls.connect(tcp, target).await.map_err(|e| e.to_string())?.0)
            }
        };
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
        let (sender, connection) = made.map_err(|e| with_causes(&e))?;
        // Its end shows at the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection(sender))
    }

    fn token(&self) -> Result<String, String> {
        let path = self.ca.token.as_ref().ok_or("there is neither a certificate nor a token")?;
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// TLS to the CA: it is believed by the roots that we have, and shown our certificate, if that is to prove who we are.
    async fn tls(&self, known: Known<'_>) -> Result<Option<ClientTls>, String> {
        if !self.ca.authority.tls {
            return Ok(None);
        }
        let mut pem = known.newest.map(|newest| newest.text.roots.clone()).unwrap_or_default();
        if let Some(path) = &self.ca.roots {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            pem.push_str(&text);
        }
        let roots = if pem.is_empty() {
            self.pinned().await?
        } else {
            material::roots(pem.as_bytes()).map_err(|e| format!("roots of the CA: {e}"))?
        };
        // Who has been here before knows the trust domain.
        let name = match known.newest.and_then(Identity::spiffe) {
            Some(own) => {
                let plane = format!("spiffe://{}{CONTROL_PLANE}", own.trust_domain());
                StringMatch::text(Place::Exact, &plane, false)
            }
            None => StringMatch::text(Place::Suffix, CONTROL_PLANE, false),
        };
        let sans = vec![SanMatch { san: SanType::Uri, text: name }];
        client_tls(Trust { sans, ..Trust::in_roots(roots) }, known.credential).map(Some)
    }

    /// The root that the token names by its fingerprint: the CA shows it behind its own certificate. Nothing is said on that
    /// connection, and nothing else that was shown on it is believed.
    async fn pinned(&self) -> Result<Authorities, String> {
        let token = self.token()?;
        let pin = token.rsplit('-').next().filter(|pin| pin.len() == 64);
        let pin = pin.ok_or("neither --ca-roots nor the token says whom to believe")?;
        let address = self.ca.authority.address;
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

/// What a CA must not answer: a certificate that nobody would believe, or one of another trust domain than before.
pub(super) fn check(identity: &Identity, before: Option<&Identity>) -> Result<(), String> {
    let own = identity.spiffe().ok_or("the answer: the certificate has no SPIFFE ID")?;
    if let Some(before) = before.and_then(Identity::spiffe)
        && before.trust_domain() != own.trust_domain()
    {
        return Err(format!(
            "the answer: the trust domain is {}, and was {}",
            own.trust_domain(),
            before.trust_domain()
        ));
    }
    let roots = identity.trust.roots.as_ref().ok_or("the answer has no roots")?;
    verify::leads_to(&identity.certificate.key.cert, roots).map_err(|why| format!("the answer: {why}"))
}

/// The connection, as gRPC wants it.
struct Connection(http2::SendRequest<Body>);

type Answered = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

impl Service<http::Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Answered;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answered {
        Box::pin(self.0.send_request(request))
    }
}

fn said(status: &Status) -> String {
    format!("{:?}: {}{}", status.code(), status.message(), causes(status))
}

pub(super) fn with_causes(error: &dyn Error) -> String {
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
    use crate::tls::TlsParams;
    use crate::tls::server::{ServerParams, ServerTls};
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

    fn asking(folder: &std::path::Path, address: std::net::SocketAddr, roots: &str) -> super::super::Ca {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        super::super::Ca {
            authority: super::super::Authority { address, tls: true },
            roots: write("roots", roots),
            token: write("token", "remora-1-secret"),
            folder: None,
        }
    }

    /// Whoever comes after the end of a connection is not known: he is told nothing, and above all not in plaintext.
    #[tokio::test]
    async fn a_connection_that_ends_is_not_opened_again() {
        let ca = Ca::new("root");
        let plane = ca.leaf(&[uri("spiffe://a.example/ns/remora-system/sa/remora-control")], |_| {});
        let tls = TlsParams { alpn: vec![b"h2".to_vec()], ..TlsParams::default() };
        let params = ServerParams { tls, ..ServerParams::default() };
        let server = ServerTls::new(params, vec![plane.own()], None).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let asked = asking(folder.path(), listener.local_addr().unwrap(), &ca.pem);
        let mut requester = Requester::new(asked);
        let serve = async {
            let (io, _) = listener.accept().await.unwrap();
            drop(server.accept(io, b"").await.unwrap());
        };
        let (asked, ()) = tokio::join!(requester.ask(None, Duration::ZERO), serve);
        asked.unwrap_err();
        let more = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(more.is_err(), "there was another connection");
    }

    #[test]
    fn an_answer_has_to_be_one_that_others_believe() {
        let (ca, other) = (Ca::new("root"), Ca::new("other"));
        let identity = |ca: &Ca, roots: &Ca, id: &str| {
            let pair = ca.leaf(&[uri(id)], |_| {});
            Identity::new(Text { chain: pair.chain, key: pair.key, roots: roots.pem.clone() }).unwrap()
        };
        let good = identity(&ca, &ca, "spiffe://a.example/ns/n/sa/s");
        assert_eq!(check(&good, None), Ok(()));
        assert_eq!(check(&good, Some(&good)), Ok(()));
        assert!(check(&identity(&ca, &other, "spiffe://a.example/ns/n/sa/s"), None).is_err());
        let moved = identity(&other, &other, "spiffe://b.example/ns/n/sa/s");
        assert!(check(&moved, Some(&good)).unwrap_err().contains("trust domain"));
    }
}
