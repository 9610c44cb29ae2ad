//! `envoy.service.auth.v3.Authorization/Check`: the question as a `CheckRequest`, the answer out of a `CheckResponse`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Version};
use prost::Message;
use remora_xds::pb::envoy::config::core::v3 as core;
use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use remora_xds::pb::envoy::service::auth::v3 as pb;
use remora_xds::pb::envoy::service::auth::v3::attribute_context as context;
use remora_xds::pb::envoy::service::auth::v3::check_response::HttpResponse;
use remora_xds::pb::google::protobuf;
use remora_xds::wire::Wire as _;
use serde_json::Value;

use super::answer::{Action, Answer, Changes, Denial, HeaderChange, Invalid};
use super::{Buffer, PARTIAL_BODY, Question, Told};
use crate::http::head::{HeaderCase, RequestHead};
use crate::policy::view::Claims;
use crate::route::header::ValueTemplate;
use crate::tls::identity::PeerIdentity;

/// A compiled `grpc_service`.
#[derive(Debug)]
pub struct GrpcService {
    /// `envoy_grpc.authority`, or the name of the cluster.
    pub authority: Authority,
    /// `initial_metadata`.
    pub metadata: Box<[(HeaderName, ValueTemplate)]>,
}

/// The RPC that checks a request.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The head of the RPC `path` that may take `timeout`.
#[must_use]
pub fn head(service: &GrpcService, path: &'static str, timeout: Duration) -> RequestHead {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Ok(limit) = HeaderValue::try_from(format!("{}m", timeout.as_millis().clamp(1, 99_999_999))) {
        headers.insert("grpc-timeout", limit);
    }
    RequestHead {
        method: Method::POST,
        scheme: Scheme::HTTP,
        authority: Some(service.authority.clone()),
        path: PathAndQuery::from_static(path),
        version: Version::HTTP_2,
        headers,
        case: HeaderCase::default(),
    }
}

/// The question as one length-prefixed message (gRPC PROTOCOL-HTTP2).
#[must_use]
pub fn question(question: &Question<'_>, told: &Told, buffer: Option<Buffer>) -> Bytes {
    frame(&pb::CheckRequest { attributes: Some(attributes(question, told, buffer)) })
}

/// One length-prefixed message (gRPC PROTOCOL-HTTP2).
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

pub(super) fn attributes(
    question: &Question<'_>,
    told: &Told,
    buffer: Option<Buffer>,
) -> pb::AttributeContext {
    let connection = &question.connection;
    let service = question.head.headers.get("x-envoy-downstream-service-cluster");
    pb::AttributeContext {
        source: Some(context::Peer {
            address: Some(address(question.peer)),
            service: service.map_or_else(String::new, |value| text(value.as_bytes())),
            principal: connection.peer.map(principal).unwrap_or_default(),
            ..Default::default()
        }),
        destination: Some(context::Peer {
            address: Some(address(connection.destination)),
            principal: question.own.unwrap_or_default().to_owned(),
            ..Default::default()
        }),
        request: Some(context::Request {
            time: Some(timestamp(question.time)),
            http: Some(http_request(question, told, buffer)),
        }),
        context_extensions: question
            .context
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        metadata_context: told.claims.then(|| metadata(question.claims)),
        route_metadata_context: None,
        tls_session: match question.server_name {
            Some(sni) if told.tls_session => Some(context::TlsSession { sni: sni.to_owned() }),
            _ => None,
        },
    }
}

fn http_request(question: &Question<'_>, told: &Told, buffer: Option<Buffer>) -> context::HttpRequest {
    let head = question.head;
    let as_bytes = buffer.is_some_and(|buffer| buffer.as_bytes);
    let body = question.body.map(|piece| &piece.bytes[..]).unwrap_or_default();
    let id = head.headers.get(&crate::http::headers::X_REQUEST_ID);
    let version = match head.version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    };
    context::HttpRequest {
        id: id.map_or_else(String::new, |value| text(value.as_bytes())),
        method: head.method.to_string(),
        headers: if told.raw_headers { HashMap::new() } else { headers(question, told) },
        header_map: told.raw_headers.then(|| raw_headers(question, told)),
        path: question.path().unwrap_or_default().to_owned(),
        host: head.authority.as_ref().map(ToString::to_string).unwrap_or_default(),
        scheme: head.scheme.to_string(),
        size: question.length.and_then(|length| i64::try_from(length).ok()).unwrap_or(-1),
        protocol: version.to_owned(),
        body: if as_bytes { String::new() } else { text(body) },
        raw_body: if as_bytes { body.to_vec() } else { Vec::new() },
        ..Default::default()
    }
}

fn headers(question: &Question<'_>, told: &Told) -> HashMap<String, String> {
    let pseudo = question.pseudo().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let fields = question.head.headers.keys();
    let fields = fields.map(|name| (name.to_string(), text(&question.joined(name))));
    let mut all: HashMap<_, _> = pseudo.chain(fields).filter(|(name, _)| told.allows(name)).collect();
    if let Some(partial) = question.partial() {
        all.insert(PARTIAL_BODY.to_string(), partial.to_owned());
    }
    all
}

fn raw_headers(question: &Question<'_>, told: &Told) -> core::HeaderMap {
    let raw = |key: &str, value: &[u8]| core::HeaderValue {
        key: key.to_owned(),
        raw_value: value.to_vec(),
        ..Default::default()
    };
    let pseudo = question.pseudo().map(|(name, value)| (name, value.as_bytes()));
    let fields = question.head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let all = pseudo.chain(fields).filter(|(name, _)| told.allows(name));
    let partial = question.partial().map(|value| (PARTIAL_BODY.as_str(), value.as_bytes()));
    core::HeaderMap { headers: all.chain(partial).map(|(name, value)| raw(name, value)).collect() }
}

