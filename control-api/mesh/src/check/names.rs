//! What names and values may look like, and references to Services.

use remora_xds::diag::At;
use remora_xds::nearest;

use super::report::{Lack, Report};
use crate::document::{Document, ServiceSpec};
use crate::kinds::Kind;
use crate::mesh::Mesh;
use crate::name::Name;

/// As Kubernetes has it. Values become parts of labels in metrics.
pub(super) fn is_label_value(value: &str) -> bool {
    value.len() <= 63 && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// RFC 1123 label: names become parts of host names and of identities.
pub(super) fn is_dns_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// SPIFFE ID section 2.1.
pub(super) fn is_trust_domain(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=255).contains(&name.len()) && name.bytes().all(inner)
}

/// `group` and `kind` of a reference to a Service.
pub(super) fn need_kind(group: Option<&str>, kind: Option<&str>, at: &At<'_>, report: &mut Report) {
    if !matches!(group, None | Some("" | "core")) {
        report
            .unsupported(&at.field("group"), "must be empty: a Service is in the core group")
            .fix("remove it");
    }
    if kind.is_some_and(|kind| kind != Kind::Service.as_str()) {
        let text = format!("{:?} is not supported", kind.unwrap_or_default());
        report.unsupported(&at.field("kind"), text).fix("kind: Service");
    }
}

pub(super) fn need_service<'a>(
    mesh: &'a Mesh,
    namespace: &str,
    name: &str,
    at: &At<'_>,
    report: &mut Report,
) -> Option<&'a Document<ServiceSpec>> {
    let found = mesh.service(namespace, name);
    if found.is_none() {
        let names = mesh.services(namespace).map(|s| s.metadata.name.as_str());
        let fix = nearest(name, names).map(|near| format!("did you mean {near}?"));
        let lack = Lack::Service(Name::new(namespace, name));
        report.lacking(at, lack, format!("there is no Service {namespace}/{name}")).fix = fix;
    }
    found.map(AsRef::as_ref)
}

pub(super) fn need_port(
    service: &Document<ServiceSpec>,
    port: Option<u16>,
    at: &At<'_>,
    report: &mut Report,
) {
    let ports: Vec<_> = service.spec.ports.iter().map(|p| p.port).collect();
    if let Some(port) = port.filter(|port| !ports.contains(port)) {
        let known: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let text = format!("Service {:?} has no port {port}", service.metadata.name);
        let error = report.lacking(at, Lack::Port(service.name()), text);
        error.fix = (!known.is_empty()).then(|| format!("it has {}", known.join(", ")));
    }
}

/// RFC 9110 section 5.6.2 token. Host and pseudo-headers are not for modifiers, and have matches of their own.
pub(super) fn check_header_name(name: &str, at: &At<'_>, report: &mut Report) {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        report.report(at, format!("{name:?} is no name of a header"));
    } else if name.eq_ignore_ascii_case("host") {
        report.report(at, "Host is not matched or changed here").fix("URLRewrite has hostname");
    }
}

/// No control characters: they would end a line of HTTP.
pub(super) fn check_text(text: &str, at: &At<'_>, report: &mut Report) {
    if text.chars().any(char::is_control) {
        report.report(at, "has control characters");
    }
}

/// A path as routes see it: without a query, and after a proxy has normalized it (RFC 3986 section 6.2.2.3, slashes merged). The
/// Gateway API demands the same.
pub(super) fn check_path(path: &str, at: &At<'_>, report: &mut Report) {
    check_text(path, at, report);
    if !path.starts_with('/') {
        report.report(at, "must begin with /");
    }
    if path.contains('?') {
        report.report(at, "has ?, where a path ends").fix("queryParams");
    }
    let lower = path.to_ascii_lowercase();
    let inside = ["#", "//", "/./", "/../", "%2f"].into_iter().filter(|part| lower.contains(part));
    let ends = ["/.", "/.."].into_iter().filter(|end| lower.ends_with(end));
    for part in inside.chain(ends) {
        report.report(at, format!("has {part}, and no path that is routed has that"));
    }
}

/// Whether it is a path, perhaps with a query, as it stands in a request line and in `Location` (RFC 3986 section 3.3): what is not
/// allowed there has to be written with percent signs.
pub(super) fn is_written_path(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b);
    text.starts_with('/') && text.bytes().all(allowed)
}

pub(super) fn check_regex(text: &str, at: &At<'_>, report: &mut Report) {
    if text.is_empty() {
        report.report(at, "is empty");
    } else if let Err(error) = regex::Regex::new(text) {
        let error = error.to_string();
        report.report(at, format!("is no regular expression: {}", error.lines().last().unwrap_or_default()));
    }
}
