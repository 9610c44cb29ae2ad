//! What one node gets: its own inbound side, and what the Services that it calls give to callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::http_proxy::HttpProxy;
use super::inbound::{self, Reached};
use super::request::{NodeKind, NodeRequest};
use super::route::Attached;
use super::service::{PortResources, ServiceResources};
use super::{
    Listening, Outbound, Profile, Scope, any_egress, dns, egress, every_port, grpc, intercepted, key_of,
    names, outbound,
};
use crate::document::Interception;
use crate::kinds::Kind;
use crate::mesh::{Instance, Mesh};
use crate::name::{Key, Name};
use crate::resource::{Resource, ResourceKind};

/// No Workload has the name of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWorkload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for UnknownWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no Workload {}/{}", self.namespace, self.name)
    }
}

impl std::error::Error for UnknownWorkload {}

/// What one node gets, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeResources {
    /// CDS.
    pub clusters: BTreeMap<Arc<str>, Arc<Resource>>,
    /// EDS.
    pub endpoints: BTreeMap<Arc<str>, Arc<Resource>>,
    /// LDS.
    pub listeners: BTreeMap<Arc<str>, Arc<Resource>>,
    /// RDS.
    pub routes: BTreeMap<Arc<str>, Arc<Resource>>,
    /// The Services that it uses, also those that a route leads to and that do not exist: when one of them changes, the node's
    /// resources do.
    pub services: BTreeSet<Name>,
    /// It calls all Services of its namespace, those to come included.
    pub whole_namespace: bool,
    /// It calls all Services of the mesh, those to come included.
    pub whole_mesh: bool,
    /// What it should get and cannot.
    pub problems: Vec<Problem>,
}

/// Something that a node cannot get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The document that it comes from.
    pub document: Key,
    /// What is wrong.
    pub message: String,
}

/// Puts together what a node gets. `services` gives what Services give to callers ([`super::service_resources`], kept somewhere).
///
/// # Errors
/// It is a sidecar, and there is no Workload or registration of its name.
pub fn node_resources<'s>(
    mesh: &Mesh,
    profile: &Profile,
    request: &NodeRequest,
    services: &dyn Fn(&Name) -> Option<&'s ServiceResources>,
) -> Result<NodeResources, UnknownWorkload> {
    let scope = Scope { mesh, profile };
    let mut builder =
        Builder { scope, request, services, found: NodeResources::default(), taken: BTreeMap::new() };
    if request.kind == NodeKind::Grpc {
        builder.grpc();
        return Ok(builder.found);
    }
    let named = request.workload.as_ref();
    let instance = named.and_then(|name| mesh.instance(&request.namespace, name));
    match (request.kind, instance) {
        (NodeKind::Sidecar, None) => {
            let name = named.cloned().unwrap_or_default();
            return Err(UnknownWorkload { namespace: request.namespace.clone(), name });
        }
        (_, Some(instance)) => builder.sidecar(instance),
        (_, None) => {
            builder.found.whole_namespace = true;
            for item in mesh.services(&request.namespace).flat_map(|service| every_port(service)) {
                builder.outbound(&item);
            }
        }
    }
    builder.wanted();
    Ok(builder.found)
}

/// A node's resources in the making.
struct Builder<'a, 's> {
    scope: Scope<'a>,
    request: &'a NodeRequest,
    services: &'a dyn Fn(&Name) -> Option<&'s ServiceResources>,
    found: NodeResources,
    /// Ports of loopback, and who has them.
    taken: BTreeMap<u16, String>,
}

