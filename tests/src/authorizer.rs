//! An external authorisation service (`envoy.service.auth.v3.Authorization`) that records what it is asked and answers by script.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use remora_xds::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use remora_xds::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use remora_xds::pb::envoy::service::auth::v3::check_response::HttpResponse;
use remora_xds::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use remora_xds::pb::envoy::r#type::v3::HttpStatus;
use remora_xds::pb::google::rpc::Status as RpcStatus;
use remora_xds::server;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::upstream::Upstream;

/// What the service does with a check.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers.
    Say(Box<CheckResponse>),
    /// Ends the RPC with a status.
    Fail(Status),
    /// Never answers.
    Hang,
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Metadata of the RPC.
    pub metadata: MetadataMap,
    /// The attributes.
    pub attributes: AttributeContext,
}

impl Asked {
    /// The request that is asked about.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn http(&self) -> &HttpRequest {
        self.attributes.request.as_ref().and_then(|r| r.http.as_ref()).expect("an HTTP request")
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

struct Service {
    script: Box<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let asked = Asked { metadata, attributes: message.attributes.expect("attributes") };
        let reply = (self.script)(&asked);
        self.asked.lock().expect("no test panicked here").push(asked);
        match reply {
            Reply::Say(response) => Ok(Response::new(*response)),
            Reply::Fail(status) => Err(status),
            Reply::Hang => std::future::pending().await,
        }
    }
}

/// The service. Dropping it ends it.
#[derive(Debug)]
pub struct Authorizer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    server: JoinHandle<()>,
}

impl Authorizer {
    /// Answers every check in the same way.
    pub async fn answering(reply: Reply) -> Self {
        Self::scripted(move |_| reply.clone()).await
    }

    /// Answers by `script`.
    ///
    /// # Panics
    /// When there is no address.
    pub async fn scripted(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let service = Service { script: Box::new(script), asked: Arc::clone(&asked) };
        let served = tonic::transport::Server::builder()
            .add_service(AuthorizationServer::new(service))
            .serve_with_incoming(server::incoming(listener));
        let server = tokio::spawn(async move { drop(served.await) });
        Self { address, asked, server }
    }

    /// Everything that was asked.
    ///
    /// # Panics
    /// When the service panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panicked here").clone()
    }
}

impl Upstream for Authorizer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_http2(&self) -> bool {
        true
    }
}

impl Drop for Authorizer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer that allows.
#[must_use]
pub fn allow(ok: OkHttpResponse) -> Reply {
    let status = Some(RpcStatus::default());
    let http_response = Some(HttpResponse::OkResponse(ok));
    Reply::Say(Box::new(CheckResponse { status, http_response, ..Default::default() }))
}

/// An answer that refuses, in these words.
#[must_use]
pub fn deny(status: i32, headers: Vec<HeaderValueOption>, body: &str) -> Reply {
    let denied =
        DeniedHttpResponse { status: Some(HttpStatus { code: status }), headers, body: body.to_owned() };
    Reply::Say(Box::new(CheckResponse {
        status: Some(RpcStatus { code: 7, ..Default::default() }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        ..Default::default()
    }))
}

/// A header of an answer.
#[must_use]
pub fn header(name: &str, value: &[u8], action: HeaderAppendAction) -> HeaderValueOption {
    let (text, raw) = match str::from_utf8(value) {
        Ok(text) => (text.to_owned(), Vec::new()),
        Err(_) => (String::new(), value.to_vec()),
    };
    let header = HeaderValue { key: name.to_owned(), value: text, raw_value: raw };
    HeaderValueOption { header: Some(header), append_action: action.into(), ..Default::default() }
}
