//! Documents as proxies get them.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use remora_xds::Kind;
use remora_xds::pb::envoy::config::core::v3::Node;
use remora_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;
use remora_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use remora_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use remora_xds::pb::google::rpc::Status;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::support::{PATIENCE, ROUTE, ROUTES, Rig, SERVICE, plaintext};

pub(crate) const WORKLOADS: &str = "---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: shop-1, labels: {app: shop}}
spec: {address: 10.0.0.1, ports: [{port: 8080}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: caller}
spec: {address: 10.0.0.9, egress: [{service: shop, localPort: 9080}]}
";
pub(crate) const CLUSTER: &str = "outbound|8080||shop.default.svc.cluster.local";
const ROUTE_CONFIG: &str = "shop.default.svc.cluster.local:8080";

/// A delta client that takes everything, unless it is told not to.
pub(crate) struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(crate) has: BTreeMap<(Kind, String), Vec<u8>>,
    pub(crate) versions: BTreeMap<(Kind, String), String>,
    /// What it was told is not there.
    absent: BTreeSet<(Kind, String)>,
}

impl Client {
    pub(crate) async fn connect(rig: &Rig, id: &str) -> Self {
        Self::over(plaintext(rig).await, id).await.unwrap()
    }

    /// Over a connection of any kind.
    pub(crate) async fn over(channel: Channel, id: &str) -> Result<Self, tonic::Status> {
        let mut stub = AggregatedDiscoveryServiceClient::new(channel);
        let (requests, queue) = mpsc::channel(16);
        let node = Node { id: id.into(), user_agent_name: "test".into(), ..Node::default() };
        for (i, kind) in [Kind::Cluster, Kind::Listener].into_iter().enumerate() {
            let node = (i == 0).then(|| node.clone());
            let first =
                DeltaDiscoveryRequest { node, type_url: kind.type_url().into(), ..Default::default() };
            requests.send(first).await.unwrap();
        }
        let responses = stub.delta_aggregated_resources(ReceiverStream::new(queue)).await?.into_inner();
        let (has, versions, absent) = Default::default();
        Ok(Self { requests, responses, has, versions, absent })
    }

    /// The end of its stream.
    pub(crate) async fn end(&mut self) -> tonic::Status {
        loop {
            match timeout(PATIENCE, self.responses.message()).await.expect("an end") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends without a word"),
                Err(status) => return status,
            }
        }
    }

    pub(crate) async fn ask(&self, kind: Kind, name: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: vec![name.into()],
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Answers one response; `refuse` says what is wrong with it.
    pub(crate) async fn step(&mut self, refuse: Option<(&str, &str)>) {
        let response =
            timeout(PATIENCE, self.responses.message()).await.expect("a response").unwrap().unwrap();
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        let refused = refuse.filter(|(name, _)| response.resources.iter().any(|r| r.name == *name));
        if refused.is_none() {
            for resource in &response.resources {
                let body = resource.resource.clone().unwrap().value;
                self.has.insert((kind, resource.name.clone()), body);
                self.versions.insert((kind, resource.name.clone()), resource.version.clone());
            }
            for name in &response.removed_resources {
                self.has.remove(&(kind, name.clone()));
                self.absent.insert((kind, name.clone()));
            }
        }
        let why = refused.map(|(name, why)| format!("{name}: {why}"));
        self.answer(kind, &response.nonce, why.as_deref()).await;
    }

    /// Takes a response, or refuses it.
    pub(crate) async fn answer(&self, kind: Kind, nonce: &str, why: Option<&str>) {
        let detail = why.map(|why| Status { code: 3, message: why.to_owned(), details: Vec::new() });
        let answer = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: nonce.to_owned(),
            error_detail: detail,
            ..Default::default()
        };
        self.requests.send(answer).await.unwrap();
    }

    pub(crate) async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..50 {
            if holds(self) {
                return;
            }
            self.step(None).await;
        }
        panic!("never came; it has {:?}", self.has.keys());
    }

    pub(crate) fn get<M: prost::Message + Default>(&self, kind: Kind, name: &str) -> Option<M> {
        let bytes = self.has.get(&(kind, name.to_owned()))?;
        Some(M::decode(bytes.as_slice()).unwrap())
    }

    pub(crate) fn endpoints(&self) -> usize {
        let assignment: Option<ClusterLoadAssignment> = self.get(Kind::ClusterLoadAssignment, CLUSTER);
        assignment.map_or(0, |a| a.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum())
    }
}

