//! The examples in deploy/ are right, and `remora check` says what is wrong with others.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples")
}

fn check(files: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remora")).args(["check", "-f"]).args(files).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_documents_of_the_demo_are_right() {
    let output = check(&[&examples().join("demo.yaml")]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK, 12 documents"));
}

#[test]
fn the_bootstrap_for_a_machine_is_right_with_the_routes_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["bootstrap.yaml", "routes.yaml"] {
        let text = std::fs::read_to_string(examples().join("vm").join(name)).unwrap();
        let here = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join(name), text.replace("/etc/remora", here)).unwrap();
    }
    let bootstrap = folder.path().join("bootstrap.yaml");
    let output = check(&[&bootstrap]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));

    let routes = folder.path().join("routes.yaml");
    let broken = std::fs::read_to_string(&routes).unwrap().replace("timeout: 5s", "timeuot: 5s");
    std::fs::write(&routes, broken).unwrap();
    let output = check(&[&bootstrap]);
    assert_eq!(output.status.code(), Some(2), "a file that a bootstrap names is checked with it");
    assert!(errors(&output).contains("timeout"), "{}", errors(&output));
}

/// With the options that its `proxy.env` gives to the proxy; with nothing else the names of secrets would be nobody's.
#[test]
fn the_bootstrap_of_the_package_is_right() {
    let bootstrap = examples().join("../systemd/proxy.yaml");
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["proxy", "--check", "--ca", "https://192.0.2.10:15012", "-c"])
        .arg(&bootstrap)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
}

#[test]
fn mistakes_between_files_are_found_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let service =
        file("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n");
    let policy = file(
        "b.yaml",
        "apiVersion: remora.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec:\n  targetRefs:\n  - name: aa\n",
    );
    let output = check(&[&service, &policy]);
    assert_eq!(output.status.code(), Some(2));
    let text = errors(&output);
    assert!(
        text.contains(
            "b.yaml:6:5: spec.targetRefs[0].name: there is no Service default/aa (did you mean a?)"
        ),
        "{text}"
    );
    assert!(text.contains("1 mistake(s)"), "{text}");
}

const SHADOWED: &str = "apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, name: a}]
  rules:
  - matches:
    - path: {value: /x}
    backendRefs: [{name: a, port: 8080}]
  - matches:
    - path: {value: /x}
    backendRefs: [{name: a, port: 8080}]
";

fn checked(text: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .current_dir(folder.path())
        .args(["check", "-f", "mesh.yaml"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), errors(&output))
}

#[test]
fn a_rule_that_no_request_gets_to_is_a_warning_with_both_places() {
    let (status, out, err) = checked(SHADOWED, &[]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("mesh.yaml: OK, 2 documents"), "{out}");
    assert!(err.contains("warning: mesh.yaml:16:7: spec.rules[1].matches[0]: no request gets here"), "{err}");
    assert!(err.contains("mesh.yaml:13:7: this one, of HTTPRoute/default/r"), "{err}");
    assert_eq!(checked(SHADOWED, &["--strict"]).0, Some(1));
    assert_eq!(checked(&SHADOWED.replace("kind: HTTPRoute", "kind: Gateway"), &["--strict"]).0, Some(2));
}

#[test]
fn tools_get_json_and_sarif() {
    let (status, out, _) = checked(SHADOWED, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status, Some(0));
    let finding = &json["findings"][0];
    assert_eq!((&finding["rule"], &finding["line"]), (&"unreachable-rule".into(), &16.into()));
    assert_eq!(finding["related"]["line"], 13);

    let wrong = SHADOWED.replace("name: a, port: 8080}]\n  -", "name: b, port: 8080}]\n  -");
    let (status, out, _) = checked(&wrong, &["-o", "sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status, Some(2));
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let result = &run["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&"reference".into(), &"error".into()));
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "reference");
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "mesh.yaml");
    assert_eq!(place["region"]["startLine"], 14);
}

#[test]
fn every_example_of_documents_is_right() {
    for name in ["demo.yaml", "shop.yaml", "external.yaml", "users.yaml", "abroad.yaml", "vm/mesh.yaml"] {
        let output = check(&[&examples().join(name)]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{name} has warnings");
    }
}
