//! A network's configuration list with one plugin more, or without it. Pure.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::NAME;

/// The plugin in a list. `kubeconfig` is a path of the node.
pub(super) fn entry(kubeconfig: &Path, exclude_namespaces: &[String]) -> Value {
    json!({"type": NAME, "kubeconfig": kubeconfig.display().to_string(), "excludeNamespaces": exclude_namespaces})
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == NAME
}

/// Whether the list has the plugin.
pub(super) fn has(list: &Value) -> bool {
    list["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(is_ours))
}

/// Whether the list has the plugin once, at its end.
pub(super) fn is_last(list: &Value) -> bool {
    let Some(plugins) = list["plugins"].as_array() else { return false };
    plugins.iter().position(is_ours).is_some_and(|at| at + 1 == plugins.len())
}

/// The list with `entry` at its end, once. Everything else stays as it is.
///
/// # Errors
/// It is no list of plugins, or of a version without `prevResult`.
pub(super) fn with(list: &Value, entry: &Value) -> Result<Value, String> {
    let plugins = list["plugins"].as_array().filter(|plugins| plugins.iter().any(|plugin| !is_ours(plugin)));
    let Some(plugins) = plugins else { return Err("is no list of plugins".into()) };
    // Of several versions (`cniVersions`) the runtime chooses one.
    let several = list["cniVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut versions = several.iter().chain([&list["cniVersion"]]).filter_map(Value::as_str);
    if !versions.any(|version| super::config::VERSIONS.contains(&version)) {
        let version = list["cniVersion"].as_str().unwrap_or("0.1.0");
        return Err(format!("is of version {version}, and plugins are chained from 0.3.0 on"));
    }
    let others = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned();
    let mut list = list.clone();
    list["plugins"] = others.chain([entry.clone()]).collect();
    Ok(list)
}

/// The list without the plugin; None: it has none.
pub(super) fn without(list: &Value) -> Option<Value> {
    if !has(list) {
        return None;
    }
    let mut list = list.clone();
    list["plugins"].as_array_mut()?.retain(|plugin| !is_ours(plugin));
    Some(list)
}

/// A kubeconfig in JSON, which is YAML.
pub(super) fn kubeconfig(server: &str, authority: &str, token: &str) -> String {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": NAME,
        "clusters": [{"name": NAME, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
    });
    format!("{text}\n")
}

/// Whether this is a kubeconfig as [`kubeconfig`] makes it for this API server, with whatever token.
pub(super) fn is_for(text: &str, server: &str, authority: &str) -> bool {
    let Ok(file) = serde_json::from_str::<Value>(text) else { return false };
    let cluster = &file["clusters"][0]["cluster"];
    cluster["server"] == server && cluster["certificate-authority-data"] == authority
}

/// Asks for a token that is bound to no pod, and good for `life`.
pub(super) fn token_request(life: Duration) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": life.as_secs()},
    })
}

/// The token of the answer, and how long it is good for: API servers may shorten what was asked for.
///
/// # Errors
/// There is none in it.
pub(super) fn granted(answer: &Value) -> Result<(String, Duration), String> {
    let token = answer["status"]["token"].as_str().filter(|token| !token.is_empty());
    match (token, answer["spec"]["expirationSeconds"].as_u64()) {
        (Some(token), Some(seconds)) => Ok((token.to_owned(), Duration::from_secs(seconds))),
        _ => Err("the answer has no token, or does not say how long it is good for".into()),
    }
}

/// What an API server says of a DaemonSet or its namespace, and what that means for a plugin whose installer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Another pod of it comes, or may.
    Stands,
    /// It is gone, or going.
    Gone,
    /// Nobody says.
    Unknown(String),
}

/// The status of an answer, if one came, and its words or what else was wrong.
pub(super) type Refused = (Option<u16>, String);

/// What is said of a DaemonSet.
///
/// # Errors
/// 401: whoever asked is not known, which says nothing of what was asked for. 403: the rights may have gone before the pod, or not be known yet.
pub(super) fn standing(answer: Result<Value, Refused>) -> Result<Standing, Refused> {
    match answer {
        Ok(object) if object["metadata"]["deletionTimestamp"].is_string() => Ok(Standing::Gone),
        Ok(_) => Ok(Standing::Stands),
        Err((Some(status @ (401 | 403)), why)) => Err((Some(status), why)),
        Err((Some(404), _)) => Ok(Standing::Gone),
        Err((_, why)) => Ok(Standing::Unknown(why)),
    }
}

/// What is said of its namespace. Installers of other versions have no right to ask, which decides nothing.
///
/// # Errors
/// As [`standing`].
pub(super) fn namespace_standing(answer: Result<Value, Refused>) -> Result<Standing, Refused> {
    match answer {
        Err((Some(403), _)) => Ok(Standing::Stands),
        answer => standing(answer),
    }
}
