//! All documents and registrations of a mesh, indexed: who belongs to whom is a look-up, never a search.

mod apply;
mod index;
mod instance;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::document::{
    AuthenticationPolicySpec, AuthorizationPolicySpec, Document, EndpointSliceSpec, FaultPolicySpec,
    Metadata, MtlsMode, ParentRef, PortRef, RateLimitPolicySpec, ReferenceGrantSpec, ServiceSpec,
    TrafficPolicySpec,
};
use crate::kinds::{AnyDocument, Documents, Kind, Tables};
use crate::name::{ByName, Key, Name};

pub use instance::{Health, Instance};

pub(crate) use members::{Member, target};

use index::Index;

/// One step from one state of a mesh to the next.
#[derive(Debug, Clone)]
pub enum Change {
    /// A document was written. It replaces the one of the same key.
    Put(AnyDocument),
    /// A document was removed.
    Remove(Key),
    /// An instance registered, or its health changed. It replaces the one of the same name. A Workload document of this name
    /// holds before it.
    Register(Arc<Instance>),
    /// An instance is gone.
    Deregister(Name),
    /// There is an instance of this name that this version cannot read, until a change of the same name of the other kinds. Nobody is behind it,
    /// but it may have a sidecar: none of the Services of its namespace is known to have none.
    Unreadable {
        /// Of the instance.
        name: Name,
        /// It is a Workload document, and no registration.
        documented: bool,
    },
}

/// What has to be compiled again after changes. A Service that is named and no longer there is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services of which everything may have changed, and so the part of every node that uses them.
    pub services: BTreeSet<Name>,
    /// Services of which nothing but endpoints changed. None of them is in `services`.
    pub endpoints: BTreeSet<Name>,
    /// Workloads whose own part may have changed: the inbound listener, or what they call.
    pub workloads: BTreeSet<Name>,
    /// Namespaces in which a Service or a port of one came or went: it matters to nodes that call all of their namespace.
    pub namespaces: BTreeSet<Arc<str>>,
}

impl Touched {
    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.endpoints.extend(other.endpoints);
        self.workloads.extend(other.workloads);
        self.namespaces.extend(other.namespaces);
        self.endpoints.retain(|name| !self.services.contains(name));
    }

    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Documents and registrations. Nothing in it has to refer to what exists: it is complete when everything has arrived.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    pub(crate) tables: Tables,
    /// Instances of the documents.
    workloads: ByName<Arc<Instance>>,
    /// Of the registry.
    registered: ByName<Arc<Instance>>,
    /// By namespace, those that cannot be read: whether they are documents, and their names.
    unreadable: BTreeMap<Arc<str>, BTreeSet<(bool, Arc<str>)>>,
    index: Index,
}

impl From<&Documents> for Mesh {
    fn from(documents: &Documents) -> Self {
        let mut mesh = Self::default();
        for document in documents.iter() {
            mesh.apply(Change::Put(document));
        }
        mesh
    }
}

