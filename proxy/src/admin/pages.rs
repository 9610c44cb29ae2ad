//! Which page answers which request.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::query::Query;
use super::source::{Certificate, DrainListeners};
use super::{Admin, circuit_breakers, clusters, config_dump, html, logging, stats, why};
use crate::readiness::State;

/// What a page says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

const TEXT: &str = "text/plain; charset=UTF-8";

impl Answer {
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: TEXT, body: body.into().into_bytes() }
    }

    pub(super) fn error(status: StatusCode, message: &str) -> Self {
        Self { status, ..Self::text(format!("{message}\n")) }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn json(value: &Value) -> Self {
        // A Value always serialises: its keys are strings.
        let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
        body.push(b'\n');
        Self { status: StatusCode::OK, content_type: "application/json", body }
    }

    fn ok() -> Self {
        Self::text("OK\n")
    }
}

/// Whether a page changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// GET and HEAD.
    Never,
    /// GET and HEAD without parameters, POST.
    WithParameters,
    /// POST only.
    Always,
}

impl Change {
    pub(super) const fn is_post_only(self) -> bool {
        matches!(self, Self::Always)
    }
}

/// One page.
pub(super) struct Page {
    pub(super) path: &'static str,
    pub(super) change: Change,
    pub(super) help: &'static str,
    answer: fn(&Admin, Query) -> Result<Answer, Answer>,
}

const fn page(
    path: &'static str,
    change: Change,
    help: &'static str,
    answer: fn(&Admin, Query) -> Result<Answer, Answer>,
) -> Page {
    Page { path, change, help, answer }
}

/// The page that also has a path for each request: `/why/<id>`.
const WHY: &str = "/why";

/// All pages.
pub(super) const PAGES: &[Page] = &[
    page("/", Change::Never, "the list of pages", home),
    page("/help", Change::Never, "the list of pages as text", |_, q| {
        q.finish().map(|()| Answer::text(html::help()))
    }),
    page("/ready", Change::Never, "200 when traffic may come, else 503", ready),
    page("/healthz/ready", Change::Never, "the same, for Istio's probes", ready),
    page("/healthcheck", Change::Never, "200 while the process runs", |_, q| {
        q.finish().map(|()| Answer::ok())
    }),
    page("/config_dump", Change::Never, "the configuration in use", config_dump::answer),
    page("/clusters", Change::Never, "clusters and endpoints", clusters::answer),
    page(
        "/circuit_breakers",
        Change::WithParameters,
        "circuit breakers and their state",
        circuit_breakers::answer,
    ),
    page("/listeners", Change::Never, "listeners and addresses", listeners),
    page("/certs", Change::Never, "certificates and when they expire", certificates),
    page(WHY, Change::Never, "what was refused or lost, and why", why::answer),
    page("/stats", Change::Never, "metrics", stats::answer),
    page("/stats/prometheus", Change::Never, "metrics for Prometheus", metrics),
    page("/metrics", Change::Never, "metrics for Prometheus", metrics),
    page("/server_info", Change::Never, "version, state, uptime, node", server_info),
    page("/logging", Change::WithParameters, "log levels", logging::answer),
    page("/drain_listeners", Change::Always, "stop accepting", drain_listeners),
    page("/healthcheck/fail", Change::Always, "fail readiness", |a, q| set_failed(a, q, true)),
    page("/healthcheck/ok", Change::Always, "no longer fail readiness", |a, q| set_failed(a, q, false)),
    page("/reopen_logs", Change::Always, "open access log files anew", reopen_logs),
    page("/quitquitquit", Change::Always, "end now", quit),
];

impl Admin {
    /// The answer to a request.
    pub(super) fn handle(&self, method: &Method, path: &str, query: &str) -> Answer {
        let mut query = Query::parse(query);
        let path = match path.strip_prefix(WHY).and_then(|rest| rest.strip_prefix('/')) {
            Some(id) if !id.is_empty() => {
                query.put("id", id);
                WHY
            }
            _ => path,
        };
        let Some(page) = PAGES.iter().find(|page| page.path == path) else {
            return Answer::error(StatusCode::NOT_FOUND, "invalid path; / lists the pages");
        };
        let reads = method == Method::GET || method == Method::HEAD;
        let allowed = match page.change {
            Change::Never => reads,
            Change::WithParameters => method == Method::POST || reads && query.is_empty(),
            Change::Always => method == Method::POST,
        };
        if !allowed {
            let wanted = if page.change == Change::Never { Method::GET } else { Method::POST };
            let message = format!("Method {method} not allowed, {wanted} required.");
            return Answer::error(StatusCode::METHOD_NOT_ALLOWED, &message);
        }
        (page.answer)(self, query).unwrap_or_else(|error| error)
    }
}

