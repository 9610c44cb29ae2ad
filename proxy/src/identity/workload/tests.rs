use std::collections::HashMap;
use std::path::{Path, PathBuf};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::IsCa;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic_prost::ProstCodec;

use super::*;
use crate::identity::socket::Socket;
use crate::identity::socket::workload_api::{
    Empty, SECURITY_HEADER, X509Svid, X509SvidResponse, concatenated,
};
use crate::tls::material::{self, private_key};
use crate::tls::testing::{Ca, uri};

/// SPIRE lets people write any path.
const ID: &str = "spiffe://mesh.example/spire/web";

/// An answer with a certificate of `ca`, and its bundle.
fn svid(ca: &Ca) -> X509SvidResponse {
    svid_of(ca, ID)
}

fn svid_of(ca: &Ca, id: &str) -> X509SvidResponse {
    let pair = ca.leaf(&[uri(id)], |params| params.is_ca = IsCa::ExplicitNoCa);
    let svid = X509Svid {
        spiffe_id: id.into(),
        x509_svid: der(&pair.chain),
        x509_svid_key: private_key(pair.key.as_bytes()).unwrap().secret_der().to_vec(),
        bundle: der(&ca.pem),
        hint: String::new(),
    };
    X509SvidResponse { svids: vec![svid], ..X509SvidResponse::default() }
}

fn der(pem: &str) -> Vec<u8> {
    concatenated(&material::certificates(pem.as_bytes()).unwrap())
}

/// What an agent says.
type Said = Result<X509SvidResponse, Status>;

/// An agent that says to everybody what it was told last, at once and when it is told something else. It ends with this value.
struct Agent {
    tell: watch::Sender<Option<Said>>,
    serving: JoinHandle<()>,
}

impl Agent {
    fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (tell, said) = watch::channel(None);
        let script = Script(said);
        let serving = tokio::spawn(async move {
            // With its connections: they end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = script.clone();
                let service = service_fn(move |request| answer(script.clone(), request));
                let builder = http2::Builder::new(TokioExecutor::new());
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { tell, serving }
    }

    fn refuse(&self, status: Status) {
        self.tell.send_replace(Some(Err(status)));
    }

    fn send(&self, response: X509SvidResponse) {
        self.tell.send_replace(Some(Ok(response)));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    script: Script,
    request: Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    assert_eq!(request.headers().get(SECURITY_HEADER).unwrap(), "true");
    let mut grpc = Grpc::new(ProstCodec::<X509SvidResponse, Empty>::default());
    Ok(grpc.server_streaming(script, request).await)
}

#[derive(Clone)]
struct Script(watch::Receiver<Option<Said>>);

impl ServerStreamingService<Empty> for Script {
    type Response = X509SvidResponse;
    type ResponseStream = ReceiverStream<Said>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<Empty>) -> Self::Future {
        let (send, responses) = mpsc::channel(1);
        let Self(mut script) = self.clone();
        tokio::spawn(async move {
            loop {
                let said = script.borrow_and_update().clone();
                let last = matches!(said, Some(Err(_)));
                if let Some(said) = said
                    && (send.send(said).await.is_err() || last)
                {
                    return;
                }
                tokio::select! {
                    changed = script.changed() => if changed.is_err() { return },
                    () = send.closed() => return,
                }
            }
        });
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(responses))))
    }
}

