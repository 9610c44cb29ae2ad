use serde_json::json;

use super::*;

/// Whether rules lead DNS to the sidecar, and what it says of that.
fn dns(pod: &Value) -> String {
    let args = container(pod, INIT)["args"].as_array().unwrap();
    let said = &bootstrap_of(pod)["node"]["metadata"]["DNS_CAPTURE"];
    format!("{} {said}", args.contains(&"--capture-dns".into()))
}

/// Annotations with a value, where that shows, and as what.
const ALL: &[(&str, &str, &str, &str)] = &[
    ("remora.dev/native-sidecar", "false", "native", "null"),
    ("sidecar.istio.io/nativeSidecar", "false", "native", "null"),
    ("remora.dev/interception", "cni", "right", "false"),
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
    ("remora.dev/capture-dns", "true", "dns", "true \"true\""),
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
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "1.1.1.1", "--exclude-outbound-cidrs", "1.1.1.1/32"),
    ("remora.dev/include-outbound-ports", "443", "--include-outbound-ports", "443"),
    ("traffic.sidecar.istio.io/includeOutboundPorts", "443", "--include-outbound-ports", "443"),
    ("remora.dev/exclude-outbound-ports", "3306", "--exclude-outbound-ports", "3306"),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", "3306", "--exclude-outbound-ports", "3306"),
    ("remora.dev/exclude-interfaces", "eth1", "--exclude-interfaces", "eth1"),
    ("traffic.sidecar.istio.io/excludeInterfaces", "eth1", "--exclude-interfaces", "eth1"),
];

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
            "right" => {
                Some(who::containers(pod).any(|(_, c)| c.to_string().contains("NET_ADMIN")).to_string())
            }
            "dns" => Some(dns(pod)),
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
    for &(name, value, what, expected) in ALL {
        let with = of(&annotated(&json!({name: value})));
        assert_eq!(part(&with, what).as_deref(), Some(expected), "{name}");
        assert_ne!(part(&without, what).as_deref(), Some(expected), "{name} is more than the default");
    }
    // No name is known that nothing above uses, but those that are read or tested elsewhere.
    let elsewhere = ["inject", "injected", "origin", "cni", "sidecar", "rewrite-probes", "interception-mode"];
    for name in annotations::known().filter(|name| !elsewhere.contains(name)) {
        assert!(ALL.iter().any(|(used, ..)| *used == format!("remora.dev/{name}")), "{name}");
    }
}

