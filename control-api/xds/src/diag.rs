//! Configuration errors. Every check collects into [`Errors`], so a person sees all mistakes of a file at once,
//! each with the path of the field, the line it stands on and, where we know one, a fix.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::sync::Arc;

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// File name, or the name of the stream or resource that the configuration came from.
    pub source: Arc<str>,
    /// Line and column (1-based) when the configuration came from a text.
    pub position: Option<Position>,
    /// Path of the field, such as `static_resources.listeners[0].filter_chains[1]`. Empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead, when that is known.
    pub fix: Option<String>,
}

/// A place in a text, 1-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// 1-based line.
    pub line: u32,
    /// 1-based column.
    pub column: u32,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(at) = self.position {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(fix) = &self.fix {
            write!(f, " ({fix})")?;
        }
        Ok(())
    }
}

/// Where every field of a parsed text stands: path -> position. Cheap to clone.
///
/// Paths are kept as 64-bit hashes, so that the map of a file with 5,000 clusters takes a few MB and not tens of them. Two
/// paths with one hash would at worst give a wrong line number.
#[derive(Debug, Clone, Default)]
pub struct SourceMap {
    positions: Arc<HashMap<u64, Position>>,
}

impl SourceMap {
    /// Records where `path` stands.
    pub fn insert(&mut self, path: String, at: Position) {
        Arc::make_mut(&mut self.positions).insert(hash_of(&path), at);
    }

    /// Records where the field `at` stands.
    pub(crate) fn insert_at(&mut self, at: &At<'_>, position: Position) {
        Arc::make_mut(&mut self.positions).insert(at.hash(), position);
    }

    /// Position of `path`, or of the nearest enclosing field that has one.
    #[must_use]
    pub fn position(&self, path: &str) -> Option<Position> {
        let mut rest = path;
        loop {
            if let Some(at) = self.positions.get(&hash_of(rest)) {
                return Some(*at);
            }
            if rest.is_empty() {
                return None;
            }
            rest = rest.rfind(['.', '[']).map_or("", |cut| &rest[..cut]);
        }
    }
}

/// FNV-1a: the same for a path in one piece and for its segments one after the other.
struct PathHash(u64);

impl Write for PathHash {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for byte in part.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

fn hash_of(path: impl fmt::Display) -> u64 {
    let mut hash = PathHash(0xcbf2_9ce4_8422_2325);
    // Neither `PathHash` nor the Display of a path fails.
    let _ = write!(hash, "{path}");
    hash.0
}

/// Fields that could not be read from the text. What misses because of them is no second mistake.
#[derive(Debug, Default)]
pub(crate) struct Failed(HashSet<u64>);

impl Failed {
    pub(crate) fn insert(&mut self, at: &At<'_>) {
        self.0.insert(at.hash());
    }

    pub(crate) fn contains(&self, at: &At<'_>) -> bool {
        !self.0.is_empty() && self.0.contains(&at.hash())
    }
}

/// All mistakes found so far in one source.
#[derive(Debug)]
pub struct Errors {
    source: Arc<str>,
    map: SourceMap,
    prefix: String,
    list: Vec<ConfigError>,
}

impl Errors {
    /// A collector for `source`; `map` gives the lines.
    #[must_use]
    pub fn new(source: impl Into<Arc<str>>, map: SourceMap) -> Self {
        Self { source: source.into(), map, prefix: String::new(), list: Vec::new() }
    }

    /// Puts `prefix` before every path reported from now on: a resource checked on its own keeps the path that it has in its file.
    pub fn set_prefix(&mut self, prefix: impl Into<String>) {
        self.prefix = prefix.into();
    }

    /// Adds a mistake at `at`. The answer lets the caller add a fix.
    pub fn report(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut ConfigError {
        let mut path = at.to_string();
        if !self.prefix.is_empty() {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            path = format!("{}{dot}{path}", self.prefix);
        }
        self.push(path, message.into())
    }

    /// Records where a field stands, for what is reported later.
    pub(crate) fn locate(&mut self, at: &At<'_>, position: Position) {
        self.map.insert_at(at, position);
    }

    /// The positions recorded so far.
    pub(crate) fn map(&self) -> SourceMap {
        self.map.clone()
    }

    fn push(&mut self, path: String, message: String) -> &mut ConfigError {
        let position = self.map.position(&path);
        let next = self.list.len();
        self.list.push(ConfigError { source: Arc::clone(&self.source), position, path, message, fix: None });
        &mut self.list[next]
    }

    /// Whether anything was reported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of mistakes reported so far: compare before and after a step to know whether it failed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The mistakes in the order of the text.
    #[must_use]
    pub fn into_list(mut self) -> Vec<ConfigError> {
        self.list.sort_by_key(|e| e.position.map_or((u32::MAX, 0), |p| (p.line, p.column)));
        self.list
    }
}

impl ConfigError {
    /// Adds what to write instead.
    pub fn fix(&mut self, fix: impl Into<String>) -> &mut Self {
        self.fix = Some(fix.into());
        self
    }
}

/// The path of a field, as a list on the stack: free until an error is reported.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a Self>,
    segment: Segment<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The document or resource itself.
    #[must_use]
    pub const fn root() -> At<'static> {
        At { parent: None, segment: Segment::Root }
    }

    /// The field `name` of this message, or the entry `name` of this map.
    #[must_use]
    pub const fn field(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Field(name) }
    }

    fn hash(&self) -> u64 {
        hash_of(self)
    }

    /// The entry `index` of this list.
    #[must_use]
    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), segment: Segment::Index(index) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Index(i) => write!(f, "[{i}]"),
            Segment::Field(name) => {
                let nested = self.parent.is_some_and(|p| !matches!(p.segment, Segment::Root));
                write!(f, "{}{name}", if nested { "." } else { "" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_found_by_path_or_by_the_nearest_enclosing_field() {
        let at = |line| Position { line, column: 1 };
        let mut map = SourceMap::default();
        map.insert(String::new(), at(1));
        map.insert("a.b[3]".into(), at(7));
        let root = At::root();
        map.insert_at(&root.field("a").field("c"), at(9));
        assert_eq!(map.position("a.b[3].x.y"), Some(at(7)));
        assert_eq!(map.position("a.c"), Some(at(9)));
        assert_eq!(map.position("z"), Some(at(1)));
        assert_eq!(SourceMap::default().position("z"), None);
    }

    #[test]
    fn an_error_shows_file_line_path_and_fix() {
        let mut map = SourceMap::default();
        map.insert("static_resources.listeners[0]".into(), Position { line: 7, column: 5 });
        let mut errors = Errors::new("boot.yaml", map);
        let root = At::root();
        let (res, list) = (root.field("static_resources"), "listeners");
        let (listeners, name) = (res.field(list), "name");
        let first = listeners.index(0);
        errors.report(&first.field(name), "must not be empty").fix("give it a name");
        assert_eq!(
            errors.into_list()[0].to_string(),
            "boot.yaml:7:5: static_resources.listeners[0].name: must not be empty (give it a name)"
        );
    }
}
