//! What a rule may look at: one canonical request, or a connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method};
use serde_json::Value;

use crate::http::head::RequestHead;
use crate::route::matcher::{HeaderKey, HeaderView};
use crate::tls::identity::PeerIdentity;

/// A request, or (without one) a connection.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The connection.
    pub connection: ConnectionView<'a>,
    /// The request.
    pub request: Option<RequestView<'a>>,
    /// Payloads of tokens that were verified: Envoy's dynamic metadata of `envoy.filters.http.jwt_authn`.
    pub claims: &'a [Claims],
}

/// A connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionView<'a> {
    /// Where it went, before any redirection to this proxy.
    pub destination: SocketAddr,
    /// The peer of the socket.
    pub direct_remote: IpAddr,
    /// The client, as far as trusted hops tell.
    pub remote: IpAddr,
    /// It is TLS.
    pub secure: bool,
    /// Server name of the ClientHello; empty without one, and where no listener filter looks at it, as in Envoy.
    pub server_name: &'a str,
    /// The peer, by a certificate that was verified.
    pub peer: Option<&'a PeerIdentity>,
}

/// A request, as it is forwarded if no route rewrites it.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// The scheme.
    pub scheme: &'a Scheme,
    /// The host.
    pub authority: Option<&'a Authority>,
    /// The canonical path, with its query.
    pub path: &'a PathAndQuery,
    /// All other headers.
    pub headers: &'a HeaderMap,
}

impl<'a> From<&'a RequestHead> for RequestView<'a> {
    fn from(head: &'a RequestHead) -> Self {
        let RequestHead { method, scheme, authority, path, version: _, headers, case: _ } = head;
        Self { method, scheme, authority: authority.as_ref(), path, headers }
    }
}

impl HeaderView for RequestView<'_> {
    fn pseudo(&self, key: &HeaderKey) -> Option<&[u8]> {
        match key {
            HeaderKey::Method => Some(self.method.as_str().as_bytes()),
            HeaderKey::Path => Some(self.path.as_str().as_bytes()),
            HeaderKey::Authority => self.authority.map(|a| a.as_str().as_bytes()),
            HeaderKey::Scheme => Some(self.scheme.as_str().as_bytes()),
            HeaderKey::Status | HeaderKey::Name(_) => None,
        }
    }

    fn fields(&self) -> &HeaderMap {
        self.headers
    }
}

/// The payload of a verified token; or what a verdict of RBAC left, as a text.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `payload_in_metadata` of the token's provider; or the whole key of the verdict.
    pub key: Arc<str>,
    /// The claims, or the text.
    pub payload: Arc<Value>,
}

/// What stands under `key`. Of several tokens it is the one that was verified last: in Envoy, each replaces the one before.
#[must_use]
pub fn payload<'c>(claims: &'c [Claims], key: &str) -> Option<&'c Value> {
    claims.iter().rfind(|claims| *claims.key == *key).map(|claims| &*claims.payload)
}
