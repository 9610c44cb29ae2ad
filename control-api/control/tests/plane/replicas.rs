//! Several control planes with one store.

use http::{Method, StatusCode};
use remora_xds::Kind;
use serde_json::json;

use crate::ads::{CLUSTER, Client, WORKLOADS};
use crate::common::start;
use crate::support::{Rig, SERVICE, SERVICES};

const SIDECAR: &str = "sidecar~10.0.0.9~caller.default~default.svc";
const ONE: &str = "/remora/v1/namespaces/default/instances/shop-2";

fn registration() -> String {
    let workload = json!({"address": "10.0.0.2", "ports": [{"port": 8080}]});
    json!({"services": ["shop"], "ttlMs": 1500, "workload": workload}).to_string()
}

#[tokio::test]
async fn replicas_share_everything_and_send_the_same_versions() {
    let Some(etcd) = start().await else { return };
    let address = format!("etcd://{}", etcd.fresh_address());
    let (one, two) = (
        Rig::with(|options| options.store = Some(address.clone())).await,
        Rig::with(|options| options.store = Some(address.clone())).await,
    );
    let (status, answer) = one.apply(&format!("{SERVICE}{WORKLOADS}"), "").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    two.until("the other one has it", async || {
        two.get(&format!("{SERVICES}/shop")).await.0 == StatusCode::OK
    })
    .await;

    let mut versions = Vec::new();
    for rig in [&one, &two] {
        let mut client = Client::connect(rig, SIDECAR).await;
        client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
        client.ask(Kind::ClusterLoadAssignment, CLUSTER).await;
        client
            .until(|c| c.endpoints() == 1 && c.versions.keys().any(|(kind, _)| *kind == Kind::Listener))
            .await;
        versions.push(client.versions.clone());
    }
    assert_eq!(versions[0], versions[1]);

    // An instance whose control plane goes away registers at the other one; nobody calls it dead in between.
    let mut client = Client::connect(&two, SIDECAR).await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
    client.ask(Kind::ClusterLoadAssignment, CLUSTER).await;
    one.send(Method::PUT, ONE, "application/json", &registration()).await;
    client.until(|c| c.endpoints() == 2).await;
    drop(one);
    assert_eq!(two.send(Method::POST, &format!("{ONE}/renew"), "", "").await.0, StatusCode::NOT_FOUND);
    let (status, answer) = two.send(Method::PUT, ONE, "application/json", &registration()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(two.send(Method::POST, &format!("{ONE}/renew"), "", "").await.0, StatusCode::NO_CONTENT);
    let (_, list) = two.get("/remora/v1/instances").await;
    assert_eq!(list["items"][0]["spec"]["health"], "Ready");
    // It is the other one's now: silence is noticed there.
    two.until("it is dead", async || {
        two.get("/remora/v1/instances").await.1["items"][0]["spec"]["health"] == "Dead"
    })
    .await;
}
