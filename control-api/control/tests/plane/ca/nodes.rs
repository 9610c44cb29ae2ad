//! Who may be which node on the TLS port.

use remora_xds::Kind;
use tonic::Code;

use super::client::{joined, tls};
use crate::ads::{CLUSTER, Client, WORKLOADS};
use crate::support::{Rig, SERVICE};

const CALLER: &str = "sidecar~10.0.0.9~caller.default~default.svc";

async fn rig() -> Rig {
    let rig = Rig::start().await;
    let workloads = WORKLOADS.replace("address: 10.0.0.9,", "address: 10.0.0.9, serviceAccount: caller,");
    let (status, answer) = rig.apply(&format!("{SERVICE}{workloads}"), "").await;
    assert!(status.is_success(), "{answer}");
    rig
}

#[tokio::test]
async fn a_node_is_who_its_certificate_says() {
    let rig = rig().await;
    let (caller, shop) = (joined(&rig, "caller").await, joined(&rig, "shop").await);
    let Err(nobody) = Client::over(tls(&rig, None).await, CALLER).await else {
        panic!("without a certificate")
    };
    assert_eq!(nobody.code(), Code::Unauthenticated);
    assert!(nobody.message().starts_with("ca_no_certificate: "), "{nobody}");

    let mut client = Client::over(tls(&rig, Some(&caller)).await, CALLER).await.unwrap();
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;

    for (agent, id, both) in [
        (&shop, CALLER, ["service account caller", "spiffe://test/ns/default/sa/shop"]),
        (
            &caller,
            "sidecar~10.0.0.9~caller.other~other.svc",
            ["namespace other", "spiffe://test/ns/default/sa/caller"],
        ),
    ] {
        let mut client = Client::over(tls(&rig, Some(agent)).await, id).await.unwrap();
        let denied = client.end().await;
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(denied.message().starts_with("ca_node_identity: "), "{denied}");
        assert!(both.iter().all(|name| denied.message().contains(name)), "{denied}");
    }
}

#[tokio::test]
async fn a_workload_that_becomes_somebody_else_takes_the_resources_from_its_node() {
    let rig = rig().await;
    let caller = joined(&rig, "caller").await;
    let mut client = Client::over(tls(&rig, Some(&caller)).await, CALLER).await.unwrap();
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
    let other = WORKLOADS.replace("address: 10.0.0.9,", "address: 10.0.0.9, serviceAccount: bank,");
    assert!(rig.apply(&other, "").await.0.is_success());
    assert_eq!(client.end().await.code(), Code::Unavailable, "it is to connect again");
    let mut again = Client::over(tls(&rig, Some(&caller)).await, CALLER).await.unwrap();
    assert_eq!(again.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_workload_of_another_mesh_is_nobody_s_node_here() {
    let rig = rig().await;
    let caller = joined(&rig, "caller").await;
    let foreign = "address: 10.0.0.9, serviceAccount: caller, trustDomain: partner.test,";
    let other = WORKLOADS.replace("address: 10.0.0.9,", foreign);
    assert!(rig.apply(&other, "").await.0.is_success());
    let ended = async || {
        let mut client = Client::over(tls(&rig, Some(&caller)).await, CALLER).await.unwrap();
        client.end().await
    };
    let mut denied = ended().await;
    if denied.code() == Code::Unavailable {
        // The stream began before the change was taken, and was told to connect again.
        denied = ended().await;
    }
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("trust domain partner.test"), "{denied}");
}
