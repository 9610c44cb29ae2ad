//! One check of one endpoint: HTTP, gRPC (`grpc.health.v1`) or TCP, over TLS where the cluster has it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_xds::client::Duplex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::HealthCheckSpec;
use crate::error::Reason;
use crate::resilience::health::Finding;
use crate::route::text::StringMatch;
use crate::tls::client::{AlpnOffer, ClientTls, Target};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{self, ConnectError};
use crate::upstream::endpoint::Endpoint;

/// What is asked of an endpoint.
#[derive(Debug)]
pub enum ProbeSpec {
    /// `http_health_check`.
    Http(Box<HttpProbe>),
    /// `grpc_health_check`.
    Grpc(GrpcProbe),
    /// `tcp_health_check`.
    Tcp(TcpProbe),
}

/// `HttpHealthCheck`.
#[derive(Debug)]
pub struct HttpProbe {
    /// `host`; None is the name of the cluster.
    pub host: Option<HeaderValue>,
    /// `path`.
    pub path: http::uri::PathAndQuery,
    /// `method`, default GET.
    pub method: Method,
    /// `codec_client_type`.
    pub http2: bool,
    /// `request_headers_to_add`.
    pub headers: HeaderMap,
    /// `request_headers_to_remove`.
    pub without: Vec<HeaderName>,
    /// `send`.
    pub body: Bytes,
    /// `receive`: must all be in the answer's body, in this order.
    pub receive: Vec<Bytes>,
    /// `response_buffer_size`, default 1024: how much of the body is looked at. Zero is all, up to [`MAX_BODY`].
    pub buffer: usize,
    /// `expected_statuses`, default 200.
    pub expected: Vec<std::ops::Range<u16>>,
    /// `retriable_statuses`.
    pub retriable: Vec<std::ops::Range<u16>>,
    /// `service_name_matcher` of `x-envoy-upstream-healthchecked-cluster`.
    pub service: Option<StringMatch>,
}

/// `GrpcHealthCheck`.
#[derive(Debug)]
pub struct GrpcProbe {
    /// `service_name`.
    pub service: String,
    /// `authority`; None is the name of the cluster.
    pub authority: Option<HeaderValue>,
    /// `initial_metadata`.
    pub metadata: HeaderMap,
}

/// `TcpHealthCheck`.
#[derive(Debug, PartialEq, Eq)]
pub struct TcpProbe {
    /// `send`.
    pub send: Bytes,
    /// `receive`: must all come, in this order.
    pub receive: Vec<Bytes>,
}

/// The most that is read of any answer.
pub const MAX_BODY: usize = 1 << 20;

/// Why a check did not pass.
#[derive(Debug)]
pub struct Error {
    /// What it says of the endpoint; None: nothing.
    pub finding: Option<Finding>,
    /// Words for the log.
    pub why: String,
}

impl Error {
    fn refused(why: impl Into<String>) -> Self {
        Self { finding: Some(Finding::Refused), why: why.into() }
    }

    fn failed(why: impl ToString) -> Self {
        Self { finding: Some(Finding::Failed), why: why.to_string() }
    }

    /// A connection that was not opened. That there is no file for it says nothing of the endpoint.
    fn not_connected(error: &ConnectError) -> Self {
        let ours = error.reason == Reason::Overloaded;
        Self { finding: (!ours).then_some(Finding::Failed), why: error.to_string() }
    }
}

