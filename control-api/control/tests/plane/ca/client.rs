//! A program that wants a certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Uri};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, SanType};
use remora_control::ca::service::{CertificateRequest, CertificateResponse};
use remora_control::ca::{Source, System};
use remora_proxy::tls::client::{AlpnOffer, ClientParams, ClientStream, ClientTls, Target};
use remora_proxy::tls::material::{self, OwnCertificate};
use remora_proxy::tls::provider;
use remora_proxy::tls::secret::Secret;
use remora_proxy::tls::verify::{PeerRules, Trust};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::support::Rig;

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A key, and the certificates that it got.
pub(super) struct Agent {
    key: KeyPair,
    names: Vec<SanType>,
    pub(super) chain: Vec<String>,
}

impl Agent {
    pub(super) fn new() -> Self {
        Self { key: System.key().unwrap(), names: Vec::new(), chain: Vec::new() }
    }

    /// One whose CSR asks for a URI name.
    pub(super) fn named(uri: &str) -> Self {
        Self { names: vec![SanType::URI(uri.try_into().unwrap())], ..Self::new() }
    }

    fn csr(&self) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&self.names);
        params.serialize_request(&self.key).unwrap().pem().unwrap()
    }

    /// Asks for a certificate, with a token or with what the connection shows.
    pub(super) async fn ask(&mut self, channel: Channel, token: Option<&str>) -> Result<(), Status> {
        self.chain =
            create(channel, token, CertificateRequest { csr: self.csr(), validity_duration: 0 }).await?;
        Ok(())
    }

    pub(super) fn certificate(&self) -> OwnCertificate {
        let (chain, key) = (self.chain[..self.chain.len() - 1].concat(), self.key.serialize_pem());
        OwnCertificate::from_pem(chain.as_bytes(), key.as_bytes(), provider()).unwrap()
    }
}

pub(super) async fn create(
    channel: Channel,
    token: Option<&str>,
    request: CertificateRequest,
) -> Result<Vec<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(METHOD), codec).await?;
    Ok(answer.into_inner().cert_chain)
}

/// `code: reason id` of a refusal.
pub(super) fn reason(refused: Result<(), Status>) -> (tonic::Code, String) {
    let status = refused.unwrap_err();
    (status.code(), status.message().split(':').next().unwrap().to_owned())
}

/// Makes a token; the answer of REST.
pub(super) async fn token(rig: &Rig, account: &str, more: &Value) -> Value {
    let mut terms = json!({"namespace": "default", "serviceAccount": account});
    terms.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) =
        rig.send(Method::POST, "/remora/v1/tokens", "application/json", &terms.to_string()).await;
    assert_eq!(status, 201, "{answer}");
    answer
}

/// An agent with a certificate for a service account of the namespace `default`.
pub(super) async fn joined(rig: &Rig, account: &str) -> Agent {
    let token = token(rig, account, &json!({})).await;
    let mut agent = Agent::new();
    agent.ask(crate::support::plaintext(rig).await, token["token"].as_str()).await.unwrap();
    agent
}

/// The TLS port, verified by the roots that REST shows and by its name; `agent` shows its certificate.
pub(super) async fn tls(rig: &Rig, agent: Option<&Agent>) -> Channel {
    let (_, ca) = rig.get("/remora/v1/ca").await;
    let tls = Arc::new(client_tls(ca["trusted"].as_str(), agent));
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(Connector { address: rig.plane.tls, tls }).await.unwrap()
}

/// A handshake with the TLS port by somebody who knows nothing.
pub(super) async fn shake(rig: &Rig) -> ClientStream<TcpStream> {
    let tcp = TcpStream::connect(rig.plane.tls).await.unwrap();
    let target = Target::new(rig.plane.tls, AlpnOffer::Http2);
    client_tls(None, None).connect(tcp, target).await.unwrap().0
}

fn client_tls(roots: Option<&str>, agent: Option<&Agent>) -> ClientTls {
    let roots = roots.map(|roots| material::roots(roots.as_bytes()).unwrap());
    let params = ClientParams {
        sni: Some("localhost".try_into().unwrap()),
        verify_sni: roots.is_some(),
        ..ClientParams::default()
    };
    let trust = Trust { roots, ..Trust::in_roots(material::Authorities::none()) };
    let own = agent.map(|agent| Secret::inline(agent.certificate()));
    ClientTls::new(params, own, PeerRules::inline(trust)).unwrap()
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    tls: Arc<ClientTls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<ClientStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, tls } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            let target = Target::new(address, AlpnOffer::Http2);
            let (stream, _) = tls.connect(tcp, target).await.map_err(std::io::Error::other)?;
            Ok(TokioIo::new(stream))
        })
    }
}
