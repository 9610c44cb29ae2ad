//! `jwtRules` of AuthenticationPolicies.

use remora_xds::diag::At;
use serde_json::Value;

use super::names::check_header_name;
use super::report::Report;
use crate::document::{
    AppProtocol, AuthenticationPolicySpec, Document, JwtRule, KeyServer, MtlsMode, ServiceSpec,
};

/// Rules of one policy.
const MOST_RULES: usize = 32;
/// Entries of one list of a rule.
const MOST_ENTRIES: usize = 64;
/// Of a name, an issuer or a URI, bytes.
const MOST_TEXT: usize = 2048;
/// Of a key set or of certificates, bytes.
const MOST_BYTES: usize = 64 * 1024;
/// Headers that a proxy lives by, or that the program must get as they came.
const NOT_FOR_CLAIMS: [&str; 7] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];
/// Keys of one set, as many as a sidecar takes.
const MOST_KEYS: usize = 64;

/// The rules of a policy, which is attached to `services`.
pub(super) fn check(
    spec: &AuthenticationPolicySpec,
    services: &[&Document<ServiceSpec>],
    at: &At<'_>,
    report: &mut Report,
) {
    let list = at.field("jwtRules");
    if spec.jwt_rules.is_empty() {
        return;
    }
    report.at_most(MOST_RULES, spec.jwt_rules.len(), &list);
    for service in services {
        let http = || service.spec.ports.iter().filter(|port| port.speaks() != AppProtocol::Tcp);
        if let Some(port) = http().next()
            && http().all(|port| spec.mode(port.port) == MtlsMode::Disabled)
        {
            let text = format!(
                "nobody would enforce it on port {}: with Disabled callers go past the sidecars",
                port.port
            );
            report.report(&list, text).fix("mtls: {mode: Strict}, or Permissive");
        }
    }
    let opaque = |service: &&&Document<ServiceSpec>| {
        service.spec.ports.iter().all(|port| port.speaks() == AppProtocol::Tcp)
    };
    if let Some(service) = services.iter().find(opaque) {
        let text =
            format!("no port of Service {:?} speaks HTTP, which carries tokens", service.metadata.name);
        report.report(&list, text).fix("appProtocol: http on its port, or a name that begins with http");
    }
    for (i, rule) in spec.jwt_rules.iter().enumerate() {
        let at = list.index(i);
        one(rule, &at, report);
        let same = |other: &&JwtRule| other.issuer == rule.issuer && places(other) == places(rule);
        if spec.jwt_rules[..i].iter().any(|other| same(&other)) {
            let text = format!("issuer {:?} occurs twice, for tokens in the same place", rule.issuer);
            report.report(&at.field("issuer"), text).fix("put everything into one rule");
        }
    }
}

type Places<'a> = (&'a [crate::document::JwtHeader], &'a [String], &'a [String]);

fn places(rule: &JwtRule) -> Places<'_> {
    (&rule.from_headers, &rule.from_params, &rule.from_cookies)
}

fn one(rule: &JwtRule, at: &At<'_>, report: &mut Report) {
    text(&rule.issuer, &at.field("issuer"), report);
    let lists = [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
    ];
    for (field, list) in lists {
        let at = at.field(field);
        report.at_most(MOST_ENTRIES, list.len(), &at);
        for (i, entry) in list.iter().enumerate() {
            text(entry, &at.index(i), report);
        }
    }
    let headers = at.field("fromHeaders");
    report.at_most(MOST_ENTRIES, rule.from_headers.len(), &headers);
    for (i, header) in rule.from_headers.iter().enumerate() {
        let at = headers.index(i);
        check_header_name(&header.name, &at.field("name"), report);
        if header.prefix.len() > MOST_TEXT || header.prefix.chars().any(char::is_control) {
            report.report(&at.field("prefix"), "is no beginning of a header's value").fix("\"Bearer \"");
        }
    }
    keys(rule, at, report);
    if rule.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        report.report(&at.field("timeout"), "must be more than 0s");
    }
    if let Some(header) = &rule.output_payload_to_header {
        own_header(header, &at.field("outputPayloadToHeader"), report);
    }
    let claims = at.field("outputClaimToHeaders");
    report.at_most(MOST_ENTRIES, rule.output_claim_to_headers.len(), &claims);
    for (i, claim) in rule.output_claim_to_headers.iter().enumerate() {
        let at = claims.index(i);
        own_header(&claim.header, &at.field("header"), report);
        if claim.claim.len() > MOST_TEXT || claim.claim.split('.').any(str::is_empty) {
            report
                .report(&at.field("claim"), "is no name of a claim")
                .fix("a name, or names with dots between");
        }
    }
}

