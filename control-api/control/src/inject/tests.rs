use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::document::Text;

fn settings() -> Settings {
    Settings {
        image: "registry.example/remora:1".into(),
        ..Settings::new("10.96.0.12:15012".parse().unwrap())
    }
}

fn texts(text: &str) -> Vec<Text> {
    vec![Text { name: "web.yaml".into(), text: text.into() }]
}

/// Without the version of this program.
fn injected(text: &str, settings: &Settings) -> String {
    let done = documents(&texts(text), settings).unwrap();
    done.yaml.replace(&format!("{STATUS}: {}", env!("CARGO_PKG_VERSION")), "remora.dev/injected: VERSION")
}

/// A pod with one container, and what `more` puts into its metadata and spec.
fn pod_with(metadata: &Value, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]}]},
    });
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        let more = more.as_object().unwrap().clone();
        pod[part].as_object_mut().unwrap().extend(more);
    }
    pod
}

fn annotated(annotations: &Value) -> Value {
    pod_with(&json!({"annotations": annotations}), &json!({}))
}

fn of(pod: &Value) -> Value {
    object(pod, &settings()).unwrap().object.unwrap()
}

fn skip(pod: &Value) -> Skip {
    object(pod, &settings()).unwrap().skipped[0].1
}

fn failure(pod: &Value) -> String {
    object(pod, &settings()).unwrap_err().to_string()
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    who::containers(pod).find(|(_, c)| c["name"] == name).unwrap().1
}

