//! The server of the injection webhook, and what its API server believes it by.
//!
//! Its certificate is the mesh's authority's, for the name of the Service before it; it is replaced at half of its life and when another
//! root signs. The roots are written to the MutatingWebhookConfiguration, all that are trusted: a root is announced before it signs.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use remora_proxy::tls::TlsParams;
use remora_proxy::tls::material::OwnCertificate;
use remora_proxy::tls::secret::Secret;
use remora_proxy::tls::server::{ServerParams, ServerTls};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::ca::Refused;
use crate::ca::authority::Authority;
use crate::control::own::{Held, Own};
use crate::inject::{Settings, review};
use crate::rest;

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at one time; what is above waits to be accepted.
const CONNECTIONS: usize = 256;
/// Between attempts to get a certificate.
const RETRY: Duration = Duration::from_secs(1);
/// Between looks at what API servers believe: somebody may have written the configuration anew.
const LOOK: Duration = Duration::from_secs(5);
/// Largest question: an object has at most 1.5 MiB in etcd, and a review has it twice when it changes.
const MAX_BODY: usize = 8 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) own: Own,
    pub(crate) settings: Settings,
    /// Name of the MutatingWebhookConfiguration.
    pub(crate) configuration: String,
}

impl Webhook {
    /// Serves for ever.
    pub(crate) async fn serve(mut self, listener: TcpListener, client: Client) {
        if self.settings.cluster.is_none() {
            // Without an answer it is one that has native sidecars, as for `remora inject`.
            let version = client.apiserver_version().await.ok();
            self.settings.cluster = version.and_then(|v| format!("{}.{}", v.major, v.minor).parse().ok());
        }
        let (tls, shown, held) = loop {
            match self.begin().await {
                Ok((tls, shown, held)) => break (Arc::new(tls), shown, held),
                Err(error) => error!(%error, "the webhook has no certificate yet; tried again"),
            }
            sleep(RETRY).await;
        };
        let accept = accept(listener, tls, router(self.settings.clone()));
        tokio::join!(accept, self.renew(&shown, held), self.believed(client));
    }

    async fn begin(&self) -> Result<(ServerTls, Arc<Secret<OwnCertificate>>, Held), Refused> {
        let (own, held) = self.own.issue().await?;
        let params = ServerParams {
            tls: TlsParams { alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()], ..TlsParams::default() },
            ..ServerParams::default()
        };
        let own = Secret::inline(own);
        let tls = ServerTls::new(params, vec![Arc::clone(&own)], None);
        Ok((tls.map_err(|e| Refused::Signing(e.to_string()))?, own, held))
    }

    /// Replaces the certificate in time.
    async fn renew(&self, shown: &Secret<OwnCertificate>, mut held: Held) {
        let mut changes = self.own.ca.changes();
        loop {
            tokio::select! {
                () = sleep_until(held.until) => {}
                more = changes.next() => {
                    if !more {
                        return;
                    }
                    if !self.own.is_outdated(&held) {
                        continue;
                    }
                }
            }
            match self.own.issue().await {
                Ok((own, next)) => {
                    shown.set(Arc::new(own));
                    held = next;
                }
                Err(error) => {
                    error!(%error, "the certificate of the webhook is not replaced; tried again");
                    held.until = Instant::now() + RETRY;
                }
            }
        }
    }

    /// Keeps the roots in the configuration.
    async fn believed(&self, client: Client) {
        let resource = ApiResource {
            group: "admissionregistration.k8s.io".into(),
            version: "v1".into(),
            api_version: "admissionregistration.k8s.io/v1".into(),
            kind: "MutatingWebhookConfiguration".into(),
            plural: "mutatingwebhookconfigurations".into(),
        };
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let mut changes = self.own.ca.changes();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = String::new();
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                more = changes.next() => if !more { return },
            }
            let Ok(roots) = self.own.ca.read(Authority::trusted) else { continue };
            match believe(&api, &self.configuration, &roots).await {
                Ok(written) => {
                    if written {
                        info!(
                            configuration = self.configuration,
                            "API servers believe the webhook by these roots"
                        );
                    }
                    said.clear();
                }
                Err(error) => {
                    let text = match error {
                        kube::Error::Api(status) if status.code == 404 => {
                            "there is none; apply the manifests of deploy/kubernetes".to_owned()
                        }
                        other => other.to_string(),
                    };
                    if said != text {
                        warn!(
                            configuration = self.configuration,
                            error = text,
                            "API servers cannot believe the webhook"
                        );
                        said = text;
                    }
                }
            }
        }
    }
}

