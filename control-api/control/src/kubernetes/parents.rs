//! What is said of a route for each Service that it is attached to, in the words of the Gateway API
//! (`RouteParentStatus`): `Accepted` and `ResolvedRefs`; conditions of ours have our name.

use remora_mesh::{Lack, Rule};
use serde_json::{Value, json};

use crate::board::Flaw;

/// What a flaw of a route is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The parent at this place of `parentRefs`.
    Parent(usize),
    /// Where requests go; the reason of `ResolvedRefs`.
    Backend(&'static str),
    /// All of it.
    Route,
}

impl About {
    fn of(flaw: &Flaw) -> Self {
        if let Some(rest) = flaw.path.strip_prefix("spec.parentRefs[")
            && let Some(number) = rest.split(']').next().and_then(|number| number.parse().ok())
        {
            return Self::Parent(number);
        }
        match flaw.lacks {
            Some(Lack::Service(_) | Lack::Port(_)) => Self::Backend("BackendNotFound"),
            Some(Lack::Grant(_)) => Self::Backend("RefNotPermitted"),
            None if is_kind_of_backend(&flaw.path) => Self::Backend("InvalidKind"),
            None => Self::Route,
        }
    }
}

/// `spec.rules[0].backendRefs[0].kind`, and that of a mirror.
fn is_kind_of_backend(path: &str) -> bool {
    let of_backend = |at: &str| at.ends_with(']') || at.ends_with(".backendRef");
    let reference = [".kind", ".group"].into_iter().find_map(|end| path.strip_suffix(end));
    reference.is_some_and(|at| at.contains("backendRef") && of_backend(at))
}

/// The conditions for the parent at place `number`. `ours` are those of any document: `Accepted`, `Programmed` and perhaps `RefusedBy`.
pub(super) fn conditions(ours: &Value, flaws: &[Flaw], number: usize) -> Value {
    let generation = &ours[0]["observedGeneration"];
    let condition = |kind: &str, reason: &str, holds: bool, about: &[&Flaw]| {
        let texts: Vec<_> = about.iter().map(|flaw| flaw.text.as_str()).collect();
        json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": texts.join("\n"),
            "observedGeneration": generation,
        })
    };
    let (mut of_it, mut of_backends, mut unresolved) = (Vec::new(), Vec::new(), None);
    for flaw in flaws {
        match About::of(flaw) {
            About::Parent(other) if other != number => {}
            About::Parent(_) | About::Route => of_it.push(flaw),
            About::Backend(reason) => {
                unresolved = unresolved.or(Some(reason));
                of_backends.push(flaw);
            }
        }
    }
    let accepted = if of_it.is_empty() {
        "Accepted"
    } else if of_it.iter().any(|flaw| flaw.lacks.is_some()) {
        "NoMatchingParent"
    } else {
        "UnsupportedValue"
    };
    let mut all = vec![condition("Accepted", accepted, of_it.is_empty(), &of_it)];
    // Of a route that cannot be read, nobody knows what it refers to.
    if flaws.iter().all(|flaw| flaw.rule != Rule::Syntax) {
        let reason = unresolved.unwrap_or("ResolvedRefs");
        all.push(condition("ResolvedRefs", reason, unresolved.is_none(), &of_backends));
    }
    all.extend(ours.as_array().into_iter().flatten().skip(1).map(|condition| {
        let mut condition = condition.clone();
        condition["type"] = format!("remora.dev/{}", condition["type"].as_str().unwrap_or_default()).into();
        condition
    }));
    all.into()
}

#[cfg(test)]
mod tests {
    use remora_mesh::{Documents, Severity};

    use super::*;

    const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank}
