//! Texts -> [`Documents`].

use std::sync::Arc;

use remora_xds::diag::{ConfigError, Position, SourceMap};
use remora_xds::nearest;
use remora_xds::yaml::{self, Entry, Node, Value};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::check;
use crate::de::Input;
use crate::document::{Document, Envelope, HttpRouteSpec, ServiceSpec, TrafficPolicySpec, WorkloadSpec};
use crate::mesh::{AnyDocument, Mesh};
use crate::name::Kind;

/// All documents of a mesh.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// `v1` Service.
    pub services: Vec<Document<ServiceSpec>>,
    /// `remora.dev/v1alpha1` Workload.
    pub workloads: Vec<Document<WorkloadSpec>>,
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    pub routes: Vec<Document<HttpRouteSpec>>,
    /// `remora.dev/v1alpha1` TrafficPolicy.
    pub policies: Vec<Document<TrafficPolicySpec>>,
}

impl Documents {
    /// Reads texts, each of one document or several between lines of `---`, and checks them together. The first of each pair is
    /// the file name, for the errors.
    ///
    /// # Errors
    /// Every mistake: of a document that cannot be read the first one, of all others everything that is wrong with them.
    pub fn read<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<ConfigError>> {
        let all = Self::read_alone(texts)?;
        let errors = check::check(&all, &Mesh::from(&all));
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    /// Reads texts like [`Self::read`], without the checks of what documents say together: what they refer to may come from
    /// elsewhere.
    ///
    /// # Errors
    /// The first mistake of each document that cannot be read.
    pub fn read_alone<'a>(
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let (mut all, mut errors) = (Self::default(), Vec::new());
        for (name, text) in texts {
            let source: Arc<str> = name.into();
            for (skipped, part) in split(text) {
                if let Err(mistakes) = all.add(&source, part, skipped) {
                    errors.extend(mistakes);
                }
            }
        }
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    /// Number of documents.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.services.len() + self.workloads.len() + self.routes.len() + self.policies.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, each as it would be applied to a [`crate::Mesh`].
    pub fn iter(&self) -> impl Iterator<Item = AnyDocument> {
        let services = self.services.iter().cloned().map(|d| AnyDocument::Service(Arc::new(d)));
        let workloads = self.workloads.iter().cloned().map(|d| AnyDocument::Workload(Arc::new(d)));
        let routes = self.routes.iter().cloned().map(|d| AnyDocument::HttpRoute(Arc::new(d)));
        let policies = self.policies.iter().cloned().map(|d| AnyDocument::TrafficPolicy(Arc::new(d)));
        services.chain(workloads).chain(routes).chain(policies)
    }

    fn add(&mut self, source: &Arc<str>, text: &str, skipped: u32) -> Result<(), Vec<ConfigError>> {
        let error = |at: Position, path: String, message: String, fix: Option<String>| ConfigError {
            source: Arc::clone(source),
            position: Some(moved(at, skipped)),
            path,
            message,
            fix,
        };
        let node = yaml::parse(text).map_err(|errors| {
            errors.into_iter().map(|e| error(e.at, e.path, e.message, None)).collect::<Vec<_>>()
        })?;
        if node.is_null() {
            return Ok(());
        }
        let Value::Map(entries) = &node.value else {
            return Err(vec![error(node.at, String::new(), "a document is a mapping".into(), None)]);
        };
        let (version, kind) = (scalar(entries, "apiVersion"), scalar(entries, "kind"));
        let at = entries.iter().find(|e| e.key == "kind").map_or(node.at, |e| e.key_at);
        let read = Read { node: &node, source, skipped };
        let known = Kind::ALL.into_iter().find(|k| k.as_str() == kind && k.api_version() == version);
        match known {
            Some(Kind::Service) => self.services.push(read.document()?),
            Some(Kind::Workload) => self.workloads.push(read.document()?),
            Some(Kind::HttpRoute) => self.routes.push(read.document()?),
            Some(Kind::TrafficPolicy) => self.policies.push(read.document()?),
            None => {
                let said = format!("apiVersion {version:?}, kind {kind:?} is not known");
                return Err(vec![error(at, "kind".into(), said, Some(suggestion(kind)))]);
            }
        }
        Ok(())
    }
}

/// What somebody may have meant who wrote `kind`, or its `apiVersion` wrongly.
fn suggestion(kind: &str) -> String {
    match Kind::ALL.into_iter().find(|known| nearest(kind, std::iter::once(known.as_str())).is_some()) {
        Some(near) => format!("did you mean apiVersion: {}, kind: {near}?", near.api_version()),
        None => format!("known are {}", Kind::ALL.map(Kind::as_str).join(", ")),
    }
}

/// A document of a known kind.
struct Read<'a> {
    node: &'a Node<'a>,
    source: &'a Arc<str>,
    skipped: u32,
}

impl Read<'_> {
    fn document<S: DeserializeOwned>(&self) -> Result<Document<S>, Vec<ConfigError>> {
        let envelope = Envelope::<S>::deserialize(Input(self.node)).map_err(|e| {
            vec![ConfigError {
                source: Arc::clone(self.source),
                position: Some(moved(e.at.unwrap_or(self.node.at), self.skipped)),
                path: e.path(),
                message: e.message,
                fix: e.fix,
            }]
        })?;
        let mut map = SourceMap::default();
        locate(self.node, String::new(), self.node.at, self.skipped, &mut map);
        Ok(Document {
            metadata: envelope.metadata,
            spec: envelope.spec,
            source: Arc::clone(self.source),
            map,
        })
    }
}

fn moved(at: Position, lines: u32) -> Position {
    Position { line: at.line + lines, ..at }
}

fn scalar<'a>(entries: &'a [Entry<'_>], key: &str) -> &'a str {
    let entry = entries.iter().find(|e| e.key == key);
    match entry.map(|e| &e.node.value) {
        Some(Value::Scalar(scalar)) => &scalar.text,
        _ => "",
    }
}

/// Writes down where every field stands.
fn locate(node: &Node<'_>, path: String, at: Position, skipped: u32, map: &mut SourceMap) {
    match &node.value {
        Value::Scalar(_) => {}
        Value::Seq(list) => {
            for (i, item) in list.iter().enumerate() {
                locate(item, format!("{path}[{i}]"), item.at, skipped, map);
            }
        }
        Value::Map(entries) => {
            let dot = if path.is_empty() { "" } else { "." };
            for entry in entries.iter() {
                locate(&entry.node, format!("{path}{dot}{}", entry.key), entry.key_at, skipped, map);
            }
        }
    }
    map.insert(path, moved(at, skipped));
}

/// The documents of a text, with the lines before each. A line that begins with `---` parts two documents wherever it stands
/// (YAML 1.2 §9.1.2), and everything before the first one that has content is comments.
pub fn split(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let (mut parts, mut start, mut first, mut at) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            parts.push((first, &text[start..at]));
            (start, first) = (at, u32::try_from(number).unwrap_or(u32::MAX));
        }
        at += line.len();
    }
    parts.push((first, &text[start..]));
    parts.into_iter()
}