/// The connection of the checks of one endpoint.
#[derive(Debug, Default)]
pub struct Prober(Option<(Sender, SocketAddr, Option<Arc<ClientTls>>)>);

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Prober {
    /// Lets the next check open a connection.
    pub fn close(&mut self) {
        self.0 = None;
    }

    /// Checks `endpoint` once. The caller limits the time.
    ///
    /// # Errors
    /// Why it did not pass.
    pub async fn check(
        &mut self,
        spec: &HealthCheckSpec,
        cluster: &Cluster,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        let at = Place { spec, cluster, endpoint };
        match &spec.probe {
            ProbeSpec::Tcp(probe) => tcp(probe, at.open(AlpnOffer::Nothing).await?).await,
            ProbeSpec::Http(probe) => {
                let request = http_request(probe, cluster, endpoint).map_err(Error::failed)?;
                let answer = self.send(&at, request, probe.http2).await?;
                http_answer(probe, answer).await
            }
            ProbeSpec::Grpc(probe) => {
                let request = grpc_request(probe, cluster, endpoint).map_err(Error::failed)?;
                let answer = self.send(&at, request, true).await?;
                grpc_answer(answer).await
            }
        }
    }

    async fn send(
        &mut self,
        at: &Place<'_>,
        request: Request<Full<Bytes>>,
        h2: bool,
    ) -> Result<Response<Incoming>, Error> {
        // Where the endpoint was before says nothing about where it is.
        let (address, tls) = (at.address(), at.cluster.spec().tls.as_ref());
        self.0.take_if(|(_, before, by)| {
            *before != address || by.as_ref().map(Arc::as_ptr) != tls.map(Arc::as_ptr)
        });
        let is_open = match &mut self.0 {
            Some((Sender::Http1(sender), ..)) => sender.ready().await.is_ok(),
            Some((Sender::Http2(sender), ..)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !is_open {
            let io = TokioIo::new(at.open(if h2 { AlpnOffer::Http2 } else { AlpnOffer::Http1 }).await?);
            let sender = if h2 {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.map_err(Error::failed)?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            } else {
                let (sender, connection) = http1::handshake(io).await.map_err(Error::failed)?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            };
            self.0 = Some((sender, address, tls.cloned()));
        }
        match &mut self.0 {
            Some((Sender::Http1(sender), ..)) => sender.send_request(request).await.map_err(Error::failed),
            Some((Sender::Http2(sender), ..)) => sender.send_request(request).await.map_err(Error::failed),
            None => Err(Error::failed("there is no connection")),
        }
    }
}

/// Whom a check is for.
struct Place<'a> {
    spec: &'a HealthCheckSpec,
    cluster: &'a Cluster,
    endpoint: &'a Endpoint,
}

impl Place<'_> {
    /// The endpoint's own address for checks, its own port, the port of the check, its address.
    fn address(&self) -> SocketAddr {
        let own = self.endpoint.spec.check.as_deref();
        let address = own.and_then(|check| check.address).unwrap_or_else(|| self.endpoint.spec.address.ip());
        let port = own.and_then(|check| check.port).or(self.spec.port);
        SocketAddr::new(address, port.unwrap_or_else(|| self.endpoint.spec.address.port()))
    }

    async fn open(&self, offer: AlpnOffer) -> Result<Box<dyn Duplex>, Error> {
        let (spec, address) = (self.cluster.spec(), self.address());
        let tcp =
            connect::connect(address, &spec.connect).await.map_err(|error| Error::not_connected(&error))?;
        let Some(tls) = &spec.tls else { return Ok(Box::new(tcp)) };
        let target = Target { host: self.endpoint.spec.hostname.as_deref(), ..Target::new(address, offer) };
        let (stream, _) = tls.connect(tcp, target).await.map_err(Error::failed)?;
        Ok(Box::new(stream))
    }
}

/// The endpoint's own name for checks, the check's, the cluster's.
fn host(
    own: Option<&HeaderValue>,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<HeaderValue, http::Error> {
    let of_endpoint = endpoint.spec.check.as_ref().and_then(|check| check.hostname.as_deref());
    match (of_endpoint, own) {
        (Some(name), _) => Ok(HeaderValue::from_str(name)?),
        (None, Some(own)) => Ok(own.clone()),
        (None, None) => Ok(HeaderValue::from_str(&cluster.spec().name)?),
    }
}

/// HTTP/2 takes scheme and authority from the URI.
fn uri(
    host: &HeaderValue,
    path: http::uri::PathAndQuery,
    cluster: &Cluster,
) -> Result<http::Uri, http::Error> {
    let scheme = if cluster.spec().tls.is_some() { "https" } else { "http" };
    http::Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path).build()
}

static USER_AGENT: HeaderValue = HeaderValue::from_static("Remora/HC");

fn http_request(
    probe: &HttpProbe,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let host = host(probe.host.as_ref(), cluster, endpoint)?;
    let mut request = Request::new(Full::new(probe.body.clone()));
    *request.method_mut() = probe.method.clone();
    *request.uri_mut() =
        if probe.http2 { uri(&host, probe.path.clone(), cluster)? } else { probe.path.clone().into() };
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, USER_AGENT.clone());
    for (name, value) in &probe.headers {
        headers.append(name.clone(), value.clone());
    }
    for name in &probe.without {
        headers.remove(name);
    }
    if !probe.http2 {
        headers.insert(header::HOST, host);
    }
    Ok(request)
}

async fn http_answer(probe: &HttpProbe, answer: Response<Incoming>) -> Result<(), Error> {
    let (head, body) = answer.into_parts();
    let is_in =
        |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|range| range.contains(&head.status.as_u16()));
    if head.headers.contains_key("x-envoy-immediate-health-check-fail") {
        return Err(Error::refused("x-envoy-immediate-health-check-fail"));
    }
    let expected =
        if probe.expected.is_empty() { head.status == StatusCode::OK } else { is_in(&probe.expected) };
    let body = read(body, if probe.buffer == 0 { MAX_BODY } else { probe.buffer }).await?;
    if !expected {
        return Err(Error {
            finding: Some(if is_in(&probe.retriable) { Finding::Failed } else { Finding::Refused }),
            why: format!("the status is {}", head.status),
        });
    }
    if !finds_all(&body, &probe.receive) {
        return Err(Error::refused("the body is not what is expected"));
    }
    if let Some(service) = &probe.service {
        let name = head.headers.get("x-envoy-upstream-healthchecked-cluster");
        if !service.is_match(name.map_or(&[], |name| name.as_bytes())) {
            return Err(Error::refused("it is another service"));
        }
    }
    Ok(())
}