spec: {ports: [{name: http, port: 80}]}
";

    /// The flaws of a route with these parents and this rule.
    fn flaws(parents: &str, rule: &str) -> Vec<Flaw> {
        let route = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  \
             parentRefs: [{parents}]\n  rules: [{rule}]\n"
        );
        let text = format!("{SERVICES}{route}");
        let (_, found) = Documents::check([("mesh.yaml", text.as_str())]);
        found.into_iter().filter(|found| found.severity == Severity::Error).map(Flaw::of).collect()
    }

    /// Type, status and reason of each.
    fn said(flaws: &[Flaw], number: usize) -> Vec<String> {
        let ours = json!([
            {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "all", "observedGeneration": 7},
            {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "", "observedGeneration": 7},
        ]);
        let all = conditions(&ours, flaws, number);
        let all = all.as_array().unwrap().iter();
        all.map(|condition| {
            assert_eq!(condition["observedGeneration"], 7, "{condition}");
            let text = |field: &str| condition[field].as_str().unwrap();
            assert_eq!(text("message").is_empty(), text("status") == "True", "{condition}");
            format!("{}={} {}", text("type"), text("status"), text("reason"))
        })
        .collect()
    }

    const WEB: &str = "{group: '', kind: Service, name: web, port: 80}";
    const PROGRAMMED: &str = "remora.dev/Programmed=True Programmed";

    #[test]
    fn a_route_that_is_right_is_accepted_and_resolved() {
        let right = flaws(WEB, "{backendRefs: [{name: web, port: 80}]}");
        assert_eq!(said(&right, 0), ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs", PROGRAMMED]);
    }

    #[test]
    fn what_a_backend_lacks_is_a_reference_that_is_not_resolved() {
        for (backend, reason) in [
            ("{name: nobody, port: 80}", "BackendNotFound"),
            ("{name: web, port: 81}", "BackendNotFound"),
            ("{name: vault, namespace: bank, port: 80}", "RefNotPermitted"),
            // What is there, nobody is told who may not refer to it.
            ("{name: vault, namespace: bank, port: 81}", "RefNotPermitted"),
            ("{name: nobody, namespace: bank, port: 80}", "RefNotPermitted"),
            ("{name: web, kind: Bucket, group: store.example, port: 80}", "InvalidKind"),
        ] {
            let unresolved = format!("ResolvedRefs=False {reason}");
            let wrong = flaws(WEB, &format!("{{backendRefs: [{backend}]}}"));
            assert_eq!(
                said(&wrong, 0),
                ["Accepted=True Accepted", unresolved.as_str(), PROGRAMMED],
                "{wrong:?}"
            );
            let mirror = format!("{{type: RequestMirror, requestMirror: {{backendRef: {backend}}}}}");
            let rule = format!("{{filters: [{mirror}], backendRefs: [{{name: web, port: 80}}]}}");
            assert_eq!(said(&flaws(WEB, &rule), 0)[1], unresolved, "{rule}");
        }
    }

    #[test]
    fn each_parent_has_its_own_conditions() {
        let parents = format!(
            "{WEB}, {{group: '', kind: Service, name: nobody}}, {{group: '', kind: Service, name: web, port: 9}}"
        );
        let wrong = flaws(&parents, "{backendRefs: [{name: web, port: 80}]}");
        let accepted: Vec<_> = (0..3).map(|number| said(&wrong, number).swap_remove(0)).collect();
        let expected =
            ["Accepted=True Accepted", "Accepted=False NoMatchingParent", "Accepted=False NoMatchingParent"];
        assert_eq!(accepted, expected);
        assert_eq!(said(&wrong, 1)[1], "ResolvedRefs=True ResolvedRefs");
    }

    #[test]
    fn what_is_not_supported_is_not_accepted_and_what_cannot_be_read_is_nothing_else() {
        let filter = "{filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC}}], backendRefs: [{name: web, port: 80}]}";
        let wrong = flaws(WEB, filter);
        assert!(wrong[0].text.contains("ExternalAuth is not supported"), "{wrong:?}");
        assert_eq!(
            said(&wrong, 0)[..2],
            ["Accepted=False UnsupportedValue", "ResolvedRefs=True ResolvedRefs"]
        );
        let unread = flaws(WEB, "{weather: good}");
        assert_eq!(said(&unread, 0), ["Accepted=False UnsupportedValue", PROGRAMMED]);
    }
}
