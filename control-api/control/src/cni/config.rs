//! The configuration of a CNI call: one plugin of a list, as the runtime hands it over.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::environment::Command;
use super::failure::{Code, Failure};

/// Versions of the specification that are spoken: those with `prevResult`. CHECK came with 0.4.0, GC and STATUS with 1.1.0.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What runtimes and people may write for any plugin.
const STANDARD: [&str; 9] =
    ["cniVersion", "name", "type", "prevResult", "runtimeConfig", "capabilities", "args", "ipam", "dns"];
/// Fields that begin so are the specification's.
const RESERVED: &str = "cni.dev/";

/// What a call is done with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    /// Of the specification.
    pub(super) version: String,
    /// By which the API server is asked. A path of the node.
    pub(super) kubeconfig: PathBuf,
    /// Namespaces whose pods are left alone, without asking.
    pub(super) exclude_namespaces: Vec<String>,
    /// What the plugins before this one made.
    pub(super) previous: Option<Value>,
}

/// Version of the configuration, as far as it can be read: for the answer, whatever that is.
pub(super) fn version(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    value["cniVersion"].as_str().map(ToOwned::to_owned)
}

/// Of what only ends: the version, and nothing else. No mistake in a configuration may keep a pod from its end.
///
/// # Errors
/// It is no configuration, or of a version that is not spoken.
pub(super) fn accept(text: &str, command: Command) -> Result<(), Failure> {
    supported(&fields(text)?, command).map(drop)
}

/// # Errors
/// It is no configuration, of a version that is not spoken, or says what is not known.
pub(super) fn read(text: &str, command: Command) -> Result<Config, Failure> {
    let fields = fields(text)?;
    let version = supported(&fields, command)?;
    let wrong = |msg: &str, details: &str| Failure::new(Code::Config, msg, details);
    if fields.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(wrong("name is missing", "a network has a name"));
    }
    let known = |name: &str| {
        STANDARD.contains(&name)
            || name.starts_with(RESERVED)
            || matches!(name, "kubeconfig" | "excludeNamespaces")
    };
    if let Some(name) = fields.keys().find(|name| !known(name)) {
        let details = "known are kubeconfig and excludeNamespaces, and what the specification has";
        return Err(Failure::new(Code::Field, format!("the field {name} is not known"), details));
    }
    let Some(kubeconfig) =
        fields.get("kubeconfig").and_then(Value::as_str).filter(|path| path.starts_with('/'))
    else {
        return Err(wrong("kubeconfig is missing", "write the path of a kubeconfig on this node, from / on"));
    };
    let excluded = match fields.get("excludeNamespaces") {
        None => Some(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(|one| one.as_str().map(ToOwned::to_owned)).collect(),
        Some(_) => None,
    };
    let Some(exclude_namespaces) = excluded else {
        return Err(wrong("excludeNamespaces is wrong", "write a list of names: [\"kube-system\"]"));
    };
    let previous = match fields.get("prevResult") {
        None | Some(Value::Null) => None,
        Some(Value::Object(result)) => Some(Value::Object(result.clone())),
        Some(_) => return Err(wrong("prevResult is no result", "it has to be a mapping")),
    };
    Ok(Config { version, kubeconfig: kubeconfig.into(), exclude_namespaces, previous })
}

fn fields(text: &str) -> Result<Map<String, Value>, Failure> {
    let wrong = |why: String| Failure::new(Code::Decode, "standard input is no configuration", why);
    match serde_json::from_str::<Value>(text).map_err(|error| wrong(error.to_string()))? {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong("it has to be a mapping".into())),
    }
}

fn supported(fields: &Map<String, Value>, command: Command) -> Result<String, Failure> {
    // What has no version is of the first one.
    let version = fields.get("cniVersion").map_or(Some("0.1.0"), Value::as_str);
    let place = version.and_then(|version| VERSIONS.iter().position(|known| *known == version));
    let (Some(version), Some(place)) = (version, place) else {
        let msg = format!("cniVersion {} is not supported", version.unwrap_or("of another type"));
        return Err(Failure::new(Code::Version, msg, format!("supported are {}", VERSIONS.join(", "))));
    };
    let since = match command {
        Command::Check => "0.4.0",
        Command::Gc | Command::Status => "1.1.0",
        Command::Add | Command::Del | Command::Version => VERSIONS[0],
    };
    if VERSIONS.iter().position(|known| *known == since).is_some_and(|first| place < first) {
        let msg = format!("{} does not exist in version {version}", command.name());
        return Err(Failure::new(Code::Version, msg, format!("it came with {since}")));
    }
    Ok(version.to_owned())
}
