//! `circuitBreaker` of TrafficPolicies.

use std::ops::RangeInclusive;
use std::time::Duration;

use remora_xds::diag::At;

use super::names::{check_header_name, check_text};
use super::report::Report;
use super::route::reference;
use crate::document::{
    AppProtocol, CircuitBreaker, Document, Fallback, FixedAnswer, LastGood, ServiceSpec, WindowType,
};
use crate::mesh::Mesh;
use crate::name::Key;
use crate::span::Span;

/// Most calls that a window holds.
const MOST_CALLS: u32 = 100_000;
/// Most seconds of a window, and longest of any time.
const DAY: u32 = 86_400;
/// Most calls that are let through to see how it is.
const MOST_PERMITTED: u32 = 1023;
/// Of a fixed answer, bytes.
const MOST_BODY: usize = 64 * 1024;
/// Of last good answers in a worker, bytes.
const MOST_KEPT: u32 = 1 << 30;
/// What sidecars count for the headers of a last good answer, bytes.
const HEAD: u64 = 4096;
/// What frames a message.
const FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "connection"];

/// The circuit breaker of `policy`, which is attached to `services`.
pub(super) fn check(
    (mesh, policy): (&Mesh, &Key),
    said: &CircuitBreaker,
    services: &[&Document<ServiceSpec>],
    at: &At<'_>,
    report: &mut Report,
) {
    window(said, at, report);
    thresholds(said, at, report);
    if let Some(fallback) = &said.fallback {
        check_fallback((mesh, policy), fallback, services, &at.field("fallback"), report);
    }
}

fn window(said: &CircuitBreaker, at: &At<'_>, report: &mut Report) {
    let by_count = said.sliding_window_type == WindowType::CountBased;
    let most = if by_count { MOST_CALLS } else { DAY };
    let numbers = [
        ("slidingWindowSize", said.sliding_window_size, 1..=most),
        ("minimumNumberOfCalls", said.minimum_number_of_calls, 1..=MOST_CALLS),
        (
            "permittedNumberOfCallsInHalfOpenState",
            said.permitted_number_of_calls_in_half_open_state,
            1..=MOST_PERMITTED,
        ),
    ];
    for (field, number, range) in numbers {
        in_range(number, range, &at.field(field), report);
    }
    let size = said.sliding_window_size.unwrap_or(100);
    if by_count && said.minimum_number_of_calls.is_some_and(|minimum| minimum > size) {
        let text =
            format!("is more than the window holds: spec.circuitBreaker.slidingWindowSize is {size} calls");
        report.report(&at.field("minimumNumberOfCalls"), text).fix("lower it, or raise slidingWindowSize");
    }
}

fn in_range(number: Option<u32>, range: RangeInclusive<u32>, at: &At<'_>, report: &mut Report) {
    if number.is_some_and(|number| !range.contains(&number)) {
        report.report(at, format!("must be from {} to {}", range.start(), range.end()));
    }
}

fn thresholds(said: &CircuitBreaker, at: &At<'_>, report: &mut Report) {
    for (field, percent) in [
        ("failureRateThreshold", said.failure_rate_threshold),
        ("slowCallRateThreshold", said.slow_call_rate_threshold),
    ] {
        if percent.is_some_and(|percent| percent.is_zero()) {
            report
                .report(&at.field(field), "must be more than 0: every call would open it")
                .fix("50 is usual");
        }
    }
    let times = [
        ("slowCallDurationThreshold", said.slow_call_duration_threshold, false),
        ("waitDurationInOpenState", said.wait_duration_in_open_state, false),
        ("maxWaitDurationInHalfOpenState", said.max_wait_duration_in_half_open_state, true),
    ];
    for (field, said, zero) in times {
        time(said, zero, &at.field(field), report);
    }
}

fn time(time: Option<Span>, zero: bool, at: &At<'_>, report: &mut Report) {
    if time.is_some_and(|time| time.0.is_zero() && !zero) {
        report.report(at, "must be more than 0s");
    }
    if time.is_some_and(|time| time.0 > Duration::from_secs(DAY.into())) {
        report.report(at, "is more than a day").fix("24h at most");
    }
}

