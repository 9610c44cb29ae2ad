//! Texts -> [`Documents`].

use std::sync::Arc;

use remora_xds::diag::{ConfigError, Position, SourceMap};
use remora_xds::nearest;
use remora_xds::yaml::{self, Entry, Node, Value};
use serde::de::DeserializeOwned;

use crate::check::{self, Finding, Lack, Rule, Severity};
use crate::de::Input;
use crate::document::{DEFAULT, Document, EndpointSliceSpec, Envelope, Metadata, SliceEnvelope};
use crate::kinds::{Documents, Kind};
use crate::name::Name;

impl Documents {
    /// Reads texts, each of one document or several between lines of `---`, and checks them together. The first of each pair is
    /// the file name, for the errors.
    ///
    /// # Errors
    /// Every mistake: of a document that cannot be read the first one, of all others everything that is wrong with them.
    pub fn read<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<ConfigError>> {
        let (all, findings) = Self::check(texts);
        let errors: Vec<_> =
            findings.into_iter().filter(|f| f.severity == Severity::Error).map(|f| f.error).collect();
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    /// Reads texts like [`Self::read`], and answers everything that was found in them: also what is no mistake, and does nothing. What
    /// cannot be read is left out, and the rest is checked: references to what was left out are not held against anybody.
    pub fn check<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Self, Vec<Finding>) {
        let (all, unread) = Self::read_each(texts);
        let mut others = check::check(&all);
        if !unread.is_empty() {
            // What does nothing, it does in the whole, which is not there.
            others.retain(|found| {
                found.severity == Severity::Error && !unread.iter().any(|one| one.explains(found))
            });
        }
        let errors = unread.into_iter().flat_map(|one| one.errors);
        let mut findings: Vec<_> = errors.map(|error| Finding::mistake(Rule::Syntax, error)).collect();
        findings.extend(others);
        (all, findings)
    }

    /// Reads texts like [`Self::read`], without the checks of what documents say together: what they refer to may come from
    /// elsewhere.
    ///
    /// # Errors
    /// The first mistake of each document that cannot be read.
    pub fn read_alone<'a>(
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let (all, unread) = Self::read_each(texts);
        let errors: Vec<_> = unread.into_iter().flat_map(|one| one.errors).collect();
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    /// Everything that can be read, and what cannot.
    fn read_each<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Self, Vec<Unread>) {
        let (mut all, mut unread) = (Self::default(), Vec::new());
        for (name, text) in texts {
            let source: Arc<str> = name.into();
            for (skipped, part) in split(text) {
                if let Err(one) = all.add(&source, part, skipped) {
                    unread.push(one);
                }
            }
        }
        (all, unread)
    }

    fn add(&mut self, source: &Arc<str>, text: &str, skipped: u32) -> Result<(), Unread> {
        let error = |at: Position, path: String, message: String, fix: Option<String>| ConfigError {
            source: Arc::clone(source),
            position: Some(moved(at, skipped)),
            path,
            message,
            fix,
        };
        let node = yaml::parse(text).map_err(|errors| {
            Unread::unknown(errors.into_iter().map(|e| error(e.at, e.path, e.message, None)).collect())
        })?;
        if node.is_null() {
            return Ok(());
        }
        let Value::Map(entries) = &node.value else {
            let text = "a document is a mapping".into();
            return Err(Unread::unknown(vec![error(node.at, String::new(), text, None)]));
        };
        let (version, kind) = (scalar(entries, "apiVersion"), scalar(entries, "kind"));
        let known = Kind::ALL.into_iter().find(|k| k.as_str() == kind && k.api_versions().contains(&version));
        let unread = |errors| Unread { errors, kind: known, name: name(entries) };
        let Some(known) = known else {
            let at = entries.iter().find(|e| e.key == "kind").map_or(node.at, |e| e.key_at);
            let (said, fix) = unknown(version, kind);
            return Err(unread(vec![error(at, "kind".into(), said, Some(fix))]));
        };
        self.take(known, &Read { node: &node, source, skipped }).map_err(unread)
    }

    /// Adds a document of a kind.
    fn take(&mut self, kind: Kind, read: &Read<'_>) -> Result<(), Vec<ConfigError>> {
        match kind {
            Kind::Service => self.services.push(read.document()?),
            Kind::Workload => self.workloads.push(read.document()?),
            Kind::EndpointSlice => self.slices.push(read.slice()?),
            Kind::HttpRoute => self.http_routes.push(read.document()?),
            Kind::GrpcRoute => self.grpc_routes.push(read.document()?),
            Kind::TcpRoute => self.tcp_routes.push(read.document()?),
            Kind::TlsRoute => self.tls_routes.push(read.document()?),
            Kind::ReferenceGrant => self.grants.push(read.document()?),
            Kind::TrafficPolicy => self.policies.push(read.document()?),
            Kind::AuthenticationPolicy => self.authentications.push(read.document()?),
            Kind::AuthorizationPolicy => self.authorizations.push(read.document()?),
            Kind::RateLimitPolicy => self.rate_limits.push(read.document()?),
            Kind::FaultPolicy => self.faults.push(read.document()?),
        }
        Ok(())
    }
}

