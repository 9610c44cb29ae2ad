//! What proxies make of the documents: who is connected, who has what, who refuses what and why.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use remora_xds::server::SnapshotWatch;
use remora_xds::{Kind, Resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::document::Record;
use crate::store::Key;

/// Refusals of one proxy that are kept.
const REFUSALS: usize = 200;
/// Bytes of a reason that are kept.
const REASON: usize = 2000;
/// Proxies that a condition names.
const NAMED: usize = 10;

/// A resource that a proxy refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `Cluster`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Version that was refused.
    pub version: String,
    /// What the proxy says.
    pub reason: String,
    /// Paths of the documents that it was made of.
    pub documents: Vec<String>,
}

/// A stream of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Id of its node.
    pub node: String,
    /// The workload that it stands beside, `default/shop-1`, when it is one.
    pub workload: Option<String>,
    /// Where it connected from.
    pub address: Option<SocketAddr>,
    /// `delta` or `sotw`.
    pub variant: String,
    /// What it says that it is, `envoy 1.40.0`.
    pub agent: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// `Synced`: it has everything. `Syncing`: something is on its way. `Refused`: it refuses something. `Waiting`: its workload is
    /// not known.
    pub state: String,
    /// Resources that it has in force, of those that it is to have.
    pub in_force: usize,
    /// Resources that it is to have.
    pub wanted: usize,
    /// What it refuses.
    pub refusals: Vec<Refusal>,
}

type Id = (Kind, Arc<str>);

fn id(resource: &Resource) -> Id {
    (resource.kind(), Arc::clone(resource.name()))
}

/// A stream of a proxy.
#[derive(Debug)]
struct Stream {
    proxy: Proxy,
    /// What it is to have.
    snapshots: SnapshotWatch,
    /// Versions in force.
    has: HashMap<Id, Arc<str>>,
    refused: BTreeMap<Id, Refusal>,
}

impl Stream {
    /// The proxy as it is now.
    fn now(&self) -> Proxy {
        let mut proxy = self.proxy.clone();
        let known = self.snapshots.borrow().clone();
        let waits = known.is_none();
        let snapshot = known.unwrap_or_default();
        proxy.wanted = snapshot.len();
        proxy.in_force = snapshot.iter().filter(|r| self.has.get(&id(r)) == Some(r.version())).count();
        proxy.refusals = self.refusals().cloned().collect();
        let state = match (&proxy.refusals[..], proxy.in_force < proxy.wanted) {
            _ if waits => "Waiting",
            ([], false) => "Synced",
            ([], true) => "Syncing",
            _ => "Refused",
        };
        state.clone_into(&mut proxy.state);
        proxy
    }

    /// What it refuses of that which it is to have.
    fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        let snapshot = self.snapshots.borrow().clone().unwrap_or_default();
        let current = move |((kind, name), refusal): &(&Id, &Refusal)| {
            snapshot.get(*kind, name).is_some_and(|resource| **resource.version() == *refusal.version)
        };
        self.refused.iter().filter(current).map(|(_, refusal)| refusal)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Board {
    streams: Mutex<BTreeMap<u64, Stream>>,
    /// Documents that are left out, and why.
    left_out: RwLock<BTreeMap<Key, Vec<String>>>,
    files: RwLock<Value>,
    accepted: AtomicU64,
    refused: AtomicU64,
    compiled: AtomicU64,
    compile_micros: AtomicU64,
}

impl Board {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy has opened a stream; `snapshots` is what it is to have.
    pub fn opened(&self, stream: u64, proxy: Proxy, snapshots: SnapshotWatch) {
        let new = Stream { proxy, snapshots, has: HashMap::new(), refused: BTreeMap::new() };
        self.streams().insert(stream, new);
    }

    /// Its stream has ended.
    pub fn closed(&self, stream: u64) {
        self.streams().remove(&stream);
    }

