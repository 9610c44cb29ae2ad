use serde_json::{Value, json};

use super::*;
use crate::document::Text;

mod by_annotation;
mod left_alone;
mod probes;
mod property;
mod shapes;
mod webhook;

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