/// Writes `roots` to every webhook of the configuration. False: they are there.
async fn believe(api: &Api<DynamicObject>, name: &str, roots: &str) -> Result<bool, kube::Error> {
    let bundle = STANDARD.encode(roots);
    let configuration = api.get(name).await?;
    let webhooks = configuration.data["webhooks"].as_array().into_iter().flatten();
    let stale = webhooks.filter(|webhook| webhook["clientConfig"]["caBundle"] != *bundle);
    let patches: Vec<Value> =
        stale.map(|webhook| json!({"name": webhook["name"], "clientConfig": {"caBundle": bundle}})).collect();
    if patches.is_empty() {
        return Ok(false);
    }
    let patch = json!({ "webhooks": patches });
    api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(true)
}

/// By the path: whether the namespace of a pod has opted in, which API servers know without a race, since they chose the webhook by the
/// namespace's labels.
fn router(settings: Settings) -> Router {
    let asked = Arc::new(settings);
    Router::new()
        .route(
            "/inject",
            post(|State(settings): State<Arc<Settings>>, body: Bytes| answer(settings, body, true)),
        )
        .route(
            "/inject/asked",
            post(|State(settings): State<Arc<Settings>>, body: Bytes| answer(settings, body, false)),
        )
        // For the kubelet.
        .route("/readyz", get(async || "ok\n"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(asked)
}

async fn answer(settings: Arc<Settings>, body: Bytes, opted_in: bool) -> Response {
    let asked: Value = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("no AdmissionReview: {error}\n")).into_response();
        }
    };
    let answer = review(&asked, &settings, opted_in);
    tell(&asked["request"], &answer["response"]);
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, answer.to_string()).into_response()
}

fn tell(request: &Value, response: &Value) {
    let metadata = &request["object"]["metadata"];
    let pod = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default();
    let namespace = request["namespace"].as_str().unwrap_or_default();
    if response["allowed"] != true {
        let why = response["status"]["message"].as_str().unwrap_or_default();
        warn!(namespace, pod, why, "a pod is denied");
    } else if response.get("patch").is_some() {
        info!(namespace, pod, "a pod gets a sidecar");
    } else {
        debug!(namespace, pod, "a pod stays as it is");
    }
}

/// Accepts connections, each in its own task.
async fn accept(listener: TcpListener, tls: Arc<ServerTls>, router: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router) = (Arc::clone(&tls), router.clone());
        tokio::spawn(async move {
            // Without an answer to this the socket works all the same.
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE, tls.accept(stream, &[])).await {
                Ok(Ok((stream, _))) => rest::connection(stream, address, router).await,
                Ok(Err(why)) => debug!(%address, %why, "no handshake"),
                Err(_) => debug!(%address, "no handshake in time"),
            }
            drop(slot);
        });
    }
}

/// What the webhook is called by its Service: `NAME.NAMESPACE.svc`.
pub(crate) fn names(service: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{service:?}: write it as NAMESPACE/NAME");
    let (namespace, name) = service.split_once('/').ok_or_else(wrong)?;
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok(vec![format!("{name}.{namespace}.svc"), format!("{name}.{namespace}.svc.cluster.local")])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use http_body_util::BodyExt;
    use tonic::codegen::Service;

    use super::*;

    async fn ask(path: &str, body: String) -> (StatusCode, String) {
        let settings = Settings::new(SocketAddr::from(([10, 96, 0, 12], 15_012)));
        let request: axum::extract::Request = http::Request::post(path).body(body.into()).unwrap();
        let response = router(settings).call(request).await.unwrap();
        let code = response.status();
        (code, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap())
    }

    fn review_of(labels: &BTreeMap<&str, &str>) -> String {
        let pod = json!({
            "metadata": {"generateName": "web-", "labels": labels},
            "spec": {"containers": [{"name": "web", "image": "web:1"}]},
        });
        let request = json!({
            "uid": "u1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": "shop", "object": pod,
        });
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
            .to_string()
    }

    #[tokio::test]
    async fn the_path_says_whether_the_namespace_asks() {
        let asks = BTreeMap::from([("remora.dev/inject", "true")]);
        let silent = BTreeMap::new();
        for (path, labels, injected) in
            [("/inject", &silent, true), ("/inject/asked", &silent, false), ("/inject/asked", &asks, true)]
        {
            let (code, body) = ask(path, review_of(labels)).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((code, &body["response"]["allowed"]), (StatusCode::OK, &true.into()), "{body}");
            assert_eq!(body["response"].get("patch").is_some(), injected, "{path} {labels:?}");
        }
        let (code, text) = ask("/inject", "{".into()).await;
        assert!(code == StatusCode::BAD_REQUEST && text.contains("no AdmissionReview"), "{code} {text}");
    }

    #[test]
    fn the_names_are_those_of_the_service() {
        assert_eq!(names("remora-system/control").unwrap()[0], "control.remora-system.svc");
        for wrong in ["control", "/control", "a/", "a/b/c"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }
}