/// What the init container would have been told, the CNI plugin is; what an earlier injection said of another template is gone.
#[test]
fn the_cni_plugin_is_told_what_the_init_container_would_be() {
    let asked = |interception: &str| {
        of(&annotated(&json!({
            "remora.dev/interception": interception, "remora.dev/exclude-inbound-ports": "22", "remora.dev/cni": "[\"of another\"]",
        })))
    };
    let by_init = asked("init");
    assert_eq!(by_init["metadata"]["annotations"].get(RULES), None);
    let args = container(&by_init, INIT)["args"].as_array().unwrap().clone();
    let by_cni = asked("cni");
    let told: Vec<Value> =
        serde_json::from_str(by_cni["metadata"]["annotations"][RULES].as_str().unwrap()).unwrap();
    assert_eq!(told, args[1..]);
    // And it is proved, by a user whose connections are captured, without any right.
    assert_eq!(names(&by_cni, "initContainers"), [INIT, PROXY]);
    let proof = container(&by_cni, INIT);
    let wanted: Vec<_> = args.into_iter().chain([json!("--check")]).collect();
    assert_eq!(proof["args"], json!(wanted));
    assert_eq!(proof["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(proof["securityContext"]["runAsUser"], 65532);
}

/// Each annotation alone, and each with each other where the injector takes both.
#[test]
fn the_cni_plugin_takes_whatever_annotations_ask_for() {
    let is_taken = |annotations: Value| {
        let mut asked = annotated(&annotations);
        asked["metadata"]["annotations"]["remora.dev/interception"] = "cni".into();
        let Ok(report) = object(&asked, &settings()) else { return false };
        let pod = report.object.unwrap();
        let told = crate::cni::arguments_for(&pod).unwrap_or_else(|why| panic!("{annotations}: {why}"));
        // What proves the rules is told the same.
        let proof: Vec<_> = told.unwrap().into_iter().chain(["--check".to_owned()]).collect();
        assert_eq!(container(&pod, INIT)["args"], json!(proof), "{annotations}");
        true
    };
    for (n, &(name, value, ..)) in ALL.iter().enumerate() {
        assert!(is_taken(json!({name: value})), "{name}");
        for &(other, second, ..) in &ALL[..n] {
            is_taken(json!({name: value, other: second}));
        }
    }
}

/// By Istio's name or ours. Only root has a capability in a container.
#[test]
fn a_program_may_see_its_clients() {
    for name in ["remora.dev/interception-mode", "sidecar.istio.io/interceptionMode"] {
        let asked = annotated(&json!({ name: "TPROXY" }));
        let pod = of(&asked);
        let init = container(&pod, INIT);
        assert_eq!(option(init, "--mode").unwrap(), "tproxy", "{name}");
        assert_eq!(option(init, "--proxy-gid").unwrap(), "1337");
        let context = &container(&pod, PROXY)["securityContext"];
        assert_eq!(context["capabilities"], json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
        assert_eq!([&context["runAsUser"], &context["runAsGroup"]], [&json!(0), &json!(1337)]);
        assert_eq!([&context["runAsNonRoot"], &context["privileged"]], [&json!(false), &json!(false)]);
        let bootstrap = option(container(&pod, PROXY), "--config-yaml").unwrap();
        assert!(bootstrap.contains(r#""INTERCEPTION_MODE":"TPROXY""#), "{bootstrap}");
        let notes = object(&asked, &settings()).unwrap().notes;
        assert!(notes[0].contains("runs as root with NET_ADMIN"), "{notes:?}");
    }
    let plain = of(&annotated(&json!({"sidecar.istio.io/interceptionMode": "REDIRECT"})));
    assert_eq!(option(container(&plain, INIT), "--mode"), None);
    assert_eq!(container(&plain, PROXY)["securityContext"]["runAsNonRoot"], true);
    let none = of(&annotated(&json!({"sidecar.istio.io/interceptionMode": "NONE"})));
    assert!(names(&none, "initContainers").iter().all(|name| name != INIT));
    for (field, groups) in
        [("runAsGroup", json!(1337)), ("fsGroup", json!(1337)), ("supplementalGroups", json!([7, 1337]))]
    {
        let mut grouped = annotated(&json!({"remora.dev/interception-mode": "TPROXY"}));
        grouped["spec"]["securityContext"] = json!({ field: groups });
        let said = failure(&grouped);
        assert!(said.contains(&format!("spec.securityContext.{field}")), "{said}");
    }
}

/// NONE is no word of ours, and Istio's does not take rules away from a pod that says in ours what it wants.
#[test]
fn istios_word_for_no_rules_counts_where_ours_say_nothing() {
    const ISTIOS: &str = "sidecar.istio.io/interceptionMode";
    const OURS: &str = "remora.dev/interception-mode";
    let rules = |annotations: Value| {
        let pod = of(&annotated(&annotations));
        let init = who::containers(&pod).find(|(_, c)| c["name"] == INIT);
        init.map(|(_, init)| option(init, "--mode").unwrap_or_else(|| "redirect".into()))
    };
    let mode = |mode: &str| Some(mode.to_owned());
    assert_eq!(rules(json!({ISTIOS: "NONE"})), None);
    assert_eq!(rules(json!({ISTIOS: "NONE", OURS: "TPROXY"})), mode("tproxy"));
    assert_eq!(rules(json!({ISTIOS: "NONE", OURS: "REDIRECT"})), mode("redirect"));
    assert_eq!(rules(json!({ISTIOS: "NONE", "remora.dev/interception": "init"})), mode("redirect"));
    assert_eq!(rules(json!({ISTIOS: "TPROXY", OURS: "REDIRECT"})), mode("redirect"));
    assert_eq!(rules(json!({ISTIOS: "TPROXY", "remora.dev/interception": "init"})), mode("tproxy"));
    // Istio's settings count less than its annotation.
    let config = |mode: &str| format!("interceptionMode: {mode}");
    assert_eq!(rules(json!({"proxy.istio.io/config": config("TPROXY")})), mode("tproxy"));
    assert_eq!(rules(json!({"proxy.istio.io/config": config("NONE")})), None);
    assert_eq!(rules(json!({"proxy.istio.io/config": config("NONE"), ISTIOS: "REDIRECT"})), mode("redirect"));
    assert_eq!(rules(json!({"proxy.istio.io/config": config("NONE"), OURS: "TPROXY"})), mode("tproxy"));
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
        ("remora.dev/interception-mode", "tproxy"),
        ("remora.dev/interception-mode", "NONE"),
        ("sidecar.istio.io/interceptionMode", "none"),
        ("remora.dev/concurrency", "0"),
        ("remora.dev/hold-application", "1"),
        ("remora.dev/log-level", "info; rm"),
        ("remora.dev/log-level", "loud"),
        ("remora.dev/log-level", "a=b=c"),
        ("remora.dev/drain-time-s", "5s"),
        ("remora.dev/capture-dns", "yes"),
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
        ("proxy.istio.io/config", "interceptionMode: 3"),
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
        json!({"remora.dev/interception": "cni", "remora.dev/interception-mode": "TPROXY"}),
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
