//! Kubernetes' objects as mesh documents: what the mesh understands of them, and nothing else. What it cannot honour at all is left out
//! here where Kubernetes' own meaning allows that (a port for UDP, a route of somebody else's Gateway); what it has to refuse stays, and
//! is told in the document's status.

use remora_mesh::document::SERVICE_NAME;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::registry::mirror::{KUBERNETES, ORIGIN};
use crate::store::Key;

/// The document that `object` of the kind is. None: it is of no concern to the mesh.
#[must_use]
pub fn document(kind: &'static Kind, object: &Value) -> Option<Value> {
    let mut document = json!({
        "apiVersion": kind.api_version(), "kind": kind.name, "metadata": metadata(&object["metadata"]),
    });
    match kind.name {
        "Service" => document["spec"] = service(&object["spec"])?,
        "EndpointSlice" => {
            if object["addressType"] == "FQDN" {
                return None;
            }
            service_of(object)?;
            document["addressType"] = object["addressType"].clone();
            document["endpoints"] = called(object).map(endpoint).collect();
            document["ports"] = list(&object["ports"]).filter(|port| is_tcp(port)).map(slice_port).collect();
        }
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" => document["spec"] = route(&object["spec"])?,
        _ => document["spec"] = object["spec"].clone(),
    }
    Some(document)
}

/// The key of `object`.
#[must_use]
pub fn key(kind: &str, object: &Value) -> Option<Key> {
    let metadata = &object["metadata"];
    Some(Key::new(kind, metadata["namespace"].as_str()?, metadata["name"].as_str()?))
}

/// The parts of `metadata` that mean something, and where it comes from.
pub(super) fn metadata(metadata: &Value) -> Value {
    let mut kept = Map::new();
    for field in ["name", "namespace", "labels", "creationTimestamp", "uid", "generation"] {
        if let Some(value) = metadata.get(field).filter(|value| !value.is_null()) {
            kept.insert(field.into(), value.clone());
        }
    }
    kept.insert("annotations".into(), json!({ORIGIN: KUBERNETES}));
    Value::Object(kept)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The fields of `value` that are there, by these names.
fn only(value: &Value, names: &[&str]) -> Value {
    let there = names.iter().filter_map(|name| Some(((*name).to_owned(), value.get(name)?.clone())));
    Value::Object(there.filter(|(_, value)| !value.is_null()).collect())
}

fn is_tcp(port: &Value) -> bool {
    port["protocol"].as_str().unwrap_or("TCP") == "TCP"
}

/// Callers of the mesh find a NodePort or LoadBalancer where they find any other Service. An ExternalName has no endpoints, and a
/// Service without a TCP port nothing that a sidecar could carry.
fn service(spec: &Value) -> Option<Value> {
    if spec["type"] == "ExternalName" {
        return None;
    }
    let ports: Vec<Value> = list(&spec["ports"]).filter(|port| is_tcp(port)).map(service_port).collect();
    if ports.is_empty() {
        return None;
    }
    let mut kept = only(spec, &["selector", "clusterIP", "clusterIPs", "ipFamilies", "sessionAffinity"]);
    kept["ports"] = ports.into();
    Some(kept)
}

fn service_port(port: &Value) -> Value {
    let mut kept = only(port, &["name", "port", "targetPort"]);
    protocol(port, &mut kept);
    kept
}

/// What is spoken. What the mesh does not look into is bytes.
fn protocol(port: &Value, kept: &mut Value) {
    let Some(said) = port["appProtocol"].as_str() else { return };
    let known = match said.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => "http",
        "http2" | "h2c" | "kubernetes.io/h2c" => "kubernetes.io/h2c",
        "grpc" => "grpc",
        _ => "tcp",
    };
    kept["appProtocol"] = known.into();
}

/// The Service that a slice says it belongs to; one that does not say it belongs to nobody whom the mesh knows.
pub(super) fn service_of(slice: &Value) -> Option<&str> {
    slice["metadata"]["labels"][SERVICE_NAME].as_str()
}

/// The endpoints of a slice that are called: one that is not ready is none, but for one that finishes what it has.
pub(super) fn called(slice: &Value) -> impl Iterator<Item = &Value> {
    list(&slice["endpoints"]).filter(|endpoint| is_called(endpoint))
}

/// Its others.
pub(super) fn not_called(slice: &Value) -> impl Iterator<Item = &Value> {
    list(&slice["endpoints"]).filter(|endpoint| !is_called(endpoint))
}

pub(super) fn is_called(endpoint: &Value) -> bool {
    let conditions = &endpoint["conditions"];
    conditions["ready"] != false || conditions["serving"] == true && conditions["terminating"] == true
}

fn endpoint(endpoint: &Value) -> Value {
    let mut kept = only(endpoint, &["addresses", "conditions", "zone"]);
    let target = &endpoint["targetRef"];
    // The mesh knows pods by their names; what else may stand behind an address, it does not.
    if target["kind"] == "Pod" {
        kept["targetRef"] = only(target, &["kind", "name"]);
    }
    kept
}

/// An endpoint of which is only to be known that it is there.
pub(super) fn known_of(told: &Value) -> Value {
    not_ready(endpoint(told))
}

/// The endpoint of a document as one that is not called.
pub(super) fn not_ready(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false});
    endpoint
}

fn slice_port(port: &Value) -> Value {
    only(port, &["name", "port"])
}