fn names(pod: &Value, part: &str) -> Vec<String> {
    let list = pod["spec"][part].as_array().cloned().unwrap_or_default();
    list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

/// The value of an option.
fn option(container: &Value, name: &str) -> Option<String> {
    let args: Vec<_> = container["args"].as_array()?.iter().map(|a| a.as_str().unwrap()).collect();
    let at = args.iter().position(|arg| *arg == name)?;
    Some(args[at + 1].to_owned())
}

fn bootstrap_of(pod: &Value) -> Value {
    serde_json::from_str(&option(container(pod, PROXY), "--config-yaml").unwrap()).unwrap()
}

/// What Kubernetes makes of an argument: `$$` is `$` wherever it stands, `$(NAME)` a variable if there is one, and any other `$` stays.
fn expanded(text: &str) -> String {
    let variables = [
        ("POD_NAME", "web-1"),
        ("POD_NAMESPACE", "shop"),
        ("POD_IP", "10.0.0.9"),
        ("INSTANCE_IPS", "10.0.0.9,fd00::9"),
    ];
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec:\n  containers:\n  - {name: web, image: 'web:1'}\n";
const SPEC: &str = "template:\n    metadata: {labels: {app: web, version: v2}}\n    spec:\n      serviceAccountName: web\n      containers:\n      - {name: web, image: 'web:1'}\n";

fn workload(version: &str, kind: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {SPEC}")
}

#[test]
fn a_pod_with_a_native_sidecar() {
    insta::assert_snapshot!(injected(POD, &settings()));
}

#[test]
fn a_pod_with_a_classic_sidecar() {
    insta::assert_snapshot!(injected(POD, &Settings { native: Native::No, ..settings() }));
}

#[test]
fn a_pod_without_interception() {
    insta::assert_snapshot!(injected(POD, &Settings { interception: Interception::None, ..settings() }));
}

#[test]
fn workloads_have_it_in_their_templates() {
    let mut all = String::new();
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
    ] {
        all.push_str(&workload(version, kind));
        all.push_str("---\n");
    }
    let indented = SPEC.replace('\n', "\n      ");
    all.push_str(&format!("apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: web}}\nspec:\n  schedule: '* * * * *'\n  jobTemplate:\n    spec:\n      {}\n", indented.trim_end()));
    let done = documents(&texts(&all), &settings()).unwrap();
    assert_eq!(done.injected.len(), 7, "{:?}", done.skipped);
    insta::assert_snapshot!(injected(&all, &settings()));
}

#[test]
fn a_list_and_what_has_no_pods() {
    let text = format!(
        "# kept\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}} # as it was\ndata: {{on: yes}}\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {}- apiVersion: v1\n  kind: Service\n  metadata: {{name: web}}\n",
        POD.replace('\n', "\n  ").trim_end().to_owned() + "\n"
    );
    let done = documents(&texts(&text), &settings()).unwrap();
    assert_eq!(done.injected, ["Pod shop/web"]);
    insta::assert_snapshot!(injected(&text, &settings()));
}

#[test]
fn documents_that_stay_are_printed_as_they_were() {
    let text = "# a comment\napiVersion: v1\nkind: Service\nmetadata: {name: a} # why\n---\n# only a comment\n---\n\napiVersion: example.com/v1\nkind: Pod\nspec: {}\n";
    let done = documents(&texts(text), &settings()).unwrap();
    assert_eq!(done.yaml, text.replace("---\n\n", "---\n"));
    assert_eq!((done.injected.len(), done.skipped.len()), (0, 0));
}

/// What is not the injector's means what kubectl reads in the file (YAML 1.1).
#[test]
fn scalars_mean_the_same_after_it() {
    let text = POD.replace("spec:\n", "spec:\n  readOnly: True\n  volumes:\n  - {name: a, secret: {defaultMode: 0400, optional: yes}}\n  - {name: b, secret: {defaultMode: \"0400\"}, size: 1.0}\n");
    let yaml = injected(&text, &settings());
    for line in [
        "readOnly: true\n",
        "defaultMode: 256\n",
        "optional: true\n",
        "defaultMode: \"0400\"\n",
        "size: 1.0\n",
    ] {
        assert!(yaml.contains(line), "{line}: {yaml}");
    }
    let node = POD.replace("spec:\n", "spec:\n  hostNetwork: True\n");
    let done = documents(&texts(&node), &settings()).unwrap();
    assert_eq!(done.skipped, [("Pod shop/web".to_owned(), Skip::HostNetwork)]);
}

#[test]
fn unknown_fields_stay() {
    let pod = pod_with(
        &json!({}),
        &json!({"resourceClaims": [{"name": "gpu"}], "futureField": {"x": [1.5, null]}}),
    );
    let new = of(&pod);
    assert_eq!(new["spec"]["futureField"], pod["spec"]["futureField"]);
    assert_eq!(new["spec"]["resourceClaims"], pod["spec"]["resourceClaims"]);
    assert_eq!(new["spec"]["containers"][0], pod["spec"]["containers"][0]);
}

#[test]
fn native_where_the_cluster_has_it() {
    let native = |native, version: Option<&str>| {
        let cluster = version.map(|v| v.parse().unwrap());
        let pod = object(&pod_with(&json!({}), &json!({})), &Settings { native, cluster, ..settings() });
        names(&pod.unwrap().object.unwrap(), "initContainers").contains(&PROXY.to_owned())
    };
    assert!(native(Native::Auto, None));
    assert!(native(Native::Auto, Some("1.29")));
    assert!(native(Native::Auto, Some("v1.32.4-gke.100")));
    assert!(!native(Native::Auto, Some("v1.28.9")));
    assert!(!native(Native::Auto, Some("1.9+")));
    assert!(native(Native::Yes, Some("1.28")));
    assert!(!native(Native::No, Some("1.32")));
    for wrong in ["1", "one.29", "1.x", ""] {
        assert!(wrong.parse::<Version>().is_err(), "{wrong}");
    }
    let classic = of(&annotated(&json!({"remora.dev/native-sidecar": "false"})));
    assert_eq!(names(&classic, "containers"), [PROXY, "web"]);
}

#[test]
fn the_programs_own_init_containers_can_call_others() {
    let own = json!({"initContainers": [{"name": "migrate", "image": "m"}]});
    assert_eq!(names(&of(&pod_with(&json!({}), &own)), "initContainers"), [INIT, PROXY, "migrate"]);
    let classic = json!({"annotations": {"remora.dev/native-sidecar": "false"}});
    assert_eq!(names(&of(&pod_with(&classic, &own)), "initContainers"), ["migrate", INIT]);
}

#[test]
fn every_annotation_does_something() {
    let without = of(&annotated(&json!({})));
    let part = |pod: &Value, what: &str| -> Option<String> {
        let proxy = container(pod, PROXY);
        match what {
            "image" => proxy["image"].as_str().map(Into::into),
            "native" => Some(proxy["restartPolicy"].to_string()),
            "hold" => Some(proxy["startupProbe"].to_string()),
            "init" => Some(names(pod, "initContainers").join(",")),
            resource if resource.contains('.') => {
                let (kind, name) = resource.split_once('.').unwrap();
                proxy["resources"][kind][name].as_str().map(Into::into)
            }
            own if own == "--concurrency" || own == "--log-level" || own == "--drain-time-s" => {
                option(proxy, own)
            }
            other => option(container(pod, INIT), other),
        }
    };
    let all = [
        ("remora.dev/native-sidecar", "false", "native", "null"),
        ("sidecar.istio.io/nativeSidecar", "false", "native", "null"),
        ("remora.dev/interception", "cni", "init", PROXY),
        ("remora.dev/interception", "none", "init", PROXY),
        ("remora.dev/proxy-image", "a/b:2", "image", "a/b:2"),
        ("sidecar.istio.io/proxyImage", "a/b:2", "image", "a/b:2"),
        ("remora.dev/proxy-cpu", "100m", "requests.cpu", "100m"),
        ("sidecar.istio.io/proxyCPU", "100m", "requests.cpu", "100m"),
        ("remora.dev/proxy-cpu-limit", "1", "limits.cpu", "1"),
        ("sidecar.istio.io/proxyCPULimit", "1", "limits.cpu", "1"),
        ("remora.dev/proxy-memory", "64Mi", "requests.memory", "64Mi"),
        ("sidecar.istio.io/proxyMemory", "64Mi", "requests.memory", "64Mi"),
        ("remora.dev/proxy-memory-limit", "1Gi", "limits.memory", "1Gi"),
        ("sidecar.istio.io/proxyMemoryLimit", "1Gi", "limits.memory", "1Gi"),
        ("remora.dev/concurrency", "4", "--concurrency", "4"),
        ("remora.dev/log-level", "debug", "--log-level", "debug"),
        ("sidecar.istio.io/logLevel", "debug", "--log-level", "debug"),
        ("remora.dev/drain-time-s", "7", "--drain-time-s", "7"),
        ("remora.dev/hold-application", "false", "hold", "null"),
        ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: false", "hold", "null"),
        ("proxy.istio.io/config", "concurrency: 3", "--concurrency", "3"),
        ("proxy.istio.io/config", "{terminationDrainDuration: 9s}", "--drain-time-s", "9"),
        ("remora.dev/include-inbound-ports", "80, 81", "--include-inbound-ports", "80,81"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,81", "--include-inbound-ports", "80,81"),
        ("remora.dev/exclude-inbound-ports", "22", "--exclude-inbound-ports", "22,15021"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "22", "--exclude-inbound-ports", "22,15021"),
        ("remora.dev/include-outbound-cidrs", "10.0.0.0/8", "--include-outbound-cidrs", "10.0.0.0/8"),
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "10.0.0.0/8",
            "--include-outbound-cidrs",
            "10.0.0.0/8",
        ),
        ("remora.dev/exclude-outbound-cidrs", "1.1.1.1", "--exclude-outbound-cidrs", "1.1.1.1/32"),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "1.1.1.1",
            "--exclude-outbound-cidrs",
            "1.1.1.1/32",
        ),
        ("remora.dev/include-outbound-ports", "443", "--include-outbound-ports", "443"),
        ("traffic.sidecar.istio.io/includeOutboundPorts", "443", "--include-outbound-ports", "443"),
        ("remora.dev/exclude-outbound-ports", "3306", "--exclude-outbound-ports", "3306"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "3306", "--exclude-outbound-ports", "3306"),
        ("remora.dev/exclude-interfaces", "eth1", "--exclude-interfaces", "eth1"),
        ("traffic.sidecar.istio.io/excludeInterfaces", "eth1", "--exclude-interfaces", "eth1"),
    ];
    for (name, value, what, expected) in all {
        let with = of(&annotated(&json!({name: value})));
        assert_eq!(part(&with, what).as_deref(), Some(expected), "{name}");
        assert_ne!(part(&without, what).as_deref(), Some(expected), "{name} is more than the default");
    }
    // No name is known that nothing above uses, but those that are read elsewhere.
    let elsewhere = ["inject", "injected", "origin", "rewrite-probes"];
    for name in annotations::known().filter(|name| !elsewhere.contains(name)) {
        assert!(all.iter().any(|(used, ..)| *used == format!("remora.dev/{name}")), "{name}");
    }
}

