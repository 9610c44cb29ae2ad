//! YAML or JSON text -> a tree in which every node knows its line and column.
//!
//! Scalars keep their text: what `5` or `yes` means is for the field's type to say. Anchors, aliases and merge keys (`<<`)
//! are expanded, under a bound that stops YAML bombs. A key that occurs twice, a second document, a tag that YAML's core
//! schema does not know and a nesting deeper than [`MAX_DEPTH`] are mistakes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_saphyr::granit_parser::{self, Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};

use crate::diag::Position;

/// Deepest nesting of lists and mappings, aliases expanded. Protobuf decoders have the same bound.
pub const MAX_DEPTH: usize = 100;
/// Most nodes of one text, aliases expanded: 30 times a file with 5,000 clusters.
pub const MAX_NODES: usize = 4_000_000;
/// Longest text, in bytes.
pub const MAX_BYTES: usize = 64 << 20;

/// A value in the text.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<'a> {
    /// Where it starts.
    pub at: Position,
    /// What it is.
    pub value: Value<'a>,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Anything but a list or a mapping.
    Scalar(Scalar<'a>),
    /// A list.
    Seq(Rc<[Node<'a>]>),
    /// A mapping, in the order of the text.
    Map(Rc<[Entry<'a>]>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// The key.
    pub key: Cow<'a, str>,
    /// Where the key stands.
    pub key_at: Position,
    /// The value.
    pub node: Node<'a>,
}

/// A scalar as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar<'a> {
    /// Its text, after unescaping.
    pub text: Cow<'a, str>,
    /// Not quoted and not a block: it may be a number, a bool or null.
    pub plain: bool,
}

/// What a plain scalar means where no type says otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resolved<'a> {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `false`, and as Envoy reads it `yes`, `no`, `on`, `off`, `y`, `n`.
    Bool(bool),
    /// A whole number: decimal, `0x…` or `0o…`.
    Int(i128),
    /// Any other number, `.inf` and `.nan`.
    Float(f64),
    /// Text.
    Str(&'a str),
}

/// A mistake in the text itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// Where.
    pub at: Position,
    /// Keys on the way there.
    pub path: String,
    /// What.
    pub message: String,
}

impl Scalar<'_> {
    /// What the scalar means by itself.
    #[must_use]
    pub fn resolve(&self) -> Resolved<'_> {
        if self.plain { resolve(&self.text) } else { Resolved::Str(&self.text) }
    }
}

impl Node<'_> {
    /// Whether this is null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.resolve() == Resolved::Null)
    }
}

/// What a plain scalar means by itself.
#[must_use]
pub fn resolve(text: &str) -> Resolved<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Resolved::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Resolved::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        _ => {}
    }
    int(text).map(Resolved::Int).or_else(|| float(text).map(Resolved::Float)).unwrap_or(Resolved::Str(text))
}

fn int(text: &str) -> Option<i128> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i128::from_str_radix(hex.strip_prefix(|c: char| c.is_ascii_hexdigit()).map(|_| hex)?, 16)
            .ok();
    }
    if let Some(oct) = text.strip_prefix("0o") {
        return i128::from_str_radix(oct.strip_prefix(|c: char| c.is_ascii_digit()).map(|_| oct)?, 8).ok();
    }
    text.parse().ok()
}

fn float(text: &str) -> Option<f64> {
    // Rust also reads "inf", "nan" and "infinity", which are plain words in YAML.
    let number = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if number && text.bytes().any(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Reads a text of one document. An empty text is null.
///
/// # Errors
/// All duplicate keys and alien tags, or the first syntax error.
pub fn parse(text: &str) -> Result<Node<'_>, Vec<YamlError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut composer = Composer::new(text);
    let document = if text.len() > MAX_BYTES {
        let message = format!("the text is longer than {} MiB", MAX_BYTES >> 20);
        Err(YamlError { at: START, path: String::new(), message })
    } else {
        composer.document()
    };
    match document {
        Ok(node) if composer.errors.is_empty() => Ok(node),
        Ok(_) => Err(composer.errors),
        Err(error) => {
            composer.errors.push(error);
            Err(composer.errors)
        }
    }
}

const START: Position = Position { line: 1, column: 1 };

/// An anchored node, and how much it adds when it is repeated.
#[derive(Clone)]
struct Anchor<'a> {
    node: Node<'a>,
    weight: usize,
    height: usize,
}

