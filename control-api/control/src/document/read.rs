//! Texts -> documents of known kinds with names, and where every field of them stands.

use std::sync::Arc;

use remora_xds::diag::{ConfigError, Position, SourceMap};
use remora_xds::nearest;
use remora_xds::yaml::{self, Node, Value as Yaml};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json;
use crate::kinds::{KINDS, Kind};
use crate::store::Key;

/// A text of one document or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Text {
    /// File name, for the mistakes.
    pub name: String,
    /// YAML or JSON.
    pub text: String,
}

/// A document that somebody wants to have.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Who it is.
    pub key: Key,
    /// Its kind.
    pub kind: &'static Kind,
    /// What it says, without what only a server says.
    pub body: Map<String, Value>,
    /// `metadata.resourceVersion`: it replaces this version and no other.
    pub resource_version: Option<String>,
    file: Arc<str>,
    map: SourceMap,
}

/// Something that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    /// Its file, or what stands for one.
    pub file: String,
    /// 1-based line, when there is a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// 1-based column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// The document, `HTTPRoute default/checkout`, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Path of the field; empty for the document itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

/// As compilers write it: `mesh.yaml:7:5: spec.rules[0]: … (…)`.
impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(fix) => write!(f, " ({fix})"),
            None => Ok(()),
        }
    }
}

impl Mistake {
    fn at(file: &str, position: Position, field: &str, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(position.line),
            column: Some(position.column),
            document: None,
            field: field.to_owned(),
            message: message.into(),
            suggestion: None,
        }
    }
}

impl Incoming {
    /// A mistake that was found in the document as it will be kept, at its place in the text.
    #[must_use]
    pub fn mistake(&self, error: &ConfigError) -> Mistake {
        let position = self.map.position(&error.path);
        Mistake {
            file: self.file.to_string(),
            line: position.map(|p| p.line),
            column: position.map(|p| p.column),
            document: Some(self.key.to_string()),
            field: error.path.clone(),
            message: error.message.clone(),
            suggestion: error.fix.clone(),
        }
    }

    /// A mistake of the document as a whole.
    #[must_use]
    pub fn refused(&self, field: &str, message: impl Into<String>) -> Mistake {
        let position = self.map.position(field).unwrap_or(Position { line: 1, column: 1 });
        let mistake = Mistake::at(&self.file, position, field, message);
        Mistake { document: Some(self.key.to_string()), ..mistake }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.body.get("metadata")?.get("annotations")?.get(name)?.as_str()
    }

    /// Sets an annotation, or takes it out.
    pub fn annotate(&mut self, name: &str, value: Option<&str>) {
        let Some(Value::Object(metadata)) = self.body.get_mut("metadata") else { return };
        let annotations = metadata.entry("annotations").or_insert_with(|| Map::new().into());
        let Value::Object(annotations) = annotations else { return };
        match value {
            Some(value) => drop(annotations.insert(name.to_owned(), value.into())),
            None => drop(annotations.remove(name)),
        }
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }

    /// Where it stands: `mesh.yaml:7`.
    #[must_use]
    pub fn place(&self) -> String {
        let line = self.map.position("").map_or(1, |p| p.line);
        format!("{}:{line}", self.file)
    }
}