#[test]
fn ours_win_over_istios() {
    let both = json!({"remora.dev/proxy-cpu": "2", "sidecar.istio.io/proxyCPU": "1",
        "remora.dev/include-outbound-cidrs": "*", "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8"});
    let pod = of(&annotated(&both));
    assert_eq!(container(&pod, PROXY)["resources"]["requests"]["cpu"], "2");
    assert_eq!(option(container(&pod, INIT), "--include-outbound-cidrs"), None);
}

#[test]
fn values_that_cannot_be_used_are_named_with_a_fix() {
    let wrong = [
        ("remora.dev/proxy-cpu", "lots"),
        ("remora.dev/proxy-image", "a b"),
        ("remora.dev/native-sidecar", "yes"),
        ("remora.dev/interception", "tproxy"),
        ("remora.dev/concurrency", "0"),
        ("remora.dev/hold-application", "1"),
        ("remora.dev/log-level", "info; rm"),
        ("remora.dev/log-level", "loud"),
        ("remora.dev/log-level", "a=b=c"),
        ("remora.dev/drain-time-s", "5s"),
        ("remora.dev/capture-dns", "true"),
        ("remora.dev/exclude-outbound-port", "80"),
        ("remora.dev/whatever", "80"),
        ("traffic.sidecar.istio.io/includeInboundPorts", ""),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "mysql"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/40"),
        ("traffic.sidecar.istio.io/excludeInterfaces", "a/b"),
        ("remora.dev/exclude-interfaces", "eth{0}"),
        ("sidecar.istio.io/rewriteAppHTTPProbers", "maybe"),
        ("sidecar.istio.io/inject", "enabled"),
        ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: perhaps"),
        ("proxy.istio.io/config", "concurrency: 0"),
        ("proxy.istio.io/config", "a: b: c"),
        ("proxy.istio.io/config", "[1]"),
    ];
    let mut said: Vec<_> =
        wrong.iter().map(|(name, value)| failure(&annotated(&json!({*name: value})))).collect();
    said.push(failure(&annotated(&json!({"remora.dev/concurrency": 4}))));
    said.push(failure(&annotated(
        &json!({"remora.dev/interception": "none", "remora.dev/exclude-inbound-ports": "22"}),
    )));
    for contradiction in [
        json!({"remora.dev/include-inbound-ports": "80,81", "remora.dev/exclude-inbound-ports": "81"}),
        json!({"remora.dev/include-inbound-ports": "80,15090"}),
        json!({"remora.dev/include-outbound-ports": "80", "remora.dev/exclude-outbound-ports": "80"}),
        json!({"remora.dev/include-outbound-cidrs": "10.1.0.0/16", "remora.dev/exclude-outbound-cidrs": "10.0.0.0/8"}),
        json!({"remora.dev/proxy-cpu": "1", "remora.dev/proxy-cpu-limit": "500m"}),
    ] {
        said.push(failure(&annotated(&contradiction)));
    }
    insta::assert_snapshot!(said.join("\n"));
}

