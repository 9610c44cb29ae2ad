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
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK, 11 documents"));
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
