//! The definitions of our own kinds for a cluster (CustomResourceDefinition): `deploy/kubernetes/crds.yaml` is made of them.

use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind};

/// The group of our own kinds.
const GROUP: &str = "remora.dev";

/// The definitions, in the order of [`KINDS`].
pub fn all() -> impl Iterator<Item = Value> {
    KINDS.iter().filter(|kind| kind.group == GROUP).map(definition)
}

/// What a spec says is checked by the control plane, with all other documents and with the place of every mistake; here it is any
/// mapping. So an older definition is right for a newer control plane.
fn definition(kind: &Kind) -> Value {
    let any = |what: &str| json!({"type": "object", "description": what, "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": any(&format!("See the {} in docs/reference/documents.md.", kind.name)),
            "status": any("What the control plane says of it."),
        },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", kind.plural, kind.group)},
        "spec": {
            "group": kind.group,
            "names": {
                "kind": kind.name, "listKind": format!("{}List", kind.name), "plural": kind.plural,
                "singular": kind.singular, "shortNames": kind.short, "categories": ["remora"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": kind.version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
            }],
        },
    })
}
