//! What the installer asks the API server: a token for the plugin, whether the one that it has is good, and at its end whether another installer
//! comes.

use std::path::Path;
use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;

use super::chain::{self, Refused, Standing};
use super::folders::KUBECONFIG;
use super::token::{Answer, Question};
use crate::kubernetes;

/// For the API server. Twice that is well within what a kubelet waits for the end of a pod.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is asked for: so long the plugin works on where no installer renews its token.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Namespace and name.
pub(super) type Named = (String, String);

/// Asks for a token of the service account `whose`, or with the one that the plugin has.
pub(super) async fn ask(question: Question, whose: Named) -> Answer {
    match question {
        Question::Token(kubeconfig) => Answer::Token(token(&kubeconfig, &whose).await),
        Question::Known(kubeconfig) => {
            let known = is_known(&kubeconfig).await;
            Answer::Known(kubeconfig, known)
        }
    }
}

/// A token of the service account that is bound to no pod, and how long it is good for.
///
/// # Errors
/// What the API server says, or that it does not answer.
async fn token(kubeconfig: &str, (namespace, name): &Named) -> Result<(String, Duration), String> {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let asked = async {
        let request = Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        request_of(
            &client(kubeconfig).await?,
            request.body(chain::token_request(LIFE).to_string().into_bytes()),
        )
        .await
    };
    let granted = in_time(asked).await.map_err(|(_, why)| why).and_then(|answer| chain::granted(&answer));
    granted
        .map(|(token, life)| (token, life.min(LIFE)))
        .map_err(|why| format!("of {namespace}/{name}: {why}"))
}

/// Whether the API server knows the token: one that has ended, or whose account is gone, is answered with 401 whatever is asked. This every
/// account may ask. True also where nobody says.
async fn is_known(kubeconfig: &str) -> bool {
    let asked =
        async { request_of(&client(kubeconfig).await?, Request::get("/version").body(Vec::new())).await };
    !matches!(in_time(asked).await, Err((Some(401), _)))
}

/// Whether the DaemonSet stands, and its namespace: of one that is deleted, the pods go before the DaemonSet does. It is asked as the plugin
/// asks, by its kubeconfig, for the installer's `own` ends when its pod is deleted by force; but that is asked by where there is no
/// other, or its token is no good.
///
/// # Errors
/// Who asks is not known, or may not: the account or its rights are gone, or the API server refuses for a moment.
pub(super) async fn standing(kubeconfig: &Path, own: &str, daemon_set: &Named) -> Result<Standing, String> {
    let found = std::fs::read_to_string(kubeconfig).unwrap_or_default();
    let mut said = Err((Some(401), String::new()));
    if !found.is_empty() {
        said = in_time(both(&found, daemon_set)).await;
    }
    if matches!(said, Err((Some(401), _))) && found != own {
        said = in_time(both(own, daemon_set)).await;
    }
    match said {
        Ok(standing) => Ok(standing),
        Err((Some(401 | 403), why)) => Err(why),
        Err((_, why)) => Ok(Standing::Unknown(why)),
    }
}

async fn both(kubeconfig: &str, (namespace, name): &Named) -> Result<Standing, Refused> {
    let client = client(kubeconfig).await?;
    let get = async |path: String| request_of(&client, Request::get(path).body(Vec::new())).await;
    let namespaces = chain::namespace_standing(get(format!("/api/v1/namespaces/{namespace}")).await)?;
    if namespaces == Standing::Gone {
        return Ok(Standing::Gone);
    }
    match chain::standing(get(format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")).await)? {
        Standing::Stands => Ok(namespaces),
        other => Ok(other),
    }
}

async fn client(kubeconfig: &str) -> Result<Client, Refused> {
    kubernetes::direct_by(kubeconfig, Path::new(KUBECONFIG)).await.map_err(unasked)
}

fn unasked(why: String) -> Refused {
    (None, why)
}

async fn request_of(client: &Client, request: http::Result<Request<Vec<u8>>>) -> Result<Value, Refused> {
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
