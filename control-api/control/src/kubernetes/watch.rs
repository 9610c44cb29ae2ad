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
/// So many looks, one after the other, must find no such kind before what was kept of it is gone: an API server that starts does not serve all
/// kinds at once, and without a policy what it closed would be open.
const LOOKS: u32 = 6;
/// Between attempts while the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// Documents of the kind at this place of [`KINDS`].
    Documents(usize),
    /// Pods, also those without a sidecar.
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

/// Looks that found no such kind, one after the other.
#[derive(Debug, Default)]
struct Absent {
    looks: u32,
    told: bool,
}

impl Absent {
    /// One more. Whether it is to be told now that there is nothing of the kind; `kept`: something of it is kept.
    fn again(&mut self, kept: bool) -> bool {
        self.looks = self.looks.saturating_add(1);
        let now = !self.told && (!kept || self.looks >= LOOKS);
        self.told |= now;
        now
    }
}

/// Follows the objects of one kind for ever. `kept` says whether the registry has something of it from Kubernetes.
pub(super) async fn follow(client: Client, what: What, kept: impl Fn() -> bool, told: mpsc::Sender<Told>) {
    let mut said = String::new();
    let mut absent = Absent::default();
    loop {
        let found = served(&client, what).await;
        if !matches!(found, Ok(None)) {
            absent = Absent::default();
        }
        match found {
            Ok(Some(resource)) => {
                said.clear();
                objects(&client, what, &resource, &told).await;
            }
            Ok(None) => {
                let text = "the cluster has no such kind; looked for again".to_owned();
                if said != text {
                    info!(kind = what.name(), "{text}");
                    said = text;
                }
                let kept = !absent.told && kept();
                let nothing = absent.again(kept).then_some([Seen::Begin, Seen::End]);
                for seen in nothing.into_iter().flatten() {
                    if told.send((what, seen)).await.is_err() {
                        return;
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

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;

    #[test]
    fn what_is_kept_of_a_kind_is_gone_when_many_looks_found_none() {
        let mut absent = Absent::default();
        let told: Vec<_> = (0..2 * LOOKS).filter(|_| absent.again(true)).collect();
        assert_eq!(told, [LOOKS - 1], "once, at the last of them");
        let mut absent = Absent::default();
        assert!(absent.again(false) && !absent.again(false), "nothing was kept");
    }

    #[tokio::test]
    async fn nothing_is_told_of_a_kind_that_was_not_found_once_and_of_which_something_is_kept() {
        let place = KINDS.iter().position(|kind| kind.name == "AuthorizationPolicy");
        let policies = What::Documents(place.unwrap());
        let client = fake::client(|_, _, _| fake::failure(404, "NotFound", "there is none"));
        for kept in [true, false] {
            let (told, mut events) = mpsc::channel(10);
            let (asked, mut asks) = mpsc::channel(100);
            let keeps = move || {
                let _ = asked.try_send(());
                kept
            };
            let follows = tokio::spawn(follow(client.clone(), policies, keeps, told));
            // Before this goes on, it has told what it will, and waits for the next look.
            asks.recv().await.unwrap();
            tokio::task::yield_now().await;
            let begins =
                events.try_recv().is_ok_and(|(what, seen)| what == policies && matches!(seen, Seen::Begin));
            assert_eq!(begins, !kept);
            follows.abort();
        }
    }
}
