//! RateLimitPolicies.

use std::sync::Arc;
use std::time::Duration;

use remora_xds::diag::At;

use super::http::http_match;
use super::names::{check_header_name, check_text, is_dns_label};
use super::policy::{need_http, services, targets};
use super::report::Report;
use super::route::reference;
use crate::document::{
    AppProtocol, Descriptor, Document, Entry, GlobalLimits, Limit, LimitBy, LimitScope, RateLimitPolicySpec,
};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;
use crate::name::Key;

/// Most limits, and most descriptors.
const MOST: usize = 32;
/// Most things that a limit is by: of each a request has or lacks it.
const MOST_BY: usize = 2;
/// Most buckets of a sidecar.
const MOST_BUCKETS: u32 = 100_000;
/// Shortest time of a limit.
const SHORTEST: Duration = Duration::from_millis(50);
/// Longest time of a limit that sidecars keep together.
const LONGEST_SHARED: Duration = Duration::from_secs(3600);
/// Longest time in which a burst comes free again.
const LONGEST: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

pub(super) fn check(mesh: &Mesh, document: &Arc<Document<RateLimitPolicySpec>>, report: &mut Report) {
    let key = AnyDocument::RateLimitPolicy(Arc::clone(document)).key();
    let said = &document.spec;
    targets(mesh, &key, &said.target_refs, report);
    need_http(mesh, &key, &said.target_refs, report);
    let root = At::root();
    let spec = root.field("spec");
    if said.limits.is_empty() && said.global.is_none() {
        report.report(&spec, "limits nothing").fix("limits: [{requests: 100, per: 1s}]");
    }
    limits(&said.limits, &spec.field("limits"), report);
    let buckets = spec.field("maxBuckets");
    if said.max_buckets.is_some_and(|most| !(1..=MOST_BUCKETS).contains(&most)) {
        report.report(&buckets, format!("must be from 1 to {MOST_BUCKETS}"));
    }
    if said.max_buckets.is_some() && said.limits.iter().all(|limit| limit.by.is_empty()) {
        report.report(&buckets, "has no effect: no entry of spec.limits is by anything").fix("remove it");
    }
    if let Some(global) = &said.global {
        check_global((mesh, &key), said, global, &spec.field("global"), report);
    }
}

fn limits(list: &[Limit], at: &At<'_>, report: &mut Report) {
    report.at_most(MOST, list.len(), at);
    for (i, limit) in list.iter().enumerate() {
        let at = at.index(i);
        if let Some(name) = &limit.name {
            let at = at.field("name");
            if !is_dns_label(name) {
                report.report(&at, "is no name").fix("lower-case letters, digits and -");
            }
            if let Some(first) = list[..i].iter().position(|other| other.name.as_ref() == Some(name)) {
                report.report(&at, format!("is the name of spec.limits[{first}]")).fix("another name");
            }
        }
        numbers(limit, &at, report);
        if limit.scope == LimitScope::Mesh {
            shared(limit, &at, report);
        }
        if let Some(matched) = &limit.matched {
            http_match(matched, &at.field("match"), report);
        }
        let list = at.field("by");
        report.at_most(MOST_BY, limit.by.len(), &list);
        for (i, by) in limit.by.iter().enumerate() {
            check_by(by, &list.index(i), report);
            if limit.by[..i].contains(by) {
                report.report(&list.index(i), "occurs twice");
            }
        }
    }
}

/// What sidecars keep together is one number of requests.
fn shared(limit: &Limit, at: &At<'_>, report: &mut Report) {
    let set =
        [("burst", limit.burst.is_some()), ("match", limit.matched.is_some()), ("by", !limit.by.is_empty())];
    for (name, _) in set.into_iter().filter(|(_, set)| *set) {
        let text = "is for limits that each sidecar counts by itself; with scope: Mesh all requests count";
        report.report(&at.field(name), text).fix("remove it, or a second limit with scope: Sidecar");
    }
    if limit.per.0 > LONGEST_SHARED {
        let text = "must be at most 1h with scope: Mesh: shares of it are for seconds";
        report.report(&at.field("per"), text).fix("fewer requests in a shorter time");
    }
}