impl Mesh {
    /// A Service.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Document<ServiceSpec>>> {
        self.tables.services.get(namespace, name)
    }

    /// The Services of a namespace.
    pub fn services(&self, namespace: &str) -> impl Iterator<Item = &Arc<Document<ServiceSpec>>> {
        self.tables.services.namespace(namespace).map(|(_, service)| service)
    }

    /// All Services.
    pub fn all_services(&self) -> impl Iterator<Item = &Arc<Document<ServiceSpec>>> {
        self.tables.services.values()
    }

    /// A Workload or a registered instance.
    #[must_use]
    pub fn instance(&self, namespace: &str, name: &str) -> Option<&Arc<Instance>> {
        self.workloads.get(namespace, name).or_else(|| self.registered.get(namespace, name))
    }

    /// All Workloads and registered instances.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let hidden = |i: &&Arc<Instance>| {
            let metadata = &i.workload.metadata;
            self.workloads.get(&metadata.namespace, &metadata.name).is_none()
        };
        self.workloads.values().chain(self.registered.values().filter(hidden))
    }

    /// The routes of all kinds that are attached to a Service, by kind and name.
    pub(crate) fn routes(&self, service: &Document<ServiceSpec>) -> impl Iterator<Item = &Key> {
        self.index.routes.linked(&service.metadata.namespace, &service.metadata.name)
    }

    /// The policies of all kinds that are attached to a Service, by kind and name.
    pub(crate) fn policies(&self, service: &Document<ServiceSpec>) -> impl Iterator<Item = &Key> {
        let of_all = self.index.policies_of_all.get(service.metadata.namespace.as_str());
        let named = self.index.policies.linked(&service.metadata.namespace, &service.metadata.name);
        named.chain(of_all.into_iter().flatten())
    }

    /// The TrafficPolicy of a Service.
    pub(crate) fn policy(
        &self,
        service: &Document<ServiceSpec>,
    ) -> Option<&Arc<Document<TrafficPolicySpec>>> {
        self.oldest(service, Kind::TrafficPolicy, &self.tables.policies)
    }

    /// Of several policies of a kind that a Service has the oldest, then the first by name.
    fn oldest<'m, S>(
        &self,
        service: &Document<ServiceSpec>,
        kind: Kind,
        table: &'m ByName<Arc<Document<S>>>,
    ) -> Option<&'m Arc<Document<S>>> {
        oldest_of(self.policies(service), kind, table)
    }

    /// The RateLimitPolicy of a Service.
    pub(crate) fn rate_limits(
        &self,
        service: &Document<ServiceSpec>,
    ) -> Option<&Arc<Document<RateLimitPolicySpec>>> {
        self.oldest(service, Kind::RateLimitPolicy, &self.tables.rate_limits)
    }

    /// How many sidecars keep the limits of a policy together, as a power of two: what is made of it changes seldom.
    pub(crate) fn sidecars(&self, policy: &Document<RateLimitPolicySpec>) -> u32 {
        let services = policy.spec.target_refs.iter();
        let services = services.filter_map(|to| self.service(&policy.metadata.namespace, &to.name));
        let behind = services.flat_map(|service| self.behind(service));
        let each: BTreeSet<Name> = behind.map(|instance| instance.workload.name()).collect();
        u32::try_from(each.len().next_power_of_two()).unwrap_or(u32::MAX)
    }

    /// The FaultPolicy of a Service.
    pub(crate) fn faults(&self, service: &Document<ServiceSpec>) -> Option<&Arc<Document<FaultPolicySpec>>> {
        self.oldest(service, Kind::FaultPolicy, &self.tables.faults)
    }

    /// The AuthenticationPolicy of a Service. One that may be about any Service of the namespace is about those that no other one names: it
    /// does not take the place of what they say, however old it is.
    pub(crate) fn authentication(
        &self,
        service: &Document<ServiceSpec>,
    ) -> Option<&Arc<Document<AuthenticationPolicySpec>>> {
        let (kind, table) = (Kind::AuthenticationPolicy, &self.tables.authentications);
        let Metadata { namespace, name, .. } = &service.metadata;
        oldest_of(self.index.policies.linked(namespace, name), kind, table).or_else(|| {
            let of_all = self.index.policies_of_all.get(namespace.as_str());
            oldest_of(of_all.into_iter().flatten(), kind, table)
        })
    }

    /// The AuthorizationPolicies of a Service, by name.
    pub(crate) fn authorizations(
        &self,
        service: &Document<ServiceSpec>,
    ) -> impl Iterator<Item = &Arc<Document<AuthorizationPolicySpec>>> {
        let keys = self.policies(service).filter(|key| key.kind == Kind::AuthorizationPolicy);
        let policies = keys.filter_map(|key| self.tables.authorizations.of(&key.name));
        policies.filter(move |policy| policy.spec.is_for(&service.metadata.name))
    }

    /// What the policy of a Service says of mTLS on a port, for those of its endpoints that have a sidecar. Mistakes are about this: whether there
    /// are sidecars, documents alone do not say.
    pub(crate) fn demanded(&self, service: &Document<ServiceSpec>, port: u16) -> MtlsMode {
        self.authentication(service).map(|policy| policy.spec.mode(port)).unwrap_or_default()
    }

    /// Whether callers of a Service's port use mTLS: what its policy says, and else wherever there is somebody to speak it. Who may call a
    /// Service is asked by a sidecar: where a policy says that, and there is none, it is nobody.
    pub(crate) fn mtls(&self, service: &Document<ServiceSpec>, port: u16) -> MtlsMode {
        let open = || {
            self.authentication(service).is_none()
                && self.authorizations(service).all(|policy| policy.spec.dry_run)
        };
        if open() && self.has_no_sidecars(service) {
            return MtlsMode::Disabled;
        }
        self.demanded(service, port)
    }

    /// Whether all endpoints of a Service that are called are known to have no sidecar, and nobody says that others have one (docs/decisions/0020). One that nobody knows of might have one. A slice
    /// that has no endpoints and says nothing is as if it were not there; one that says that there are sidecars is not. Where an instance cannot be
    /// read, it may be behind any Service of its namespace.
    pub(crate) fn has_no_sidecars(&self, service: &Document<ServiceSpec>) -> bool {
        if self.unreadable.contains_key(service.metadata.namespace.as_str()) {
            return false;
        }
        let says_so = |slice: &Arc<Document<EndpointSliceSpec>>| {
            let nothing = slice.spec.endpoints.is_empty() && !slice.has_sidecars();
            (nothing || slice.has_no_sidecars()) && !self.is_known(slice)
        };
        self.slices(service).any(|slice| slice.has_no_sidecars() && slice.called().next().is_some())
            && self.slices(service).all(says_so)
            && self.behind(service).is_empty()
    }

    /// Whether an endpoint of a slice that is said to have no sidecar is where an instance is: then whoever says so is wrong, or is late. In other
    /// namespaces only Kubernetes is believed: whoever may write a Workload or register in one could keep callers from the Services of all.
    fn is_known(&self, slice: &Document<EndpointSliceSpec>) -> bool {
        let counts = |name: &Name| {
            *name.namespace == *slice.metadata.namespace
                || self.instance(&name.namespace, &name.name).is_some_and(|instance| instance.reported)
        };
        let at = |address: IpAddr| self.index.addresses.get(&address).into_iter().flatten();
        slice.plain().flat_map(at).any(counts)
    }

    /// The port that `from` refers to; None when there is none, when it is none of a Service, or `from` may not have it.
    pub(crate) fn backend(&self, from: &Key, to: PortRef<'_>) -> Option<(Name, u16)> {
        let own = &*from.name.namespace;
        let namespace = to.namespace.unwrap_or(own);
        if !to.is_service() {
            return None;
        }
        let service = self.service(namespace, to.name)?;
        let known = service.spec.ports.iter().any(|port| port.port == to.port);
        let allowed = namespace == own || self.granted(from, namespace, to.name);
        (known && allowed).then(|| (service.name(), to.port))
    }

    /// Whether `from`, which is in another namespace, may refer to a Service: a ReferenceGrant lets it, or it is a route that is attached
    /// to this Service and to no other. Whoever it routes meant this one.
    pub(crate) fn granted(&self, from: &Key, namespace: &str, service: &str) -> bool {
        if self.grants(from, namespace, service).next().is_some() {
            return true;
        }
        let Some(route) = self.document(from) else { return false };
        let is_it =
            |parent: &ParentRef| parent.name == service && parent.namespace.as_deref() == Some(namespace);
        !route.parents().is_empty() && route.parents().iter().all(is_it)
    }

    /// The ReferenceGrants of `namespace` that let `referrer`, which is in another one, refer to a Service.
    pub(crate) fn grants(
        &self,
        referrer: &Key,
        namespace: &str,
        service: &str,
    ) -> impl Iterator<Item = &Arc<Document<ReferenceGrantSpec>>> {
        let grants = self.tables.grants.namespace(namespace).map(|(_, grant)| grant);
        grants.filter(move |grant| {
            let from = grant.spec.from.iter().any(|from| {
                from.group == referrer.kind.group()
                    && from.kind == referrer.kind.as_str()
                    && from.namespace == *referrer.name.namespace
            });
            let to = |to: &crate::document::GrantTo| {
                to.group.is_empty()
                    && to.kind == Kind::Service.as_str()
                    && to.name.as_deref().is_none_or(|name| name == service)
            };
            from && grant.spec.to.iter().any(to)
        })
    }
}

/// Of the policies of a kind among `keys` the oldest, then the first by name.
fn oldest_of<'k, 'm, S>(
    keys: impl Iterator<Item = &'k Key>,
    kind: Kind,
    table: &'m ByName<Arc<Document<S>>>,
) -> Option<&'m Arc<Document<S>>> {
    let policies = keys.filter(|key| key.kind == kind).filter_map(|key| table.of(&key.name));
    policies.min_by(|a, b| a.age().cmp(&b.age()))
}