/// At most the first `most` bytes are kept; the rest is read up to [`MAX_BODY`] and let go, so that the connection may be used again.
async fn read(mut body: Incoming, most: usize) -> Result<BytesMut, Error> {
    let (mut kept, mut seen) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Error::failed)?.into_data() else { continue };
        seen += data.len();
        if seen > MAX_BODY {
            return Err(Error::failed("the answer is too long"));
        }
        kept.extend_from_slice(&data[..data.len().min(most.saturating_sub(kept.len()))]);
    }
    Ok(kept)
}

/// Whether all parts are there, in this order; other bytes may stand between them.
fn finds_all(mut data: &[u8], parts: &[Bytes]) -> bool {
    parts.iter().all(|part| {
        let found = memchr::memmem::find(data, part);
        if let Some(at) = found {
            data = &data[at + part.len()..];
        }
        found.is_some()
    })
}

fn grpc_request(
    probe: &GrpcProbe,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let host = host(probe.authority.as_ref(), cluster, endpoint)?;
    // HealthCheckRequest { service = 1 } behind the five bytes of gRPC's framing.
    let message = prost::Message::encode_to_vec(&HealthCheckRequest { service: probe.service.clone() });
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(&message);
    let mut request = Request::new(Full::new(body.freeze()));
    *request.method_mut() = Method::POST;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    *request.uri_mut() = uri(&host, path, cluster)?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, USER_AGENT.clone());
    for (name, value) in &probe.metadata {
        headers.append(name.clone(), value.clone());
    }
    Ok(request)
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn grpc_answer(answer: Response<Incoming>) -> Result<(), Error> {
    let (head, body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(Error::refused(format!("the status is {}", head.status)));
    }
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(Error::failed)?;
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
    let status = status.or_else(|| head.headers.get("grpc-status")).map(HeaderValue::as_bytes);
    if status != Some(b"0") {
        let status = status.map_or_else(String::new, |status| String::from_utf8_lossy(status).into_owned());
        return Err(Error::refused(format!("grpc-status is {status:?}")));
    }
    let body = body.to_bytes();
    let message = body.get(5..).filter(|_| body.first() == Some(&0));
    let response = message.and_then(|message| <HealthCheckResponse as prost::Message>::decode(message).ok());
    match response {
        Some(HealthCheckResponse { status: 1 }) => Ok(()),
        Some(HealthCheckResponse { status }) => {
            Err(Error::refused(format!("the service's status is {status}")))
        }
        None => Err(Error::refused("the answer is no HealthCheckResponse")),
    }
}

async fn tcp(probe: &TcpProbe, mut io: Box<dyn Duplex>) -> Result<(), Error> {
    if !probe.send.is_empty() {
        io.write_all(&probe.send).await.map_err(Error::failed)?;
        io.flush().await.map_err(Error::failed)?;
    }
    let mut seen = BytesMut::new();
    while !finds_all(&seen, &probe.receive) {
        if seen.len() > MAX_BODY {
            return Err(Error::failed("the answer is too long"));
        }
        if io.read_buf(&mut seen).await.map_err(Error::failed)? == 0 {
            return Err(Error::failed("it closed the connection before it said what is expected"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_no_file_for_a_connection_says_nothing_of_the_endpoint() {
        let of = |errno: rustix::io::Errno| {
            let error = std::io::Error::from_raw_os_error(errno.raw_os_error());
            Error::not_connected(&ConnectError::new(([127, 0, 0, 1], 1).into(), error)).finding
        };
        assert_eq!(of(rustix::io::Errno::MFILE), None);
        assert_eq!(of(rustix::io::Errno::NFILE), None);
        assert_eq!(of(rustix::io::Errno::CONNREFUSED), Some(Finding::Failed));
    }

    #[test]
    fn parts_are_found_in_their_order() {
        let parts = |list: &[&'static str]| {
            list.iter().map(|part| Bytes::from_static(part.as_bytes())).collect::<Vec<_>>()
        };
        assert!(finds_all(b"xabycdz", &parts(&["ab", "cd"])));
        assert!(!finds_all(b"cdab", &parts(&["ab", "cd"])));
        assert!(!finds_all(b"ab", &parts(&["ab", "ab"])));
        assert!(finds_all(b"", &parts(&[])));
    }
}