/// Kubernetes refuses a pod that asks for more than it may have.
#[test]
fn a_low_limit_lowers_what_is_asked_for() {
    let low = json!({"remora.dev/proxy-memory-limit": "16Mi", "remora.dev/proxy-cpu-limit": "1"});
    let pod = of(&annotated(&low));
    let expected =
        json!({"limits": {"cpu": "1", "memory": "16Mi"}, "requests": {"cpu": "10m", "memory": "16Mi"}});
    assert_eq!(container(&pod, PROXY)["resources"], expected);
}

#[test]
fn what_istio_has_and_remora_has_not_is_noted() {
    let pod = annotated(
        &json!({"sidecar.istio.io/bootstrapOverride": "x", "proxy.istio.io/config": "tracing: {}", "other.example/x": "y"}),
    );
    let notes = object(&pod, &settings()).unwrap().notes;
    assert_eq!(
        notes,
        [
            "Pod shop/web: the annotation sidecar.istio.io/bootstrapOverride means nothing to Remora",
            "Pod shop/web: tracing in the annotation proxy.istio.io/config means nothing to Remora",
        ]
    );
}

#[test]
fn who_is_left_alone() {
    let no = json!({"labels": {"sidecar.istio.io/inject": "false"}});
    assert_eq!(skip(&pod_with(&no, &json!({}))), Skip::OptedOut);
    assert_eq!(skip(&annotated(&json!({"remora.dev/inject": "false"}))), Skip::OptedOut);
    assert_eq!(skip(&pod_with(&json!({}), &json!({"hostNetwork": true}))), Skip::HostNetwork);
    assert_eq!(skip(&pod_with(&json!({}), &json!({"os": {"name": "windows"}}))), Skip::Windows);
    assert_eq!(
        skip(&pod_with(&json!({}), &json!({"nodeSelector": {"kubernetes.io/os": "windows"}}))),
        Skip::Windows
    );
    assert_eq!(skip(&annotated(&json!({"kubernetes.io/config.mirror": "x"}))), Skip::Static);
    assert_eq!(skip(&pod_with(&json!({"namespace": "kube-system"}), &json!({}))), Skip::System);
    let copied = annotated(&json!({"remora.dev/injected": "0.0.1"}));
    assert_eq!(
        of(&copied),
        of(&pod_with(&json!({"annotations": {}}), &json!({}))),
        "the annotation alone is no sidecar"
    );
    // Whatever they ask for, in whatever words.
    let unclear = json!({"namespace": "kube-system", "labels": {"remora.dev/inject": "enabled"}});
    assert_eq!(skip(&pod_with(&unclear, &json!({}))), Skip::System);
    let unclear = json!({"labels": {"remora.dev/inject": "enabled"}});
    assert_eq!(skip(&pod_with(&unclear, &json!({"hostNetwork": true}))), Skip::HostNetwork);
    assert_eq!(skip(&pod_with(&unclear, &json!({"os": {"name": "windows"}}))), Skip::Windows);
    let by_hand = json!({"initContainers": [{"name": PROXY}]});
    assert_eq!(skip(&pod_with(&json!({}), &by_hand)), Skip::Injected);
    let ask = Settings { by_default: false, ..settings() };
    let plain = pod_with(&json!({}), &json!({}));
    assert_eq!(object(&plain, &ask).unwrap().skipped[0].1, Skip::NotAsked);
    let asks = pod_with(&json!({"labels": {"remora.dev/inject": "true"}}), &json!({}));
    assert!(object(&asks, &ask).unwrap().object.is_some());
}

