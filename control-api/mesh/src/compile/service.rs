//! What one Service gives to its callers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::intercepted::{self, Pods};
use super::route::{self, Attached, Routes};
use super::{Scope, breaker, cluster, key_of, outbound, tcp};
use crate::document::{AppProtocol, Document, ServicePort, ServiceSpec};
use crate::mesh::Mesh;
use crate::name::Name;
use crate::resource::Resource;

use super::Profile;

/// What the ports of a Service give to callers. Shared by all nodes of one [`Profile`].
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceResources {
    /// In the order of the document.
    pub ports: Vec<PortResources>,
}

/// What a port of a Service gives to callers.
#[derive(Debug, Clone, PartialEq)]
pub struct PortResources {
    /// Its number.
    pub port: u16,
    /// The sidecars of its workloads.
    pub cluster: Arc<Resource>,
    /// Where they are.
    pub endpoints: Arc<Resource>,
    /// For nodes whose traffic is intercepted: calls to its pods by their own addresses.
    pub pods: Pods,
    /// The port of another Service that answers while the circuit breaker of this one is open.
    pub fallback: Option<(Name, u16)>,
    /// What calls lead to.
    pub producer: Callers,
    /// The same for namespaces that have routes of their own for this Service (consumer routes of GAMMA). These hold there instead
    /// of the Service's.
    pub consumers: BTreeMap<Arc<str>, Callers>,
}

/// What callers of one kind get for a port.
#[derive(Debug, Clone, PartialEq)]
pub struct Callers {
    /// On 127.0.0.1 and the number of the port, or on any free one.
    pub listener: Arc<Resource>,
    /// The same on the Service's addresses, for nodes whose traffic is intercepted. None: it has no address.
    pub vip: Option<Arc<Resource>>,
    /// Route configuration, when HTTP is spoken.
    pub routes: Option<Arc<Resource>>,
    /// Ports of Services that calls are led to; this one is among them unless routes lead elsewhere.
    pub backends: Vec<(Name, u16)>,
    /// A cluster without endpoints, for connections to backends that do not exist.
    pub black_hole: Option<Arc<Resource>>,
}

impl PortResources {
    /// What callers of `namespace` get.
    #[must_use]
    pub fn callers(&self, namespace: &str) -> &Callers {
        self.consumers.get(namespace).unwrap_or(&self.producer)
    }
}

impl ServiceResources {
    /// The port of this number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&PortResources> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Compiles the endpoints anew, and nothing else.
    #[must_use]
    pub(crate) fn with_endpoints(&self, scope: Scope<'_>, service: &Document<ServiceSpec>) -> Self {
        let mut new = self.clone();
        for (resources, port) in new.ports.iter_mut().zip(&service.spec.ports) {
            resources.endpoints = cluster::endpoints(scope, service, port);
            resources.pods = Pods::default();
        }
        new
    }
}

/// Compiles what `service` gives to callers; None when there is no such Service.
#[must_use]
pub fn service_resources(mesh: &Mesh, profile: &Profile, service: &Name) -> Option<ServiceResources> {
    let scope = Scope { mesh, profile };
    let service = mesh.service(&service.namespace, &service.name)?;
    let ports = service.spec.ports.iter();
    Some(ServiceResources { ports: ports.map(|port| compile(scope, service, port)).collect() })
}

fn compile(scope: Scope<'_>, service: &Document<ServiceSpec>, port: &ServicePort) -> PortResources {
    let attached = Attached::to(scope.mesh, service, port);
    let consumers = attached.of_others(port).map(|(namespace, routes)| {
        let callers = callers(scope, service, port, routes);
        (Arc::clone(namespace), callers)
    });
    PortResources {
        port: port.port,
        cluster: cluster::outbound(scope, service, port),
        endpoints: cluster::endpoints(scope, service, port),
        pods: Pods::default(),
        fallback: breaker::fallback(scope.mesh, service, port),
        consumers: consumers.collect(),
        producer: callers(scope, service, port, &attached.producer),
    }
}

fn callers(
    scope: Scope<'_>,
    service: &Document<ServiceSpec>,
    port: &ServicePort,
    routes: &Routes,
) -> Callers {
    let own = (service.name(), port.port);
    let listener = outbound::listener(scope, (service, port), port.port, routes);
    let vip = intercepted::vip(scope, (service, port), routes);
    if port.speaks() == AppProtocol::Tcp {
        let backends = tcp::backends(scope.mesh, routes, own);
        let refuses = tcp::refuses(scope.mesh, routes);
        return Callers {
            listener,
            vip,
            routes: None,
            backends: backends.into_iter().collect(),
            black_hole: refuses.then(|| cluster::black_hole(key_of(service))),
        };
    }
    let table = route::table(scope.mesh, service, port, routes);
    let mut documents = vec![key_of(service)];
    documents.extend(table.documents);
    Callers {
        listener,
        vip,
        routes: Some(Resource::routes(&table.routes, documents)),
        backends: table.backends.into_iter().collect(),
        black_hole: None,
    }
}
