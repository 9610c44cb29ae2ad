//! Probes of the program, asked through the sidecar: the kubelet has no certificate.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Failure;
use super::bootstrap::{FIRST_GRPC, HEALTH};

/// So many ports of gRPC probes a pod may have.
const MOST_GRPC: usize = 16;

/// What the sidecar is to answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Probes {
    /// By path at the sidecar.
    pub(super) paths: BTreeMap<String, Target>,
    /// Ports of the sidecar by those of the program.
    pub(super) grpc: BTreeMap<u16, u16>,
}

/// What is asked of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// GET of a path, over TLS or not. The query, if there is one, comes with the question.
    Http { port: u16, path: String, tls: bool },
    /// Whether it is open. `every`: seconds between looks.
    Tcp { port: u16, every: u64 },
}

/// Probes by their fields, and what they are called in the path. Hooks are asked by the kubelet, too.
const PROBES: [(&str, &str); 5] = [
    ("/livenessProbe", "livez"),
    ("/readinessProbe", "readyz"),
    ("/startupProbe", "startupz"),
    ("/lifecycle/postStart", "poststart"),
    ("/lifecycle/preStop", "prestop"),
];

/// Leads the probes of every container that runs with the sidecar to it.
///
/// # Errors
/// A probe names a port that its container does not have.
pub(super) fn rewrite(template: &mut Value, notes: &mut Vec<String>) -> Result<Probes, Failure> {
    let mut probes = Probes::default();
    for part in ["initContainers", "containers"] {
        let list = template["spec"].get_mut(part).and_then(Value::as_array_mut);
        for (i, container) in list.into_iter().flatten().enumerate() {
            if part == "initContainers" && container["restartPolicy"] != "Always" {
                continue;
            }
            let at = format!("spec.{part}[{i}]");
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let ports = container["ports"].clone();
            for (pointer, called) in PROBES {
                let Some(probe) = container.pointer_mut(pointer).and_then(Value::as_object_mut) else {
                    continue;
                };
                let path = format!("/app-health/{name}/{called}");
                let place = Place { at: format!("{at}{}", pointer.replace('/', ".")), path, ports: &ports };
                one(probe, &place, &mut probes, notes)?;
            }
        }
    }
    Ok(probes)
}

/// Of one probe.
struct Place<'a> {
    at: String,
    /// At the sidecar.
    path: String,
    /// Of its container.
    ports: &'a Value,
}

impl Place<'_> {
    fn port(&self, probe: &Value, field: &str) -> Result<u16, Failure> {
        let at = format!("{}.{field}.port", self.at);
        let fix = "name a port of the container, or write its number";
        let number = match &probe["port"] {
            Value::Number(number) => number.as_u64(),
            // Kubernetes takes digits in a text for a number.
            Value::String(name) => match name.parse() {
                Ok(number) => Some(number),
                Err(_) => {
                    let ports = self.ports.as_array().map(Vec::as_slice).unwrap_or_default();
                    ports
                        .iter()
                        .find(|port| port["name"] == **name)
                        .and_then(|port| port["containerPort"].as_u64())
                }
            },
            _ => None,
        };
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        number.ok_or_else(|| Failure::new(at, format!("{} is no port of the container", probe["port"]), fix))
    }

    /// Whether the probe goes to another host than the pod.
    fn elsewhere(&self, probe: &Value, notes: &mut Vec<String>) -> bool {
        let host = probe["host"].as_str().filter(|host| !host.is_empty());
        if let Some(host) = host {
            notes.push(format!("{} asks {host}, and is left as it is", self.at));
        }
        host.is_some()
    }
}

fn one(
    probe: &mut Map<String, Value>,
    place: &Place<'_>,
    probes: &mut Probes,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let every = probe.get("periodSeconds").and_then(Value::as_u64).unwrap_or(10).clamp(1, 3600);
    if let Some(http) = probe.get_mut("httpGet") {
        if place.elsewhere(http, notes) {
            return Ok(());
        }
        let port = place.port(http, "httpGet")?;
        let written = http["path"].as_str().unwrap_or_default().to_owned();
        let (path, query) =
            written.split_once('?').map_or((written.as_str(), None), |(path, query)| (path, Some(query)));
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let tls = http["scheme"].as_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        probes.paths.insert(place.path.clone(), Target::Http { port, path, tls });
        let Some(http) = http.as_object_mut() else { return Ok(()) };
        let asked = query.map_or_else(|| place.path.clone(), |query| format!("{}?{query}", place.path));
        http.insert("path".into(), asked.into());
        http.insert("port".into(), HEALTH.into());
        if http.contains_key("scheme") {
            http.insert("scheme".into(), "HTTP".into());
        }
    } else if let Some(tcp) = probe.get("tcpSocket") {
        if place.elsewhere(tcp, notes) {
            return Ok(());
        }
        let port = place.port(tcp, "tcpSocket")?;
        probes.paths.insert(place.path.clone(), Target::Tcp { port, every });
        let entries = std::mem::take(probe).into_iter().map(|(name, value)| match &*name {
            "tcpSocket" => ("httpGet".to_owned(), json!({"path": place.path, "port": HEALTH})),
            _ => (name, value),
        });
        *probe = entries.collect();
    } else if let Some(grpc) = probe.get_mut("grpc") {
        let port = place.port(grpc, "grpc")?;
        let own = match probes.grpc.get(&port) {
            Some(own) => *own,
            None if probes.grpc.len() == MOST_GRPC => {
                let message = format!("gRPC probes of more than {MOST_GRPC} ports");
                return Err(Failure::new(&place.at, message, "let them ask the same port, with service"));
            }
            None => FIRST_GRPC + u16::try_from(probes.grpc.len()).unwrap_or(0),
        };
        probes.grpc.insert(port, own);
        grpc["port"] = own.into();
    }
    Ok(())
}