/// A header that the sidecar takes from callers, and writes itself.
fn own_header(name: &str, at: &At<'_>, report: &mut Report) {
    check_header_name(name, at, report);
    if NOT_FOR_CLAIMS.iter().any(|other| name.eq_ignore_ascii_case(other)) {
        report.report(at, format!("{name} is not for claims")).fix("x-jwt-…");
    }
}

fn keys(rule: &JwtRule, at: &At<'_>, report: &mut Report) {
    let (uri, set) = (at.field("jwksUri"), at.field("jwks"));
    match (&rule.jwks_uri, &rule.jwks) {
        (Some(_), Some(_)) => {
            report.report(&set, "stands beside jwksUri, and one of them holds").fix("remove one of the two");
        }
        (None, None) => {
            report.report(at, "has no keys").fix("jwksUri: https://…, or jwks: '{\"keys\": […]}'");
        }
        (Some(text), None) if text.len() > MOST_TEXT || KeyServer::parse(text).is_none() => {
            report
                .report(&uri, format!("{text:?} is no absolute URI"))
                .fix("https://issuer.example/jwks.json");
        }
        (None, Some(text)) => key_set(text, &set, report),
        (Some(_), None) => {}
    }
    let Some(certificates) = &rule.ca_certificates else { return };
    let at = at.field("caCertificates");
    let server = rule.jwks_uri.as_deref().and_then(KeyServer::parse);
    if !server.is_some_and(|server| server.tls) {
        report.report(&at, "nothing is verified by it").fix("remove it, or jwksUri: https://…");
    } else if certificates.len() > MOST_BYTES {
        report.report(&at, format!("is longer than {MOST_BYTES} bytes"));
    } else if !certificates.contains("-----BEGIN CERTIFICATE-----") {
        report.report(&at, "has no certificate").fix("PEM: -----BEGIN CERTIFICATE----- …");
    }
}

/// RFC 7517 §5. A sidecar leaves out keys of kinds that it does not know, and refuses a set that has no others.
fn key_set(text: &str, at: &At<'_>, report: &mut Report) {
    if text.len() > MOST_BYTES {
        report.report(at, format!("is longer than {MOST_BYTES} bytes"));
        return;
    }
    let set: Option<Value> = serde_json::from_str(text).ok();
    let keys = set.as_ref().and_then(|set| set.get("keys")).and_then(Value::as_array);
    let known = |key: &Value| {
        let has = |field: &str| key.get(field).is_some_and(Value::is_string);
        let curve =
            |curves: &[&str]| key.get("crv").and_then(Value::as_str).is_some_and(|c| curves.contains(&c));
        match key.get("kty").and_then(Value::as_str) {
            Some("RSA") => has("n") && has("e"),
            Some("EC") => curve(&["P-256", "P-384"]) && has("x") && has("y"),
            Some("OKP") => curve(&["Ed25519"]) && has("x"),
            Some("oct") => has("k"),
            _ => false,
        }
    };
    match keys {
        None => {
            report.report(at, "is no JSON Web Key Set (RFC 7517)").fix("'{\"keys\": [{\"kty\": …}]}'");
        }
        Some(keys) if keys.len() > MOST_KEYS => {
            report.report(at, format!("has {} keys, the limit is {MOST_KEYS}", keys.len()));
        }
        Some(keys) if !keys.iter().any(known) => {
            report.report(at, "has no key that can be used").fix("RSA, P-256, P-384, Ed25519 or oct");
        }
        Some(_) => {}
    }
}

fn text(text: &str, at: &At<'_>, report: &mut Report) {
    if text.is_empty() {
        report.report(at, "is empty").fix("remove it, or say which");
    } else if text.len() > MOST_TEXT || text.chars().any(char::is_control) {
        report.report(at, format!("has control characters, or more than {MOST_TEXT} bytes"));
    }
}
