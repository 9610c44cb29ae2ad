//! The HTTP/2 side of the echo upstreams.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use std::time::Duration;

use super::echo::{Plan, Recorder, Seen};
use super::wire::{Body, Fields, Io};

/// The fields of a map, in order.
pub fn fields(map: &HeaderMap) -> Fields {
    map.iter()
        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect()
}

/// A map with `fields`.
pub fn map(fields: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).expect("a header name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
    }
    map
}

/// Reads a stream to its end.
pub async fn collect(stream: &mut RecvStream) -> Result<Body, h2::Error> {
    let mut body = Body::default();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        body.bytes.extend_from_slice(&chunk);
    }
    if let Some(trailers) = stream.trailers().await? {
        body.trailers = fields(&trailers);
    }
    body.complete = true;
    Ok(body)
}

/// Serves a connection.
pub async fn serve(io: Io, name: &'static str, recorder: Recorder, tls: Option<String>) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(stream(request, respond, name, recorder.clone(), tls.clone()));
    }
}

async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &'static str,
    recorder: Recorder,
    tls: Option<String>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let text =
        |name: &str| head.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let path = head.uri.path_and_query().map_or("-", |p| p.as_str());
    let seen = Seen {
        upstream: name,
        id: text("x-test-id").unwrap_or_default(),
        line: format!("{} {path} HTTP/2", head.method),
        authority: head.uri.authority().map(ToString::to_string),
        fields: fields(&head.headers),
        body: Vec::new(),
        trailers: Fields::new(),
        complete: false,
        tls,
    };
    let (index, before) = recorder.add(seen);
    let plan = Plan::parse(&text("x-echo").unwrap_or_default(), before);
    if plan.refuse {
        respond.send_reset(Reason::REFUSED_STREAM);
        return Ok(());
    }
    if !plan.early {
        let body = collect(&mut body).await?;
        recorder.finish(index, body);
    }
    if plan.abort {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(plan.delay)).await;
    let content = plan.body.clone().unwrap_or_else(|| format!("upstream {name}\n").into_bytes());
    let mut fields: Fields = vec![("x-upstream".into(), name.into())];
    fields.extend(plan.fields.iter().cloned());
    let status = plan.status.unwrap_or(200);
    let bodyless = head.method == http::Method::HEAD || matches!(status, 204 | 304) || content.is_empty();
    if !plan.chunked && plan.trailers.is_empty() && !bodyless {
        fields.push(("content-length".into(), content.len().to_string()));
    }
    let mut answer = Response::new(());
    *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    *answer.headers_mut() = map(&fields);
    let mut out = respond.send_response(answer, bodyless && plan.trailers.is_empty())?;
    if bodyless && plan.trailers.is_empty() {
        return Ok(());
    }
    let (first, second) = content.split_at(content.len() / 2);
    out.send_data(Bytes::copy_from_slice(first), false)?;
    if plan.half {
        // Lets the first half leave before the reset overtakes it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        out.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(plan.stall)).await;
    out.send_data(Bytes::copy_from_slice(second), plan.trailers.is_empty())?;
    if !plan.trailers.is_empty() {
        out.send_trailers(map(&plan.trailers))?;
    }
    Ok(())
}
