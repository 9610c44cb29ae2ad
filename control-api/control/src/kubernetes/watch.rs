//! The objects of each kind, as they are and as they change.

use std::pin::pin;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Error, Event, watcher};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::StreamExt;
use tracing::{info, warn};

use crate::kinds::{KINDS, Kind};

/// Between looks whether a cluster has a kind by now: its definition may be installed later.
const ABSENT: Duration = Duration::from_secs(5);
/// Between attempts while the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// Documents of the kind at this place of [`KINDS`].
    Documents(usize),
    /// Pods with a sidecar.
    Pods,
}

impl What {
    /// Everything; pods last, for they are of no use without Services.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..KINDS.len()).map(Self::Documents).chain([Self::Pods])
    }

    pub(super) fn kind(self) -> Option<&'static Kind> {
        match self {
            Self::Documents(at) => KINDS.get(at),
            Self::Pods => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.kind().map_or("Pod", |kind| kind.name)
    }

    /// The same kind in each version that may be served, the best first.
    fn resources(self) -> Vec<ApiResource> {
        let resource = |api_version: &str, kind: &str, plural: &str| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            ApiResource {
                group: group.into(),
                version: version.into(),
                api_version: api_version.into(),
                kind: kind.into(),
                plural: plural.into(),
            }
        };
        let Some(kind) = self.kind() else { return vec![resource("v1", "Pod", "pods")] };
        let mesh = remora_mesh::Kind::ALL.into_iter().find(|known| known.as_str() == kind.name);
        let versions = mesh.map(remora_mesh::Kind::api_versions).unwrap_or_default();
        versions.iter().map(|version| resource(version, kind.name, kind.plural)).collect()
    }
}

/// What was seen.
#[derive(Debug)]
pub(super) enum Seen {
    /// The beginning of everything there is.
    Begin,
    /// One of them.
    Listed(Value),
    /// The end of everything there is. Also all of it where a cluster has no such kind.
    End,
    /// It is new, or says something else.
    Changed(Value),
    /// It is gone.
    Gone(Value),
}

/// What was seen of which kind.
pub(super) type Told = (What, Seen);

/// Follows the objects of one kind for ever.
pub(super) async fn follow(client: Client, what: What, told: mpsc::Sender<Told>) {
    let mut said = String::new();
    loop {
        match served(&client, what).await {
            Ok(Some(resource)) => {
                said.clear();
                objects(&client, what, &resource, &told).await;
            }
            Ok(None) => {
                let text = "the cluster has no such kind; looked for again".to_owned();
                if said != text {
                    info!(kind = what.name(), "{text}");
                    said = text;
                    for seen in [Seen::Begin, Seen::End] {
                        if told.send((what, seen)).await.is_err() {
                            return;
                        }
                    }
                }
                tokio::time::sleep(ABSENT).await;
            }
            Err(error) => {
                let text = error.to_string();
                if said != text {
                    warn!(kind = what.name(), error = text, "Kubernetes does not answer; tried again");
                    said = text;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The version of the kind that the cluster serves. None: it serves none.
pub(super) async fn served(client: &Client, what: What) -> Result<Option<ApiResource>, kube::Error> {
    for resource in what.resources() {
        let list = if resource.group.is_empty() {
            client.list_core_api_resources(&resource.version).await
        } else {
            client.list_api_group_resources(&resource.api_version).await
        };
        match list {
            Ok(list) if list.resources.iter().any(|known| known.name == resource.plural) => {
                return Ok(Some(resource));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Hands on what happens to the objects, until the cluster has no such kind any more.
async fn objects(client: &Client, what: What, resource: &ApiResource, told: &mpsc::Sender<Told>) {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut said = String::new();
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(Event::Init) => Some(Seen::Begin),
            Ok(Event::InitApply(object)) => value(object).map(Seen::Listed),
            Ok(Event::InitDone) => {
                said.clear();
                Some(Seen::End)
            }
            Ok(Event::Apply(object)) => value(object).map(Seen::Changed),
            Ok(Event::Delete(object)) => value(object).map(Seen::Gone),
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                let text = error.to_string();
                if said != text {
                    warn!(kind = what.name(), error = text, "the watch ended; begun again");
                    said = text;
                }
                None
            }
        };
        if let Some(seen) = seen
            && told.send((what, seen)).await.is_err()
        {
            return;
        }
    }
}

/// Whether the kind is not served any more.
fn is_gone(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

/// As JSON, without what is half of an object and says who wrote which field.
fn value(mut object: DynamicObject) -> Option<Value> {
    object.metadata.managed_fields = None;
    // What was JSON is JSON.
    serde_json::to_value(object).ok()
}
