//! The containers and volumes of a sidecar.

use serde_json::{Map, Value, json};

use super::annotations::{Mode, Wanted};
use super::bootstrap::{self, HEALTH, Named, entries};
use super::probes::Probes;
use super::shape::Owner;
use super::who::USER;
use super::{INIT, Interception, PROXY, RULES, STATUS, Settings};

/// The program in the image.
const PROGRAM: &str = "/usr/local/bin/remora";
const TOKENS: &str = "/var/run/secrets/remora/tokens";
const ROOTS: &str = "/etc/remora/roots";
const STATE: &str = "/var/lib/remora";
/// Who proves the rules of others: not the sidecar's user, whose connections they leave alone.
const NOBODY: u32 = 65532;
/// Seconds that a pod has to end when it does not say (`terminationGracePeriodSeconds`).
const GRACE: u64 = 30;
/// Seconds of it that are left for the end itself.
const SPARE: u64 = 5;

/// Adds what [`super::pod`] has found right.
pub(super) fn add(
    template: &mut Value,
    owner: &Owner<'_>,
    settings: &Settings,
    wanted: &Wanted,
    probes: &Probes,
) {
    let labels = template["metadata"]["labels"].clone();
    let label = |names: &[&str]| names.iter().find_map(|name| labels[*name].as_str());
    let app = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let version = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let named = Named {
        app: app.or_else(|| owner.name.map(|name| name.trim_end_matches('-'))).unwrap_or("unknown"),
        version: version.unwrap_or(remora_mesh::names::LATEST),
    };
    let drains_in = wanted.drain_time.map_or_else(|| drain_time(&template["spec"]), u64::from);
    let bootstrap = bootstrap::text(named, settings, wanted, probes);
    let proxy = proxy(settings, wanted, bootstrap, drains_in);
    let init = (wanted.interception != Interception::None).then(|| init(wanted, probes));
    let spec = map(template, "spec");
    if wanted.native {
        // Before the program's own, which may call others already.
        let list = list(spec, "initContainers");
        list.splice(0..0, init.into_iter().chain([proxy]));
    } else {
        // After the program's own: rules without a sidecar lead nowhere.
        list(spec, "initContainers").extend(init);
        if spec["initContainers"].as_array().is_some_and(Vec::is_empty) {
            spec.shift_remove("initContainers");
        }
        list(spec, "containers").insert(0, proxy);
    }
    list(spec, "volumes").extend(volumes(settings));
    let metadata = map(template, "metadata");
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[STATUS] = env!("CARGO_PKG_VERSION").into();
    // One that was copied with a template says what another injection meant.
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.shift_remove(RULES);
    }
    if wanted.interception == Interception::Cni {
        annotations[RULES] = json!(init_arguments(wanted, probes)[1..]).to_string().into();
    }
}

/// What whoever deploys the pod should know.
pub(super) fn warn(template: &Value, wanted: &Wanted, notes: &mut Vec<String>) {
    let restarts = template["spec"]["restartPolicy"].as_str().unwrap_or("Always");
    if !wanted.native && restarts != "Always" {
        notes.push(
            "a classic sidecar does not end with the program: let the program POST http://127.0.0.1:15000/quitquitquit, or use a native one"
                .into(),
        );
    }
    if wanted.mode == Mode::Tproxy {
        notes.push(
            "TPROXY: the program sees the addresses of its clients; for that the sidecar runs as root with NET_ADMIN, without other capabilities"
                .into(),
        );
    }
    let own = template["spec"]["initContainers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let first = own.iter().filter(|container| container["name"] != INIT).count();
    if !wanted.native && wanted.interception == Interception::Cni && first > 0 {
        notes.push(
            "init containers reach nobody: the CNI plugin leads them to a sidecar that does not run yet"
                .into(),
        );
    }
}

fn map<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !value[field].is_object() {
        value[field] = json!({});
    }
    match &mut value[field] {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

/// A list in a spec; null is Kubernetes' word for an empty one.
fn list<'a>(spec: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let place = spec.entry(field).or_insert_with(|| json!([]));
    if !place.is_array() {
        *place = json!([]);
    }
    match place {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list"),
    }
}

/// The sidecar is killed with the pod: what it does in order has to fit.
fn drain_time(spec: &Value) -> u64 {
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE);
    grace.saturating_sub(SPARE).clamp(1, 45)
}

/// Arguments of `remora init`, its name first.
pub(super) fn init_arguments(wanted: &Wanted, probes: &Probes) -> Vec<String> {
    let mut args = vec!["init".to_owned()];
    for (option, value) in
        [("--inbound-port", "15006"), ("--outbound-port", "15001"), ("--proxy-uid", "1337")]
    {
        args.extend([option.to_owned(), value.to_owned()]);
    }
    if wanted.mode == Mode::Tproxy {
        // Its user is root there, as that of others may be.
        let group = USER.to_string();
        args.extend(["--mode", "tproxy", "--proxy-gid", &group].map(ToOwned::to_owned));
    }
    let mut options = wanted.init.clone();
    // What the kubelet asks is the sidecar's own, in plaintext.
    let own = std::iter::once(HEALTH).chain(probes.grpc.values().copied());
    let excluded =
        options.remove("--exclude-inbound-ports").into_iter().chain(own.map(|port| port.to_string()));
    options.insert("--exclude-inbound-ports", excluded.collect::<Vec<_>>().join(","));
    for (option, value) in options {
        args.extend([option.to_owned(), value]);
    }
    if wanted.capture_dns {
        args.push("--capture-dns".to_owned());
    }
    args
}

