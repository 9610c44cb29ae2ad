//! A client that follows the protocol: wildcards for clusters and listeners, names for what these refer to. What it may refuse,
//! and when it answers, the test decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, ResourceError,
    ResourceName,
};
use crate::pb::google::protobuf::Any;

/// A response of either variant.
pub(super) struct Update {
    pub(super) kind: Kind,
    nonce: String,
    version: String,
    /// Name, version (delta only), content.
    resources: Vec<(String, String, Any)>,
    removed: Vec<String>,
    complete: bool,
}

/// How the two variants write what the model says.
pub(super) trait Dialect: Stream {
    /// Whether a client that comes back says what it has.
    const TELLS_VERSIONS: bool;
    fn update(response: Self::Response) -> Update;
    fn answer(client: &Client, update: &Update, error: Option<Status>) -> Self::Request;
    fn resubscribe(
        client: &Client,
        kind: Kind,
        new: &BTreeSet<String>,
        gone: &BTreeSet<String>,
    ) -> Self::Request;
    /// The first request for a kind on a stream.
    fn connect(client: &Client, kind: Kind) -> Self::Request;
}

#[derive(Default)]
pub(super) struct Client {
    /// What is in force: name -> (version, content).
    pub(super) has: BTreeMap<Kind, BTreeMap<String, (String, Any)>>,
    /// Newest refused version of a name.
    pub(super) refused: BTreeMap<(Kind, String), String>,
    pub(super) names: BTreeMap<Kind, BTreeSet<String>>,
    /// References are not checked.
    pub(super) lenient: bool,
    versions: BTreeMap<Kind, String>,
    nonces: BTreeMap<Kind, String>,
}

pub(super) const NAMED: [Kind; 2] = [Kind::ClusterLoadAssignment, Kind::RouteConfiguration];

impl Client {
    fn of(&self, kind: Kind) -> BTreeMap<String, (String, Any)> {
        self.has.get(&kind).cloned().unwrap_or_default()
    }

    /// The names that the clusters or listeners in force refer to.
    fn referred(&self, kind: Kind) -> BTreeSet<String> {
        let referrers = if kind == Kind::RouteConfiguration { Kind::Listener } else { Kind::Cluster };
        let names = |any: &Any| match referrers {
            Kind::Cluster => decode::<Cluster>(any).endpoints().map(str::to_owned),
            _ => Some(decode::<Listener>(any).stat_prefix).filter(|routes| !routes.is_empty()),
        };
        self.of(referrers).values().filter_map(|(_, any)| names(any)).collect()
    }

    /// Takes a response over, but for resources that it `refuses`; gives the requests to send.
    pub(super) fn take<D: Dialect>(
        &mut self,
        response: D::Response,
        refuses: impl Fn(&str) -> bool,
    ) -> Vec<D::Request> {
        let update = D::update(response);
        let kind = update.kind;
        let mut bad = Vec::new();
        let own = self.has.entry(kind).or_default();
        for (name, version, any) in &update.resources {
            if refuses(name) {
                bad.push(name.clone());
                self.refused.insert((kind, name.clone()), version.clone());
            } else {
                self.refused.remove(&(kind, name.clone()));
                own.insert(name.clone(), (version.clone(), any.clone()));
            }
        }
        let sent: BTreeSet<_> = update.resources.iter().map(|(name, ..)| name).collect();
        own.retain(|name, _| !update.removed.contains(name) && (!update.complete || sent.contains(name)));
        self.check_references(kind);
        self.nonces.insert(kind, update.nonce.clone());
        if bad.is_empty() {
            self.versions.insert(kind, update.version.clone());
        }
        let mut requests = vec![D::answer(self, &update, blame_of(&bad))];
        for kind in NAMED {
            let referred = self.referred(kind);
            let old = self.names.insert(kind, referred.clone()).unwrap_or_default();
            let (new, gone) = (&referred - &old, &old - &referred);
            if !(new.is_empty() && gone.is_empty()) {
                requests.push(D::resubscribe(self, kind, &new, &gone));
            }
            self.has.entry(kind).or_default().retain(|name, _| referred.contains(name));
        }
        requests
    }

