//! `filter_metadata` under `remora.circuit_breaker` -> [`CircuitSpec`].

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::core::v3::Metadata;
use remora_xds::pb::google::protobuf::value::Kind;
use remora_xds::pb::google::protobuf::{Struct, Value};

use super::Scope;
use crate::resilience::circuit::cell::{Limits, MAX_PERMITTED};
use crate::resilience::circuit::last_good::LastGoodSpec;
use crate::resilience::circuit::window::{Length, MAX_CALLS};
use crate::resilience::circuit::{CircuitSpec, Fallback, FixedAnswer};

/// The key of `filter_metadata`.
pub const NAME: &str = "remora.circuit_breaker";

/// The longest body of a fixed answer, bytes.
const MAX_BODY: usize = 64 * 1024;
/// The most that a worker keeps of last good answers, bytes.
const MAX_KEPT: u32 = 1 << 30;
/// A day: the longest time that makes sense here, and far from the ends of the arithmetic.
const MAX_TIME: Duration = Duration::from_secs(86_400);

/// The settings in `metadata`, a resource's field at `at`. What is left out has Resilience4j's default.
pub fn compile(metadata: Option<&Metadata>, at: &At<'_>, scope: &mut Scope<'_>) -> Option<CircuitSpec> {
    let settings = metadata?.filter_metadata.get(NAME)?;
    let at = at.field("filter_metadata");
    Some(Reader::default().read(settings, &at.field(NAME), scope))
}

#[derive(Default)]
struct Reader {
    by_time: bool,
    size: Option<u32>,
    minimum: Option<u32>,
    failure_rate: Option<f64>,
    slow_rate: Option<f64>,
    slow: Option<Duration>,
    wait_open: Option<Duration>,
    wait_half_open: Option<Duration>,
    permitted: Option<u32>,
    automatic: bool,
    failures: Vec<std::ops::RangeInclusive<u16>>,
    fallback: Option<Fallback>,
    last_good: Option<LastGoodSpec>,
}

impl Reader {
    fn read(mut self, settings: &Struct, at: &At<'_>, scope: &mut Scope<'_>) -> CircuitSpec {
        for (name, value) in sorted(settings) {
            self.field(name, value, &at.field(name), scope);
        }
        let size = self.size.unwrap_or(100);
        if !self.by_time && size > MAX_CALLS {
            scope
                .errors
                .report(&at.field("sliding_window_size"), format!("must be at most {MAX_CALLS} calls"));
        }
        let length = if self.by_time {
            Length::Millis(u64::from(size) * 1000)
        } else {
            Length::Calls(size.min(MAX_CALLS))
        };
        let minimum = self.minimum.unwrap_or(100);
        // As in Resilience4j: a window by count never holds more.
        let minimum_calls = if self.by_time { minimum } else { minimum.min(size) };
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if self.failures.is_empty() {
            self.failures.push(500..=599);
        }
        CircuitSpec {
            length,
            limits: Limits {
                failure_rate: self.failure_rate.unwrap_or(50.0),
                slow_rate: self.slow_rate.unwrap_or(100.0),
                minimum_calls,
                permitted: self.permitted.unwrap_or(10),
                wait_open: millis(self.wait_open.unwrap_or(Duration::from_secs(60))),
                wait_half_open: self.wait_half_open.filter(|wait| !wait.is_zero()).map(millis),
            },
            slow: self.slow.unwrap_or(Duration::from_secs(60)),
            automatic: self.automatic,
            failures: self.failures.into(),
            fallback: self.fallback,
            last_good: self.last_good,
        }
    }

    fn field(&mut self, name: &str, value: &Value, at: &At<'_>, scope: &mut Scope<'_>) {
        match name {
            "sliding_window_type" => match text(value) {
                Some("COUNT_BASED") => self.by_time = false,
                Some("TIME_BASED") => self.by_time = true,
                _ => drop(scope.errors.report(at, "must be COUNT_BASED or TIME_BASED")),
            },
            "sliding_window_size" => self.size = number(value, 1, 86_400.max(MAX_CALLS), at, scope),
            "minimum_number_of_calls" => self.minimum = number(value, 1, MAX_CALLS, at, scope),
            "failure_rate_threshold" => self.failure_rate = percent(value, at, scope),
            "slow_call_rate_threshold" => self.slow_rate = percent(value, at, scope),
            "slow_call_duration_threshold" => self.slow = time(value, false, at, scope),
            "wait_duration_in_open_state" => self.wait_open = time(value, false, at, scope),
            "max_wait_duration_in_half_open_state" => self.wait_half_open = time(value, true, at, scope),
            "permitted_number_of_calls_in_half_open_state" => {
                self.permitted = number(value, 1, MAX_PERMITTED, at, scope);
            }
            "automatic_transition_from_open_to_half_open_enabled" => match value.kind {
                Some(Kind::BoolValue(on)) => self.automatic = on,
                _ => drop(scope.errors.report(at, "must be true or false")),
            },
            "failure_statuses" => self.failures = statuses(value, at, scope),
            "fallback" => self.fallback(value, at, scope),
            _ => drop(scope.errors.report(at, "is not a field of remora.circuit_breaker")),
        }
    }

    fn fallback(&mut self, value: &Value, at: &At<'_>, scope: &mut Scope<'_>) {
        let fields = match &value.kind {
            Some(Kind::StructValue(fields)) => sorted(fields),
            _ => Vec::new(),
        };
        let mut others = 0;
        for (name, value) in &fields {
            let at = at.field(name);
            match *name {
                "last_good" => self.last_good = last_good(value, &at, scope),
                "answer" => self.fallback = answer_of(value, &at, scope),
                "cluster" => match text(value).filter(|name| !name.is_empty()) {
                    Some(name) => {
                        self.fallback = Some(Fallback::Cluster(scope.names.clusters.intern(name)));
                    }
                    None => drop(scope.errors.report(&at, "must be the name of a cluster")),
                },
                _ => drop(scope.errors.report(&at, "is not a field: answer, cluster and last_good are")),
            }
            others += u8::from(*name != "last_good");
        }
        if fields.is_empty() || others > 1 {
            scope.errors.report(at, "must have last_good, one of answer and cluster, or both");
        }
    }
}

