//! Our document types know every field of the Gateway API's: what the published types can say, ours read.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use gateway_api::experimental::{grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes};
use kube::{CustomResourceExt, Resource};
use remora_mesh::Documents;
use serde_json::{Map, Value, json};

/// A value in which every property of `schema` is set. `name` is that of the property.
fn everything(schema: &Value, name: &str) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.iter().find(|v| !v.is_null())) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object();
            let set = properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), everything(schema, name)));
            Value::Object(set.collect::<Map<_, _>>())
        }
        Some("array") => json!([everything(&schema["items"], name)]),
        Some("integer" | "number") => json!(500),
        Some("boolean") => json!(true),
        _ => match name {
            "request" | "backendRequest" | "backoff" | "absoluteTimeout" | "idleTimeout" => json!("10s"),
            _ => json!("x"),
        },
    }
}

/// A document with every field of the spec of `R`, and how many fields it has.
fn document<R: CustomResourceExt + Resource<DynamicType = ()>>() -> Value {
    let definition = serde_json::to_value(R::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    json!({
        "apiVersion": R::api_version(&()), "kind": R::kind(&()), "metadata": {"name": "r"}, "spec": everything(schema, "spec"),
    })
}

fn fields(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len() + map.values().map(fields).sum::<usize>(),
        Value::Array(list) => list.iter().map(fields).sum(),
        _ => 0,
    }
}

fn read(document: &Value) -> Result<Documents, String> {
    let read = Documents::read_alone([("route.json", document.to_string().as_str())]);
    read.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// Every place in `value` that is a mapping, as a JSON pointer.
fn mappings(value: &Value, at: &str, list: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            list.push(at.to_owned());
            map.iter().for_each(|(key, value)| mappings(value, &format!("{at}/{key}"), list));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| mappings(value, &format!("{at}/{i}"), list));
        }
        _ => {}
    }
}

fn check<R: CustomResourceExt + Resource<DynamicType = ()>>(least: usize) {
    let full = document::<R>();
    let kind = R::kind(&());
    assert!(fields(&full["spec"]) >= least, "{kind} has only {} fields", fields(&full["spec"]));
    assert_eq!(read(&full).map(|all| all.len()), Ok(1), "{kind}: {full}");
    // And no others: one more in any mapping is refused, except in what is refused as a whole.
    let mut places = Vec::new();
    mappings(&full["spec"], "/spec", &mut places);
    let session = if kind == "GRPCRoute" { "sessionPersistence" } else { "externalAuth" };
    let whole = ["externalAuth", "extensionRef", session];
    for place in places.iter().filter(|place| !whole.iter().any(|field| place.contains(field))) {
        let mut more = full.clone();
        more.pointer_mut(place).unwrap()["noSuchField"] = json!(1);
        let said = read(&more).map(|all| all.len()).unwrap_err();
        assert!(said.contains("noSuchField: is not known here"), "{kind} at {place}: {said}");
    }
}

#[test]
fn every_field_of_the_published_types_is_known() {
    check::<httproutes::HttpRoute>(100);
    check::<grpcroutes::GrpcRoute>(50);
    check::<tcproutes::TcpRoute>(10);
    check::<tlsroutes::TlsRoute>(10);
    check::<referencegrants::ReferenceGrant>(6);
}