#[test]
fn who_cannot_have_one_is_told_why() {
    let with = |spec: Value| failure(&pod_with(&json!({}), &spec));
    let container = |name: &str| json!({"containers": [{"name": "web"}, {"name": name}]});
    let said = [
        with(container("istio-proxy")),
        with(container("linkerd-proxy")),
        with(json!({"initContainers": [{"name": "istio-init"}]})),
        with(container("remora-init")),
        with(json!({"volumes": [{"name": "remora-state"}]})),
        with(json!({"securityContext": {"runAsUser": 1337}})),
        with(json!({"containers": [{"name": "web", "securityContext": {"runAsUser": 1337}}]})),
        with(json!({"containers": [{"name": "web", "ports": [{"containerPort": 15021}]}]})),
        with(
            json!({"containers": [{"name": "web", "ports": [{"containerPort": 15030}], "livenessProbe": {"grpc": {"port": 9}}}]}),
        ),
        with(json!({"containers": [{"name": "web", "ports": [{"containerPort": 15090}]}]})),
        with(json!({"containers": []})),
        with(json!({"containers": [{"name": "web", "livenessProbe": {"httpGet": {"port": "metrics"}}}]})),
        with(json!({"containers": [{"name": "web", "readinessProbe": {"tcpSocket": {"port": 70_000}}}]})),
        failure(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {}}),
        ),
    ];
    insta::assert_snapshot!(said.join("\n"));
}

