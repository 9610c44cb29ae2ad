//! The SPIFFE Workload API (`workload.proto` of the SPIFFE specification): X.509-SVIDs and bundles, pushed when they change.
//! JWT-SVIDs are not issued here.

use std::collections::HashMap;

use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic_prost::ProstCodec;

use super::{Newest, bundle_name};
use crate::identity::Identity;

/// Name of the gRPC service, which has no package.
pub(in crate::identity) const SERVICE: &str = "SpiffeWorkloadAPI";
/// Every request carries it: a web page that a browser was made to open cannot (SPIFFE Workload Endpoint §6).
pub(in crate::identity) const SECURITY_HEADER: &str = "workload.spiffe.io";

#[derive(Clone, PartialEq, Message)]
pub(in crate::identity) struct Empty {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, Message)]
pub(in crate::identity) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::identity) svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(in crate::identity) crl: Vec<Vec<u8>>,
    /// By trust domain.
    #[prost(map = "string, bytes", tag = "3")]
    pub(in crate::identity) federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`: DER throughout.
#[derive(Clone, PartialEq, Message)]
pub(in crate::identity) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(in crate::identity) spiffe_id: String,
    /// The chain, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(in crate::identity) x509_svid: Vec<u8>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "3")]
    pub(in crate::identity) x509_svid_key: Vec<u8>,
    /// The authorities of its trust domain.
    #[prost(bytes = "vec", tag = "4")]
    pub(in crate::identity) bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(in crate::identity) hint: String,
}

/// `X509BundlesResponse`.
#[derive(Clone, PartialEq, Message)]
pub(in crate::identity) struct X509BundlesResponse {
    #[prost(bytes = "vec", repeated, tag = "1")]
    crl: Vec<Vec<u8>>,
    /// By trust domain.
    #[prost(map = "string, bytes", tag = "2")]
    pub(in crate::identity) bundles: HashMap<String, Vec<u8>>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct WorkloadApi {
    newest: Newest,
}

impl WorkloadApi {
    pub(super) const fn new(newest: Newest) -> Self {
        Self { newest }
    }

    pub(super) async fn call(&self, method: &str, request: Request<Incoming>) -> Response<Body> {
        if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
            let text = format!("the metadata {SECURITY_HEADER}: true is missing");
            return Status::invalid_argument(text).into_http();
        }
        match method {
            "FetchX509SVID" => self.stream(request, svids).await,
            "FetchX509Bundles" => self.stream(request, bundles).await,
            "FetchJWTSVID" | "FetchJWTBundles" | "ValidateJWTSVID" => {
                Status::unimplemented("JWT-SVIDs are not issued here").into_http()
            }
            _ => Status::unimplemented(format!("there is no method {method:?}")).into_http(),
        }
    }

    async fn stream<M>(&self, request: Request<Incoming>, make: Make<M>) -> Response<Body>
    where
        M: Message + Default + Send + 'static,
    {
        let mut grpc = Grpc::new(ProstCodec::<M, Empty>::default());
        grpc.server_streaming(Push { newest: self.newest.clone(), make }, request).await
    }
}

/// What an identity is in the words of the API; None when it has no SPIFFE ID.
type Make<M> = fn(&Identity) -> Option<M>;

struct Push<M> {
    newest: Newest,
    make: Make<M>,
}

impl<M: Send + 'static> ServerStreamingService<Empty> for Push<M> {
    type Response = M;
    type ResponseStream = ReceiverStream<Result<M, Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<Empty>) -> Self::Future {
        let (send, responses) = mpsc::channel(1);
        tokio::spawn(push(self.newest.clone(), self.make, send));
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(responses))))
    }
}

/// The identity, and each that follows. The program waits for the first one, as the specification lets it.
async fn push<M>(mut newest: Newest, make: Make<M>, send: mpsc::Sender<Result<M, Status>>) {
    loop {
        let made = newest.borrow_and_update().as_deref().and_then(make);
        if let Some(message) = made
            && send.send(Ok(message)).await.is_err()
        {
            return;
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            () = send.closed() => return,
        }
    }
}

fn svids(identity: &Identity) -> Option<X509SvidResponse> {
    let svid = X509Svid {
        spiffe_id: identity.spiffe()?.as_str().to_owned(),
        x509_svid: concatenated(&identity.certificate.key.cert),
        x509_svid_key: identity.key_der(),
        bundle: own_bundle(identity),
        hint: String::new(),
    };
    let federated_bundles = federated(identity).collect();
    Some(X509SvidResponse { svids: vec![svid], federated_bundles, ..X509SvidResponse::default() })
}

fn bundles(identity: &Identity) -> Option<X509BundlesResponse> {
    let domain = bundle_name(identity.spiffe()?.trust_domain());
    let bundles = federated(identity).chain([(domain, own_bundle(identity))]).collect();
    Some(X509BundlesResponse { bundles, ..X509BundlesResponse::default() })
}

fn federated(identity: &Identity) -> impl Iterator<Item = (String, Vec<u8>)> {
    identity.federated().map(|(domain, bundle)| (bundle_name(domain), concatenated(bundle)))
}

fn own_bundle(identity: &Identity) -> Vec<u8> {
    identity.trust.roots.as_ref().map(|roots| concatenated(&roots.certificates)).unwrap_or_default()
}

pub(in crate::identity) fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|der| der.iter().copied()).collect()
}
