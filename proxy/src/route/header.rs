//! Header mutations: `request_headers_to_add`/`_to_remove` and their response twins, merged over the levels of a
//! route configuration when it is compiled.
//!
//! A level first removes, then decides every value from the headers as they are now, then overwrites, then appends:
//! Envoy's order, so that no value sees another of the same level.

use std::fmt;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Renders the text of a [`ValueTemplate::Dynamic`] against the headers that are being changed. None is an empty value.
pub type Render<'r> = dyn FnMut(&str, &HeaderMap) -> Option<HeaderValue> + 'r;

/// A value that is fixed, or that has `%OPERATORS%` of the access-log format in it.
#[derive(Clone, PartialEq, Eq)]
pub enum ValueTemplate {
    /// No operator: ready to be sent.
    Static(HeaderValue),
    /// The text as written, with at least one operator; `%%` is a percent sign.
    Dynamic(Box<str>),
}

impl fmt::Debug for ValueTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(value) => value.fmt(f),
            Self::Dynamic(text) => write!(f, "template {text:?}"),
        }
    }
}

/// `HeaderValueOption.append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// APPEND_IF_EXISTS_OR_ADD (default): one more value.
    Append,
    /// ADD_IF_ABSENT.
    AddIfAbsent,
    /// OVERWRITE_IF_EXISTS_OR_ADD.
    Overwrite,
    /// OVERWRITE_IF_EXISTS.
    OverwriteIfExists,
}

/// One header to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderSet {
    /// `header.key`.
    pub name: HeaderName,
    /// `header.value`.
    pub value: ValueTemplate,
    /// `append_action`.
    pub action: AppendAction,
    /// `keep_empty_value`: a value that renders to nothing is still added.
    pub keep_empty: bool,
}

/// The mutations of one level: a weighted cluster, a route, a virtual host or the route configuration.
#[derive(Clone, Default)]
pub struct MutationLevel {
    remove: Box<[HeaderName]>,
    /// Overwriting entries first, each kind in the order of the file.
    set: Box<[HeaderSet]>,
    /// Every entry is static and unconditional, so that nothing has to be decided before the first change.
    plain: bool,
}

impl fmt::Debug for MutationLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.remove {
            write!(f, "remove {name}; ")?;
        }
        for set in &self.set {
            let empty = if set.keep_empty { " (keep empty)" } else { "" };
            write!(f, "{:?} {}: {:?}{empty}; ", set.action, set.name, set.value)?;
        }
        Ok(())
    }
}

/// What will be done with an entry.
enum Planned {
    Skip,
    Static,
    Rendered(HeaderValue),
}

impl MutationLevel {
    /// A level that removes `remove` and then adds `set`, both in the order of the file.
    #[must_use]
    pub fn new(remove: Vec<HeaderName>, mut set: Vec<HeaderSet>) -> Self {
        set.retain(|s| s.keep_empty || !matches!(&s.value, ValueTemplate::Static(v) if v.is_empty()));
        set.sort_by_key(|s| !overwrites(s.action)); // Stable.
        let plain = set.iter().all(|s| {
            matches!(s.value, ValueTemplate::Static(_))
                && matches!(s.action, AppendAction::Append | AppendAction::Overwrite)
        });
        Self { remove: remove.into(), set: set.into(), plain }
    }

    /// Whether the level changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }

    fn apply(&self, headers: &mut HeaderMap, render: &mut Render<'_>) {
        for name in &self.remove {
            headers.remove(name);
        }
        if self.plain {
            for set in &self.set {
                if let ValueTemplate::Static(value) = &set.value {
                    write(headers, set, value.clone());
                }
            }
            return;
        }
        let plan: SmallVec<[Planned; 8]> = self.set.iter().map(|s| plan(s, headers, render)).collect();
        for (set, planned) in self.set.iter().zip(plan) {
            match (planned, &set.value) {
                (Planned::Rendered(value), _) => write(headers, set, value),
                (Planned::Static, ValueTemplate::Static(value)) => write(headers, set, value.clone()),
                _ => {}
            }
        }
    }
}

const fn overwrites(action: AppendAction) -> bool {
    matches!(action, AppendAction::Overwrite | AppendAction::OverwriteIfExists)
}

fn plan(set: &HeaderSet, headers: &HeaderMap, render: &mut Render<'_>) -> Planned {
    let wanted = match set.action {
        AppendAction::Append | AppendAction::Overwrite => true,
        AppendAction::AddIfAbsent => !headers.contains_key(&set.name),
        AppendAction::OverwriteIfExists => headers.contains_key(&set.name),
    };
    if !wanted {
        return Planned::Skip;
    }
    match &set.value {
        ValueTemplate::Static(_) => Planned::Static,
        ValueTemplate::Dynamic(text) => {
            let value = render(text, headers).unwrap_or_else(|| HeaderValue::from_static(""));
            if value.is_empty() && !set.keep_empty { Planned::Skip } else { Planned::Rendered(value) }
        }
    }
}

/// The map may refuse to grow past its own limit of 32,768 names; header limits end a request long before.
fn write(headers: &mut HeaderMap, set: &HeaderSet, value: HeaderValue) {
    if overwrites(set.action) {
        headers.insert(set.name.clone(), value);
    } else {
        headers.append(set.name.clone(), value);
    }
}

