//! Which routes hold for which callers of a Service's port.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::{
    AppProtocol, Document, GrpcRouteSpec, HttpRouteSpec, ServicePort, ServiceSpec, TcpRouteSpec, TlsRouteSpec,
};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;
use crate::name::Key;

/// The routes that hold for some callers of a Service's port, each list by name. Of several kinds the most specific one holds alone:
/// GRPCRoute before HTTPRoute, and TLSRoute before TCPRoute (GEP-1426).
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    pub(crate) http: Vec<Arc<Document<HttpRouteSpec>>>,
    pub(crate) grpc: Vec<Arc<Document<GrpcRouteSpec>>>,
    pub(crate) tcp: Vec<Arc<Document<TcpRouteSpec>>>,
    pub(crate) tls: Vec<Arc<Document<TlsRouteSpec>>>,
}

/// All routes of a Service's port.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    /// Those of the Service's own namespace hold for everybody who has none of their own.
    pub(crate) producer: Routes,
    /// Those of another namespace hold for callers from there, in place of the producer's; also those that do nothing on this port.
    pub(crate) consumers: BTreeMap<Arc<str>, Routes>,
}

impl Attached {
    pub(crate) fn to(mesh: &Mesh, service: &Document<ServiceSpec>, port: &ServicePort) -> Self {
        let mut all = Self::default();
        for key in mesh.routes(service) {
            let Some(document) = mesh.document(key) else { continue };
            let own = &key.name.namespace;
            let attached = document.parents().iter().any(|parent| {
                parent.name == service.metadata.name
                    && parent.namespace.as_deref().unwrap_or(own) == service.metadata.namespace
                    && parent.covers(port)
            });
            if !attached {
                continue;
            }
            if **own == *service.metadata.namespace {
                all.producer.push(document);
            } else {
                all.consumers.entry(Arc::clone(own)).or_default().push(document);
            }
        }
        all
    }

    /// Those for callers of a namespace at `port`.
    pub(crate) fn of(&self, namespace: &str, port: &ServicePort) -> &Routes {
        self.consumers.get(namespace).filter(|routes| routes.hold(port)).unwrap_or(&self.producer)
    }

    /// Those of other namespaces that hold at `port`.
    pub(crate) fn of_others(&self, port: &ServicePort) -> impl Iterator<Item = (&Arc<str>, &Routes)> {
        self.consumers.iter().filter(|(_, routes)| routes.hold(port))
    }
}

impl Routes {
    fn push(&mut self, document: AnyDocument) {
        match document {
            AnyDocument::HttpRoute(document) => self.http.push(document),
            AnyDocument::GrpcRoute(document) => self.grpc.push(document),
            AnyDocument::TcpRoute(document) => self.tcp.push(document),
            AnyDocument::TlsRoute(document) => self.tls.push(document),
            _ => {}
        }
    }

    /// Whether some of them do something on `port`.
    fn hold(&self, port: &ServicePort) -> bool {
        if port.speaks() == AppProtocol::Tcp {
            !(self.tcp.is_empty() && self.tls.is_empty())
        } else {
            !(self.http.is_empty() && self.grpc.is_empty())
        }
    }

    /// The routes that hold where HTTP is spoken.
    pub(crate) fn http_keys(&self) -> Vec<Key> {
        let grpc = self.grpc.iter().map(|d| AnyDocument::GrpcRoute(Arc::clone(d)).key());
        let http = self.http.iter().map(|d| AnyDocument::HttpRoute(Arc::clone(d)).key());
        if self.grpc.is_empty() { http.collect() } else { grpc.collect() }
    }

    /// The routes that hold where bytes are opaque.
    pub(crate) fn tcp_keys(&self) -> Vec<Key> {
        let tls = self.tls.iter().map(|d| AnyDocument::TlsRoute(Arc::clone(d)).key());
        let tcp = self.tcp.iter().map(|d| AnyDocument::TcpRoute(Arc::clone(d)).key());
        if self.tls.is_empty() { tcp.collect() } else { tls.collect() }
    }
}