fn numbers(limit: &Limit, at: &At<'_>, report: &mut Report) {
    if limit.requests == 0 {
        let text = "must be 1 or more: nothing would ever pass";
        report.report(&at.field("requests"), text).fix("an AuthorizationPolicy with action: Deny");
    }
    if limit.per.0 < SHORTEST {
        report.report(&at.field("per"), "must be at least 50ms").fix("fewer requests in a longer time");
    }
    if limit.burst == Some(0) {
        report.report(&at.field("burst"), "must be 1 or more: nothing would ever pass");
    }
    let burst = limit.burst.unwrap_or(limit.requests);
    if limit.per.0.saturating_mul(burst) / limit.requests.max(1) > LONGEST {
        let text = "takes more than five years to come free again, by spec.limits[].requests and per";
        report.report(&at.field("burst"), text).fix("lower it, or raise requests");
    }
}

fn check_by(by: &LimitBy, at: &At<'_>, report: &mut Report) {
    let set = [by.client, by.header.is_some(), by.query_parameter.is_some()];
    if set.into_iter().filter(|set| *set).count() != 1 {
        report.report(at, "needs exactly one of client: true, header and queryParameter");
    }
    names(by.header.as_deref(), by.query_parameter.as_deref(), at, report);
}

fn names(header: Option<&str>, parameter: Option<&str>, at: &At<'_>, report: &mut Report) {
    if let Some(name) = header {
        check_header_name(name, &at.field("header"), report);
    }
    if let Some(name) = parameter {
        text(name, &at.field("queryParameter"), report);
    }
}

fn text(value: &str, at: &At<'_>, report: &mut Report) {
    if value.is_empty() {
        report.report(at, "is empty");
    } else {
        check_text(value, at, report);
    }
}

fn check_global(
    (mesh, policy): (&Mesh, &Key),
    spec: &RateLimitPolicySpec,
    said: &GlobalLimits,
    at: &At<'_>,
    report: &mut Report,
) {
    let to = &said.backend_ref;
    let refs = at.field("backendRef");
    if let Some(found) = reference(mesh, policy, to.to(), &refs, report) {
        let port = found.spec.ports.iter().find(|port| port.port == to.port);
        if port.is_some_and(|port| !matches!(port.speaks(), AppProtocol::Grpc | AppProtocol::Http2)) {
            let text = format!("port {} of Service {:?} does not speak gRPC", to.port, to.name);
            report.report(&refs.field("port"), text).fix("appProtocol: grpc on it, or another port");
        }
        if services(mesh, policy, &spec.target_refs).iter().any(|target| target.name() == found.name()) {
            let text =
                format!("{:?} is one of spec.targetRefs: it would be asked about being asked", to.name);
            report.report(&refs.field("name"), text).fix("a Service without this policy");
        }
    }
    text(&said.domain, &at.field("domain"), report);
    if said.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        report.report(&at.field("timeout"), "must be more than 0s").fix("20ms is usual");
    }
    let list = at.field("descriptors");
    if said.descriptors.is_empty() {
        let text = "must not be empty: the service would be asked about nothing";
        report.report(&list, text).fix("descriptors: [{entries: [{key: path, value: all}]}]");
    }
    report.at_most(MOST, said.descriptors.len(), &list);
    for (i, descriptor) in said.descriptors.iter().enumerate() {
        check_descriptor(descriptor, &list.index(i), report);
    }
}

fn check_descriptor(descriptor: &Descriptor, at: &At<'_>, report: &mut Report) {
    let list = at.field("entries");
    if descriptor.entries.is_empty() {
        report.report(&list, "must not be empty").fix("entries: [{key: …, header: …}]");
    }
    report.at_most(16, descriptor.entries.len(), &list);
    for (i, entry) in descriptor.entries.iter().enumerate() {
        check_entry(entry, &list.index(i), report);
    }
}

fn check_entry(entry: &Entry, at: &At<'_>, report: &mut Report) {
    text(&entry.key, &at.field("key"), report);
    let set = [entry.value.is_some(), entry.header.is_some(), entry.query_parameter.is_some()];
    if set.into_iter().filter(|set| *set).count() != 1 {
        report.report(at, "needs exactly one of value, header and queryParameter");
    }
    if let Some(value) = &entry.value {
        text(value, &at.field("value"), report);
    }
    names(entry.header.as_deref(), entry.query_parameter.as_deref(), at, report);
    if let Some(matched) = &entry.matched {
        let at = at.field("match");
        http_match(matched, &at, report);
        if entry.value.is_none() {
            report.report(&at, "belongs to value").fix("value: …, and another entry for the rest");
        }
    }
}
