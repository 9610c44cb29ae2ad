//! Pods with a sidecar as instances.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::map::metadata;
use crate::inject::PROXY;
use crate::registry::instances::{Health, REGISTRATION};

/// What of a pod the mesh has to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    metadata: Value,
    address: String,
    /// `status.podIPs`, `address` among them.
    addresses: Vec<String>,
    /// They are those of its node.
    host_network: bool,
    account: String,
    /// Ports that its containers name, by number.
    ports: BTreeMap<u64, Option<String>>,
    health: Health,
}

/// What a Service says of the pods behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    selector: BTreeMap<String, String>,
    /// Numbers that the program listens on, whether a container names them or not.
    targets: BTreeSet<u64>,
}

impl Selection {
    /// Of the document of a Service. None: it selects nothing.
    #[must_use]
    pub fn of(service: &Value) -> Option<Self> {
        let spec = &service["spec"];
        let selector: BTreeMap<_, _> = texts(&spec["selector"]).collect();
        let ports = spec["ports"].as_array().into_iter().flatten();
        let target = |port: &Value| match port.get("targetPort") {
            Some(target) => target.as_u64(),
            None => port["port"].as_u64(),
        };
        (!selector.is_empty()).then(|| Self { selector, targets: ports.filter_map(target).collect() })
    }

    /// Whether a pod with these labels stands behind it.
    #[must_use]
    pub fn has(&self, labels: &Value) -> bool {
        self.selector.iter().all(|(name, value)| labels[name] == **value)
    }
}

fn texts(map: &Value) -> impl Iterator<Item = (String, String)> {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
}

impl Pod {
    /// None: it has no container that is a sidecar, no address yet, or it has ended.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let containers = containers(spec);
        if !is_injected(object) || matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let address = status["podIP"].as_str().filter(|address| !address.is_empty())?.to_owned();
        let addresses = list(&status["podIPs"]).filter_map(|one| one["ip"].as_str());
        let addresses = addresses.filter(|address| !address.is_empty()).map(str::to_owned).collect();
        let mut ports = BTreeMap::new();
        let own = containers.filter(|container| container["name"] != PROXY);
        for port in own.flat_map(|container| list(&container["ports"])) {
            let tcp = port["protocol"].as_str().unwrap_or("TCP") == "TCP";
            if let Some(number) = port["containerPort"].as_u64().filter(|_| tcp) {
                let name: &mut Option<String> = ports.entry(number).or_default();
                *name = name.take().or_else(|| port["name"].as_str().map(str::to_owned));
            }
        }
        let ready = list(&status["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True");
        let health = match (object["metadata"].get("deletionTimestamp"), ready) {
            (Some(_), _) => Health::Draining,
            (None, true) => Health::Ready,
            (None, false) => Health::Absent,
        };
        let account = spec["serviceAccountName"].as_str().filter(|name| !name.is_empty());
        Some(Self {
            metadata: metadata(&object["metadata"]),
            address,
            addresses,
            host_network: spec["hostNetwork"] == true,
            account: account.unwrap_or("default").to_owned(),
            ports,
            health,
        })
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> &Value {
        &self.metadata["labels"]
    }

    /// As it is kept, with the ports that Services lead to besides its own.
    #[must_use]
    pub fn registration<'a>(&self, services: impl Iterator<Item = &'a Selection>) -> Value {
        let mut ports = self.ports.clone();
        for number in
            services.filter(|service| service.has(self.labels())).flat_map(|service| &service.targets)
        {
            ports.entry(*number).or_default();
        }
        let ports = ports.into_iter().map(|(number, name)| match name {
            Some(name) => json!({"name": name, "port": number}),
            None => json!({"port": number}),
        });
        let mut workload = json!({
            "address": self.address, "serviceAccount": self.account, "ports": ports.collect::<Vec<_>>(),
        });
        if self.addresses.len() > 1 {
            workload["addresses"] = json!(self.addresses);
        }
        if let Some(locality) = self.locality() {
            workload["locality"] = locality;
        }
        let mut registration = json!({
            "apiVersion": "remora.dev/v1alpha1",
            "kind": REGISTRATION,
            "metadata": self.metadata,
            "spec": {"services": [], "workload": workload, "health": self.health},
        });
        if self.host_network {
            registration["spec"]["hostNetwork"] = true.into();
        }
        registration
    }

    /// Of its node: from Kubernetes 1.35 on, a pod has the labels of it.
    fn locality(&self) -> Option<Value> {
        let mut found = Map::new();
        for field in ["region", "zone"] {
            let label = self.metadata["labels"].get(format!("topology.kubernetes.io/{field}"));
            label.map(|value| found.insert(field.into(), value.clone()));
        }
        (!found.is_empty()).then_some(Value::Object(found))
    }
}

