//! Findings for people and for tools.

use std::fmt::Write;

use remora_mesh::{Finding, Rule, Severity};
use remora_xds::diag::Position;
use serde_json::{Value, json};

/// A line for each finding, and one for each file without errors.
pub(super) fn text(findings: &[Finding], fine: &[String]) {
    for finding in findings {
        eprintln!("{finding}");
    }
    for line in fine {
        println!("{line}");
    }
    let warnings = findings.iter().filter(|finding| finding.severity == Severity::Warning).count();
    let mut said = String::new();
    for (count, what) in [(findings.len() - warnings, "mistake(s)"), (warnings, "warning(s)")] {
        if count > 0 {
            let comma = if said.is_empty() { "" } else { ", " };
            // Writing to a String does not fail.
            let _ = write!(said, "{comma}{count} {what}");
        }
    }
    if !said.is_empty() {
        eprintln!("remora check: {said}");
    }
}

/// A list of findings.
pub(super) fn json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let error = &finding.error;
        json!({
            "severity": severity(finding),
            "rule": finding.rule.id(),
            "file": &*error.source,
            "line": error.position.map(|at| at.line),
            "column": error.position.map(|at| at.column),
            "path": error.path,
            "message": error.message,
            "fix": error.fix,
            "related": finding.related.as_ref().map(|related| json!({
                "file": &*related.source,
                "line": related.position.map(|at| at.line),
                "column": related.position.map(|at| at.column),
                "message": related.message,
            })),
        })
    };
    json!({ "findings": findings.iter().map(one).collect::<Vec<_>>() })
}

/// SARIF 2.1.0 (OASIS), as code hosts read it.
pub(super) fn sarif(findings: &[Finding]) -> Value {
    let rules = Rule::ALL.map(|rule| json!({"id": rule.id(), "shortDescription": {"text": rule.about()}}));
    let one = |finding: &Finding| {
        let error = &finding.error;
        let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
        let fix = error.fix.as_ref().map(|fix| format!(" ({fix})")).unwrap_or_default();
        let related = finding.related.iter().map(|related| {
            let mut place = location(&related.source, related.position);
            place["message"] = json!({"text": related.message});
            place
        });
        json!({
            "ruleId": finding.rule.id(),
            "ruleIndex": Rule::ALL.iter().position(|rule| *rule == finding.rule),
            "level": severity(finding),
            "message": {"text": format!("{path}{}{fix}", error.message)},
            "locations": [location(&error.source, error.position)],
            "relatedLocations": related.collect::<Vec<_>>(),
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "remora check", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": findings.iter().map(one).collect::<Vec<_>>(),
        }],
    })
}

const fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn location(source: &str, at: Option<Position>) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": uri(source)}});
    if let Some(at) = at {
        physical["region"] = json!({"startLine": at.line, "startColumn": at.column});
    }
    json!({"physicalLocation": physical})
}

/// A path as a relative reference of RFC 3986, or as a file URI.
fn uri(path: &str) -> String {
    let mut out = if path.starts_with('/') { "file://".to_owned() } else { String::new() };
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_references() {
        assert_eq!(uri("deploy/mesh.yaml"), "deploy/mesh.yaml");
        assert_eq!(uri("/etc/a b.yaml"), "file:///etc/a%20b.yaml");
    }
}
