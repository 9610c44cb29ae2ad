//! Which pods get a sidecar, and which cannot have one that works.

use serde_json::Value;

use super::annotations::{Mode, Wanted};
use super::probes::Probes;
use super::shape::Owner;
use super::values::boolean;
use super::{Failure, PROXY, Settings};
use crate::init::PROXY_PORTS;

/// User and group of the sidecar: what it sends is not led back to it.
pub(super) const USER: u32 = 1337;

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// It has the sidecar.
    Injected,
    /// It says so.
    OptedOut,
    /// Neither it nor its namespace says that it wants one.
    NotAsked,
    /// Its network is the node's.
    HostNetwork,
    /// The node's kubelet keeps it from a file, and ignores what the API server says of it.
    Static,
    /// It is for Windows.
    Windows,
    /// It is of a namespace of Kubernetes itself.
    System,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Injected => "it has a sidecar already",
            Self::OptedOut => "it says inject: \"false\"",
            Self::NotAsked => "neither it nor its namespace says remora.dev/inject: \"true\"",
            Self::HostNetwork => {
                "hostNetwork: true: its network is the node's, and rules for it would be rules for the node"
            }
            Self::Static => "it is a static pod: the kubelet has it from a file",
            Self::Windows => "it is for Windows",
            Self::System => "it is in a namespace of Kubernetes itself",
        })
    }
}

/// Namespaces that a mesh must not be able to break.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// What asks for a sidecar, or for none; the first that is there is believed. Istio has it as a label, and had it as an annotation.
const INJECT: [&str; 2] = ["remora.dev/inject", "sidecar.istio.io/inject"];

/// Why the pod stays as it is, if it does.
///
/// # Errors
/// It asks for a sidecar in words that are not understood.
pub(super) fn skip(
    template: &Value,
    owner: &Owner<'_>,
    settings: &Settings,
) -> Result<Option<Skip>, Failure> {
    let spec = &template["spec"];
    let namespace = template["metadata"]["namespace"].as_str().or(owner.namespace);
    // The annotation alone is no sidecar: it is copied with a template.
    if containers(template).any(|(_, container)| container["name"] == PROXY) {
        return Ok(Some(Skip::Injected));
    }
    // Before what the pod asks for: a wrong word must not keep a system's pod from starting.
    if spec["hostNetwork"] == true {
        return Ok(Some(Skip::HostNetwork));
    }
    if template["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return Ok(Some(Skip::Static));
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Ok(Some(Skip::Windows));
    }
    if namespace.is_some_and(|namespace| SYSTEM.contains(&namespace)) {
        return Ok(Some(Skip::System));
    }
    Ok(match asked(template)? {
        Some(true) => None,
        Some(false) => Some(Skip::OptedOut),
        None => (!settings.by_default).then_some(Skip::NotAsked),
    })
}

fn asked(template: &Value) -> Result<Option<bool>, Failure> {
    for name in INJECT {
        for part in ["labels", "annotations"] {
            let Some(value) = template["metadata"][part].get(name) else { continue };
            let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            let wrong = |fix| {
                Failure::new(
                    format!("metadata.{part}[{name}]"),
                    format!("{text:?} is neither true nor false"),
                    fix,
                )
            };
            return boolean(&text).map(Some).map_err(wrong);
        }
    }
    Ok(None)
}

/// All containers with the paths of them.
pub(super) fn containers(template: &Value) -> impl Iterator<Item = (String, &Value)> {
    ["initContainers", "containers"].into_iter().flat_map(move |part| {
        let list = template["spec"][part].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(move |(i, container)| (format!("spec.{part}[{i}]"), container))
    })
}

