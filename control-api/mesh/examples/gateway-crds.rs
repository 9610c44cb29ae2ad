//! Definitions of the Gateway API's routes for a cluster that has none, as a List in JSON: made of the published types, for the checks
//! of tests/kube. Of the kinds that Remora reads, the experimental channel.

use gateway_api::experimental::{grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes};
use kube::CustomResourceExt;
use serde_json::{Value, json};

fn main() -> Result<(), serde_json::Error> {
    let definitions = [
        grpcroutes::GrpcRoute::crd(),
        httproutes::HttpRoute::crd(),
        referencegrants::ReferenceGrant::crd(),
        tcproutes::TcpRoute::crd(),
        tlsroutes::TlsRoute::crd(),
    ];
    let mut items = definitions.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?;
    for item in &mut items {
        // Groups of k8s.io need a word of somebody.
        item["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for tests"});
    }
    println!("{}", json!({"apiVersion": "v1", "kind": "List", "items": items}));
    Ok(())
}