/// Reads texts. Documents without a namespace are in `namespace`.
///
/// # Errors
/// Every mistake that keeps a document from having a name.
pub fn read(texts: &[Text], namespace: &str) -> Result<Vec<Incoming>, Vec<Mistake>> {
    let (mut all, mut mistakes) = (Vec::new(), Vec::new());
    for text in texts {
        let file: Arc<str> = text.name.as_str().into();
        for (skipped, part) in remora_mesh::split(&text.text) {
            match one(&file, part, skipped, namespace) {
                Ok(None) => {}
                Ok(Some(document)) => all.push(document),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
    }
    let twice: Vec<_> = all
        .iter()
        .enumerate()
        .filter_map(|(i, document)| {
            let first = all[..i].iter().find(|earlier| earlier.key == document.key)?;
            let text = format!("{} stands in {} already", document.key, first.place());
            let mut mistake = document.refused("metadata.name", text);
            mistake.suggestion = Some("remove one of the two, or rename it".into());
            Some(mistake)
        })
        .collect();
    mistakes.extend(twice);
    if mistakes.is_empty() { Ok(all) } else { Err(mistakes) }
}

fn one(file: &Arc<str>, text: &str, skipped: u32, namespace: &str) -> Result<Option<Incoming>, Vec<Mistake>> {
    let moved = |at: Position| Position { line: at.line + skipped, ..at };
    let node = yaml::parse(text).map_err(|errors| {
        let mistake = |e: yaml::YamlError| Mistake::at(file, moved(e.at), &e.path, e.message);
        errors.into_iter().map(mistake).collect::<Vec<_>>()
    })?;
    if node.is_null() {
        return Ok(None);
    }
    let mut map = SourceMap::default();
    locate(&node, String::new(), node.at, skipped, &mut map);
    let wrong = |field: &str, message: String| {
        let at = map.position(field).unwrap_or_else(|| moved(node.at));
        Mistake::at(file, at, field, message)
    };
    let Value::Object(mut body) = json::document(&node) else {
        return Err(vec![wrong("", "a document is a mapping".into())]);
    };
    let kind = kind_of(&body)
        .map_err(|(message, fix)| vec![Mistake { suggestion: Some(fix), ..wrong("kind", message) }])?;
    // Older versions mean the same: it is kept as its path says.
    body.insert("apiVersion".into(), kind.api_version().into());
    body.remove("status");
    let Some(Value::Object(metadata)) = body.get_mut("metadata") else {
        return Err(vec![wrong("metadata", "metadata with a name is missing".into())]);
    };
    // What only a server says, as in a document that was got from one.
    let resource_version = metadata.remove("resourceVersion").and_then(|v| v.as_str().map(str::to_owned));
    for field in ["uid", "generation", "creationTimestamp", "managedFields", "selfLink"] {
        metadata.remove(field);
    }
    let given = metadata.entry("namespace").or_insert_with(|| namespace.into());
    let namespace = label(given).ok_or_else(|| vec![wrong("metadata.namespace", not_a_name())])?;
    let name =
        metadata.get("name").and_then(label).ok_or_else(|| vec![wrong("metadata.name", not_a_name())])?;
    let key = Key::new(kind.name, &namespace, &name);
    Ok(Some(Incoming { key, kind, body, resource_version, file: Arc::clone(file), map }))
}

fn not_a_name() -> String {
    "must be lower-case letters, digits and -, at most 63".into()
}

/// RFC 1123 label.
fn label(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    fits.then(|| text.to_owned())
}

fn kind_of(body: &Map<String, Value>) -> Result<&'static Kind, (String, String)> {
    let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    Kind::of(version, name).ok_or_else(|| {
        let near = KINDS.iter().find(|kind| nearest(name, std::iter::once(kind.name)).is_some());
        let fix = near.map_or_else(
            || format!("known are {}", KINDS.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")),
            |kind| format!("did you mean apiVersion: {}, kind: {}?", kind.api_version(), kind.name),
        );
        (format!("apiVersion {version:?}, kind {name:?} is not known"), fix)
    })
}

/// Writes down where every field stands.
fn locate(node: &Node<'_>, path: String, at: Position, skipped: u32, map: &mut SourceMap) {
    match &node.value {
        Yaml::Scalar(_) => {}
        Yaml::Seq(list) => {
            for (i, item) in list.iter().enumerate() {
                locate(item, format!("{path}[{i}]"), item.at, skipped, map);
            }
        }
        Yaml::Map(entries) => {
            let dot = if path.is_empty() { "" } else { "." };
            for entry in entries.iter() {
                locate(&entry.node, format!("{path}{dot}{}", entry.key), entry.key_at, skipped, map);
            }
        }
    }
    map.insert(path, Position { line: at.line + skipped, ..at });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<Text> {
        vec![Text { name: "mesh.yaml".into(), text: text.into() }]
    }

    #[test]
    fn documents_are_read_without_what_a_server_adds() {
        let text = "# two of them\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  uid: x\n  resourceVersion: '7'\n  \
                    generation: 3\nspec: {ports: [{port: 80}]}\nstatus: {conditions: []}\n---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: b, namespace: shop}\nspec: {}\n---\n";
        let read = read(&texts(text), "team").unwrap();
        let keys: Vec<_> = read.iter().map(|d| d.key.to_string()).collect();
        assert_eq!(keys, ["Service team/a", "Service shop/b"]);
        assert_eq!(read[0].resource_version.as_deref(), Some("7"));
        let expected = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"team"},"spec":{"ports":[{"port":80}]}}"#;
        assert_eq!(Value::Object(read[0].body.clone()).to_string(), expected);
        assert_eq!(read[1].place(), "mesh.yaml:12");
    }

    #[test]
    fn labels_are_texts_and_an_older_version_is_the_one_of_the_path() {
        let text = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\n\
                    metadata: {name: a, labels: {version: 1, canary: true, at: 1.10, hex: 0x10}, annotations: {n: 2}}\n\
                    spec: {selector: {version: 1}, weight: 1}\n";
        let read = read(&texts(text), "team").unwrap();
        let expected = r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"annotations":{"n":"2"},"labels":{"at":"1.10","canary":"true","hex":"0x10","version":"1"},"name":"a","namespace":"team"},"spec":{"selector":{"version":"1"},"weight":1}}"#;
        assert_eq!(Value::Object(read[0].body.clone()), serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "apiVersion: v1\nkind: Servce\nmetadata: {name: a}\n---\n- 1\n---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: A}\n---\na: b: c\n---\napiVersion: v1\nkind: Service\n";
        let mistakes: Vec<_> =
            read(&texts(text), "default").unwrap_err().iter().map(ToString::to_string).collect();
        let expected = [
            "mesh.yaml:2:1: kind: apiVersion \"v1\", kind \"Servce\" is not known (did you mean apiVersion: v1, kind: Service?)",
            "mesh.yaml:5:1: a document is a mapping",
            "mesh.yaml:9:12: metadata.name: must be lower-case letters, digits and -, at most 63",
        ];
        assert_eq!(mistakes[..3], expected);
        assert!(mistakes[3].starts_with("mesh.yaml:11:"), "{}", mistakes[3]);
        assert!(mistakes[4].contains("metadata with a name is missing"), "{}", mistakes[4]);
        assert_eq!(mistakes.len(), 5);
    }

    #[test]
    fn a_document_that_stands_twice_is_a_mistake() {
        let one = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n";
        let mistakes = read(&texts(&format!("{one}---\n{one}")), "default").unwrap_err();
        assert_eq!(
            mistakes[0].to_string(),
            "mesh.yaml:8:12: metadata.name: Service default/a stands in mesh.yaml:1 already (remove one of the two, or rename it)"
        );
    }
}