/// Sidecars of others, by the name of their container.
const OTHERS: [(&str, &str); 6] = [
    ("istio-proxy", "Istio"),
    ("istio-init", "Istio"),
    ("istio-validation", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("linkerd-init", "Linkerd"),
    ("linkerd-network-validator", "Linkerd"),
];

/// # Errors
/// The pod cannot have a sidecar that works.
pub(super) fn refuse(template: &Value) -> Result<(), Failure> {
    if template["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        return Err(Failure::new(
            "spec.containers",
            "is missing or empty",
            "a pod has at least one container",
        ));
    }
    let general = &template["spec"]["securityContext"];
    for (path, container) in containers(template) {
        let name = container["name"].as_str().unwrap_or_default();
        if let Some((_, mesh)) = OTHERS.iter().find(|(other, _)| *other == name) {
            let message = format!("{name} is {mesh}'s: two sidecars would lead traffic to each other");
            let fix = format!(
                "inject the manifest from before {mesh} injected it, or set remora.dev/inject: \"false\""
            );
            return Err(Failure::new(path, message, fix));
        }
        if name.starts_with("remora-") {
            let fix = "rename it, or remove what an earlier injection left";
            return Err(Failure::new(path, format!("{name} is a name of the injector"), fix));
        }
        for (at, context) in [
            (format!("{path}.securityContext"), &container["securityContext"]),
            ("spec.securityContext".into(), general),
        ] {
            if context["runAsUser"] == USER {
                let message = format!(
                    "{name} would run as user {USER}, which is the sidecar's: its traffic would go around the mesh"
                );
                return Err(Failure::new(format!("{at}.runAsUser"), message, "choose another user"));
            }
        }
    }
    let volumes = template["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let taken =
        volumes.iter().position(|v| v["name"].as_str().is_some_and(|name| name.starts_with("remora-")));
    match taken {
        Some(i) => Err(Failure::new(
            format!("spec.volumes[{i}].name"),
            "names with remora- are the injector's",
            "rename it",
        )),
        None => Ok(()),
    }
}

/// # Errors
/// A container has the group by which the sidecar's traffic is known with TPROXY, or may get it by a file of that group.
pub(super) fn refuse_group(template: &Value, wanted: &Wanted) -> Result<(), Failure> {
    if wanted.mode != Mode::Tproxy {
        return Ok(());
    }
    let general = ("spec".to_owned(), &template["spec"]);
    for (at, holder) in containers(template).chain([general]) {
        let context = &holder["securityContext"];
        let ours = |group: &Value| *group == USER;
        // All but the first are the pod's only.
        let found = [
            ("runAsGroup", ours(&context["runAsGroup"])),
            ("fsGroup", ours(&context["fsGroup"])),
            (
                "supplementalGroups",
                context["supplementalGroups"].as_array().is_some_and(|all| all.iter().any(ours)),
            ),
        ];
        if let Some((field, _)) = found.iter().find(|(_, found)| *found) {
            let message =
                format!("group {USER} is the sidecar's with TPROXY: its traffic would go around the mesh");
            let at = format!("{at}.securityContext.{field}");
            return Err(Failure::new(at, message, "choose another group"));
        }
    }
    Ok(())
}

/// What the sidecar listens on.
const PORTS: [(u16, &str); 5] = [
    (15_000, "admin page"),
    (15_001, "outbound traffic"),
    (15_006, "inbound traffic"),
    (super::bootstrap::HEALTH, "health"),
    (15_053, "DNS"),
];

/// # Errors
/// A container has a port of the sidecar.
pub(super) fn ports(template: &Value, probes: &Probes) -> Result<(), Failure> {
    for (path, container) in containers(template) {
        let list = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (i, port) in list.iter().enumerate() {
            let Some(number) = port["containerPort"].as_u64() else { continue };
            let own = PORTS.iter().find(|(own, _)| u64::from(*own) == number).map(|(_, what)| *what);
            let grpc = probes.grpc.values().any(|own| u64::from(*own) == number).then_some("gRPC probes");
            // Rules leave these alone: a program there would be open to all, in plaintext.
            let free = PROXY_PORTS.iter().any(|own| u64::from(*own) == number).then_some("HBONE and metrics");
            if let Some(what) = own.or(grpc).or(free) {
                let at = format!("{path}.ports[{i}].containerPort");
                let message = format!("{number} is the sidecar's, for {what}");
                return Err(Failure::new(at, message, "let the program listen on another port"));
            }
        }
    }
    Ok(())
}
