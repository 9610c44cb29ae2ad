//! The REST interface: documents as in the Kubernetes API, registrations, and what the control plane knows.
//!
//! The same list of `routes` makes the router and the OpenAPI document, so that neither has what the other has not.

mod body;
mod bulk;
mod ca;
mod discovery;
mod documents;
mod failure;
mod instances;
mod openapi;
mod pages;
mod routes;
mod selector;
mod serve;
mod tokens;
mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

use crate::audit::Audit;
use crate::board::Board;
use crate::ca::{Ca, Log, Service, Tokens};
use crate::registry::Registry;
use crate::registry::instances::Instances;

use failure::Failure;

pub use bulk::{Outcome, Results, Texts};
pub use ca::{Distrust, Revocation, Shown, ShownRoot};
pub use serve::serve;

/// What every answer is made of.
#[derive(Debug, Clone)]
pub struct App {
    /// Documents.
    pub registry: Arc<Registry>,
    /// Instances.
    pub instances: Arc<Instances>,
    /// Proxies, and what they make of the documents.
    pub board: Arc<Board>,
    /// Who changed what.
    pub audit: Arc<Audit>,
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// Who asks it.
    pub certificates: Service,
    /// What it signed.
    pub issued: Arc<Log>,
    /// Join tokens.
    pub tokens: Arc<Tokens>,
}

/// The router of everything.
pub fn router(app: App) -> Router {
    let routes = routes::routes();
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(failure::no_such_path)
        .method_not_allowed_fallback(failure::no_such_method)
        .layer(from_fn(own_pages_only))
        .with_state(app)
}

/// Refuses requests that a browser makes for a page of somebody else: everybody's pages reach loopback.
async fn own_pages_only(request: Request, next: Next) -> Response {
    match foreign_page(request.headers()) {
        Some(origin) => {
            let text = format!("a page of {origin} may not ask here");
            Failure::new(StatusCode::FORBIDDEN, "Forbidden", text).into_response()
        }
        None => next.run(request).await,
    }
}

/// The origin of a request that is not of the host it asks, or of one whose name may be anybody's: whoever has a name can let it lead
/// to loopback after the page was loaded (DNS rebinding).
fn foreign_page(headers: &HeaderMap) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?.as_bytes();
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let own = origin.strip_prefix(b"http://").is_some_and(|origin| origin == host) && is_no_name(host);
    (!own).then(|| String::from_utf8_lossy(origin).into_owned())
}

/// Whether a Host is an IP address or `localhost`, with or without a port.
fn is_no_name(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host();
    host.eq_ignore_ascii_case("localhost") || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_ask_where_it_came_from_unless_that_is_a_name() {
        let foreign = |origin: Option<&'static str>, host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            foreign_page(&headers).is_some()
        };
        for host in ["127.0.0.1:15014", "localhost:15014", "localhost", "[::1]:15014", "10.0.0.1"] {
            let own: &'static str = format!("http://{host}").leak();
            assert!(!foreign(Some(own), host), "{host}");
            assert!(foreign(Some("http://evil.test"), host), "{host}");
            assert!(foreign(Some("null"), host), "{host}");
        }
        for host in ["evil.test:15014", "evil.test", "localhost.evil.test", "127.0.0.1.evil.test", ""] {
            let own: &'static str = format!("http://{host}").leak();
            assert!(foreign(Some(own), host), "{host}");
            assert!(!foreign(None, host), "no page: {host}");
        }
    }
}
