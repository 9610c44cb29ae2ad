//! The REST interface from the other side: what `remora apply`, `remora get` and `remora run` speak.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// For a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const MAX_ANSWER: usize = 256 << 20;

/// A control plane, or the admin page of a proxy.
#[derive(Debug, Clone)]
pub struct Server {
    kind: &'static Kind,
    authority: String,
    actor: String,
}

/// What messages call it.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    option: &'static str,
    variable: &'static str,
    form: &'static str,
}

const CONTROL_PLANE: Kind =
    Kind { name: "control plane", option: "--server", variable: "REMORA_SERVER", form: "http://HOST:PORT" };

const PROXY: Kind = Kind { name: "proxy", option: "--admin", variable: "REMORA_ADMIN", form: "HOST:PORT" };

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body; null when it is no JSON.
    pub body: Value,
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct Refused {
    /// Status.
    pub status: StatusCode,
    /// `reason` of a Kubernetes Status.
    pub reason: String,
    /// `message` of a Kubernetes Status.
    pub message: String,
}

impl Refused {
    /// Mistakes speak for themselves; anything else is said as kubectl says it.
    fn text(&self) -> String {
        if self.status == StatusCode::UNPROCESSABLE_ENTITY {
            self.message.clone()
        } else {
            format!("Error from server ({}): {}", self.reason, self.message)
        }
    }
}

impl Server {
    /// The control plane at `http://HOST:PORT`.
    ///
    /// # Errors
    /// It is no such address.
    pub fn at(address: &str) -> anyhow::Result<Self> {
        Self::of(&CONTROL_PLANE, address)
    }

    /// The proxy whose admin page is at `HOST:PORT`.
    ///
    /// # Errors
    /// It is no such address.
    pub fn proxy(address: &str) -> anyhow::Result<Self> {
        Self::of(&PROXY, address)
    }

    fn of(kind: &'static Kind, address: &str) -> anyhow::Result<Self> {
        let Kind { option, form, .. } = kind;
        let rest = match address.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => {
                bail!("{option} {address}: {scheme} is not supported; write {form}")
            }
            None => address,
        };
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains('/') || !authority.contains(':') {
            bail!("{option} {address}: write {form}");
        }
        Ok(Self { kind, authority: authority.to_owned(), actor: actor() })
    }

    /// The body of a success.
    ///
    /// # Errors
    /// [`Refused`], or the control plane cannot be reached.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, body).await?;
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let text = |field: &str| answer.body[field].as_str().unwrap_or_default().to_owned();
        Err(Refused { status: answer.status, reason: text("reason"), message: text("message") }.into())
    }

    /// The answer, whatever it is.
    ///
    /// # Errors
    /// The control plane cannot be reached.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let exchange = async {
            let mut sender = self.connect().await?;
            let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, &self.authority)
                .header(header::CONTENT_TYPE, "application/json")
                .header("x-remora-actor", &self.actor)
                .body(Full::new(bytes))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
        };
        let done: anyhow::Result<Answer> =
            tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| bail!("no answer in 30 s"));
        done.with_context(|| {
            let Kind { name, option, variable, .. } = self.kind;
            format!("the {name} at {} ({option}, {variable}) cannot be asked", self.authority)
        })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end shows at the sender.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }
}

/// Who this is, for the audit log: `ada@laptop`.
fn actor() -> String {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".into());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = format!("{user}@{host}");
    name.chars().filter(|c| c.is_ascii_graphic()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for right in ["http://127.0.0.1:15014", "http://control:15014/", "[::1]:15014"] {
            assert!(Server::at(right).is_ok(), "{right}");
        }
        for wrong in ["", "http://", "https://a:1", "http://a:1/path", "http://a"] {
            assert!(Server::at(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Server::proxy("a").unwrap_err().to_string(), "--admin a: write HOST:PORT");
    }
}