/// Makes the rules; or, where the CNI plugin has made them, proves that it did.
fn init(wanted: &Wanted, probes: &Probes) -> Value {
    let mut args = init_arguments(wanted, probes);
    let by_plugin = wanted.interception == Interception::Cni;
    if by_plugin {
        args.push("--check".to_owned());
    }
    let capabilities =
        if by_plugin { json!({"drop": ["ALL"]}) } else { json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}) };
    let user = if by_plugin { NOBODY } else { 0 };
    json!({
        "name": INIT, "image": wanted.image, "command": [PROGRAM], "args": args,
        "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": capabilities,
            "privileged": false, "readOnlyRootFilesystem": true,
            "runAsGroup": user, "runAsNonRoot": by_plugin, "runAsUser": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn proxy(settings: &Settings, wanted: &Wanted, bootstrap: String, drains_in: u64) -> Value {
    let args = json!([
        "proxy",
        "--config-yaml",
        bootstrap,
        "--ca",
        format!("https://{}", settings.control),
        "--ca-roots",
        format!("{ROOTS}/roots.pem"),
        "--token-file",
        format!("{TOKENS}/token"),
        "--identity-dir",
        format!("{STATE}/identity"),
        "--state-dir",
        format!("{STATE}/state"),
        "--drain-time-s",
        drains_in.to_string(),
        "--concurrency",
        wanted.concurrency.to_string(),
        "--log-level",
        wanted.log_level,
    ]);
    let own =
        |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    let mut env = vec![
        own("POD_NAME", "metadata.name"),
        own("POD_NAMESPACE", "metadata.namespace"),
        own("POD_IP", "status.podIP"),
    ];
    if wanted.interception != Interception::None {
        env.push(own("INSTANCE_IPS", "status.podIPs"));
    }
    let ready = |more: Value| {
        let mut probe = json!({"httpGet": {"path": "/healthz/ready", "port": HEALTH}});
        if let (Some(probe), Value::Object(more)) = (probe.as_object_mut(), more) {
            probe.extend(more);
        }
        probe
    };
    let wait = json!({"postStart": {"exec": {"command": [PROGRAM, "ready", "--for", "60s"]}}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let mut roots = mount("remora-roots", ROOTS);
    let mut token = mount("remora-token", TOKENS);
    for read_only in [&mut roots, &mut token] {
        read_only["readOnly"] = true.into();
    }
    let mut resources = json!({});
    for ((kind, name), quantity) in &wanted.resources {
        resources[*kind][*name] = quantity.as_str().into();
    }
    entries([
        ("name", Some(PROXY.into())),
        ("image", Some(wanted.image.as_str().into())),
        ("restartPolicy", wanted.native.then(|| "Always".into())),
        ("command", Some(json!([PROGRAM]))),
        ("args", Some(args)),
        ("env", Some(env.into())),
        ("ports", Some(json!([{"name": "remora-health", "containerPort": HEALTH, "protocol": "TCP"}]))),
        ("lifecycle", (!wanted.native && wanted.hold).then_some(wait)),
        // What stands behind a native sidecar starts when this has passed.
        (
            "startupProbe",
            (wanted.native && wanted.hold)
                .then(|| ready(json!({"periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600}))),
        ),
        (
            "readinessProbe",
            Some(ready(json!({"periodSeconds": 10, "timeoutSeconds": 3, "failureThreshold": 4}))),
        ),
        ("resources", Some(resources)),
        ("securityContext", Some(rights(wanted))),
        ("volumeMounts", Some(json!([mount("remora-state", STATE), roots, token]))),
    ])
}

/// None; with TPROXY one, which Kubernetes gives to root only: for other users a capability is in force where the file of the program has
/// it and privileges may be gained (there are no ambient ones).
fn rights(wanted: &Wanted) -> Value {
    let tproxy = wanted.mode == Mode::Tproxy;
    let capabilities =
        if tproxy { json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}) } else { json!({"drop": ["ALL"]}) };
    json!({
        "allowPrivilegeEscalation": false, "capabilities": capabilities,
        "privileged": false, "readOnlyRootFilesystem": true,
        "runAsGroup": USER, "runAsNonRoot": !tproxy, "runAsUser": if tproxy { 0 } else { USER },
        // What Pod Security `restricted` asks for beside the rest.
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn volumes(settings: &Settings) -> [Value; 3] {
    let token = json!({"audience": settings.audience, "expirationSeconds": 43_200, "path": "token"});
    [
        json!({"name": "remora-state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}),
        json!({"name": "remora-roots", "configMap": {"name": settings.roots}}),
        json!({"name": "remora-token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
    ]
}