async fn rig() -> Rig {
    let rig = Rig::start().await;
    let (status, answer) = rig.apply(&format!("{SERVICE}---\n{ROUTE}{WORKLOADS}"), "").await;
    assert!(status.is_success(), "{answer}");
    rig
}

/// The sidecar of `caller`, which has everything that it is to have.
async fn caller(rig: &Rig) -> Client {
    let mut client = Client::connect(rig, "sidecar~10.0.0.9~caller.default~default.svc").await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
    client.ask(Kind::ClusterLoadAssignment, CLUSTER).await;
    client.ask(Kind::RouteConfiguration, ROUTE_CONFIG).await;
    client
        .until(|c| c.endpoints() == 1 && c.has.contains_key(&(Kind::RouteConfiguration, ROUTE_CONFIG.into())))
        .await;
    client
}

#[tokio::test]
async fn a_sidecar_gets_what_its_workload_calls_and_changes_of_it() {
    let rig = rig().await;
    let mut client = caller(&rig).await;
    rig.until("it is synced", async || {
        let (_, status) = rig.get("/status").await;
        let proxy = &status["proxies"][0];
        proxy["state"] == "Synced"
            && proxy["workload"] == "default/caller"
            && proxy["wanted"] == proxy["inForce"]
    })
    .await;

    // An instance that registers for the service by name.
    let one = "/remora/v1/namespaces/default/instances/shop-2";
    let said = json!({"services": ["shop"], "ttlMs": 60_000, "workload": {"address": "10.0.0.2", "ports": [{"port": 8080}]}});
    let (status, answer) = rig.send(Method::PUT, one, "application/json", &said.to_string()).await;
    assert!(status.is_success(), "{answer}");
    client.until(|c| c.endpoints() == 2).await;
    rig.send(Method::DELETE, one, "", "").await;
    client.until(|c| c.endpoints() == 1).await;

    // A route that is edited.
    let edited = ROUTE.replace("  - backendRefs", "  - timeouts: {request: 7s}\n    backendRefs");
    assert!(rig.apply(&edited, "").await.0.is_success());
    client
        .until(|c| {
            let routes: RouteConfiguration = c.get(Kind::RouteConfiguration, ROUTE_CONFIG).unwrap();
            format!("{routes:?}").contains("seconds: 7,")
        })
        .await;
}

#[tokio::test]
async fn a_refusal_is_a_condition_of_the_document() {
    let rig = rig().await;
    let mut client = Client::connect(&rig, "sidecar~10.0.0.9~caller.default~default.svc").await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
    client.ask(Kind::RouteConfiguration, ROUTE_CONFIG).await;
    client.until(|c| c.has.contains_key(&(Kind::RouteConfiguration, ROUTE_CONFIG.into()))).await;
    let edited = ROUTE.replace("  - backendRefs", "  - timeouts: {request: 7s}\n    backendRefs");
    assert!(rig.apply(&edited, "").await.0.is_success());
    let condition = async |kind: &str| {
        let (_, route) = rig.get(&format!("{ROUTES}/shop")).await;
        let all = route["status"]["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|condition| condition["type"] == kind)
    };
    // Whichever response brings it.
    let mut tries = 0;
    while condition("RefusedBy").await.is_none() {
        tries += 1;
        assert!(tries < 200, "no refusal");
        let step = client.step(Some((ROUTE_CONFIG, "I do not like it")));
        let _ = timeout(std::time::Duration::from_millis(100), step).await;
    }
    let refused = condition("RefusedBy").await.unwrap();
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("caller.default") && message.contains("I do not like it"), "{message}");
    assert_eq!(condition("Programmed").await.unwrap()["status"], "False");
    let (_, status) = rig.get("/status").await;
    assert_eq!(status["proxies"][0]["state"], "Refused");

    // Back again: what it has is what it is to have.
    assert!(rig.apply(ROUTE, "").await.0.is_success());
    rig.until("nobody refuses it", async || condition("RefusedBy").await.is_none()).await;
}

