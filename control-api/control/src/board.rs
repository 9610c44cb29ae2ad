//! What proxies make of the documents: who is connected, who has what, who refuses what and why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `Synced`: it has everything. `Syncing`: something is on its way. `Refused`: it refuses something.
    pub state: String,
    /// Resources that it has in force, of those that it is to have.
    pub in_force: usize,
    /// Resources that it is to have.
    pub wanted: usize,
    /// What it refuses.
    pub refusals: Vec<Refusal>,
}

/// What a stream has to do with a document.
#[derive(Debug, Default)]
struct Stream {
    proxy: Option<Proxy>,
    /// Versions in force by kind and name.
    has: BTreeMap<(String, String), String>,
    refused: BTreeMap<(String, String), Refusal>,
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

    /// A proxy has opened a stream.
    pub fn opened(&self, stream: u64, proxy: Proxy) {
        self.streams().entry(stream).or_default().proxy = Some(proxy);
    }

    /// Its stream has ended.
    pub fn closed(&self, stream: u64) {
        self.streams().remove(&stream);
    }

    /// It has a resource in force.
    pub fn accepted(&self, stream: u64, kind: &str, name: &str, version: &str) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let (mut streams, id) = (self.streams(), (kind.to_owned(), name.to_owned()));
        let Some(stream) = streams.get_mut(&stream) else { return };
        stream.refused.remove(&id);
        stream.has.insert(id, version.to_owned());
    }

    /// It refuses a resource.
    pub fn refused(&self, stream: u64, mut refusal: Refusal) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some((cut, _)) = refusal.reason.char_indices().find(|(at, _)| *at >= REASON) {
            refusal.reason.truncate(cut);
        }
        let (mut streams, id) = (self.streams(), (refusal.kind.clone(), refusal.name.clone()));
        let Some(stream) = streams.get_mut(&stream) else { return };
        if stream.refused.len() < REFUSALS || stream.refused.contains_key(&id) {
            stream.refused.insert(id, refusal);
        }
    }

    /// What a stream is to have now: kind, name and version of each resource.
    pub fn wanted<'a>(&self, stream: u64, resources: impl Iterator<Item = (&'a str, &'a str, &'a str)>) {
        let mut streams = self.streams();
        let Some(Stream { proxy: Some(proxy), has, refused }) = streams.get_mut(&stream) else { return };
        let (mut wanted, mut in_force, mut alive) = (0, 0, BTreeSet::new());
        for (kind, name, version) in resources {
            let id = (kind.to_owned(), name.to_owned());
            wanted += 1;
            in_force += usize::from(has.get(&id).is_some_and(|has| has == version));
            alive.insert(id);
        }
        has.retain(|id, _| alive.contains(id));
        refused.retain(|id, _| alive.contains(id));
        (proxy.wanted, proxy.in_force) = (wanted, in_force);
    }

    /// The streams there are.
    #[must_use]
    pub fn open(&self) -> Vec<u64> {
        self.streams().keys().copied().collect()
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
        let streams = self.streams();
        let mut all: Vec<_> = streams
            .values()
            .filter_map(|stream| {
                let mut proxy = stream.proxy.clone()?;
                proxy.refusals = stream.refused.values().cloned().collect();
                proxy.state = if !stream.refused.is_empty() {
                    "Refused"
                } else if proxy.in_force < proxy.wanted {
                    "Syncing"
                } else {
                    "Synced"
                }
                .to_owned();
                Some(proxy)
            })
            .collect();
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
            let Some(proxy) = &stream.proxy else { continue };
            let own = stream.refused.values().filter(|refusal| refusal.documents.contains(&path));
            refusals.extend(own.map(|refusal| (proxy.node.clone(), refusal.clone())));
        }
        let generation = record.generation();
        let since = record
            .metadata()
            .get("creationTimestamp")
            .cloned()
            .unwrap_or_else(|| rfc3339(SystemTime::now()).into());
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
    use super::*;
    use crate::store::Entry;

    fn proxy(node: &str) -> Proxy {
        Proxy {
            node: node.into(),
            workload: None,
            address: None,
            variant: "delta".into(),
            agent: String::new(),
            since: String::new(),
            state: String::new(),
            in_force: 0,
            wanted: 0,
            refusals: Vec::new(),
        }
    }

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
        board.opened(1, proxy("sidecar~a"));
        let resources = [("RouteConfiguration", "r", "v1")];
        board.wanted(1, resources.into_iter());
        assert_eq!(board.proxies()[0].state, "Syncing");
        board.refused(
            1,
            Refusal {
                kind: "RouteConfiguration".into(),
                name: "r".into(),
                version: "v1".into(),
                reason: "no such cluster".into(),
                documents: vec!["HTTPRoute/default/a".into()],
            },
        );
        assert_eq!(board.proxies()[0].state, "Refused");
        let told = conditions(&board);
        assert_eq!(told[1].0, "Programmed=False");
        assert_eq!(
            told[2],
            ("RefusedBy=True".into(), "sidecar~a: RouteConfiguration r: no such cluster".into())
        );

        board.accepted(1, "RouteConfiguration", "r", "v1");
        board.wanted(1, resources.into_iter());
        assert_eq!(board.proxies()[0].state, "Synced");
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