    /// It has a resource in force.
    pub fn accepted(&self, stream: u64, resource: &Resource) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let (mut streams, id) = (self.streams(), id(resource));
        let Some(stream) = streams.get_mut(&stream) else { return };
        stream.refused.remove(&id);
        stream.has.insert(id, Arc::clone(resource.version()));
        // Of what has gone nobody tells.
        let snapshot = stream.snapshots.borrow().clone().unwrap_or_default();
        if stream.has.len() > 2 * snapshot.len() + 100 {
            stream.has.retain(|(kind, name), _| snapshot.get(*kind, name).is_some());
        }
    }

    /// It refuses a resource.
    pub fn refused(&self, stream: u64, resource: &Resource, mut refusal: Refusal) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some((cut, _)) = refusal.reason.char_indices().find(|(at, _)| *at >= REASON) {
            refusal.reason.truncate(cut);
        }
        let (mut streams, id) = (self.streams(), id(resource));
        let Some(stream) = streams.get_mut(&stream) else { return };
        if stream.refused.len() < REFUSALS || stream.refused.contains_key(&id) {
            stream.refused.insert(id, refusal);
        }
    }

    /// Documents that are left out because they are not right together with the others, and why.
    pub fn left_out(&self, documents: BTreeMap<Key, Vec<String>>) {
        *self.left_out.write().unwrap_or_else(PoisonError::into_inner) = documents;
    }

    /// What the folder of documents says of itself.
    pub fn set_files(&self, state: Value) {
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// See [`Self::set_files`]; null without a folder.
    #[must_use]
    pub fn files(&self) -> Value {
        self.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The documents were compiled once more.
    pub fn compiled(&self, took: std::time::Duration) {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.compile_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Every connected proxy with its sync state, by node.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        let mut all: Vec<_> = self.streams().values().map(Stream::now).collect();
        all.sort_by(|a, b| (&a.node, &a.since).cmp(&(&b.node, &b.since)));
        all
    }

    /// `status` of a document: whether it is right (Accepted), whether proxies have it (Programmed), and who does not want it
    /// (RefusedBy).
    #[must_use]
    pub fn status(&self, record: &Record) -> Value {
        let left_out = self.left_out.read().unwrap_or_else(PoisonError::into_inner).get(&record.key).cloned();
        let path = record.key.path();
        let mut refusals = Vec::new();
        for stream in self.streams().values() {
            let own = stream.refusals().filter(|refusal| refusal.documents.contains(&path));
            refusals.extend(own.map(|refusal| (stream.proxy.node.clone(), refusal.clone())));
        }
        let generation = record.generation();
        let since = record.metadata().remove("creationTimestamp");
        let since = since.unwrap_or_else(|| rfc3339(SystemTime::now()).into());
        let condition = |kind: &str, holds: bool, reason: &str, message: String| {
            json!({
                "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
                "observedGeneration": generation, "lastTransitionTime": since,
            })
        };
        let accepted = match &left_out {
            None => condition("Accepted", true, "Accepted", String::new()),
            Some(why) => condition("Accepted", false, "Invalid", why.join("\n")),
        };
        let programmed = if left_out.is_some() {
            condition("Programmed", false, "NotAccepted", String::new())
        } else if refusals.is_empty() {
            condition("Programmed", true, "Programmed", String::new())
        } else {
            condition(
                "Programmed",
                false,
                "Refused",
                format!("{} proxies refuse a part of it", refusals.len()),
            )
        };
        let mut conditions = vec![accepted, programmed];
        if !refusals.is_empty() {
            let line = |(node, refusal): &(String, Refusal)| {
                format!("{node}: {} {}: {}", refusal.kind, refusal.name, refusal.reason)
            };
            let mut lines: Vec<_> = refusals.iter().take(NAMED).map(line).collect();
            if refusals.len() > NAMED {
                lines.push(format!("and {} more", refusals.len() - NAMED));
            }
            conditions.push(condition("RefusedBy", true, "Refused", lines.join("\n")));
        }
        json!({ "conditions": conditions })
    }

    /// Name, help, type and value of each metric.
    #[must_use]
    pub fn metrics(&self) -> Vec<(&'static str, &'static str, &'static str, f64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let connected = self.streams().len() as f64;
        let left_out = self.left_out.read().unwrap_or_else(PoisonError::into_inner).len() as f64;
        vec![
            ("remora_control_xds_streams", "Open streams of proxies.", "gauge", connected),
            (
                "remora_control_xds_accepted_total",
                "Resources that proxies took.",
                "counter",
                count(&self.accepted),
            ),
            (
                "remora_control_xds_refused_total",
                "Resources that proxies refused.",
                "counter",
                count(&self.refused),
            ),
            (
                "remora_control_documents_left_out",
                "Documents that are not right together.",
                "gauge",
                left_out,
            ),
            (
                "remora_control_compilations_total",
                "Times that changes were compiled.",
                "counter",
                count(&self.compiled),
            ),
            (
                "remora_control_compile_seconds_total",
                "Time that compiling took.",
                "counter",
                count(&self.compile_micros) / 1e6,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use remora_xds::NodeSnapshot;
    use remora_xds::pb::envoy::config::route::v3::RouteConfiguration;

    use super::*;
    use crate::store::Entry;

    fn route() -> Record {
        let value = r#"{"metadata":{"generation":3}}"#;
        Record::of(&Entry {
            key: Key::new("HTTPRoute", "default", "a"),
            value: value.into(),
            revision: 1,
            lease: None,
        })
        .unwrap()
    }

    fn conditions(board: &Board) -> Vec<(String, String)> {
        let status = board.status(&route());
        let list = status["conditions"].as_array().unwrap().iter();
        list.map(|c| {
            (
                format!("{}={}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap()),
                c["message"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
    }

    #[test]
    fn a_refusal_is_told_to_the_author_until_the_proxy_takes_the_resource() {
        let board = Board::default();
        let resource = |name: &str| {
            Arc::new(Resource::new(&RouteConfiguration {
                name: name.into(),
                ..RouteConfiguration::default()
            }))
        };
        let (route_r, other) = (resource("r"), resource("s"));
        let snapshot: NodeSnapshot = [Arc::clone(&route_r)].into_iter().collect();
        let snapshots = tokio::sync::watch::Sender::new(Some(Arc::new(snapshot)));
        board.opened(1, Proxy { node: "sidecar~a".into(), ..Proxy::default() }, snapshots.subscribe());
        assert_eq!(board.proxies()[0].state, "Syncing");
        let refusal = Refusal {
            kind: "RouteConfiguration".into(),
            name: "r".into(),
            version: route_r.version().to_string(),
            reason: "no such cluster".into(),
            documents: vec!["HTTPRoute/default/a".into()],
        };
        board.refused(1, &route_r, refusal.clone());
        assert_eq!(board.proxies()[0].state, "Refused");
        let told = conditions(&board);
        assert_eq!(told[1].0, "Programmed=False");
        assert_eq!(
            told[2],
            ("RefusedBy=True".into(), "sidecar~a: RouteConfiguration r: no such cluster".into())
        );

        board.accepted(1, &route_r);
        assert_eq!((board.proxies()[0].state.as_str(), board.proxies()[0].in_force), ("Synced", 1));
        assert_eq!(conditions(&board).len(), 2);

        // What it refuses and is to have no longer is nobody's trouble.
        board.refused(1, &route_r, refusal);
        snapshots.send_replace(Some(Arc::new([other].into_iter().collect())));
        assert_eq!(board.proxies()[0].state, "Syncing");
        assert_eq!(conditions(&board).len(), 2);
        board.closed(1);
        assert!(board.proxies().is_empty());
    }

    #[test]
    fn a_document_that_is_left_out_says_why() {
        let board = Board::default();
        board.left_out(BTreeMap::from([(route().key, vec!["there is no Service".into()])]));
        assert_eq!(conditions(&board)[0], ("Accepted=False".into(), "there is no Service".into()));
        assert_eq!(conditions(&board)[1].0, "Programmed=False");
    }
}