/// Bytes as the text of a protobuf string: what is no UTF-8 becomes `!`, as in Envoy.
fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(std::iter::repeat_n('!', chunk.invalid().len()));
    }
    out
}

fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_canonical().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// URI, DNS name or subject, the first that there is.
fn principal(peer: &PeerIdentity) -> String {
    peer.uri_sans.first().or_else(|| peer.dns_sans.first()).unwrap_or(&peer.subject).to_string()
}

fn timestamp(time: SystemTime) -> protobuf::Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    protobuf::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

fn metadata(claims: &[Claims]) -> core::Metadata {
    let fields = claims.iter().map(|claims| (claims.key.to_string(), value(&claims.payload))).collect();
    let filter = ("envoy.filters.http.jwt_authn".to_owned(), protobuf::Struct { fields });
    core::Metadata { filter_metadata: HashMap::from([filter]), ..Default::default() }
}

/// JSON as protobuf has it. Tokens are read with a limit of depth.
fn value(json: &Value) -> protobuf::Value {
    use protobuf::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => {
            Kind::ListValue(protobuf::ListValue { values: list.iter().map(value).collect() })
        }
        Value::Object(map) => {
            let fields = map.iter().map(|(key, json)| (key.clone(), value(json))).collect();
            Kind::StructValue(protobuf::Struct { fields })
        }
    };
    protobuf::Value { kind: Some(kind) }
}

/// The one message in `body`, the data of an RPC.
///
/// # Errors
/// It is compressed, or there is more or less than one.
pub fn unframe(body: &[u8]) -> Result<&[u8], Invalid> {
    let (prefix, message) = body.split_first_chunk::<5>().ok_or(Invalid::Malformed)?;
    let [compressed, length @ ..] = prefix;
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(*length)) != Ok(message.len()) {
        return Err(Invalid::Malformed);
    }
    Ok(message)
}

/// The answer in `body`, the data of an RPC that ended with OK. A denial has at most `limit` bytes of body.
///
/// # Errors
/// Why it is none.
pub fn answer(body: &[u8], limit: usize) -> Result<Answer, Invalid> {
    let message = unframe(body)?;
    let pb::CheckResponse { status, dynamic_metadata: _, http_response } =
        pb::CheckResponse::from_bytes(message).map_err(|_| Invalid::Malformed)?;
    let allowed = status.is_none_or(|status| status.code == 0);
    Ok(match (allowed, http_response) {
        (true, Some(HttpResponse::OkResponse(ok))) => Answer::Allowed(Box::new(changes(ok)?)),
        (true, _) => Answer::Allowed(Box::default()),
        (false, Some(HttpResponse::ErrorResponse(error))) => Answer::Failed(Box::new(denial(error, limit))),
        (false, Some(HttpResponse::DeniedResponse(denied))) => {
            Answer::Denied(Box::new(denial(denied, limit)))
        }
        (false, _) => Answer::Denied(Box::default()),
    })
}

fn changes(ok: pb::OkHttpResponse) -> Result<Changes, Invalid> {
    #[expect(deprecated, reason = "dynamic_metadata is read by nothing here")]
    let pb::OkHttpResponse {
        headers,
        headers_to_remove,
        dynamic_metadata: _,
        response_headers_to_add,
        query_parameters_to_set,
        query_parameters_to_remove,
    } = ok;
    // What is not to be removed stays, as in Envoy.
    let remove = headers_to_remove.into_iter().filter_map(|name| name.parse().ok());
    Changes {
        request: headers.into_iter().map(request_change).collect::<Result<_, _>>()?,
        remove: remove.filter(super::answer::is_changeable).collect(),
        set_query: query_parameters_to_set.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        remove_query: query_parameters_to_remove,
        response: response_headers_to_add.into_iter().map(response_change).collect::<Result<_, _>>()?,
    }
    .check()
}

/// A change of the request. It replaces what is there unless `append` says otherwise; `append_action` is not looked at, as in Envoy.
#[expect(deprecated, reason = "services still say append")]
fn request_change(option: core::HeaderValueOption) -> Result<HeaderChange, Invalid> {
    let appends = option.append.is_some_and(|append| append.value);
    change(&option, if appends { Action::Join } else { Action::Overwrite })
}

/// A change of the answer to the request.
#[expect(deprecated, reason = "services still say append")]
fn response_change(option: core::HeaderValueOption) -> Result<HeaderChange, Invalid> {
    let action = match (&option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(append), _) if append.value => Action::Add,
        (Some(_), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => Action::Overwrite,
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => Action::Add,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => Action::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => Action::OverwriteIfExists,
        (None, Err(_)) => return Err(Invalid::Forbidden),
    };
    change(&option, action)
}

fn change(option: &core::HeaderValueOption, action: Action) -> Result<HeaderChange, Invalid> {
    let header = option.header.as_ref().ok_or(Invalid::Forbidden)?;
    HeaderChange::new(header.key.as_bytes(), value_of(header), action)
}

fn value_of(header: &core::HeaderValue) -> &[u8] {
    if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value }
}

fn denial(denied: pb::DeniedHttpResponse, limit: usize) -> Denial {
    let pb::DeniedHttpResponse { status, headers, body } = denied;
    let status = status.and_then(|status| u16::try_from(status.code).ok()).unwrap_or_default();
    let headers = headers.iter().filter_map(|option| {
        let header = option.header.as_ref()?;
        let name = HeaderName::from_bytes(header.key.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value_of(header).trim_ascii()).ok()?))
    });
    Denial::new(status, headers.collect(), body.into(), limit)
}