/// It asks for the endpoints of a cluster that was taken from it a moment ago.
#[tokio::test]
async fn a_sidecar_does_not_get_a_service_by_a_late_question() {
    const GONE: &str = "outbound|8081||extra.default.svc.cluster.local";
    let rig = rig().await;
    let extra = SERVICE.replace("name: shop", "name: extra").replace("8080", "8081");
    assert!(rig.apply(&extra, "").await.0.is_success());
    let mut client = Client::connect(&rig, "sidecar~10.0.0.9~caller.default~default.svc").await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
    client.ask(Kind::ClusterLoadAssignment, GONE).await;
    client.until(|c| c.absent.contains(&(Kind::ClusterLoadAssignment, GONE.into()))).await;
    assert!(!client.has.contains_key(&(Kind::Cluster, GONE.into())));
}

#[tokio::test]
async fn a_sidecar_waits_for_its_workload() {
    let rig = Rig::start().await;
    let mut client = Client::connect(&rig, "sidecar~10.0.0.9~caller.default~default.svc").await;
    rig.until("it is connected", async || rig.get("/status").await.1["proxies"][0]["state"] == "Waiting")
        .await;
    rig.apply(&format!("{SERVICE}{WORKLOADS}"), "").await;
    client.until(|c| c.has.contains_key(&(Kind::Cluster, CLUSTER.into()))).await;
}

#[tokio::test]
async fn a_node_that_does_not_say_who_it_is_is_told() {
    let rig = Rig::start().await;
    let mut client = Client::connect(&rig, "somebody").await;
    let error = timeout(PATIENCE, client.responses.message()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    assert!(error.message().contains("somebody"), "{error}");
}

#[tokio::test]
async fn apply_waits_until_proxies_have_it_or_tells_what_they_say() {
    let rig = rig().await;
    let mut client = caller(&rig).await;
    let file = rig.folder.path().join("route.yaml");
    let apply = |seconds: u32, timeout: &str| {
        let rule = format!("  - timeouts: {{request: {seconds}s}}\n    backendRefs");
        std::fs::write(&file, ROUTE.replace("  - backendRefs", &rule)).unwrap();
        tokio::process::Command::new(env!("CARGO_BIN_EXE_remora"))
            .args([
                "apply",
                "--wait",
                "--timeout",
                timeout,
                "--server",
                &format!("http://{}", rig.plane.rest),
            ])
            .arg("-f")
            .arg(&file)
            .output()
    };
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();

    let late = apply(5, "100ms").await.unwrap();
    assert_eq!(late.status.code(), Some(1));
    assert!(said(&late.stderr).contains("on its way to sidecar~10.0.0.9~caller.default"), "{late:?}");

    let (done, ()) = tokio::join!(apply(6, "20s"), async {
        client
            .until(|c| {
                let routes: RouteConfiguration = c.get(Kind::RouteConfiguration, ROUTE_CONFIG).unwrap();
                format!("{routes:?}").contains("seconds: 6,")
            })
            .await;
    });
    let done = done.unwrap();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(said(&done.stdout).contains("in force after"), "{done:?}");

    let refuse = async { client.step(Some((ROUTE_CONFIG, "I do not like it"))).await };
    let (refused, ()) = tokio::join!(apply(7, "20s"), refuse);
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(said(&refused.stderr).contains("I do not like it"), "{refused:?}");
}