/// The label or annotation of a pod whose program starts a sidecar of its own, as `remora run` does. Only `false` says that it does not.
pub const OWN: &str = "remora.dev/sidecar";

/// Whether a pod has a sidecar of the mesh, or says so.
#[must_use]
pub fn has_sidecar(object: &Value) -> bool {
    let says = |part: &str| object["metadata"][part].get(OWN).is_some_and(|said| *said != "false");
    is_injected(object) || says("labels") || says("annotations")
}

/// Whether a container of a pod is a sidecar.
fn is_injected(object: &Value) -> bool {
    containers(&object["spec"]).any(|container| container["name"] == PROXY)
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> + Clone {
    ["initContainers", "containers"].into_iter().flat_map(|part| list(&spec[part]))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: &Value) -> Value {
        json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web", "topology.kubernetes.io/zone": "z1"}},
            "spec": {
                "serviceAccountName": "web",
                "initContainers": [{"name": PROXY, "ports": [{"containerPort": 15021}]}],
                "containers": [{"name": "web", "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"},
                ]}],
            },
            "status": status,
        })
    }

    fn running(ready: &str) -> Value {
        json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]})
    }

    fn selection(ports: &Value) -> Selection {
        Selection::of(&json!({"spec": {"selector": {"app": "web"}, "ports": ports}})).unwrap()
    }

    #[test]
    fn a_pod_is_an_instance_with_the_ports_of_its_services() {
        let services = [
            selection(
                &json!([{"port": 80, "targetPort": 9090}, {"port": 81, "targetPort": "http"}, {"port": 7000}]),
            ),
            Selection::of(&json!({"spec": {"selector": {"app": "other"}, "ports": [{"port": 1}]}})).unwrap(),
        ];
        let registration = Pod::of(&pod(&running("True"))).unwrap().registration(services.iter());
        let workload = json!({
            "address": "10.0.0.1", "serviceAccount": "web", "locality": {"zone": "z1"},
            "ports": [{"port": 7000}, {"name": "http", "port": 8080}, {"port": 9090}],
        });
        assert_eq!(registration["spec"], json!({"services": [], "workload": workload, "health": "Ready"}));
        assert_eq!(registration["metadata"]["annotations"], json!({"remora.dev/origin": "kubernetes"}));
    }

    #[test]
    fn a_pod_has_all_its_addresses() {
        let said = |ips: &Value| {
            let mut status = running("True");
            status["podIPs"] = ips.clone();
            Pod::of(&pod(&status)).unwrap().registration(std::iter::empty())["spec"]["workload"]["addresses"]
                .clone()
        };
        let both = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        assert_eq!(said(&both), json!(["10.0.0.1", "fd00::1"]));
        assert_eq!(said(&json!([{"ip": "10.0.0.1"}])), Value::Null);
    }

    #[test]
    fn a_pod_on_the_network_of_its_node_says_so() {
        let mut on_node = pod(&running("True"));
        on_node["spec"]["hostNetwork"] = true.into();
        let said = |object: &Value| {
            Pod::of(object).unwrap().registration(std::iter::empty())["spec"].get("hostNetwork").cloned()
        };
        assert_eq!(said(&on_node), Some(true.into()));
        assert_eq!(said(&pod(&running("True"))), None);
    }

    #[test]
    fn a_pod_that_is_not_ready_is_absent_and_one_that_goes_drains() {
        let health = |object: &Value| Pod::of(object).map(|pod| pod.health);
        assert_eq!(health(&pod(&running("True"))), Some(Health::Ready));
        assert_eq!(health(&pod(&running("False"))), Some(Health::Absent));
        let mut going = pod(&running("True"));
        going["metadata"]["deletionTimestamp"] = "2026-11-27T10:00:00Z".into();
        assert_eq!(health(&going), Some(Health::Draining));
    }

    #[test]
    fn without_sidecar_or_address_and_at_its_end_it_is_none() {
        assert_eq!(Pod::of(&pod(&json!({"phase": "Pending"}))), None);
        assert_eq!(Pod::of(&pod(&json!({"phase": "Succeeded", "podIP": "10.0.0.1"}))), None);
        let mut plain = pod(&running("True"));
        plain["spec"]["initContainers"] = json!([]);
        assert_eq!(Pod::of(&plain), None);
    }

    #[test]
    fn a_pod_says_that_its_program_starts_one() {
        let mut plain = pod(&running("True"));
        assert!(has_sidecar(&plain));
        plain["spec"]["initContainers"] = json!([]);
        assert!(!has_sidecar(&plain));
        for part in ["labels", "annotations"] {
            for (value, says) in [("own", true), ("", true), ("false", false)] {
                let mut said = plain.clone();
                said["metadata"][part][OWN] = value.into();
                assert_eq!(has_sidecar(&said), says, "{part} {value}");
                assert_eq!(Pod::of(&said), None, "it registers itself");
            }
        }
    }
}