fn probed() -> Value {
    pod_with(
        &json!({}),
        &json!({"containers": [
            {
                "name": "web", "ports": [{"name": "http", "containerPort": 8080}],
                "livenessProbe": {"httpGet": {"path": "/live?full=1", "port": "http", "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 5},
                "readinessProbe": {"httpGet": {"path": "ready$(X)$$a$b$$(POD_IP)$", "port": 8443, "scheme": "HTTPS"}},
                "startupProbe": {"exec": {"command": ["true"]}},
                "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": 8080}}},
            },
            {
                "name": "db",
                "livenessProbe": {"periodSeconds": 3, "tcpSocket": {"port": 5432}, "failureThreshold": 2},
                "readinessProbe": {"grpc": {"port": 9000, "service": "x"}},
                "startupProbe": {"grpc": {"port": 9000}},
            },
            {"name": "other", "livenessProbe": {"httpGet": {"host": "example.com", "port": 80}}},
        ]}),
    )
}

#[test]
fn probes_go_through_the_sidecar() {
    let report = object(&probed(), &settings()).unwrap();
    let pod = report.object.unwrap();
    let mut seen: Vec<_> = ["web", "db", "other"].iter().map(|name| container(&pod, name).clone()).collect();
    seen.push(bootstrap_of(&pod)["static_resources"]["listeners"].clone());
    seen.push(bootstrap_of(&pod)["static_resources"]["clusters"].clone());
    insta::assert_snapshot!(remora_xds::write_yaml(&seen.into()));
    assert_eq!(
        report.notes,
        ["Pod shop/web: spec.containers[2].livenessProbe asks example.com, and is left as it is"]
    );
    assert_eq!(option(container(&pod, INIT), "--exclude-inbound-ports").unwrap(), "15021,15030");
}

#[test]
fn probes_stay_where_the_kubelet_reaches_the_program() {
    for annotation in ["remora.dev/rewrite-probes", "sidecar.istio.io/rewriteAppHTTPProbers"] {
        let mut pod = probed();
        pod["metadata"]["annotations"] = json!({annotation: "false"});
        assert_eq!(container(&of(&pod), "web"), container(&pod, "web"), "{annotation}");
    }
    let mut pod = probed();
    pod["metadata"]["annotations"] = json!({"remora.dev/interception": "none"});
    assert_eq!(container(&of(&pod), "db"), container(&pod, "db"));
}