/// Without the parents that are no Services: those are for whoever serves their Gateway. None: there is no other.
fn route(spec: &Value) -> Option<Value> {
    let ours = |parent: &&Value| {
        parent["kind"] == "Service" && matches!(parent["group"].as_str(), Some("" | "core"))
    };
    let parents: Vec<Value> = list(&spec["parentRefs"]).filter(ours).cloned().collect();
    if parents.is_empty() {
        return None;
    }
    let mut kept = spec.clone();
    kept["parentRefs"] = parents.into();
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, object: &Value) -> Option<Value> {
        document(Kind::named(name).unwrap(), object)
    }

    fn spec(name: &str, spec: &Value) -> Option<Value> {
        of(name, &json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}))
            .map(|d| d["spec"].clone())
    }

    #[test]
    fn a_document_says_who_it_is_and_where_it_comes_from() {
        let object = json!({
            "metadata": {
                "name": "a", "namespace": "shop", "labels": {"app": "a"}, "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-11-27T10:00:00Z", "ownerReferences": [{}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {"rules": []}, "status": {"conditions": []},
        });
        let expected = json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": "FaultPolicy",
            "metadata": {
                "name": "a", "namespace": "shop", "labels": {"app": "a"}, "creationTimestamp": "2026-11-27T10:00:00Z", "uid": "u",
                "generation": 2, "annotations": {"remora.dev/origin": "kubernetes"},
            },
            "spec": {"rules": []},
        });
        assert_eq!(of("FaultPolicy", &object), Some(expected));
    }

    #[test]
    fn a_service_is_what_the_mesh_can_carry() {
        let ports = json!([
            {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "nodePort": 30080, "appProtocol": "kubernetes.io/ws"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "tls", "port": 443, "protocol": "TCP", "appProtocol": "https"},
        ]);
        let kept = spec(
            "Service",
            &json!({
                "type": "LoadBalancer", "selector": {"app": "a"}, "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                "externalTrafficPolicy": "Local", "sessionAffinity": "None", "ports": ports,
            }),
        )
        .unwrap();
        let expected = json!([
            {"name": "http", "port": 80, "targetPort": "web", "appProtocol": "http"},
            {"name": "tls", "port": 443, "appProtocol": "tcp"},
        ]);
        assert_eq!(kept["ports"], expected);
        assert_eq!(kept["clusterIP"], "10.96.0.7");
        assert!(kept.get("type").is_none() && kept.get("externalTrafficPolicy").is_none(), "{kept}");
        assert_eq!(spec("Service", &json!({"type": "ExternalName", "externalName": "a.example"})), None);
        assert_eq!(spec("Service", &json!({"ports": [{"port": 53, "protocol": "UDP"}]})), None);
    }

    #[test]
    fn an_endpoint_that_is_not_ready_is_none() {
        let endpoint = |name: &str, conditions: Value| {
            json!({
                "addresses": [name], "conditions": conditions, "nodeName": "n",
                "targetRef": {"kind": "Pod", "name": name, "uid": "u", "namespace": "shop"},
            })
        };
        let slice = json!({
            "metadata": {"name": "a-1", "namespace": "shop", "labels": {SERVICE_NAME: "a"}}, "addressType": "IPv4",
            "endpoints": [
                endpoint("10.0.0.1", json!({"ready": true, "serving": true, "terminating": false})),
                endpoint("10.0.0.2", json!({"ready": false, "serving": false, "terminating": false})),
                endpoint("10.0.0.3", json!({"ready": false, "serving": true, "terminating": true})),
                endpoint("10.0.0.4", json!({})),
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        });
        let document = of("EndpointSlice", &slice).unwrap();
        let there: Vec<_> =
            list(&document["endpoints"]).map(|e| e["addresses"][0].as_str().unwrap()).collect();
        assert_eq!(there, ["10.0.0.1", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(document["endpoints"][0]["targetRef"], json!({"kind": "Pod", "name": "10.0.0.1"}));
        assert_eq!(document["ports"], json!([{"name": "http", "port": 8080}]));
        assert_eq!(
            of("EndpointSlice", &json!({"metadata": {"name": "a"}, "addressType": "IPv4"})),
            None,
            "of nobody"
        );
    }

    #[test]
    fn a_route_has_the_parents_that_are_services() {
        let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "front"});
        let service = json!({"group": "", "kind": "Service", "name": "web"});
        let kept = spec("HTTPRoute", &json!({"parentRefs": [gateway, service], "rules": [{}]})).unwrap();
        assert_eq!(kept, json!({"parentRefs": [service], "rules": [{}]}));
        assert_eq!(spec("HTTPRoute", &json!({"parentRefs": [gateway]})), None);
    }

    /// What comes out is read by the mesh, field by field.
    #[test]
    fn the_mesh_reads_what_comes_out() {
        let service = json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "generation": 1, "creationTimestamp": "2026-11-27T10:00:00Z"},
            "spec": {
                "selector": {"app": "a"}, "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"],
                "type": "NodePort", "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}],
            },
        });
        let slice = json!({
            "metadata": {"name": "a-1", "namespace": "shop", "labels": {SERVICE_NAME: "a"}}, "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["10.0.0.1"], "conditions": {"ready": true}, "zone": "z", "hostname": "h", "hints": {},
                "targetRef": {"kind": "Pod", "name": "p", "namespace": "shop"},
            }],
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        });
        let texts = [("Service", service), ("EndpointSlice", slice)]
            .map(|(kind, object)| of(kind, &object).unwrap().to_string());
        let read = remora_mesh::Documents::read(texts.iter().map(|text| ("object", text.as_str())));
        assert_eq!(read.map(|all| all.len()), Ok(2));
    }
}
