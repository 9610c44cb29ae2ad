//! The Helm chart (deploy/helm/remora): what it makes is what deploy/kubernetes has. The chart's files are looked at always; what `helm` makes
//! of them where `REMORA_HELM` names one (tests/helm/setup.sh builds it).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use remora_tests::netns::Said;
use serde_json::{Value, json};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(text: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Says aloud why there is nothing to test, if so.
fn helm() -> Option<PathBuf> {
    let helm = std::env::var_os("REMORA_HELM").map(PathBuf::from);
    if helm.is_none() {
        // Not captured by the test runner.
        let _ = writeln!(std::io::stderr(), "SKIPPED: chart: REMORA_HELM names no helm");
    }
    helm
}

fn run(helm: &Path, words: &[&str]) -> Said {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(helm);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, home.path());
    }
    command.args(words).output().unwrap().into()
}

/// What `helm template` makes with further arguments.
fn template(helm: &Path, more: &[&str]) -> Said {
    let chart = at("helm/remora");
    let mut words =
        vec!["template", "remora", chart.to_str().unwrap(), "--namespace", "remora-system", "--include-crds"];
    words.extend(more);
    run(helm, &words)
}

type Objects = BTreeMap<(String, String), Value>;

fn made(helm: &Path, more: &[&str]) -> Objects {
    let said = template(helm, more);
    assert_eq!(said.status, 0, "{more:?}: {}", said.err);
    objects(&said.out)
}

/// By kind and name, without what only means something to helm.
fn objects(text: &str) -> Objects {
    let mut all = Objects::new();
    for mut object in yaml(text) {
        if let Some(annotations) = object["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|name, _| !name.starts_with("helm.sh/"));
            if annotations.is_empty() {
                object["metadata"].as_object_mut().unwrap().remove("annotations");
            }
        }
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (word(&object["kind"]), word(&object["metadata"]["name"]));
        assert!(all.insert(key.clone(), object).is_none(), "twice: {key:?}");
    }
    all
}

fn of<'a>(objects: &'a Objects, kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|((k, _), _)| k == kind);
    let (_, object) = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several {kind}");
    object
}

fn args(objects: &Objects) -> Vec<String> {
    let args = &of(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"];
    args.as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_chart_has_the_version_and_the_definitions() {
    let chart = &yaml(&read("helm/remora/Chart.yaml"))[0];
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let same = read("helm/remora/crds/crds.yaml") == read("kubernetes/crds.yaml");
    assert!(same, "out of date: run UPDATE=1 cargo test -p remora-control --test kubernetes");
}

/// A value that the schema does not know would be refused, and one that it alone knows would do nothing.
#[test]
fn the_schema_has_every_value() {
    fn compare(at: &str, values: &Value, schema: &Value) {
        let Some(values) = values.as_object() else { return };
        let Some(properties) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], json!(false), "{at} takes anything");
        for (name, value) in values {
            let of = properties.get(name).unwrap_or_else(|| panic!("{at}.{name} is not in the schema"));
            compare(&format!("{at}.{name}"), value, of);
        }
        // What Helm itself hands to charts.
        for name in properties.keys().filter(|name| *name != "global") {
            assert!(values.contains_key(name), "{at}.{name} is not in values.yaml");
        }
    }
    let schema: Value = serde_json::from_str(&read("helm/remora/values.schema.json")).unwrap();
    compare("values", &yaml(&read("helm/remora/values.yaml"))[0], &schema);
}

#[test]
fn without_values_it_is_the_manifests() {
    let Some(helm) = helm() else { return };
    let mut wanted = Objects::new();
    for file in ["crds", "control", "webhook"] {
        wanted.extend(objects(&read(&format!("kubernetes/{file}.yaml"))));
    }
    let found = made(&helm, &["--set", "namespace.create=true"]);
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, object) in &wanted {
        let shown = |value: &Value| serde_json::to_string_pretty(value).unwrap();
        assert_eq!(shown(&found[key]), shown(object), "{key:?}");
    }
    let nodes = objects(&read("kubernetes/cni.yaml"));
    let namespace = ("Namespace".to_owned(), "remora-system".to_owned());
    let mut with_nodes = made(&helm, &["--set", "namespace.create=true,cni.enabled=true"]);
    let labels = &with_nodes[&namespace]["metadata"]["labels"];
    assert_eq!(
        *labels,
        json!({"pod-security.kubernetes.io/enforce": "privileged"}),
        "as the head of cni.yaml says"
    );
    with_nodes.retain(|key, _| !wanted.contains_key(key));
    for (key, object) in &nodes {
        assert_eq!(with_nodes.get(key), Some(object), "{key:?}");
    }
    assert_eq!(with_nodes.len(), nodes.len());
    // As `helm install --create-namespace` wants it.
    assert!(wanted.remove(&namespace).is_some());
    assert_eq!(made(&helm, &[]), wanted);
}

