//! The server of the injection webhook, and what its API server believes it by.
//!
//! Its certificate is the mesh's authority's, for the name of the Service before it; it is replaced at half of its life and when another
//! root signs. The roots are written to the MutatingWebhookConfiguration, all that are trusted: a root is announced before it signs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use remora_proxy::tls::TlsParams;
use remora_proxy::tls::material::OwnCertificate;
use remora_proxy::tls::secret::Secret;
use remora_proxy::tls::server::{ServerParams, ServerTls};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::ca::Refused;
use crate::ca::authority::Authority;
use crate::connections::{self, Limits, Place};
use crate::control::own::{Held, Own, RETRY};
use crate::inject::{Settings, review};

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at one time. What is above waits, while the one on which nothing has come to its end for longest is closed.
const CONNECTIONS: usize = 256;
/// API servers keep a connection for 90 s without a question, and wait 10 s for an answer.
const LIMITS: Limits = Limits {
    first: Duration::from_secs(10),
    idle: Duration::from_secs(120),
    exchange: Duration::from_secs(15),
    streams: 16,
};
/// Between looks at what API servers believe: somebody may have written the configuration anew.
const LOOK: Duration = Duration::from_secs(5);
/// Largest question: an API server takes objects of 3 MiB, and JSON of what came as protobuf is longer.
const MAX_BODY: usize = 4 << 20;
/// Bytes of all questions that are on their way or being answered. What is above waits.
const MAX_BODIES: usize = 64 << 20;
/// For all of a question. An API server waits 10 s for the answer.
const ARRIVES_IN: Duration = Duration::from_secs(5);

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
        let renew = self.own.renew("the webhook", &shown, held, || ());
        tokio::join!(accept, renew, self.believed(client));
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

/// What answers are made with.
#[derive(Debug)]
struct Answering {
    settings: Settings,
    /// A permit for a byte.
    room: Arc<Semaphore>,
}

/// By the path: whether the namespace of a pod has opted in, which API servers know without a race, since they chose the webhook by the
/// namespace's labels.
fn router(settings: Settings) -> Router {
    let answering = Arc::new(Answering { settings, room: Arc::new(Semaphore::new(MAX_BODIES)) });
    let review = |opted_in| {
        post(
            move |State(all): State<Arc<Answering>>, body: Body| async move { all.answer(body, opted_in).await },
        )
    };
    Router::new()
        .route("/inject", review(true))
        .route("/inject/asked", review(false))
        // For the kubelet.
        .route("/readyz", get(async || "ok\n"))
        .with_state(answering)
}

impl Answering {
    async fn answer(&self, body: Body, opted_in: bool) -> Response {
        let (body, _room) = match question(body, &self.room, ARRIVES_IN).await {
            Ok(question) => question,
            Err(refused) => return refused.into_response(),
        };
        let asked: Value = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => {
                return (StatusCode::BAD_REQUEST, format!("no AdmissionReview: {error}\n")).into_response();
            }
        };
        drop(body);
        let answer = review(&asked, &self.settings, opted_in);
        tell(&asked["request"], &answer["response"]);
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, answer.to_string()).into_response()
    }
}

/// All of a body, and its part of `room`, which is taken as it arrives: what was only announced takes none.
async fn question(
    body: Body,
    room: &Arc<Semaphore>,
    within: Duration,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), (StatusCode, &'static str)> {
    let arrives = async {
        let mut body = Limited::new(body, MAX_BODY);
        let (mut all, mut part): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    (StatusCode::PAYLOAD_TOO_LARGE, "a question has at most 4 MiB\n")
                } else {
                    (StatusCode::BAD_REQUEST, "the question did not arrive\n")
                }
            })?;
            // Trailers say nothing.
            let Ok(data) = frame.into_data() else { continue };
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            // It is never closed.
            let more = Arc::clone(room).acquire_many_owned(bytes).await.ok();
            match (&mut part, more) {
                (Some(part), Some(more)) => part.merge(more),
                (part, more) => *part = part.take().or(more),
            }
            all.extend_from_slice(&data);
        }
        Ok::<_, (StatusCode, &'static str)>((all, part))
    };
    let late = (StatusCode::REQUEST_TIMEOUT, "the question takes too long\n");
    timeout(within, arrives).await.unwrap_or(Err(late))
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
    let serve = move |stream: TcpStream, address: SocketAddr, place: Place| {
        let (tls, router) = (Arc::clone(&tls), router.clone());
        tokio::spawn(async move {
            // Without an answer to this the socket works all the same.
            let _ = stream.set_nodelay(true);
            let shaken = tokio::select! {
                shaken = tls.accept(stream, &[]) => Some(shaken),
                () = place.patience(HANDSHAKE) => None,
            };
            match shaken {
                Some(Ok((stream, _))) => connections::http(stream, address, router, LIMITS, place).await,
                Some(Err(why)) => debug!(%address, %why, "no handshake"),
                None => debug!(%address, "no handshake in time"),
            }
        });
    };
    connections::accept(listener, CONNECTIONS, serve).await;
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

    use axum::body::Bytes;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tonic::codegen::Service;
    use tonic::codegen::tokio_stream;

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

    /// A body whose end does not come.
    fn endless(begins: &'static [u8]) -> Body {
        use tonic::codegen::tokio_stream::StreamExt;
        let begin =
            tokio_stream::once(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(begins))));
        Body::new(StreamBody::new(begin.chain(tokio_stream::pending())))
    }

    #[tokio::test]
    async fn a_question_has_a_largest_size_and_a_time_to_arrive() {
        let (code, _) = ask("/inject", " ".repeat(MAX_BODY + 1)).await;
        assert_eq!(code, StatusCode::PAYLOAD_TOO_LARGE);
        let room = Arc::new(Semaphore::new(100));
        let late = question(endless(b"{"), &room, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(late.0, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(room.available_permits(), 100, "it gave its part back");
    }

    #[tokio::test]
    async fn all_questions_together_have_a_largest_size() {
        let room = Arc::new(Semaphore::new(10));
        let patience = Duration::from_secs(20);
        let (first, part) = question(Body::from("12345678"), &room, patience).await.unwrap();
        assert_eq!((first.len(), room.available_permits()), (8, 2));
        let short = Duration::from_millis(20);
        assert!(question(Body::from("123"), &room, short).await.is_err(), "there is no room for it");
        let waits = question(Body::from("123"), &room, patience);
        let gives = async { drop(part) };
        let (second, ()) = tokio::join!(waits, gives);
        assert_eq!(second.unwrap().0, b"123");
    }

    #[test]
    fn the_names_are_those_of_the_service() {
        assert_eq!(names("remora-system/control").unwrap()[0], "control.remora-system.svc");
        for wrong in ["control", "/control", "a/", "a/b/c"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }
}