    /// A route in force refers to clusters in force, unless these were refused.
    fn check_references(&self, changed: Kind) {
        let clusters = self.of(Kind::Cluster);
        for (route, (_, any)) in self.of(Kind::RouteConfiguration) {
            for cluster in decode::<RouteConfiguration>(&any).internal_only_headers {
                let known = self.lenient
                    || clusters.contains_key(&cluster)
                    || self.refused.contains_key(&(Kind::Cluster, cluster.clone()));
                assert!(known, "{changed}: route {route} refers to {cluster}, which is not there");
            }
        }
    }

    /// The connection is lost: the requests of the next stream.
    pub(super) fn reconnect<D: Dialect>(&mut self) -> VecDeque<D::Request> {
        self.nonces.clear();
        let named = NAMED.into_iter().filter(|kind| self.names.get(kind).is_some_and(|n| !n.is_empty()));
        [Kind::Cluster, Kind::Listener].into_iter().chain(named).map(|kind| D::connect(self, kind)).collect()
    }
}

fn blame_of(bad: &[String]) -> Option<Status> {
    let detail = |name: &String| {
        crate::any::pack(&ResourceError {
            resource_name: Some(ResourceName { name: name.clone(), ..ResourceName::default() }),
            error_detail: error("refused"),
        })
    };
    (!bad.is_empty())
        .then(|| Status { details: bad.iter().map(detail).collect(), ..error("refused").unwrap() })
}

fn texts(names: &BTreeSet<String>) -> Vec<String> {
    names.iter().cloned().collect()
}

impl Dialect for DeltaStream {
    const TELLS_VERSIONS: bool = true;

    fn update(response: DeltaDiscoveryResponse) -> Update {
        let resources = response.resources.into_iter();
        Update {
            kind: Kind::from_type_url(&response.type_url).unwrap(),
            nonce: response.nonce,
            version: String::new(),
            resources: resources.map(|r| (r.name, r.version, r.resource.unwrap())).collect(),
            removed: response.removed_resources,
            complete: false,
        }
    }

    fn answer(_: &Client, update: &Update, error: Option<Status>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: update.kind.type_url().into(),
            response_nonce: update.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn resubscribe(
        _: &Client,
        kind: Kind,
        new: &BTreeSet<String>,
        gone: &BTreeSet<String>,
    ) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: texts(new),
            resource_names_unsubscribe: texts(gone),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn connect(client: &Client, kind: Kind) -> DeltaDiscoveryRequest {
        let versions = client.of(kind).into_iter().map(|(name, (version, _))| (name, version));
        DeltaDiscoveryRequest {
            node: node(),
            type_url: kind.type_url().into(),
            resource_names_subscribe: client.names.get(&kind).map(texts).unwrap_or_default(),
            initial_resource_versions: versions.collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

impl Dialect for SotwStream {
    const TELLS_VERSIONS: bool = false;

    fn update(response: DiscoveryResponse) -> Update {
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        let name = |any: &Any| match kind {
            Kind::Cluster => decode::<Cluster>(any).name,
            Kind::ClusterLoadAssignment => decode::<ClusterLoadAssignment>(any).cluster_name,
            Kind::Listener => decode::<Listener>(any).name,
            _ => decode::<RouteConfiguration>(any).name,
        };
        // The variant has no versions of single resources; the test compares contents.
        let version = |any: &Any| crate::resource::content_version(&any.value).to_string();
        Update {
            kind,
            nonce: response.nonce,
            version: response.version_info,
            resources: response.resources.into_iter().map(|any| (name(&any), version(&any), any)).collect(),
            removed: Vec::new(),
            complete: kind.is_complete(),
        }
    }

    fn answer(client: &Client, update: &Update, error: Option<Status>) -> DiscoveryRequest {
        DiscoveryRequest {
            error_detail: error,
            ..Self::resubscribe(client, update.kind, &BTreeSet::new(), &BTreeSet::new())
        }
    }

    fn resubscribe(
        client: &Client,
        kind: Kind,
        _: &BTreeSet<String>,
        _: &BTreeSet<String>,
    ) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.type_url().into(),
            version_info: client.versions.get(&kind).cloned().unwrap_or_default(),
            response_nonce: client.nonces.get(&kind).cloned().unwrap_or_default(),
            resource_names: client.names.get(&kind).map(texts).unwrap_or_default(),
            ..DiscoveryRequest::default()
        }
    }

    fn connect(client: &Client, kind: Kind) -> DiscoveryRequest {
        DiscoveryRequest {
            node: node(),
            ..Self::resubscribe(client, kind, &BTreeSet::new(), &BTreeSet::new())
        }
    }
}