#[test]
fn helm_finds_nothing_wrong() {
    let Some(helm) = helm() else { return };
    let chart = at("helm/remora");
    for more in [&[][..], &ETCD] {
        let said = run(
            &helm,
            &[&["lint", "--strict", "--namespace", "mesh", chart.to_str().unwrap()][..], more].concat(),
        );
        assert_eq!(said.status, 0, "{more:?}: {}{}", said.out, said.err);
    }
}

const ETCD: [&str; 6] = [
    "--set",
    "store.kind=etcd",
    "--set",
    "store.etcd.endpoints={etcd-0.etcd:2379,etcd-1.etcd:2379},store.etcd.prefix=mesh",
    "--set",
    "replicas=3",
];

#[test]
fn several_control_planes_share_etcd() {
    let Some(helm) = helm() else { return };
    let all = made(&helm, &ETCD);
    assert!(
        args(&all).contains(&"--store=etcd://etcd-0.etcd:2379,etcd-1.etcd:2379/mesh".to_owned()),
        "{:?}",
        args(&all)
    );
    let deployment = &of(&all, "Deployment")["spec"];
    assert_eq!(deployment["replicas"], 3);
    assert!(deployment.get("strategy").is_none(), "they are replaced one after the other");
    assert_eq!(deployment["template"]["spec"]["volumes"], json!([{"name": "data", "emptyDir": {}}]));
    assert_eq!(of(&all, "PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
    assert!(all.keys().all(|(kind, _)| kind != "PersistentVolumeClaim"));
}

#[test]
fn values_are_where_they_belong() {
    let Some(helm) = helm() else { return };
    let values = json!({
        "image": {"repository": "registry.example/remora", "tag": "1.2", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "store": {"volume": {"size": "5Gi", "storageClass": "fast"}},
        "trustDomain": "shop.example", "outboundTrafficPolicy": "REGISTRY_ONLY", "logLevel": "remora_control=debug",
        "extraArgs": ["--root-overlap=2h"],
        "injection": {"native": false, "interception": "cni", "concurrency": 4, "control": "10.96.0.12:15012"},
        "webhook": {
            "failurePolicy": "Ignore", "timeoutSeconds": 5, "excludedNamespaces": ["kube-system", "old"],
            "namespaceSelector": [{"key": "team", "operator": "In", "values": ["shop"]}],
        },
        "serviceAccount": {"annotations": {"example.com/a": "b"}},
        "resources": {"limits": {"memory": "256Mi"}},
        "podLabels": {"team": "mesh"}, "podAnnotations": {"example.com/c": "d"},
        "nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1}], "priorityClassName": "system-cluster-critical",
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let all = made(&helm, &["--namespace", "mesh", "--values", file.path().to_str().unwrap()]);

    let words = args(&all);
    for wanted in [
        "--tls-name=remora-control.mesh.svc",
        "--webhook-service=mesh/remora-control",
        "--inject-control=10.96.0.12:15012",
        "--inject-image=registry.example/remora:1.2",
        "--inject-native=false",
        "--inject-interception=cni",
        "--inject-concurrency=4",
        "--trust-domain=shop.example",
        "--outbound-traffic-policy=REGISTRY_ONLY",
        "--log-level=remora_control=debug",
    ] {
        assert!(words.iter().any(|word| word == wanted), "{wanted}: {words:?}");
    }
    assert_eq!(words.last().unwrap(), "--root-overlap=2h");
    let pod = &of(&all, "Deployment")["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"], json!({"app": "remora-control", "team": "mesh"}));
    assert_eq!(pod["metadata"]["annotations"], values["podAnnotations"]);
    for field in [
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
    ] {
        assert_eq!(pod["spec"][field], values[field], "{field}");
    }
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/remora:1.2");
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["resources"]["limits"], values["resources"]["limits"]);
    let volume = &of(&all, "PersistentVolumeClaim")["spec"];
    assert_eq!(volume["storageClassName"], "fast");
    assert_eq!(volume["resources"]["requests"]["storage"], "5Gi");
    assert_eq!(
        of(&all, "ServiceAccount")["metadata"]["annotations"],
        values["serviceAccount"]["annotations"]
    );
    assert_eq!(of(&all, "ClusterRoleBinding")["subjects"][0]["namespace"], "mesh");
    for hook in of(&all, "MutatingWebhookConfiguration")["webhooks"].as_array().unwrap() {
        assert_eq!(hook["clientConfig"]["service"]["namespace"], "mesh");
        assert_eq!(hook["failurePolicy"], "Ignore");
        assert_eq!(hook["timeoutSeconds"], 5);
        let expressions = hook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        assert_eq!(expressions[1]["values"], json!(["kube-system", "old", "mesh"]));
        assert_eq!(expressions[2], values["webhook"]["namespaceSelector"][0]);
    }
}

#[test]
fn a_claim_and_a_digest_of_ones_own_are_taken() {
    let Some(helm) = helm() else { return };
    let claimed = made(&helm, &["--set", "store.volume.existingClaim=mine"]);
    let volumes = &of(&claimed, "Deployment")["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["persistentVolumeClaim"]["claimName"], "mine");
    assert!(claimed.keys().all(|(kind, _)| kind != "PersistentVolumeClaim"));
    let digest = format!("image.digest=sha256:{}", "0".repeat(64));
    let pinned = made(&helm, &["--set", &digest]);
    let image = &of(&pinned, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"];
    assert!(image.as_str().unwrap().starts_with("remora@sha256:00"), "{image}");
}

#[test]
fn nodes_are_where_the_values_say() {
    let Some(helm) = helm() else { return };
    let set = "cni.enabled=true,cni.binDir=/var/lib/cni/bin,cni.netDir=/var/lib/cni/net.d,cni.privileged=true,cni.excludedNamespaces={kube-system,old}";
    let all = made(&helm, &["--namespace", "mesh", "--set", set]);
    let pod = &of(&all, "DaemonSet")["spec"]["template"]["spec"];
    let args = pod["containers"][0]["args"].as_array().unwrap();
    for wanted in [
        "--daemon-set=mesh/remora-cni",
        "--service-account=mesh/remora-cni",
        "--node-net-dir=/var/lib/cni/net.d",
        "--exclude-namespaces=kube-system,old,mesh",
    ] {
        assert!(args.iter().any(|arg| arg == wanted), "{wanted}: {args:?}");
    }
    assert_eq!(pod["containers"][0]["securityContext"], json!({"privileged": true, "runAsUser": 0}));
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/var/lib/cni/bin");
    assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/var/lib/cni/net.d");
    for (_, binding) in all.iter().filter(|((kind, _), _)| kind.ends_with("RoleBinding")) {
        for subject in binding["subjects"].as_array().unwrap() {
            assert_eq!(subject["namespace"], "mesh", "{binding}");
        }
    }
}

/// What is wrong is refused with the name of the value.
#[test]
fn wrong_values_are_refused() {
    let Some(helm) = helm() else { return };
    // Of several, the last one counts.
    for namespace in ["default", "kube-system"] {
        let said = template(&helm, &["--namespace", namespace]);
        assert_ne!(said.status, 0, "{namespace} was taken");
        assert!(said.err.contains("--namespace") && said.err.contains(namespace), "{}", said.err);
    }
    for (set, named) in [
        ("failurePolicy=Fail", "failurePolicy"),
        ("webhook.failurePolicy=Sometimes", "failurePolicy"),
        ("webhook.failurepolicy=Fail", "failurepolicy"),
        ("webhook.timeoutSeconds=31", "timeoutSeconds"),
        ("webhook.excludedNamespaces={old}", "excludedNamespaces"),
        ("replicas=many", "replicas"),
        ("replicas=2", "store.kind"),
        ("store.kind=etcd", "store.etcd.endpoints"),
        ("store.kind=redb", "kind"),
        ("injection.interception=magic", "interception"),
        ("injection.concurrency=1025", "concurrency"),
        ("image.digest=sha256:12", "digest"),
        ("cni.netDir=net.d", "netDir"),
        ("cni.excludedNamespaces={old}", "excludedNamespaces"),
        ("podLabels.app=mine", "podLabels"),
        ("extraArgs=--root-overlap=2h", "extraArgs"),
    ] {
        let said = template(&helm, &["--set", set]);
        assert_ne!(said.status, 0, "{set} was taken");
        assert!(said.err.contains(named), "{set}: {}", said.err);
    }
}