/// The proxy's own code reads what the pod would start it with.
#[test]
fn the_proxy_takes_the_bootstrap() {
    for interception in [Interception::Init, Interception::None] {
        let pod = object(&probed(), &Settings { interception, ..settings() }).unwrap().object.unwrap();
        let text = expanded(&option(container(&pod, PROXY), "--config-yaml").unwrap());
        let loaded = remora_proxy::app::load_text(&text, "bootstrap", true);
        loaded.and_then(remora_proxy::app::check).unwrap_or_else(|error| panic!("{error}"));
        let bootstrap: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bootstrap["node"]["id"], "sidecar~10.0.0.9~web-1.shop~shop.svc");
        assert_eq!(text.contains("\"/ready$(X)$$a$b$$(POD_IP)$\""), interception == Interception::Init);
    }
}

#[test]
fn the_options_are_those_of_the_proxy() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: remora_proxy::cli::ProxyArgs,
    }
    let pod = of(&pod_with(&json!({}), &json!({"terminationGracePeriodSeconds": 20})));
    let proxy = container(&pod, PROXY);
    let args: Vec<_> = proxy["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let parsed = <Command as clap::Parser>::try_parse_from(&args).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(parsed.args.drain_time_s, 15, "5 s before it is killed");
}

#[test]
fn a_classic_sidecar_of_a_job_is_warned_about() {
    let job = |native| {
        let pod = pod_with(&json!({}), &json!({"restartPolicy": "Never"}));
        object(&pod, &Settings { native, ..settings() }).unwrap().notes
    };
    assert!(job(Native::No)[0].contains("quitquitquit"));
    assert_eq!(job(Native::Yes), [] as [String; 0]);
}

/// RFC 6902, as far as `diff` goes.
fn apply(document: &mut Value, operations: &Value) {
    for operation in operations.as_array().unwrap() {
        let path = operation["path"].as_str().unwrap();
        let (parent, last) = path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        let value = operation["value"].clone();
        match (operation["op"].as_str().unwrap(), document.pointer_mut(parent).unwrap()) {
            ("add", Value::Array(list)) => list.insert(last.parse().unwrap(), value),
            ("add", Value::Object(map)) => assert_eq!(map.insert(last, value), None),
            ("replace", Value::Array(list)) => list[last.parse::<usize>().unwrap()] = value,
            ("replace", Value::Object(map)) => assert!(map.insert(last, value).is_some()),
            ("remove", Value::Object(map)) => assert!(map.remove(&last).is_some()),
            (op, parent) => panic!("{op} in {parent}"),
        }
    }
}

fn asked(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": "shop", "object": object,
        },
    })
}

fn patched(pod: &Value, answer: &Value) -> Value {
    use base64::Engine;
    let patch = answer["response"]["patch"].as_str().unwrap();
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
    let mut pod = pod.clone();
    apply(&mut pod, &serde_json::from_slice(&patch).unwrap());
    pod
}

