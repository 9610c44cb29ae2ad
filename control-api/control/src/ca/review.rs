//! Kubernetes' service-account tokens: its API says whose they are (TokenReview, `authentication.k8s.io/v1`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use remora_proxy::tls::client::{AlpnOffer, ClientParams, ClientTls, Target};
use remora_proxy::tls::material;
use remora_proxy::tls::verify::{PeerRules, Trust};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::refused::Refused;
use super::root::Wrong;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Where a pod has its own token, and the roots of the API server.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// `--token-review` and what belongs to it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where reviews are posted: `https://kubernetes.default.svc/apis/authentication.k8s.io/v1/tokenreviews`.
    pub url: String,
    /// The audience that tokens must be for.
    pub audience: String,
    /// Roots of the server; a pod's, when it is left out.
    pub roots: Option<PathBuf>,
    /// File with the token of the control plane itself, read each time; a pod's, when it is left out.
    pub token: Option<PathBuf>,
}

/// Who asks Kubernetes.
#[derive(Debug)]
pub struct Reviewer {
    authority: String,
    host: String,
    port: u16,
    path: String,
    audience: String,
    /// None: plaintext, as with a proxy beside.
    tls: Option<ClientTls>,
    token: PathBuf,
}

impl Reviewer {
    /// One that asks at the address of `options`.
    ///
    /// # Errors
    /// It is no address, or the roots cannot be used.
    pub fn new(options: &Options) -> Result<Self, Wrong> {
        let wrong =
            |file: &Path, what: String, fix: &str| Wrong { file: file.to_owned(), what, fix: fix.to_owned() };
        let url = |what: &str, fix| wrong(options.url.as_ref(), what.to_owned(), fix);
        let uri: Uri = options.url.parse().map_err(|_| url("is no URL", "write https://HOST/PATH"))?;
        let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) else {
            return Err(url("has no host", "write https://HOST/PATH"));
        };
        let host = authority.host();
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(host) => false,
            // Whoever is between would have the tokens, and would say whose they are.
            Some("http") => {
                return Err(url("is neither https nor on this machine", "write https://HOST/PATH"));
            }
            _ => return Err(url("is neither https nor http", "write https://HOST/PATH")),
        };
        if secure && host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
            return Err(url(
                "names an IP address",
                "name it as its certificate does: kubernetes.default.svc",
            ));
        }
        let roots = options.roots.clone().unwrap_or_else(|| Path::new(POD).join("ca.crt"));
        let tls = secure.then(|| tls(&roots).map_err(|(what, fix)| wrong(&roots, what, fix))).transpose()?;
        Ok(Self {
            authority: authority.to_string(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: path.to_string(),
            audience: options.audience.clone(),
            tls,
            token: options.token.clone().unwrap_or_else(|| Path::new(POD).join("token")),
        })
    }

    /// Namespace and service account of a token.
    ///
    /// # Errors
    /// [`Refused::ServiceAccount`]: it is nobody's. [`Refused::Review`]: Kubernetes does not say.
    pub(super) async fn review(&self, token: &str) -> Result<(String, String), Refused> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let answer = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in 5 s")));
        let answer = answer.map_err(|error| Refused::Review(self.authority.clone(), format!("{error:#}")))?;
        account(&answer["status"], &self.audience).map_err(Refused::ServiceAccount)
    }

    async fn ask(&self, token: &str) -> anyhow::Result<Value> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self.audience]},
        });
        let mut request = Request::post(&self.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json");
        if self.tls.is_some() {
            // A token goes over TLS alone. It changes while the process lives.
            let own = tokio::fs::read_to_string(&self.token).await?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", own.trim()));
        }
        let request = request.body(Full::new(Bytes::from(body.to_string())))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let peer: SocketAddr = stream.peer_addr()?;
        match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let target = Target {
                    host: Some(&self.host),
                    verify_host: true,
                    ..Target::new(peer, AlpnOffer::Http1)
                };
                let (stream, _) = tls.connect(stream, target).await.map_err(|e| anyhow::anyhow!("{e}"))?;
                exchange(stream, request).await
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn tls(roots: &Path) -> Result<ClientTls, (String, &'static str)> {
    let fix = "name the file with the roots of the API server: --token-review-ca FILE";
    let text = std::fs::read(roots).map_err(|e| (e.to_string(), fix))?;
    let roots = material::roots(&text).map_err(|e| (e.to_string(), e.fix()))?;
    let rules = PeerRules::inline(Trust::in_roots(roots));
    ClientTls::new(ClientParams::default(), None, rules).map_err(|e| (e.to_string(), fix))
}

async fn exchange<IO>(io: IO, request: Request<Full<Bytes>>) -> anyhow::Result<Value>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    // Its end shows at the sender.
    tokio::spawn(async move { connection.await.ok() });
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    anyhow::ensure!(status.is_success(), "it answers {status}");
    Ok(serde_json::from_slice(&body)?)
}

/// Namespace and service account of `status` of a review. `Err` says why there is none.
fn account(status: &Value, audience: &str) -> Result<(String, String), String> {
    if status["authenticated"] != true {
        return Err(status["error"].as_str().unwrap_or("it is not valid").chars().take(200).collect());
    }
    // A server that does not know audiences answers none of them, and must not be believed (TokenReviewSpec.audiences).
    let audiences = status["audiences"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !audiences.iter().any(|one| one == audience) {
        return Err(format!("it is not for the audience {audience}"));
    }
    let user = status["user"]["username"].as_str().unwrap_or_default();
    match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => Ok((namespace.to_owned(), account.to_owned())),
        None => Err(format!("{user:?} is no service account")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_account_of_the_audience_counts() {
        let status = |authenticated: bool, audiences: &[&str], user: &str| json!({"authenticated": authenticated, "audiences": audiences, "user": {"username": user}});
        let shop = "system:serviceaccount:default:shop";
        let right = account(&status(true, &["a", "mesh"], shop), "mesh");
        assert_eq!(right, Ok(("default".to_owned(), "shop".to_owned())));
        for wrong in [
            status(false, &["mesh"], shop),
            status(true, &["other"], shop),
            status(true, &[], shop),
            status(true, &["mesh"], "ada"),
            json!({"authenticated": true, "user": {"username": shop}}),
            json!({"authenticated": "true"}),
            json!(null),
        ] {
            assert!(account(&wrong, "mesh").is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_named_with_its_fix() {
        for (url, words) in [
            ("kubernetes", "has no host"),
            ("ftp://a/b", "neither https"),
            ("https://10.0.0.1/x", "kubernetes.default.svc"),
            ("http://kubernetes.default.svc/x", "nor on this machine"),
            ("http://127.0.0.1.evil.test/x", "nor on this machine"),
            ("https://kubernetes.default.svc/x", "--token-review-ca"),
        ] {
            let options = Options {
                url: url.into(),
                audience: "mesh".into(),
                roots: Some("/nonexistent".into()),
                token: None,
            };
            let told = Reviewer::new(&options).unwrap_err().to_string();
            assert!(told.contains(words), "{told}");
        }
    }
}
