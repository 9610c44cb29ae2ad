//! What the installer asks the API server: a token for the plugin, and at its end whether another installer comes.

use std::path::Path;
use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;

use super::chain::{self, Standing};
use crate::kubernetes;

/// For the API server. Both questions together are well within what a kubelet waits for the end of a pod.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is asked for: so long the plugin works on where no installer renews its token.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Namespace and name.
pub(super) type Named = (String, String);

/// The status of an answer, if one came, and its words or what else was wrong.
type Refused = (Option<u16>, String);

/// A token of the service account that is bound to no pod, and how long it is good for. `kubeconfig` is the text of one.
///
/// # Errors
/// What the API server says, or that it does not answer.
pub(super) async fn token(kubeconfig: &str, (namespace, name): &Named) -> Result<(String, Duration), String> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let asked = async {
        let client =
            kubernetes::direct_by(kubeconfig, Path::new("the service account")).await.map_err(unasked)?;
        let request = Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        ask(&client, request.body(chain::token_request(LIFE).to_string().into_bytes())).await
    };
    let (token, life) = chain::granted(&in_time(asked).await.map_err(|(_, why)| why)?)?;
    Ok((token, life.min(LIFE)))
}

/// Whether the DaemonSet stands, and its namespace: of one that is deleted, the pods go before the DaemonSet does. It is asked as the plugin
/// asks, by its kubeconfig, which has to work as long as the plugin stays.
pub(super) async fn standing(kubeconfig: &Path, daemon_set: &Named) -> Standing {
    in_time(both(kubeconfig, daemon_set)).await.unwrap_or_else(|(_, why)| Standing::Unknown(why))
}

async fn both(kubeconfig: &Path, (namespace, name): &Named) -> Result<Standing, Refused> {
    let client = kubernetes::direct(kubeconfig).await.map_err(unasked)?;
    let daemon_set = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
    for path in [daemon_set, format!("/api/v1/namespaces/{namespace}")] {
        match chain::standing(ask(&client, Request::get(path).body(Vec::new())).await) {
            Standing::Stands => {}
            other => return Ok(other),
        }
    }
    Ok(Standing::Stands)
}

fn unasked(why: String) -> Refused {
    (None, why)
}

async fn ask(client: &Client, request: http::Result<Request<Vec<u8>>>) -> Result<Value, Refused> {
    let request = request.map_err(|error| unasked(error.to_string()))?;
    client.request::<Value>(request).await.map_err(|error| match &error {
        kube::Error::Api(status) => (Some(status.code), status.message.clone()),
        other => unasked(other.to_string()),
    })
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
    let late = || Err(unasked(format!("the API server did not answer within {} s", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| late())
}
