//! The manifests of deploy/kubernetes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};

use remora_control::kubernetes::crds;

fn at(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes").join(name)
}

#[test]
fn the_definitions_are_those_of_the_kinds() {
    let mut wanted = "# Made of control-api/control/src/kinds.rs by `UPDATE=1 cargo test -p remora-control --test kubernetes`; do not edit.\n"
        .to_owned();
    for (number, definition) in crds::all().enumerate() {
        if number > 0 {
            wanted.push_str("---\n");
        }
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert!(spec["properties"].is_object(), "made of its type: {definition}");
        let text = remora_xds::write_yaml(&definition);
        assert!(!text.contains("[`") && !text.contains("::"), "descriptions are for users");
        wanted.push_str(&text);
    }
    // Helm wants a file of its own inside of the chart.
    for path in [at("crds.yaml"), at("../helm/remora/crds/crds.yaml")] {
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let name = path.display();
        assert!(
            found == wanted,
            "{name} is out of date: run UPDATE=1 cargo test -p remora-control --test kubernetes"
        );
    }
    assert_eq!(wanted.matches("kind: CustomResourceDefinition").count(), 6);
}

/// What the control plane watches, its role lets it read.
#[test]
fn the_role_has_every_kind() {
    let text = std::fs::read_to_string(at("control.yaml")).unwrap();
    for kind in &remora_control::kinds::KINDS {
        assert!(text.contains(kind.plural), "{}", kind.plural);
    }
}