fn check_fallback(
    (mesh, policy): (&Mesh, &Key),
    fallback: &Fallback,
    services: &[&Document<ServiceSpec>],
    at: &At<'_>,
    report: &mut Report,
) {
    let others = usize::from(fallback.answer.is_some()) + usize::from(fallback.backend_ref.is_some());
    if others > 1 || (others == 0 && fallback.last_good.is_none()) {
        report
            .report(at, "needs lastGood, one of answer and backendRef, or both")
            .fix("answer: {status: 200, body: …}");
    }
    let protocols = || services.iter().flat_map(|service| &service.spec.ports).map(|port| port.speaks());
    let http = |speaks| matches!(speaks, AppProtocol::Http | AppProtocol::Http2);
    let no_http = !services.is_empty() && !protocols().any(http);
    let is_for_http = |at: &At<'_>, report: &mut Report| {
        if no_http {
            let text = "is for HTTP, and no port of the targets speaks it without gRPC";
            report.report(at, text).fix("backendRef, or remove it");
        }
    };
    if let Some(answer) = &fallback.answer {
        let at = at.field("answer");
        check_answer(answer, &at, report);
        is_for_http(&at, report);
    }
    if let Some(last_good) = &fallback.last_good {
        let at = at.field("lastGood");
        check_last_good(last_good, &at, report);
        is_for_http(&at, report);
    }
    let Some(to) = &fallback.backend_ref else { return };
    let at = at.field("backendRef");
    let Some(found) = reference(mesh, policy, to.to(), &at, report) else { return };
    if services.iter().any(|service| service.name() == found.name()) {
        let text = format!("{:?} is one of spec.targetRefs: it would answer instead of itself", to.name);
        report.report(&at.field("name"), text).fix("another Service");
    }
    let tcp =
        found.spec.ports.iter().find(|port| port.port == to.port).map(|p| p.speaks() == AppProtocol::Tcp);
    if let Some(tcp) =
        tcp.filter(|tcp| !services.is_empty() && !protocols().any(|p| (p == AppProtocol::Tcp) == *tcp))
    {
        let (other, own) = if tcp { ("does not speak HTTP", "do") } else { ("speaks HTTP", "do not") };
        let text = format!("port {} of Service {:?} {other}, and the targets {own}", to.port, to.name);
        report.report(&at.field("port"), text).fix("a port that speaks the same");
    }
}

fn check_last_good(said: &LastGood, at: &At<'_>, report: &mut Report) {
    for (field, bytes) in [("maxBodyBytes", said.max_body_bytes), ("maxBytes", said.max_bytes)] {
        in_range(bytes, 1..=MOST_KEPT, &at.field(field), report);
    }
    let (body, all) = (said.max_body_bytes(), said.max_bytes());
    let least = 2 * (u64::from(body) + HEAD);
    if u64::from(all) < least {
        let text = format!(
            "must be at least {least}: one answer that is kept and one on its way, with bodies of maxBodyBytes, {body}"
        );
        report.report(&at.field("maxBytes"), text).fix("raise it, or lower maxBodyBytes");
    }
    time(said.max_age, false, &at.field("maxAge"), report);
}

fn check_answer(answer: &FixedAnswer, at: &At<'_>, report: &mut Report) {
    if !(200..600).contains(&answer.status) {
        report.report(&at.field("status"), "is no status of an answer").fix("200 to 599");
    }
    if answer.body.len() > MOST_BODY {
        report.report(&at.field("body"), format!("is longer than {MOST_BODY} bytes"));
    }
    let headers = at.field("headers");
    for (name, value) in &answer.headers {
        let at = headers.field(name);
        check_header_name(name, &at, report);
        check_text(value, &at, report);
        if FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
            report.report(&at, "is not for a document to say").fix("remove it");
        }
    }
}