/// All mutations of one direction of one route (or weighted cluster), in the order in which they apply.
#[derive(Clone, Default)]
pub struct HeaderMutations(Box<[Arc<MutationLevel>]>);

impl HeaderMutations {
    /// Joins levels, the one that applies first first.
    #[must_use]
    pub fn new(levels: impl IntoIterator<Item = Arc<MutationLevel>>) -> Self {
        Self(levels.into_iter().filter(|l| !l.is_empty()).collect())
    }

    /// Whether nothing would change.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes `headers`. Static values are shared, not copied; `render` is called for each value with operators.
    pub fn apply(&self, headers: &mut HeaderMap, render: &mut Render<'_>) {
        for level in &self.0 {
            level.apply(headers, render);
        }
    }

    /// The texts with operators, for whoever compiles them.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|level| level.set.iter()).filter_map(|set| match &set.value {
            ValueTemplate::Dynamic(text) => Some(&**text),
            ValueTemplate::Static(_) => None,
        })
    }
}

impl fmt::Debug for HeaderMutations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str, action: AppendAction) -> HeaderSet {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        let value = if value.contains('%') {
            ValueTemplate::Dynamic(value.into())
        } else {
            ValueTemplate::Static(value.parse().unwrap())
        };
        HeaderSet { name, value, action, keep_empty: false }
    }

    fn run(levels: Vec<MutationLevel>, before: &[(&str, &str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in before {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        // A tiny renderer: %x% is the first value of header x.
        let mut render = |text: &str, headers: &HeaderMap| headers.get(text.trim_matches('%')).cloned();
        HeaderMutations::new(levels.into_iter().map(Arc::new)).apply(&mut map, &mut render);
        let mut out: Vec<String> = map.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        out.sort();
        out
    }

    #[test]
    fn every_append_action_on_a_present_and_an_absent_header() {
        let table: &[(AppendAction, &[&str], &[&str])] = &[
            (AppendAction::Append, &["x=new", "x=old"], &["x=new"]),
            (AppendAction::AddIfAbsent, &["x=old"], &["x=new"]),
            (AppendAction::Overwrite, &["x=new"], &["x=new"]),
            (AppendAction::OverwriteIfExists, &["x=new"], &[]),
        ];
        for (action, present, absent) in table {
            for value in ["new", "%n%"] {
                let level = || vec![MutationLevel::new(vec![], vec![set("x", value, *action)])];
                let strip = |v: Vec<String>| v.into_iter().filter(|s| s != "n=new").collect::<Vec<_>>();
                assert_eq!(
                    strip(run(level(), &[("x", "old"), ("n", "new")])),
                    *present,
                    "{action:?} {value}"
                );
                assert_eq!(strip(run(level(), &[("n", "new")])), *absent, "{action:?} {value}");
            }
        }
    }

    #[test]
    fn removal_first_then_values_from_the_headers_as_they_were() {
        let level = MutationLevel::new(
            vec!["gone".parse().unwrap()],
            vec![
                set("copy", "%x%", AppendAction::Append),
                set("gone2", "%gone%", AppendAction::Append),
                set("x", "new", AppendAction::Overwrite),
                set("once", "1", AppendAction::AddIfAbsent),
                set("once", "2", AppendAction::AddIfAbsent),
            ],
        );
        // `copy` sees the old x although x is overwritten before it is appended; both `once` saw none.
        assert_eq!(
            run(vec![level], &[("x", "old"), ("gone", "g")]),
            ["copy=old", "once=1", "once=2", "x=new"]
        );
    }

    #[test]
    fn later_levels_see_earlier_ones() {
        let first = MutationLevel::new(vec![], vec![set("x", "route", AppendAction::Overwrite)]);
        let second = MutationLevel::new(vec![], vec![set("x", "host", AppendAction::AddIfAbsent)]);
        assert_eq!(run(vec![first.clone(), second.clone()], &[]), ["x=route"]);
        assert_eq!(run(vec![second, first], &[]), ["x=route"]);
    }

    #[test]
    fn empty_values_are_dropped_unless_kept() {
        let mut kept = set("k", "", AppendAction::Append);
        kept.keep_empty = true;
        let mut kept_dynamic = set("kd", "%none%", AppendAction::Append);
        kept_dynamic.keep_empty = true;
        let level = MutationLevel::new(
            vec![],
            vec![
                set("a", "", AppendAction::Append),
                set("b", "%none%", AppendAction::Append),
                kept,
                kept_dynamic,
            ],
        );
        assert_eq!(run(vec![level], &[]), ["k=", "kd="]);
    }

    #[test]
    fn empty_levels_vanish_and_templates_are_listed() {
        let empty = Arc::new(MutationLevel::new(vec![], vec![]));
        assert!(HeaderMutations::new([Arc::clone(&empty)]).is_empty());
        let level = MutationLevel::new(vec![], vec![set("a", "%x%", AppendAction::Append)]);
        assert_eq!(HeaderMutations::new([empty, Arc::new(level)]).templates().collect::<Vec<_>>(), ["%x%"]);
    }
}