fn home(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    let body = html::home(&admin.source.server_info().version).into_bytes();
    Ok(Answer { status: StatusCode::OK, content_type: "text/html; charset=UTF-8", body })
}

fn ready(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    let state = admin.readiness.state();
    let mut body = format!("{}\n", state.as_str());
    if state == State::Live {
        return Ok(Answer::text(body));
    }
    for reason in admin.readiness.reasons() {
        body.push_str("waiting for: ");
        body.push_str(&reason);
        body.push('\n');
    }
    Ok(Answer { status: StatusCode::SERVICE_UNAVAILABLE, ..Answer::text(body) })
}

fn listeners(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let json = wants_json(&mut query)?;
    query.finish()?;
    let listeners = admin.source.listeners();
    if json {
        let status = |listener: &super::ListenerStatus| {
            let mut addresses = listener.addresses.iter().map(|a| socket_address(*a));
            let first = addresses.next().unwrap_or(Value::Null);
            let more: Vec<Value> = addresses.collect();
            json!({"name": listener.name, "local_address": first, "additional_local_addresses": more})
        };
        let statuses: Vec<Value> = listeners.iter().map(status).collect();
        return Ok(Answer::json(&json!({ "listener_statuses": statuses })));
    }
    let mut out = String::new();
    for listener in &listeners {
        for address in &listener.addresses {
            out.push_str(&format!("{}::{address}\n", one_line(&listener.name)));
        }
    }
    Ok(Answer::text(out))
}

/// `?format=json` or `?format=text`.
pub(super) fn wants_json(query: &mut Query) -> Result<bool, Answer> {
    match query.take("format").as_deref() {
        None | Some("text") => Ok(false),
        Some("json") => Ok(true),
        Some(_) => Err(Answer::bad_request("format is one of text, json")),
    }
}

/// `core.v3.Address`.
pub(super) fn socket_address(address: std::net::SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A name that cannot begin a new line of a text page.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn certificates(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    let entry = |c: &Certificate| {
        let uris = c.uris.iter().map(|uri| json!({ "uri": uri }));
        let names: Vec<Value> = uris.chain(c.dns.iter().map(|dns| json!({ "dns": dns }))).collect();
        json!({
            "path": c.path,
            "serial_number": c.serial_number,
            "subject_alt_names": names,
            "days_until_expiration": c.days_until_expiration.to_string(),
            "valid_from": c.valid_from,
            "expiration_time": c.expiration_time,
        })
    };
    let group = |c: &Certificate| {
        if c.is_ca {
            json!({"ca_cert": [entry(c)], "cert_chain": []})
        } else {
            json!({"ca_cert": [], "cert_chain": [entry(c)]})
        }
    };
    let all: Vec<Value> = admin.source.certificates().iter().map(group).collect();
    Ok(Answer::json(&json!({ "certificates": all })))
}

fn metrics(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    prometheus(admin)
}

pub(super) fn prometheus(admin: &Admin) -> Result<Answer, Answer> {
    let text = admin.registry.encode(Instant::now());
    let text = text.map_err(|e| Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()))?;
    Ok(Answer { content_type: prometheus::TEXT_FORMAT, ..Answer::text(text) })
}

fn server_info(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    let info = admin.source.server_info();
    let uptime = format!("{}s", info.uptime.as_secs());
    Ok(Answer::json(&json!({
        "version": info.version,
        "state": admin.readiness.state().as_str(),
        "hot_restart_version": "disabled",
        "command_line_options": info.command_line_options,
        "node": info.node,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
    })))
}

fn drain_listeners(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let (graceful, inbound_only) = (query.take_switch("graceful"), query.take_switch("inboundonly"));
    query.finish()?;
    tracing::info!(graceful, inbound_only, "admin: draining listeners");
    admin.source.drain_listeners(DrainListeners { graceful, inbound_only });
    Ok(Answer::ok())
}

fn set_failed(admin: &Admin, query: Query, failed: bool) -> Result<Answer, Answer> {
    query.finish()?;
    tracing::info!(failed, "admin: health check");
    admin.readiness.set_failed(failed);
    Ok(Answer::ok())
}

fn reopen_logs(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    admin.logs.reopen();
    Ok(Answer::ok())
}

fn quit(admin: &Admin, query: Query) -> Result<Answer, Answer> {
    query.finish()?;
    tracing::warn!("admin: ending now");
    admin.drain.force();
    Ok(Answer::ok())
}