struct Composer<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchor<'a>>,
    errors: Vec<YamlError>,
    path: Vec<String>,
    nodes: usize,
}

/// A node and the height of its tree (1 for a scalar).
type Built<'a> = (Node<'a>, usize);
type Next<'a> = (Event<'a>, Position);

impl<'a> Composer<'a> {
    fn new(text: &'a str) -> Self {
        let options: Options = granit_parser::options! {
            emit_comments: false,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        Self {
            parser: Parser::new_from_str_with_options(text, options),
            anchors: HashMap::new(),
            errors: Vec::new(),
            path: Vec::new(),
            nodes: 0,
        }
    }

    fn document(&mut self) -> Result<Node<'a>, YamlError> {
        let mut root = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => {
                    let (node, _) = self.node((event, at), 1)?;
                    if root.is_none() {
                        root = Some(node);
                    } else if !node.is_null() {
                        self.path.clear();
                        return Err(self.error(at, "a second document (`---`); a file holds one"));
                    }
                }
            }
        }
        let null = Value::Scalar(Scalar { text: Cow::Borrowed(""), plain: true });
        Ok(root.unwrap_or(Node { at: START, value: null }))
    }

    fn next(&mut self) -> Result<Next<'a>, YamlError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, position(span))),
            Some(Err(e)) => {
                let at = Position { line: to_u32(e.marker().line()), column: to_u32(e.marker().col() + 1) };
                Err(self.error(at, e.info()))
            }
            None => Ok((Event::StreamEnd, START)),
        }
    }

    fn error(&self, at: Position, message: impl Into<String>) -> YamlError {
        let mut path = String::new();
        for part in &self.path {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        YamlError { at, path, message: message.into() }
    }

    fn count(&mut self, at: Position, more: usize) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return Err(self.error(at, format!("more than {MAX_NODES} values, aliases counted each time")));
        }
        Ok(())
    }

    fn deeper(&self, at: Position, depth: usize) -> Result<(), YamlError> {
        if depth > MAX_DEPTH {
            return Err(self.error(at, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn node(&mut self, (event, at): Next<'a>, depth: usize) -> Result<Built<'a>, YamlError> {
        self.deeper(at, depth)?;
        self.count(at, 1)?;
        let before = self.nodes;
        let (value, anchor, height) = match event {
            Event::Alias(id) => return self.alias(id, at, depth),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = self.scalar_tag(at, style, tag.as_deref());
                self.count(at, length_weight(&text))?;
                (Value::Scalar(Scalar { text, plain }), anchor, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(at, tag.as_deref(), "seq");
                let (list, height) = self.sequence(depth)?;
                (Value::Seq(list.into()), anchor, height)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(at, tag.as_deref(), "map");
                let (map, height) = self.mapping(depth)?;
                (Value::Map(map.into()), anchor, height)
            }
            _ => return Err(self.error(at, "a value is missing here")),
        };
        let node = Node { at, value };
        if anchor != 0 {
            let weight = (self.nodes - before).saturating_add(1);
            self.anchors.insert(anchor, Anchor { node: node.clone(), weight, height });
        }
        Ok((node, height))
    }

    fn alias(&mut self, id: usize, at: Position, depth: usize) -> Result<Built<'a>, YamlError> {
        let Some(anchor) = self.anchors.get(&id) else {
            return Err(self.error(at, "an alias inside the value that it stands for"));
        };
        let (weight, height, value) = (anchor.weight, anchor.height, anchor.node.value.clone());
        self.deeper(at, depth + height - 1)?;
        self.count(at, weight)?;
        Ok((Node { at, value }, height))
    }

    fn sequence(&mut self, depth: usize) -> Result<(Vec<Node<'a>>, usize), YamlError> {
        let (mut list, mut tallest) = (Vec::new(), 0);
        loop {
            let next = self.next()?;
            if next.0 == Event::SequenceEnd {
                return Ok((list, tallest + 1));
            }
            self.path.push(format!("[{}]", list.len()));
            let (node, height) = self.node(next, depth + 1)?;
            self.path.pop();
            tallest = tallest.max(height);
            list.push(node);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry<'a>>, usize), YamlError> {
        let mut map: Vec<Entry<'a>> = Vec::new();
        let (mut keys, mut merges, mut tallest) = (HashSet::new(), Vec::new(), 0);
        loop {
            let next = self.next()?;
            if next.0 == Event::MappingEnd {
                break;
            }
            let (key, key_at, ignored) = self.key(next, depth)?;
            self.path.push(key.text.to_string());
            let next = self.next()?;
            let (node, height) = self.node(next, depth + 1)?;
            tallest = tallest.max(height);
            if ignored {
                // Envoy's way to hold anchors that no field uses.
            } else if key.plain && key.text == "<<" {
                merges.push((node, key_at));
            } else if keys.insert(key.text.clone()) {
                map.push(Entry { key: key.text, key_at, node });
            } else {
                let error = self.error(key_at, "this key occurs twice");
                self.errors.push(error);
            }
            self.path.pop();
        }
        for (node, at) in merges {
            self.merge(&mut map, &mut keys, &node, at)?;
        }
        Ok((map, tallest + 1))
    }

    /// A key, where it stands, and whether its tag is `!ignore`.
    fn key(
        &mut self,
        (event, at): Next<'a>,
        depth: usize,
    ) -> Result<(Scalar<'a>, Position, bool), YamlError> {
        let ignored = matches!(&event, Event::Scalar(_, _, _, Some(tag)) if tag.original() == "!ignore");
        let event = match event {
            Event::Scalar(text, style, anchor, _) if ignored => Event::Scalar(text, style, anchor, None),
            other => other,
        };
        match self.node((event, at), depth + 1)?.0.value {
            Value::Scalar(key) => Ok((key, at, ignored)),
            _ => Err(self.error(at, "a key must be a plain word or a quoted text")),
        }
    }

    fn merge(
        &mut self,
        map: &mut Vec<Entry<'a>>,
        keys: &mut HashSet<Cow<'a, str>>,
        from: &Node<'a>,
        at: Position,
    ) -> Result<(), YamlError> {
        match &from.value {
            Value::Map(entries) => {
                for entry in entries.iter() {
                    self.count(at, 1 + length_weight(&entry.key) + own_weight(&entry.node))?;
                    if keys.insert(entry.key.clone()) {
                        map.push(entry.clone());
                    }
                }
                Ok(())
            }
            Value::Seq(list) if list.iter().all(|n| matches!(n.value, Value::Map(_))) => {
                list.iter().try_for_each(|n| self.merge(map, keys, n, at))
            }
            _ => Err(self.error(at, "`<<` takes a mapping, or a list of mappings")),
        }
    }

    fn scalar_tag(&mut self, at: Position, style: ScalarStyle, tag: Option<&Tag>) -> bool {
        let plain = style == ScalarStyle::Plain;
        let Some(tag) = tag else { return plain };
        match tag.core_suffix() {
            Some("str") => false,
            Some("int" | "float" | "bool" | "null") => true,
            _ if tag.original() == "!" => false,
            _ => {
                self.alien(at, tag);
                plain
            }
        }
    }

    fn collection_tag(&mut self, at: Position, tag: Option<&Tag>, expected: &str) {
        if let Some(tag) = tag.filter(|t| t.core_suffix() != Some(expected) && t.original() != "!") {
            self.alien(at, tag);
        }
    }

    fn alien(&mut self, at: Position, tag: &Tag) {
        let error = self.error(at, format!("the tag {} has no meaning here", tag.original()));
        self.errors.push(error);
    }
}

/// A text that aliases repeat counts by its length: every copy may take memory of its own.
fn length_weight(text: &str) -> usize {
    text.len() / 32
}

/// The weight of a node without what lists and mappings share.
fn own_weight(node: &Node<'_>) -> usize {
    match &node.value {
        Value::Scalar(scalar) => length_weight(&scalar.text),
        Value::Seq(_) | Value::Map(_) => 0,
    }
}

fn position(span: Span) -> Position {
    Position { line: to_u32(span.start.line()), column: to_u32(span.start.col() + 1) }
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