/// A document that cannot be read, as far as it is known which one it is.
struct Unread {
    errors: Vec<ConfigError>,
    kind: Option<Kind>,
    name: Option<Name>,
}

impl Unread {
    const fn unknown(errors: Vec<ConfigError>) -> Self {
        Self { errors, kind: None, name: None }
    }

    /// Whether `found` may be so only because this document is left out.
    fn explains(&self, found: &Finding) -> bool {
        let is = |kind| self.kind.is_none_or(|own| own == kind);
        match &found.lacks {
            Some(Lack::Service(service)) => {
                is(Kind::Service) && self.name.as_ref().is_none_or(|own| own == service)
            }
            Some(Lack::Grant(service)) => {
                let there = self.name.as_ref().is_none_or(|own| own.namespace == service.namespace);
                is(Kind::ReferenceGrant) && there
            }
            Some(Lack::Port(_)) | None => false,
        }
    }
}

/// Namespace and name, as far as they can be read.
fn name(entries: &[Entry<'_>]) -> Option<Name> {
    let metadata = entries.iter().find(|e| e.key == "metadata")?;
    let Value::Map(metadata) = &metadata.node.value else { return None };
    let (namespace, name) = (scalar(metadata, "namespace"), scalar(metadata, "name"));
    (!name.is_empty()).then(|| Name::new(if namespace.is_empty() { DEFAULT } else { namespace }, name))
}

/// Kinds that people know from elsewhere, or that are planned, and what to do without them.
const REFUSED: [(&str, &str); 6] = [
    ("TelemetryPolicy", "is not supported yet"),
    ("Gateway", "is not supported: routes are attached to Services"),
    ("GatewayClass", "is not supported: routes are attached to Services"),
    ("VirtualService", "is not supported: write an HTTPRoute that is attached to a Service"),
    ("DestinationRule", "is not supported: write a TrafficPolicy"),
    ("ServiceEntry", "is not supported: a Service has workloads of the mesh"),
];

/// What is wrong with a kind that is not known, and what somebody may have meant who wrote it.
fn unknown(version: &str, kind: &str) -> (String, String) {
    let known = || format!("known are {}", Kind::ALL.map(Kind::as_str).join(", "));
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == kind) {
        return (format!("{kind} {why}"), known());
    }
    let near = |known: &Kind| nearest(kind, std::iter::once(known.as_str())).is_some();
    let fix = Kind::ALL
        .into_iter()
        .find(near)
        .map_or_else(known, |near| format!("did you mean apiVersion: {}, kind: {near}?", near.api_version()));
    (format!("apiVersion {version:?}, kind {kind:?} is not known"), fix)
}

/// A document of a known kind.
struct Read<'a> {
    node: &'a Node<'a>,
    source: &'a Arc<str>,
    skipped: u32,
}

impl Read<'_> {
    fn document<S: DeserializeOwned>(&self) -> Result<Document<S>, Vec<ConfigError>> {
        let envelope: Envelope<S> = self.envelope()?;
        Ok(self.located(envelope.metadata, envelope.spec))
    }

    fn slice(&self) -> Result<Document<EndpointSliceSpec>, Vec<ConfigError>> {
        let (metadata, spec) = self.envelope::<SliceEnvelope>()?.into_parts();
        Ok(self.located(metadata, spec))
    }

    fn envelope<E: DeserializeOwned>(&self) -> Result<E, Vec<ConfigError>> {
        E::deserialize(Input(self.node)).map_err(|e| {
            vec![ConfigError {
                source: Arc::clone(self.source),
                position: Some(moved(e.at.unwrap_or(self.node.at), self.skipped)),
                path: e.path(),
                message: e.message,
                fix: e.fix,
            }]
        })
    }

    fn located<S>(&self, metadata: Metadata, spec: S) -> Document<S> {
        let mut map = SourceMap::default();
        locate(self.node, String::new(), self.node.at, self.skipped, &mut map);
        Document { metadata, spec, source: Arc::clone(self.source), map }
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
