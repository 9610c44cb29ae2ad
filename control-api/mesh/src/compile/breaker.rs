//! `circuitBreaker` -> metadata of a cluster, which Envoy ignores. Every value is set, also where it is Resilience4j's default.

use std::time::Duration;

use remora_xds::pb::google::protobuf::value::Kind as Json;
use remora_xds::pb::google::protobuf::{ListValue, Struct, Value};

use super::{names, parts};
use crate::document::{
    AppProtocol, CircuitBreaker, Document, FixedAnswer, LastGood, Percent, ServicePort, ServiceSpec,
    Statuses, WindowType,
};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::{Key, Name};
use crate::span::Span;

/// Where it stands in `filter_metadata`.
pub(super) const NAME: &str = "remora.circuit_breaker";

/// How long a call may take that is not slow, and how long no call is let through.
const MINUTE: Duration = Duration::from_secs(60);

/// Where requests to a Service's port go while its circuit breaker is open; None when nowhere else: nothing is said, the port is not
/// there, no grant lets it be used, or it does not speak the same.
pub(super) fn fallback(
    mesh: &Mesh,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
) -> Option<(Name, u16)> {
    let policy = mesh.policy(service)?;
    let said = policy.spec.circuit_breaker.as_ref()?.fallback.as_ref()?;
    let key = Key::new(Kind::TrafficPolicy, policy.name());
    let (name, number) = mesh.backend(&key, said.backend_ref.as_ref()?.to())?;
    let other = mesh.service(&name.namespace, &name.name)?;
    let other = other.spec.ports.iter().find(|port| port.port == number)?;
    let alike = (other.speaks() == AppProtocol::Tcp) == (port.speaks() == AppProtocol::Tcp);
    (alike && name != service.name()).then_some((name, number))
}

/// The settings of a port.
pub(super) fn settings(said: &CircuitBreaker, http: bool, fallback: Option<&(Name, u16)>) -> Struct {
    let number = |said: Option<u32>, usual| Json::NumberValue(said.unwrap_or(usual).into());
    let percent = |said: Option<Percent>, usual| Json::NumberValue(said.unwrap_or(usual).value());
    let time = |said: Option<Span>, usual| text(seconds(said.map_or(usual, |span| span.0)));
    let statuses: Vec<_> = if said.failure_statuses.is_empty() {
        vec![text("500-599".into())]
    } else {
        said.failure_statuses
            .iter()
            .map(|Statuses(range)| text(format!("{}-{}", range.start(), range.end())))
            .collect()
    };
    let answer = said.fallback.as_ref().and_then(|fallback| fallback.answer.as_ref()).filter(|_| http);
    let cluster = fallback.map(|(name, port)| text(names::cluster(&name.namespace, &name.name, *port)));
    let instead = match (answer, cluster) {
        (Some(answer), _) => Some(("answer", fixed(answer))),
        (None, cluster) => cluster.map(|cluster| ("cluster", cluster)),
    };
    let fields = [
        ("sliding_window_type", text(said.sliding_window_type.as_str().into())),
        ("sliding_window_size", number(said.sliding_window_size, SIZE)),
        ("minimum_number_of_calls", Json::NumberValue(minimum(said).into())),
        ("failure_rate_threshold", percent(said.failure_rate_threshold, Percent::whole(50))),
        ("slow_call_rate_threshold", percent(said.slow_call_rate_threshold, Percent::ALL)),
        ("slow_call_duration_threshold", time(said.slow_call_duration_threshold, MINUTE)),
        ("wait_duration_in_open_state", time(said.wait_duration_in_open_state, MINUTE)),
        (
            "permitted_number_of_calls_in_half_open_state",
            number(said.permitted_number_of_calls_in_half_open_state, 10),
        ),
        (
            "max_wait_duration_in_half_open_state",
            time(said.max_wait_duration_in_half_open_state, Duration::ZERO),
        ),
        (
            "automatic_transition_from_open_to_half_open_enabled",
            Json::BoolValue(said.automatic_transition_from_open_to_half_open_enabled),
        ),
        ("failure_statuses", list(statuses)),
    ];
    let last_good = said.fallback.as_ref().and_then(|fallback| fallback.last_good.as_ref()).filter(|_| http);
    let instead: Vec<_> =
        instead.into_iter().chain(last_good.map(|said| ("last_good", kept(said)))).collect();
    let fallback = (!instead.is_empty()).then(|| ("fallback", Json::StructValue(parts::object(instead))));
    parts::object(fields.into_iter().chain(fallback))
}

/// Calls or seconds of a window, and fewest calls that mean something.
const SIZE: u32 = 100;

/// A window by count never holds more.
fn minimum(said: &CircuitBreaker) -> u32 {
    let size = said.sliding_window_size.unwrap_or(SIZE);
    let minimum = said.minimum_number_of_calls.unwrap_or(SIZE);
    if said.sliding_window_type == WindowType::CountBased { minimum.min(size) } else { minimum }
}

fn fixed(answer: &FixedAnswer) -> Json {
    let headers = answer.headers.iter().map(|(name, value)| (name.as_str(), text(value.clone())));
    Json::StructValue(parts::object([
        ("status", Json::NumberValue(answer.status.into())),
        ("headers", Json::StructValue(parts::object(headers))),
        ("body", text(answer.body.clone())),
    ]))
}

fn kept(said: &LastGood) -> Json {
    Json::StructValue(parts::object([
        ("max_age", text(seconds(said.max_age()))),
        ("max_body_bytes", Json::NumberValue(said.max_body_bytes().into())),
        ("max_bytes", Json::NumberValue(said.max_bytes().into())),
    ]))
}

const fn text(text: String) -> Json {
    Json::StringValue(text)
}

fn list(values: Vec<Json>) -> Json {
    let values = values.into_iter().map(|kind| Value { kind: Some(kind) }).collect();
    Json::ListValue(ListValue { values })
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}
