//! The definitions of our own kinds for a cluster (CustomResourceDefinition): `deploy/kubernetes/crds.yaml` is made of them.

use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{AddNullable, Transform, transform_subschemas};
use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind};

/// The group of our own kinds.
const GROUP: &str = "remora.dev";

/// The definitions, in the order of [`KINDS`].
pub fn all() -> impl Iterator<Item = Value> {
    KINDS.iter().filter(|kind| kind.group == GROUP).map(definition)
}

/// The API server knows the types of fields, so that `kubectl explain` shows them and `kubectl apply` finds mistakes. Fields that it does not
/// know stay: the control plane checks the whole, with all other documents and with the place of every mistake, and an older definition is
/// right for a newer control plane.
fn definition(kind: &Kind) -> Value {
    let status = json!({
        "type": "object", "description": "What the control plane says of it.", KEEPS_UNKNOWN: true,
    });
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec(kind),
            "status": status,
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

const KEEPS_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";

/// The structural schema of its spec, made of the type that reads it.
fn spec(kind: &Kind) -> Value {
    let settings = SchemaSettings::openapi3()
        .with(|settings| settings.meta_schema = None)
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .with_transform(Lenient);
    let known = remora_mesh::Kind::ALL.into_iter().find(|known| known.as_str() == kind.name);
    let schema = known.and_then(|known| remora_mesh::schema::of(known, settings)).map(Schema::to_value);
    schema.unwrap_or_else(|| json!({"type": "object", KEEPS_UNKNOWN: true}))
}

/// What is left to the control plane: unknown fields, defaults (which would be written into documents), and formats that an API server warns of.
#[derive(Debug, Clone)]
struct Lenient;

impl Transform for Lenient {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        schema.remove("default");
        schema.remove("title");
        if schema
            .get("format")
            .is_some_and(|format| !matches!(format.as_str(), Some("int32" | "int64" | "double")))
        {
            schema.remove("format");
        }
        if schema.get("properties").is_some() {
            schema.insert(KEEPS_UNKNOWN.into(), true.into());
        }
    }
}