#[test]
fn the_webhook_answers_with_a_patch_that_makes_the_same_pod() {
    let pod = probed();
    let answer = review(&asked(&pod), &settings(), true);
    assert_eq!(
        (&answer["response"]["uid"], &answer["response"]["allowed"]),
        (&json!("705ab4f5"), &json!(true))
    );
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    assert_eq!(answer["response"]["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(patched(&pod, &answer), of(&pod));

    let mut bare = pod_with(&json!({}), &json!({}));
    bare["metadata"] = json!({"generateName": "web-"});
    for field in ["apiVersion", "kind"] {
        bare.as_object_mut().unwrap().shift_remove(field);
    }
    let done = patched(&bare, &review(&asked(&bare), &settings(), true));
    assert_eq!(done.as_object().unwrap().len(), 2, "nothing is added that only tells what it is");
    assert!(done["metadata"].get("namespace").is_none());
    assert_eq!(bootstrap_of(&done)["node"]["metadata"]["APP"], "web");
}

#[test]
fn the_webhook_leaves_alone_what_is_not_asked_for() {
    let allowed = |question: &Value, opted_in| {
        let answer = review(question, &settings(), opted_in);
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        answer["response"] == json!({"allowed": true, "uid": "705ab4f5"})
    };
    let pod = pod_with(&json!({}), &json!({}));
    assert!(allowed(&asked(&pod), false), "the namespace has not opted in");
    assert!(!allowed(
        &asked(&pod_with(&json!({"labels": {"remora.dev/inject": "true"}}), &json!({}))),
        false
    ));
    assert!(allowed(&asked(&of(&pod)), true), "it has been injected");
    let mut update = asked(&pod);
    update["request"]["operation"] = "UPDATE".into();
    assert!(allowed(&update, true));
    let mut service = asked(&pod);
    service["request"]["kind"]["kind"] = "Service".into();
    assert!(allowed(&service, true));
    let mut system = asked(&pod);
    system["request"]["namespace"] = "kube-system".into();
    system["request"]["object"]["metadata"].as_object_mut().unwrap().remove("namespace");
    assert!(allowed(&system, true));
}

#[test]
fn the_webhook_denies_what_it_cannot_do() {
    let denied = |question: &Value| {
        let answer = review(question, &settings(), true);
        assert_eq!(answer["response"]["allowed"], false);
        answer["response"]["status"]["message"].as_str().unwrap().to_owned()
    };
    let mut old = asked(&probed());
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let mut empty = asked(&probed());
    empty["request"]["object"] = Value::Null;
    let said = [
        denied(&old),
        denied(&empty),
        denied(&Value::Null),
        denied(&asked(&annotated(&json!({"remora.dev/proxy-cpu": "lots"})))),
    ];
    insta::assert_snapshot!(said.join("\n"));
}

fn probe() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"httpGet": {"path": "/a?b=c", "port": "http"}})),
        Just(json!({"httpGet": {"port": 8443, "scheme": "HTTPS"}})),
        Just(json!({"tcpSocket": {"port": 5432}, "periodSeconds": 1})),
        (1_u16..5).prop_map(|port| json!({"grpc": {"port": port}})),
        Just(json!({"exec": {"command": ["true"]}})),
        Just(Value::Null),
    ]
}

fn one_container(name: &'static str) -> impl Strategy<Value = Value> {
    (probe(), probe(), any::<bool>()).prop_map(move |(live, ready, always)| {
        let mut container = json!({
            "name": name, "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": live, "readinessProbe": ready,
        });
        if always && name.starts_with("init") {
            container["restartPolicy"] = "Always".into();
        }
        container
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let inits = prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        one_container("init-a").prop_map(|one| json!([one])),
        (one_container("init-a"), one_container("init-b")).prop_map(|(a, b)| json!([a, b])),
    ];
    let annotations = prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!({"remora.dev/interception": "cni"})),
        Just(json!({"remora.dev/interception": "none", "a~b/c": "d"})),
    ];
    let spec = (inits, one_container("web"), prop::option::of(one_container("db")), any::<bool>());
    (spec, annotations).prop_map(|((inits, web, db, volumes), annotations)| {
        let mut pod = pod_with(&json!({"annotations": annotations}), &json!({"initContainers": inits}));
        pod["spec"]["containers"] = std::iter::once(web).chain(db).collect();
        if volumes {
            pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        }
        pod
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn twice_is_once_and_the_patch_makes_the_same(pod in any_pod(), classic in any::<bool>()) {
        let settings = Settings { native: if classic { Native::No } else { Native::Yes }, ..settings() };
        let once = object(&pod, &settings).unwrap().object.unwrap();
        let twice = object(&once, &settings).unwrap();
        prop_assert_eq!(&twice.object, &None);
        prop_assert_eq!(twice.skipped[0].1, Skip::Injected);
        let mut patched = pod.clone();
        apply(&mut patched, &diff(&pod, &once).into());
        prop_assert_eq!(&patched, &once);
        // The same through text.
        let text = remora_xds::write_yaml(&pod);
        let text = documents(&texts(&text), &settings).unwrap().yaml;
        prop_assert_eq!(&documents(&texts(&text), &settings).unwrap().yaml, &text);
        prop_assert_eq!(text, remora_xds::write_yaml(&once));
    }
}
