//! What is to be done for a pod. Pure.

use serde_json::Value;

use super::failure::{Code, Failure};
use crate::inject;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, and why.
    Leave(&'static str),
    /// The rules of `remora init` with these arguments, its name first.
    Rules(Vec<String>),
}

/// Options of `remora init` that the injector writes, with a value each. Others would do more than what a pod's annotations may ask for.
const OPTIONS: [&str; 10] = [
    "--inbound-port",
    "--outbound-port",
    "--proxy-uid",
    "--include-inbound-ports",
    "--exclude-inbound-ports",
    "--include-outbound-cidrs",
    "--exclude-outbound-cidrs",
    "--include-outbound-ports",
    "--exclude-outbound-ports",
    "--exclude-interfaces",
];

/// Those without a value.
const FLAGS: [&str; 1] = ["--capture-dns"];

/// `pod` as the API server has it, `uid` as the kubelet says.
///
/// # Errors
/// It is another pod of that name, or its annotation is none of the injector's.
pub(super) fn decide(pod: &Value, uid: Option<&str>) -> Result<Decision, Failure> {
    let annotations = &pod["metadata"]["annotations"];
    // Before the uid: a kubelet has another one of its own for them.
    if annotations.get("kubernetes.io/config.mirror").is_some() {
        return Ok(Decision::Leave("a static pod"));
    }
    if uid.is_some_and(|uid| pod["metadata"]["uid"] != uid) {
        let details = "one was made anew under its name; this one is about to go";
        return Err(Failure::new(Code::Later, "the API server has another pod of this name", details));
    }
    let named = |part: &str| {
        let all = pod["spec"][part].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().any(|container| container["name"] == inject::PROXY)
    };
    if !named("initContainers") && !named("containers") {
        return Ok(Decision::Leave("no sidecar"));
    }
    match annotations.get(inject::RULES).and_then(Value::as_str) {
        Some(text) => arguments(text).map(Decision::Rules),
        None if annotations["remora.dev/interception"] == "cni" => {
            let details = "it was injected by a version that does not write it: inject it anew";
            Err(Failure::new(
                Code::Annotation,
                format!("the annotation {} is missing", inject::RULES),
                details,
            ))
        }
        None => Ok(Decision::Leave("its rules are made by its init container, or by nobody")),
    }
}

/// # Errors
/// It is no list of the options above, or one of them has no value.
fn arguments(text: &str) -> Result<Vec<String>, Failure> {
    let wrong = |why: String| {
        let msg = format!("the annotation {} cannot be used", inject::RULES);
        Failure::new(Code::Annotation, msg, format!("{why}; only the injector writes it"))
    };
    let words: Vec<String> = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let mut rest = words.iter();
    while let Some(option) = rest.next() {
        if FLAGS.contains(&option.as_str()) {
            continue;
        }
        if !OPTIONS.contains(&option.as_str()) {
            return Err(wrong(format!("{option:?} is none of its options")));
        }
        if rest.next().is_none() {
            return Err(wrong(format!("{option:?} has no value")));
        }
    }
    Ok(std::iter::once("init".to_owned()).chain(words).collect())
}