fn sorted(fields: &Struct) -> Vec<(&str, &Value)> {
    let mut sorted: Vec<_> = fields.fields.iter().map(|(name, value)| (name.as_str(), value)).collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    sorted
}

fn text(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and within the bounds")]
fn number(value: &Value, min: u32, max: u32, at: &At<'_>, scope: &mut Scope<'_>) -> Option<u32> {
    match value.kind {
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && (f64::from(min)..=f64::from(max)).contains(&n) => {
            Some(n as u32)
        }
        _ => {
            scope.errors.report(at, format!("must be a whole number from {min} to {max}"));
            None
        }
    }
}

fn percent(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> Option<f64> {
    match value.kind {
        Some(Kind::NumberValue(n)) if n > 0.0 && n <= 100.0 => Some(n),
        _ => {
            scope.errors.report(at, "must be more than 0 and at most 100");
            None
        }
    }
}

fn time(value: &Value, zero: bool, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Duration> {
    let time = text(value).and_then(remora_xds::parse_duration);
    let time = time.filter(|t| *t <= MAX_TIME && (zero || *t >= Duration::from_millis(1)));
    if time.is_none() {
        scope.errors.report(at, "must be a duration of at most a day, such as \"10s\"");
    }
    time
}

fn statuses(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> Vec<std::ops::RangeInclusive<u16>> {
    let Some(Kind::ListValue(list)) = &value.kind else {
        scope.errors.report(at, "must be a list of statuses (503) and ranges (\"500-599\")");
        return Vec::new();
    };
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let mut ranges = Vec::with_capacity(list.values.len());
    for (i, value) in list.values.iter().enumerate() {
        let range = match &value.kind {
            Some(Kind::NumberValue(n)) => status(&n.to_string()).map(|status| status..=status),
            Some(Kind::StringValue(text)) => text
                .split_once('-')
                .and_then(|(from, to)| Some(status(from)?..=status(to)?))
                .filter(|range: &std::ops::RangeInclusive<u16>| !range.is_empty()),
            _ => None,
        };
        match range {
            Some(range) => ranges.push(range),
            None => {
                scope.errors.report(&at.index(i), "must be a status (503) or a range (\"500-599\")");
            }
        }
    }
    if list.values.is_empty() {
        scope.errors.report(at, "must not be empty").fix("leave it out: 500 to 599 are failures then");
    }
    ranges
}

fn last_good(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> Option<LastGoodSpec> {
    let Some(Kind::StructValue(fields)) = &value.kind else {
        scope.errors.report(at, "must be an object: max_age, max_body_bytes and max_bytes, or nothing");
        return None;
    };
    let mut spec = LastGoodSpec::default();
    for (name, value) in sorted(fields) {
        let at = at.field(name);
        let bytes = |scope: &mut Scope<'_>| number(value, 1, MAX_KEPT, &at, scope).map_or(0, |n| n as usize);
        match name {
            "max_age" => spec.max_age = time(value, false, &at, scope).unwrap_or_default(),
            "max_body_bytes" => spec.max_body_bytes = bytes(scope),
            "max_bytes" => spec.max_bytes = bytes(scope),
            _ => drop(scope.errors.report(&at, "is not a field: max_age, max_body_bytes and max_bytes are")),
        }
    }
    let (body, least) = (spec.max_body_bytes, LastGoodSpec::least(spec.max_body_bytes));
    if spec.max_bytes < least {
        let text = format!(
            "must be at least {least}: one answer that is kept and one on its way, with bodies of max_body_bytes, {body}"
        );
        scope.errors.report(&at.field("max_bytes"), text).fix("raise it, or lower max_body_bytes");
    }
    Some(spec)
}

fn answer_of(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Fallback> {
    let Some(Kind::StructValue(fields)) = &value.kind else {
        scope.errors.report(at, "must have status, headers or body");
        return None;
    };
    let mut answer = FixedAnswer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new() };
    for (name, value) in sorted(fields) {
        let at = at.field(name);
        match name {
            "status" => {
                let code = number(value, 200, 599, &at, scope);
                answer.status = code
                    .and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok())
                    .unwrap_or_default();
            }
            "body" => match text(value).filter(|body| body.len() <= MAX_BODY) {
                Some(body) => answer.body = Bytes::copy_from_slice(body.as_bytes()),
                None => drop(scope.errors.report(&at, format!("must be text of at most {MAX_BODY} bytes"))),
            },
            "headers" => answer.headers = headers(value, &at, scope),
            _ => drop(scope.errors.report(&at, "is not a field of answer: status, headers and body are")),
        }
    }
    Some(Fallback::Answer(answer.into()))
}

fn headers(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(Kind::StructValue(fields)) = &value.kind else {
        scope.errors.report(at, "must be an object of header names and values");
        return headers;
    };
    for (name, value) in sorted(fields) {
        // What frames the message is not for a file to say.
        let framing = ["content-length", "transfer-encoding", "connection"];
        let key = name.parse::<HeaderName>().ok().filter(|key| !framing.contains(&key.as_str()));
        let value = text(value).and_then(|value| HeaderValue::from_str(value).ok());
        match key.zip(value) {
            Some((key, value)) => drop(headers.append(key, value)),
            None => drop(scope.errors.report(&at.field(name), "is not a header that may be set here")),
        }
    }
    headers
}
