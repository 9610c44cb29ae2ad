//! Registrations.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::Rig;

const ONE: &str = "/remora/v1/namespaces/default/instances/shop-1";

fn registration(ttl: u64) -> String {
    json!({
        "labels": {"app": "shop"}, "services": ["shop"], "ttlMs": ttl,
        "workload": {"address": "127.0.0.1", "ports": [{"port": 8080}], "egress": []},
    })
    .to_string()
}

async fn health(rig: &Rig) -> Option<Value> {
    let (_, list) = rig.get("/remora/v1/instances").await;
    list["items"].as_array().unwrap().first().map(|item| item["spec"]["health"].clone())
}

#[tokio::test]
async fn an_instance_is_listed_until_it_goes_and_dead_when_it_says_nothing() {
    let rig = Rig::start().await;
    let (status, terms) = rig.send(Method::PUT, ONE, "application/json", &registration(1500)).await;
    assert_eq!(
        (status, &terms["ttlMs"], &terms["renewMs"]),
        (StatusCode::OK, &json!(1500), &json!(500)),
        "{terms}"
    );
    let renew = format!("{ONE}/renew");
    // Alive for longer than its time.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!(rig.send(Method::POST, &renew, "", "").await.0, StatusCode::NO_CONTENT);
        assert_eq!(health(&rig).await, Some(json!("Ready")));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(rig.send(Method::POST, &format!("{ONE}/drain"), "", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(health(&rig).await, Some(json!("Draining")));

    let silent = Instant::now();
    rig.until("it is dead", async || health(&rig).await == Some(json!("Dead"))).await;
    let took = silent.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(
        rig.send(Method::POST, &renew, "", "").await.0,
        StatusCode::NOT_FOUND,
        "it must register again"
    );
    rig.send(Method::PUT, ONE, "application/json", &registration(60_000)).await;
    assert_eq!(health(&rig).await, Some(json!("Ready")));

    assert_eq!(rig.send(Method::DELETE, ONE, "", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(health(&rig).await, None);
    assert_eq!(rig.send(Method::DELETE, ONE, "", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_instance_that_says_nonsense_is_refused() {
    let rig = Rig::start().await;
    let put = async |body: Value| rig.send(Method::PUT, ONE, "application/json", &body.to_string()).await;
    let (status, answer) = put(json!({"workload": {"address": "127.0.0.1", "prots": []}})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("workload.prots: is not known here (did you mean ports?)"),
        "{answer}"
    );
    assert_eq!(put(json!({"work": {}})).await.0, StatusCode::BAD_REQUEST);
    let workload = "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {name: shop-1}\nspec: {address: 127.0.0.1}\n";
    assert_eq!(rig.apply(workload, "").await.0, StatusCode::OK);
    let (status, answer) = put(json!({"workload": {"address": "127.0.0.1"}})).await;
    assert_eq!((status, &answer["reason"]), (StatusCode::CONFLICT, &json!("AlreadyExists")));
}
