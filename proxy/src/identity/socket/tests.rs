use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use http::uri::PathAndQuery;
use prost::Message;
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use remora_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use remora_xds::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use remora_xds::{Named, any};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::codegen::tokio_stream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::workload_api::{Empty, SECURITY_HEADER, X509BundlesResponse, X509SvidResponse};
use super::*;
use crate::identity::Text;
use crate::tls::identity::PeerIdentity;
use crate::tls::testing::{Ca, uri};

const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";

fn identity(ca: &Ca) -> Arc<Identity> {
    let pair = ca.leaf(&[uri(ID)], |_| {});
    Arc::new(Identity::new(Text { chain: pair.chain, key: pair.key, roots: ca.pem.clone() }).unwrap())
}

struct Rig {
    send: watch::Sender<Option<Arc<Identity>>>,
    channel: Channel,
    folder: TempDir,
}

/// A socket that serves what `send` is given.
async fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.sock");
    let (send, newest) = watch::channel(None);
    tokio::spawn(Socket::bind(&path).unwrap().serve(newest));
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(Dial(path)).await.unwrap();
    Rig { send, channel, folder }
}

/// Calls a method of the Workload API.
async fn open<M: Message + Default + Send + 'static>(
    channel: Channel,
    method: &'static str,
    header: bool,
) -> Result<Streaming<M>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(Empty {});
    if header {
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    }
    let codec = ProstCodec::<Empty, M>::default();
    let answer = grpc.server_streaming(request, PathAndQuery::from_static(method), codec).await;
    answer.map(tonic::Response::into_inner)
}

struct Dial(PathBuf);

impl Service<http::Uri> for Dial {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

#[tokio::test]
async fn a_program_fetches_its_svid_and_watches_it_rotate() {
    let (ca, Rig { send, channel, .. }) = (Ca::new("root"), rig().await);
    let mut svids =
        open::<X509SvidResponse>(channel.clone(), "/SpiffeWorkloadAPI/FetchX509SVID", true).await.unwrap();
    let mut serials = Vec::new();
    for _ in 0..3 {
        send.send_replace(Some(identity(&ca)));
        let svid = svids.message().await.unwrap().unwrap().svids.remove(0);
        assert_eq!(svid.spiffe_id, ID);
        let leaf = svid.x509_svid.into();
        assert_eq!(&*PeerIdentity::of_leaf(&leaf, true).unwrap().uri_sans[0], ID);
        assert!(
            rustls_pki_types::PrivatePkcs8KeyDer::from(svid.x509_svid_key).secret_pkcs8_der().len() > 100
        );
        let roots = crate::tls::material::certificates(ca.pem.as_bytes()).unwrap();
        assert_eq!(svid.bundle, roots[0].as_ref());
        serials.push(leaf);
    }
    serials.dedup();
    assert_eq!(serials.len(), 3);
    let method = "/SpiffeWorkloadAPI/FetchX509Bundles";
    let mut bundles = open::<X509BundlesResponse>(channel, method, true).await.unwrap();
    let bundles = bundles.message().await.unwrap().unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://mesh.example"]);
}

#[tokio::test]
async fn the_workload_api_wants_its_header_and_says_what_it_does_not_have() {
    let Rig { channel, .. } = rig().await;
    let refused = async |method, header| {
        let opened = open::<X509SvidResponse>(channel.clone(), method, header).await;
        opened.unwrap_err().code()
    };
    assert_eq!(refused("/SpiffeWorkloadAPI/FetchX509SVID", false).await, Code::InvalidArgument);
    assert_eq!(refused("/SpiffeWorkloadAPI/FetchJWTSVID", true).await, Code::Unimplemented);
    assert_eq!(refused("/SpiffeWorkloadAPI/Other", true).await, Code::Unimplemented);
}

#[tokio::test]
async fn other_proxies_take_it_by_sds_and_get_each_new_one() {
    let (ca, Rig { send, channel, .. }) = (Ca::new("root"), rig().await);
    let first = identity(&ca);
    send.send_replace(Some(Arc::clone(&first)));
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id: "envoy".into(), ..Node::default() }),
        type_url: Secret::KIND.type_url().into(),
        resource_names_subscribe: vec!["default".into(), "ROOTCA".into(), ID.into()],
        ..DeltaDiscoveryRequest::default()
    };
    let (requests, stream) = tokio::sync::mpsc::channel(4);
    requests.send(request).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_secrets(stream).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap();
    let mut names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["ROOTCA", "default", ID]);
    let ack = DeltaDiscoveryRequest {
        type_url: Secret::KIND.type_url().into(),
        response_nonce: response.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(ack).await.unwrap();

    let second = identity(&ca);
    send.send_replace(Some(Arc::clone(&second)));
    let response = responses.message().await.unwrap().unwrap();
    let own = response.resources.iter().find(|r| r.name == "default").unwrap();
    let secret = any::unpack::<Secret>(own.resource.as_ref().unwrap()).unwrap();
    assert!(format!("{secret:?}").contains(second.text.chain.lines().nth(5).unwrap()));
    assert!(response.resources.iter().all(|r| r.name != "ROOTCA"), "the roots have not changed");
}

#[tokio::test]
async fn a_socket_replaces_one_that_was_left_and_nothing_else() {
    let Rig { folder, .. } = rig().await;
    let path = folder.path().join("identity.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    let old = Socket::bind(&path).unwrap();
    let new = Socket::bind(&path).unwrap();
    drop(old);
    assert!(path.exists(), "the old process ends after the new one has begun");
    drop(new);
    assert!(!path.exists());
    std::fs::write(&path, "mine").unwrap();
    assert_eq!(Socket::bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}