/// A process that follows an agent.
struct Rig {
    events: mpsc::Receiver<Event>,
    path: PathBuf,
    _folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let (send, events) = mpsc::channel(1);
        let address = format!("unix://{}", path.display()).parse().unwrap();
        tokio::spawn(run(address, send, fastrand::Rng::with_seed(7)));
        Self { events, path, _folder: folder }
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.recv()).await;
        event.expect("there is an event").unwrap()
    }

    /// The next identity. Failures before it are for other tests.
    async fn renewed(&mut self) -> Identity {
        loop {
            match self.event().await {
                Event::Renewed(identity) => return identity,
                Event::Failed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn failed(&mut self) -> (String, bool) {
        match self.event().await {
            Event::Failed { reason, held } => (reason, held),
            other => panic!("{other:?}"),
        }
    }
}

fn leaf(identity: &Identity) -> Vec<u8> {
    identity.certificate.key.cert[0].to_vec()
}

#[tokio::test]
async fn each_certificate_that_the_agent_pushes_is_taken() {
    let (ca, mut rig) = (Ca::new("root"), Rig::new());
    let agent = Agent::at(&rig.path);
    let mut serials = Vec::new();
    for _ in 0..3 {
        let svid = svid(&ca);
        // Said twice, it is no news.
        agent.send(svid.clone());
        agent.send(svid);
        let identity = rig.renewed().await;
        assert_eq!(identity.certificate.uri.as_deref(), Some(ID));
        assert_eq!(identity.text.roots, to_pem(&material::certificates(ca.pem.as_bytes()).unwrap()));
        serials.push(leaf(&identity));
    }
    serials.dedup();
    assert_eq!(serials.len(), 3);
}

#[tokio::test]
async fn our_own_socket_is_an_agent_for_others_and_may_come_late_and_start_again() {
    let (ca, mut rig) = (Ca::new("root"), Rig::new());
    let (reason, held) = rig.failed().await;
    assert!(!held && reason.contains("No such file"), "{reason}");
    let mut before = Vec::new();
    for _ in 0..2 {
        let identity = identity(&first(&svid(&ca))).unwrap();
        let (_send, newest) = watch::channel(Some(Arc::new(identity.clone())));
        let serving = tokio::spawn(Socket::bind(&rig.path).unwrap().serve(newest));
        let came = rig.renewed().await;
        assert_eq!(leaf(&came), leaf(&identity));
        assert_ne!(leaf(&came), before, "the one of the agent that is there now");
        before = leaf(&came);
        serving.abort();
    }
}

/// An answer as the client library reads it.
fn first(response: &X509SvidResponse) -> X509Context {
    let svid = &response.svids[0];
    let parsed = spiffe::X509Svid::parse_from_der(&svid.x509_svid, &svid.x509_svid_key).unwrap();
    let domain = parsed.spiffe_id().trust_domain().clone();
    let mut bundles = spiffe::X509BundleSet::new();
    bundles.add_bundle(spiffe::X509Bundle::parse_from_der(domain, &svid.bundle).unwrap());
    X509Context::new([Arc::new(parsed)], bundles)
}

#[tokio::test]
async fn an_agent_that_refuses_is_named_and_asked_again() {
    let (ca, mut rig) = (Ca::new("root"), Rig::new());
    let agent = Agent::at(&rig.path);
    let refusals = [
        (Status::permission_denied("no identity issued"), "PERMISSION_DENIED: no identity issued"),
        (Status::permission_denied("not you"), "PERMISSION_DENIED: not you"),
        (Status::unavailable("later"), "later"),
    ];
    for (status, expected) in refusals {
        agent.refuse(status);
        // Those before may be told once more.
        loop {
            let (reason, held) = rig.failed().await;
            assert!(!held);
            if reason.contains(expected) {
                break;
            }
        }
    }
    agent.send(svid(&ca));
    rig.renewed().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_leaves_what_there_was() {
    let (ca, other, mut rig) = (Ca::new("root"), Ca::new("other"), Rig::new());
    let agent = Agent::at(&rig.path);
    let edited = |edit: &dyn Fn(&mut X509Svid)| {
        let mut response = svid(&ca);
        edit(&mut response.svids[0]);
        response
    };
    let foreign_key = svid(&ca).svids[0].x509_svid_key.clone();
    let wrong = [
        edited(&|svid| svid.x509_svid = b"garbage".to_vec()),
        edited(&|svid| svid.x509_svid.clear()),
        edited(&|svid| svid.x509_svid_key = foreign_key.clone()),
        edited(&|svid| svid.bundle = der(&other.pem)),
        edited(&|svid| svid.bundle.clear()),
        edited(&|svid| svid.bundle = b"garbage".to_vec()),
        svid_of(&ca, "spiffe://mesh.example"),
        X509SvidResponse::default(),
    ];
    for wrong in wrong {
        agent.send(svid(&ca));
        rig.renewed().await;
        agent.send(wrong.clone());
        let (reason, held) = rig.failed().await;
        assert!(held, "{reason}: of {wrong:?}");
    }
}

#[tokio::test]
async fn a_bundle_vouches_for_its_own_trust_domain_and_may_change_alone() {
    let (ca, abroad, next, mut rig) = (Ca::new("root"), Ca::new("abroad"), Ca::new("next"), Rig::new());
    let agent = Agent::at(&rig.path);
    let mut response = svid(&ca);
    response.federated_bundles = HashMap::from([("spiffe://abroad.example".into(), der(&abroad.pem))]);
    agent.send(response.clone());
    let identity = rig.renewed().await;
    let domains = identity.trust.domains.as_ref().unwrap();
    assert_eq!(domains.names().collect::<Vec<_>>(), ["abroad.example", "mesh.example"]);
    assert!(domains.bundles().all(|bundle| bundle.certificates.len() == 1));
    assert_eq!(identity.federated().map(|(domain, _)| domain).collect::<Vec<_>>(), ["abroad.example"]);

    response.svids[0].bundle.extend(der(&next.pem));
    agent.send(response.clone());
    let Event::Trusting(more) = rig.event().await else { panic!("the bundle is another one") };
    assert_eq!((leaf(&more), more.trust.roots.as_ref().unwrap().certificates.len()), (leaf(&identity), 2));
    response.federated_bundles.clear();
    agent.send(response);
    let Event::Trusting(less) = rig.event().await else { panic!("nobody is federated any more") };
    assert_eq!(less.federated().count(), 0);
}

#[test]
fn addresses_are_those_of_the_specification() {
    let parse = |text: &str| text.parse::<Address>();
    assert_eq!(parse("unix:///run/spire/agent.sock"), parse("unix:/run/spire/agent.sock"));
    assert!(parse("tcp://127.0.0.1:8081").is_ok() && parse("tcp://[::1]:8081").is_ok());
    for wrong in [
        "",
        "/run/agent.sock",
        "unix:agent.sock",
        "unix://host/a",
        "tcp://10.0.0.1:1",
        "tcp://host:1",
        "tcp://127.0.0.1",
        "http://127.0.0.1:1",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(parse("tcp://10.0.0.1:1").unwrap_err().contains("loopback"));
}
