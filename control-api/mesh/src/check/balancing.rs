//! `loadBalancing` of TrafficPolicies.

use remora_xds::diag::At;

use super::names::{check_header_name, check_text};
use super::report::Report;
use crate::compile::{DECAY, MAX_RING};
use crate::document::{Cookie, HashOn, LbPolicy, LoadBalancing, Session};

/// Envoy's largest table of Maglev.
const MAX_TABLE: u64 = 5_000_011;

pub(super) fn check(said: &LoadBalancing, at: &At<'_>, report: &mut Report) {
    use LbPolicy::{LeastRequest, Maglev, PeakEwma, RingHash, RoundRobin};
    let hashes: &[LbPolicy] = &[RingHash, Maglev];
    let fields = [
        ("decay", said.decay.is_some(), &[PeakEwma][..]),
        ("choiceCount", said.choice_count.is_some(), &[LeastRequest]),
        ("slowStart", said.slow_start.is_some(), &[LeastRequest, RoundRobin]),
        ("hashOn", !said.hash_on.is_empty(), hashes),
        ("minimumRingSize", said.minimum_ring_size.is_some(), &[RingHash]),
        ("tableSize", said.table_size.is_some(), &[Maglev]),
        ("boundedLoad", said.bounded_load.is_some(), hashes),
    ];
    for (field, set, policies) in fields {
        // Peak EWMA is the only one that holds unsaid, of a port that speaks HTTP.
        if set && !policies.contains(&said.policy.unwrap_or(PeakEwma)) {
            let names: Vec<_> = policies.iter().map(|policy| format!("{policy:?}")).collect();
            let fix = format!("remove it, or policy: {}", names.join(" or policy: "));
            report.report(&at.field(field), format!("belongs to {}", names.join(" and "))).fix(fix);
        }
    }
    if said.policy.is_some_and(|policy| hashes.contains(&policy)) && said.hash_on.is_empty() {
        let text = "hashes requests, and spec.loadBalancing.hashOn does not say what of them";
        report.report(&at.field("policy"), text).fix("hashOn: [{header: …}]");
    }
    numbers(said, at, report);
    for (i, on) in said.hash_on.iter().enumerate() {
        hash_on(on, &at.field("hashOn").index(i), report);
    }
    if let Some(session) = &said.session {
        check_session(session, &at.field("session"), report);
    }
}

fn numbers(said: &LoadBalancing, at: &At<'_>, report: &mut Report) {
    if said.decay.is_some_and(|decay| !DECAY.contains(&decay.0)) {
        report.report(&at.field("decay"), "must be from 1ms to 1h").fix("10s is usual");
    }
    if said.choice_count.is_some_and(|count| !(2..=1000).contains(&count)) {
        report.report(&at.field("choiceCount"), "must be from 2 to 1000").fix("2 is usual");
    }
    if said.panic_threshold.is_some_and(|percent| percent > 100) {
        report.report(&at.field("panicThreshold"), "is more than 100");
    }
    if said.minimum_ring_size.is_some_and(|size| !(1..=MAX_RING).contains(&size)) {
        report.report(&at.field("minimumRingSize"), format!("must be from 1 to {MAX_RING}"));
    }
    if said.table_size.is_some_and(|size| size > MAX_TABLE || !is_prime(size)) {
        let text = format!("must be a prime number of at most {MAX_TABLE}");
        report.report(&at.field("tableSize"), text).fix("65537 is usual");
    }
    if said.bounded_load.is_some_and(|percent| percent < 100) {
        let text = "must be 100 or more: on average endpoints have the average load";
        report.report(&at.field("boundedLoad"), text).fix("125 is usual");
    }
    let Some(slow_start) = said.slow_start else { return };
    let at = at.field("slowStart");
    if slow_start.window.0.is_zero() {
        report.report(&at.field("window"), "must be more than 0s").fix("remove slowStart");
    }
    if slow_start.min_weight_percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
        report.report(&at.field("minWeightPercent"), "must be from 1 to 100");
    }
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn hash_on(on: &HashOn, at: &At<'_>, report: &mut Report) {
    let set = [on.header.is_some(), on.cookie.is_some(), on.query_parameter.is_some(), on.source_ip];
    if set.into_iter().filter(|set| *set).count() != 1 {
        report.report(at, "needs exactly one of header, cookie, queryParameter and sourceIp: true");
    }
    if let Some(name) = &on.header {
        check_header_name(name, &at.field("header"), report);
    }
    if let Some(name) = &on.query_parameter {
        check_name(name, &at.field("queryParameter"), report);
    }
    let Some(cookie) = &on.cookie else { return };
    let at = at.field("cookie");
    check_cookie(cookie, &at, report);
    if cookie.path.is_some() && cookie.ttl.is_none() {
        let text = "has no effect: without a ttl no client gets the cookie";
        report.report(&at.field("path"), text).fix("ttl: 0s");
    }
}

fn check_session(session: &Session, at: &At<'_>, report: &mut Report) {
    if session.cookie.is_some() == session.header.is_some() {
        report.report(at, "needs one of cookie and header").fix("cookie: {name: …}");
    }
    if let Some(name) = &session.header {
        check_header_name(name, &at.field("header"), report);
    }
    if let Some(cookie) = &session.cookie {
        check_cookie(cookie, &at.field("cookie"), report);
    }
}

fn check_cookie(cookie: &Cookie, at: &At<'_>, report: &mut Report) {
    check_cookie_name(&cookie.name, &at.field("name"), report);
    let inner = |b: u8| b.is_ascii_graphic() && !matches!(b, b';' | b'"');
    if cookie.path.as_ref().is_some_and(|path| !path.starts_with('/') || !path.bytes().all(inner)) {
        report.report(&at.field("path"), "is no path of a cookie").fix("/");
    }
}

pub(super) fn check_cookie_name(name: &str, at: &At<'_>, report: &mut Report) {
    let other = |b: u8| !b.is_ascii() || b.is_ascii_whitespace() || matches!(b, b'=' | b';' | b',' | b'"');
    if name.bytes().any(other) {
        report.report(at, "is no name of a cookie");
    }
    check_name(name, at, report);
}

fn check_name(name: &str, at: &At<'_>, report: &mut Report) {
    if name.is_empty() {
        report.report(at, "is empty");
    } else {
        check_text(name, at, report);
    }
}
