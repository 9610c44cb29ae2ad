//! A service that is asked about requests, as a document says it (`action: Custom`): control plane, sidecars, the service itself.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use http::Method;
use remora_control::client::Server;
use remora_control::control::{Options, Plane};
use remora_mesh::Listening;
use remora_tests::authorizer::{Authorizer, Reply, allow, deny, header};
use remora_tests::certs::Authority;
use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::proxy::Proxy;
use remora_tests::resources::under;
use remora_tests::upstream::Upstream;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;
use remora_xds::pb::envoy::service::auth::v3::OkHttpResponse;
use serde_json::json;

const DOCUMENTS: &str = "apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 8080, targetPort: web}]}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: shop, labels: {app: shop}}
spec: {address: 127.0.0.1, inboundPort: SHOP_SIDECAR, serviceAccount: shop, ports: [{name: web, port: SHOP}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: auth, labels: {app: auth}}
spec: {address: 127.0.0.1, inboundPort: AUTH_SIDECAR, serviceAccount: auth, ports: [{name: check, port: AUTH}], egress: []}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {name: web}
spec: {address: 127.0.0.1, serviceAccount: web, egress: [{service: shop}]}
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: ask}
spec:
  targetRefs: [{name: shop}]
  action: Custom
  provider: {backendRef: {name: auth, port: 9000}, timeout: 20s, PROVIDER}
  rules: [{to: [{operation: {paths: [/private*]}}]}]
";

/// The Service that is asked.
const AUTH: &str = "apiVersion: v1
kind: Service
metadata: {name: auth}
spec: {selector: {app: auth}, ports: [{name: PROTOCOL, port: 9000, targetPort: check}]}
";

/// The shop and the service that it asks, each behind a sidecar, and a caller behind a third one.
struct Mesh {
    plane: Plane,
    origin: Http1Upstream,
    web: Proxy,
    _sidecars: [Proxy; 2],
    _folder: tempfile::TempDir,
}

impl Mesh {
    async fn start(auth: &impl Upstream, (protocol, provider): (&str, &str)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plane = Plane::start(Options {
            identity_files: Some("identity".into()),
            listening: Listening::Ephemeral,
            ..Options::on_loopback(folder.path().to_owned(), "mesh.test")
        })
        .await
        .unwrap();
        let origin = Http1Upstream::answering(Answer::ok("in")).await;
        let text = format!("{DOCUMENTS}---\n{}", AUTH.replace("PROTOCOL", protocol))
            .replace("PROVIDER", provider)
            .replace(" AUTH}", &format!(" {}}}", auth.address().port()))
            .replace(" SHOP}", &format!(" {}}}", origin.address().port()));
        let at = |shop: u16, auth: u16| {
            text.replace("SHOP_SIDECAR", &shop.to_string()).replace("AUTH_SIDECAR", &auth.to_string())
        };
        let server = Server::at(&format!("http://{}", plane.rest)).unwrap();
        let ready = async || server.call(Method::GET, "/readyz", None).await.is_ok();
        eventually_async("the control plane is ready", ready).await;
        apply(&plane, &at(1, 2), "").await;
        let authority = Authority::new();
        let shop = sidecar(&plane, &authority, "shop").await;
        let asked = sidecar(&plane, &authority, "auth").await;
        apply(&plane, &at(shop.address("inbound").port(), asked.address("inbound").port()), "").await;
        let web = sidecar(&plane, &authority, "web").await;
        let mesh = Self { plane, origin, web, _sidecars: [shop, asked], _folder: folder };
        let open = async || mesh.get("/open", "").await.status == 200;
        eventually_async("the shop can be called", open).await;
        mesh
    }

    /// Asks the shop from behind the caller's sidecar; `lines` end with CRLF each.
    async fn get(&self, path: &str, lines: &str) -> Response {
        let outbound = self.web.address("shop.default.svc.cluster.local:8080");
        let mut client = Http1Client::connect(outbound).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n")).await;
        client.response().await.unwrap()
    }

    /// Waits for this status and reason.
    async fn answers(&self, path: &str, lines: &str, wanted: (u16, Option<&str>)) {
        let what = format!("{path} {wanted:?}");
        eventually_async(&what, async || {
            let answer = self.get(path, lines).await;
            (answer.status, answer.reason()) == wanted
        })
        .await;
    }
}

