//! `healthChecks` of TrafficPolicies.

use remora_xds::diag::At;

use super::names::{check_text, is_written_path};
use super::report::Report;
use crate::document::{Document, HealthCheck, HttpCheck, ServicePort, ServiceSpec};

/// Most checks of a policy.
const MOST: usize = 16;

/// The checks of a policy that is attached to `services`.
pub(super) fn check(
    list: &[HealthCheck],
    services: &[&Document<ServiceSpec>],
    at: &At<'_>,
    report: &mut Report,
) {
    report.at_most(MOST, list.len(), at);
    for (i, check) in list.iter().enumerate() {
        let at = at.index(i);
        let kinds = [check.http.is_some(), check.grpc.is_some(), check.tcp.is_some()];
        if kinds.into_iter().filter(|set| *set).count() != 1 {
            report.report(&at, "needs exactly one of http, grpc and tcp").fix("http: {path: /health}");
            continue;
        }
        numbers(check, &at, report);
        if let Some(http) = &check.http {
            request(http, &at.field("http"), report);
        }
        if let Some(grpc) = &check.grpc {
            check_text(&grpc.service, &at.field("grpc").field("service"), report);
        }
        if !services.is_empty() {
            ports(list, i, services, &at, report);
        }
    }
}

fn numbers(check: &HealthCheck, at: &At<'_>, report: &mut Report) {
    for (field, time) in [("interval", check.interval), ("timeout", check.timeout)] {
        if time.is_some_and(|time| time.0.is_zero()) {
            report.report(&at.field(field), "must be more than 0s");
        }
    }
    for (field, number) in
        [("unhealthyThreshold", check.unhealthy_threshold), ("healthyThreshold", check.healthy_threshold)]
    {
        if number == Some(0) {
            report.report(&at.field(field), "must be 1 or more");
        }
    }
}

fn request(said: &HttpCheck, at: &At<'_>, report: &mut Report) {
    let path = at.field("path");
    if !is_written_path(&said.path) {
        report.report(&path, "is no path").fix("/health");
    }
    if said.host.as_ref().is_some_and(|host| !is_host(host)) {
        report.report(&at.field("host"), "is no host name").fix("shop.test, or shop.test:8080");
    }
}

/// A name, perhaps with a port.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "80"));
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    !name.is_empty() && name.bytes().all(inner) && port.parse::<u16>().is_ok()
}

/// Every check is for some port, and every port has one check.
fn ports(
    list: &[HealthCheck],
    number: usize,
    services: &[&Document<ServiceSpec>],
    at: &At<'_>,
    report: &mut Report,
) {
    let check = &list[number];
    let all =
        || services.iter().flat_map(|service| service.spec.ports.iter().map(move |port| (service, port)));
    let named = |port: &ServicePort| check.port.is_none_or(|wanted| wanted == port.port);
    if !all().any(|(_, port)| named(port)) {
        let text = format!("{} is a port of none of the targets", check.port.unwrap_or_default());
        report.missing(&at.field("port"), text).fix("name a port of the Service, by its number");
        return;
    }
    if !all().any(|(_, port)| check.is_for(port)) {
        let said = if check.http.is_some() { "HTTP" } else { "gRPC" };
        report
            .report(at, format!("checks nothing: no port that it is for speaks {said}"))
            .fix("appProtocol of the port, or tcp: {}");
        return;
    }
    let alike = |other: &HealthCheck| other.port.is_some() == check.port.is_some();
    for (service, port) in all().filter(|(_, port)| check.is_for(port)) {
        let Some(first) = list[..number].iter().position(|other| alike(other) && other.is_for(port)) else {
            continue;
        };
        let text = format!(
            "port {} of Service {:?} is checked by spec.healthChecks[{first}] already",
            port.port, service.metadata.name
        );
        report.report(at, text).fix("say which port each of them is for");
        return;
    }
}