impl<'s> Builder<'_, 's> {
    fn add(&mut self, resource: &Arc<Resource>) {
        let map = match resource.kind {
            ResourceKind::Cluster => &mut self.found.clusters,
            ResourceKind::ClusterLoadAssignment => &mut self.found.endpoints,
            ResourceKind::Listener => &mut self.found.listeners,
            ResourceKind::RouteConfiguration => &mut self.found.routes,
        };
        map.insert(Arc::clone(&resource.name), Arc::clone(resource));
    }

    /// What a sidecar gets: the inbound side, and what the workload calls.
    fn sidecar(&mut self, instance: &Instance) {
        let intercepted = self.request.intercepted.as_deref();
        let reached = match intercepted {
            None => Reached::Directly,
            Some(addresses) if self.request.shows_clients => Reached::Unchanged(addresses),
            Some(addresses) => Reached::ByRules(addresses),
        };
        let inbound = inbound::compile(self.scope, instance, reached);
        for resource in inbound.listener.into_iter().chain(inbound.clusters) {
            self.add(&resource);
        }
        for (name, port) in &inbound.asked {
            self.backend(name, *port);
        }
        let (mesh, spec) = (self.scope.mesh, &instance.workload.spec);
        let about = Key::new(Kind::Workload, instance.workload.name());
        if let Some(proxy) = spec.http_proxy {
            self.http_proxy(instance, &about, proxy.port);
        }
        for item in spec.egress.iter().flatten() {
            let namespace = item.namespace.as_ref().unwrap_or(&self.request.namespace);
            self.found.services.insert(Name::new(namespace, &item.service));
        }
        if let Some(addresses) = intercepted {
            self.found.whole_mesh = spec.egress.is_none();
            for resource in intercepted::catch_all(self.scope, &about, addresses) {
                self.add(&resource);
            }
            let called = any_egress(mesh, &instance.workload);
            for item in &called {
                self.by_address(item);
            }
            if self.request.captures_dns {
                self.add(&dns::listener(&about, addresses, called));
            }
            return;
        }
        if spec.interception == Interception::Redirect {
            let message = "interception: Redirect, and its node does not say INTERCEPTION_MODE: REDIRECT or TPROXY: it has listeners on loopback"
                .to_owned();
            self.found.problems.push(Problem { document: about, message });
        }
        self.found.whole_mesh = spec.egress.is_none() && spec.http_proxy.is_some();
        self.found.whole_namespace = spec.egress.is_none() && spec.http_proxy.is_none();
        self.taken.insert(spec.inbound_port, "inboundPort".into());
        for port in &spec.ports {
            self.taken.insert(port.port, "the program's own".into());
        }
        for item in egress(mesh, &instance.workload) {
            self.outbound(&item);
        }
    }

    /// The HTTP proxy on a port of loopback, and what it takes to call Services through it.
    fn http_proxy(&mut self, instance: &Instance, about: &Key, port: u16) {
        let (scope, namespace) = (self.scope, &self.request.namespace);
        let mut proxy = HttpProxy::new(scope, about.clone());
        for item in any_egress(scope.mesh, &instance.workload) {
            let Some(made) = self.backend(&item.service.name(), item.port.port) else { continue };
            let callers = made.callers(namespace);
            for (name, number) in &callers.backends {
                self.backend(name, *number);
            }
            if let Some(cluster) = &callers.black_hole {
                self.add(cluster);
            }
            let attached = Attached::to(scope.mesh, item.service, item.port);
            proxy.add(&item, callers, attached.of(namespace, item.port));
        }
        for resource in proxy.resources(port) {
            self.add(&resource);
        }
        self.taken.insert(port, "httpProxy".into());
    }

    /// What it takes to call a Service's port by its addresses and by those of its pods.
    fn by_address(&mut self, item: &Outbound<'_>) {
        let name = item.service.name();
        let Some(resources) = (self.services)(&name).and_then(|made| made.port(item.port.port)) else {
            return;
        };
        self.found.services.insert(name.clone());
        // Nobody reaches the routes of a Service without an address.
        if let Some(listener) = &resources.callers(&self.request.namespace).vip {
            self.called(&name, item.port.port);
            self.add(listener);
        }
        for resource in resources.pods.of(self.scope, item.service, item.port) {
            self.add(resource);
        }
    }

    /// What it takes to call a Service's port, with a listener on loopback.
    fn outbound(&mut self, item: &Outbound<'_>) {
        let name = item.service.name();
        let Some(resources) = self.called(&name, item.port.port) else { return };
        let listener = Arc::clone(&resources.callers(&self.request.namespace).listener);
        if self.scope.profile.listening == Listening::AsWritten
            && let Some(other) = self.taken.insert(item.local_port, format!("{name}:{}", item.port.port))
        {
            let message = format!(
                "port {} would be on 127.0.0.1:{}, where {other} is",
                item.port.port, item.local_port
            );
            self.found.problems.push(Problem { document: key_of(item.service), message });
            self.taken.insert(item.local_port, other);
            return;
        }
        if item.local_port == item.port.port {
            self.add(&listener);
        } else {
            let attached = Attached::to(self.scope.mesh, item.service, item.port);
            let routes = attached.of(&self.request.namespace, item.port);
            let own = outbound::listener(self.scope, (item.service, item.port), item.local_port, routes);
            self.add(&own);
        }
    }

    /// Cluster, endpoints and routes of a Service's port, and what these lead to.
    fn called(&mut self, name: &Name, number: u16) -> Option<&'s PortResources> {
        let port = self.backend(name, number)?;
        let callers = port.callers(&self.request.namespace);
        for resource in callers.routes.iter().chain(&callers.black_hole) {
            self.add(resource);
        }
        for (name, number) in &callers.backends {
            self.backend(name, *number);
        }
        Some(port)
    }

    /// Cluster and endpoints of a Service's port, and of the one that answers instead of it.
    fn backend(&mut self, name: &Name, number: u16) -> Option<&'s PortResources> {
        let port = self.cluster(name, number)?;
        if let Some((name, number)) = &port.fallback {
            self.cluster(name, *number);
        }
        Some(port)
    }

    /// Cluster and endpoints of a Service's port.
    fn cluster(&mut self, name: &Name, number: u16) -> Option<&'s PortResources> {
        self.found.services.insert(name.clone());
        let port = (self.services)(name)?.port(number)?;
        self.add(&port.cluster);
        self.add(&port.endpoints);
        Some(port)
    }

    /// What was asked for by name. A name that means nothing is no mistake: it may come to mean something.
    fn wanted(&mut self) {
        for name in &self.request.wanted {
            let Some(target) = names::parse(name) else { continue };
            let service = Name::new(target.namespace, target.service);
            self.found.services.insert(service);
            let found = self.scope.mesh.service(target.namespace, target.service);
            let items = found.into_iter().flat_map(|service| every_port(service));
            // Asked for by the name of its cluster, or of its listener, which it may have already.
            let listener = names::outbound(target.namespace, target.service, target.port);
            for item in items.filter(|item| item.port.port == target.port) {
                if self.request.intercepted.is_some() {
                    self.by_address(&item);
                } else if !self.found.listeners.contains_key(listener.as_str()) {
                    self.outbound(&item);
                }
            }
        }
    }

    /// What a gRPC library asked for. It is sent nothing else: it takes no interest.
    fn grpc(&mut self) {
        for name in &self.request.wanted {
            let namespace = self.request.namespace.as_str();
            let Some(target) = grpc::target(namespace, name) else { continue };
            // Also when there is no such Service, or not with that port: it may come.
            self.found.services.insert(Name::new(target.namespace, target.service));
            let Some((service, port)) = target.find(self.scope.mesh) else { continue };
            let service_name = service.name();
            let found = (self.services)(&service_name).and_then(|service| service.port(port.port));
            let Some(resources) = found else { continue };
            self.add(&grpc::listener(name, service, port));
            let callers = resources.callers(namespace);
            if let Some(routes) = callers.routes.as_deref().and_then(grpc::routes) {
                self.add(&routes);
            }
            for (name, number) in &callers.backends {
                self.grpc_backend(name, *number);
            }
        }
    }

    /// Cluster and endpoints of a Service's port, for a gRPC library.
    fn grpc_backend(&mut self, name: &Name, number: u16) {
        if self.cluster(name, number).is_none() {
            return;
        }
        let Some(service) = self.scope.mesh.service(&name.namespace, &name.name) else { return };
        let Some(port) = service.spec.ports.iter().find(|port| port.port == number) else { return };
        let provider = &self.request.certificate_provider;
        self.add(&grpc::cluster(self.scope, service, port, provider));
    }
}