async fn apply(plane: &Plane, text: &str, query: &str) {
    let server = Server::at(&format!("http://{}", plane.rest)).unwrap();
    let body = json!({ "files": [{ "name": "mesh.yaml", "text": text }] });
    server.call(Method::POST, &format!("/remora/v1/apply{query}"), Some(&body)).await.unwrap();
}

/// The sidecar of a workload, with a certificate of its account.
async fn sidecar(plane: &Plane, authority: &Authority, workload: &str) -> Proxy {
    let id = format!("sidecar~127.0.0.1~{workload}.default~default.svc.cluster.local");
    let builder = under(&[plane.xds]).node(&id);
    let files = builder.folder().join("identity");
    std::fs::create_dir(&files).unwrap();
    let own = authority.issue(&[&format!("spiffe://mesh.test/ns/default/sa/{workload}")]);
    for (name, text) in [("chain", &own.chain), ("key", &own.key), ("roots", &authority.pem)] {
        std::fs::write(files.join(format!("{name}.pem")), text).unwrap();
    }
    builder.start().await
}

fn ann() -> Reply {
    let headers = vec![header("x-user", b"ann", OverwriteIfExistsOrAdd)];
    allow(OkHttpResponse { headers, ..Default::default() })
}

#[tokio::test]
async fn over_grpc_a_service_of_the_mesh_decides_about_what_rules_choose() {
    let auth = Authorizer::scripted(|asked| match asked.http().headers.get("x-token") {
        Some(token) if token == "good" => ann(),
        _ => deny(401, vec![], "who are you?"),
    })
    .await;
    let mesh = Mesh::start(&auth, ("grpc", "protocol: GRPC")).await;
    assert!(auth.asked().is_empty(), "nobody is asked about what no rule matches");
    mesh.answers("/private/x", "X-Token: good\r\nX-User: forged\r\n", (200, None)).await;
    let seen = mesh.origin.requests().pop().unwrap();
    assert_eq!(seen.fields().all("x-user"), ["ann"]);
    let refused = mesh.get("/private", "").await;
    assert_eq!((refused.status, refused.text().as_str()), (401, "who are you?"));
    let asked = auth.asked().pop().unwrap();
    // The caller of the shop, and the shop itself, by their certificates.
    let source = asked.attributes.source.as_ref().unwrap();
    assert_eq!(source.principal, "spiffe://mesh.test/ns/default/sa/web");
    let asks = asked.metadata.get("x-forwarded-client-cert").unwrap().to_str().unwrap();
    assert!(asks.contains("URI=spiffe://mesh.test/ns/default/sa/shop"), "{asks}");

    // When its port is not there, nothing passes that it would be asked about, and everything else does.
    let of = |port: &str| AUTH.replace("PROTOCOL", "grpc").replace("9000", port);
    apply(&mesh.plane, &of("9001"), "?force=true").await;
    mesh.answers("/private", "X-Token: good\r\n", (403, Some("rbac_denied"))).await;
    assert_eq!(mesh.get("/open", "").await.status, 200);
    apply(&mesh.plane, &of("9000"), "").await;
    mesh.answers("/private", "X-Token: good\r\n", (200, None)).await;
}

#[tokio::test]
async fn over_http_its_status_decides_and_the_policy_says_which_headers_count() {
    let auth = Http1Upstream::scripted(|asked, _| match asked.fields().get("x-token") {
        Some("good") => {
            Answer::raw("HTTP/1.1 200 OK\r\nX-User: ann\r\nX-Other: o\r\nContent-Length: 0\r\n\r\n")
        }
        _ => Answer::raw("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"),
    })
    .await;
    let provider =
        "protocol: HTTP, http: {path: /check, allowedHeaders: [x-token], allowedResponseHeaders: [x-user]}";
    let mesh = Mesh::start(&auth, ("http", provider)).await;
    mesh.answers("/private/x?q", "X-Token: good\r\nX-Secret: s\r\n", (200, None)).await;
    let seen = mesh.origin.requests().pop().unwrap();
    assert_eq!((seen.fields().all("x-user"), seen.fields().has("x-other")), (vec!["ann"], false));
    let asked = auth.requests().pop().unwrap();
    assert_eq!((asked.target(), asked.fields().get("host")), ("/check/private/x?q", Some("shop")));
    assert!(!asked.fields().has("x-secret"), "only what is allowed is told");
    let refused = mesh.get("/private", "").await;
    assert_eq!((refused.status, refused.fields.get("location")), (302, Some("/login")));
}
