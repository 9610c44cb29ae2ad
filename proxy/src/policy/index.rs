//! Which policies of many can match: a request looks its path, host and peer up, and only the policies found there (and
//! those that ask for nothing of the kind) are evaluated. The answer is the same as that of trying all in their order.

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::rbac::{Policy, Rule};
use super::view::View;
use crate::route::matcher::{HeaderKey, HeaderMatch, HeaderRule};
use crate::route::table::first_in_order;
use crate::route::text::{Place, StringMatch};

/// Something that a request has when a policy matches it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Path(Box<[u8]>),
    PathPrefix(Box<[u8]>),
    Host(Box<[u8]>),
    Header(HeaderName, Box<[u8]>),
    Name(Box<[u8]>),
    NamePrefix(Box<[u8]>),
}

/// Positions of policies, ascending.
type Positions = SmallVec<[u32; 2]>;

/// Lists of positions to look at.
type Lists<'i> = SmallVec<[&'i [u32]; 16]>;

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    paths: HashMap<Box<[u8]>, Positions>,
    path_prefixes: Prefixes,
    hosts: HashMap<Box<[u8]>, Positions>,
    headers: HashMap<HeaderName, HashMap<Box<[u8]>, Positions>>,
    names: HashMap<Box<[u8]>, Positions>,
    name_prefixes: Prefixes,
    /// Policies of which nothing is known.
    rest: Positions,
}

impl Index {
    /// An index over `policies`.
    #[must_use]
    pub fn new(policies: &[Policy]) -> Self {
        let choices: Vec<Vec<Vec<Key>>> = policies.iter().map(choices).collect();
        let mut common: HashMap<&Key, usize> = HashMap::new();
        for key in choices.iter().flatten().flatten() {
            *common.entry(key).or_default() += 1;
        }
        // Of what a policy asks for, that which the fewest others ask for, too.
        let crowd = |keys: &Vec<Key>| keys.iter().filter_map(|key| common.get(key)).max().copied();
        let mut index = Self::default();
        for (position, choices) in (0u32..).zip(&choices) {
            match choices.iter().min_by_key(|keys| crowd(keys)) {
                Some(keys) => keys.iter().for_each(|key| index.add(key, position)),
                None => index.rest.push(position),
            }
        }
        index.path_prefixes.link();
        index.name_prefixes.link();
        index
    }

    fn add(&mut self, key: &Key, position: u32) {
        let list = match key {
            Key::Path(text) => self.paths.entry(text.clone()).or_default(),
            Key::Host(text) => self.hosts.entry(text.clone()).or_default(),
            Key::Header(name, text) => {
                self.headers.entry(name.clone()).or_default().entry(text.clone()).or_default()
            }
            Key::Name(text) => self.names.entry(text.clone()).or_default(),
            Key::PathPrefix(text) => self.path_prefixes.entry(text),
            Key::NamePrefix(text) => self.name_prefixes.entry(text),
        };
        if list.last() != Some(&position) {
            list.push(position);
        }
    }

    /// The first position of a policy for which `test` is true; only those are tested that can match.
    pub fn first(&self, view: &View<'_>, test: impl Fn(usize) -> bool) -> Option<usize> {
        let mut lists = Lists::new();
        if !self.rest.is_empty() {
            lists.push(&self.rest);
        }
        if let Some(request) = &view.request {
            let path = request.path.path().as_bytes();
            lists.extend(self.paths.get(path).map(|l| &**l));
            self.path_prefixes.of(path, &mut lists);
            let host = request.authority.map_or(&b""[..], |a| a.as_str().as_bytes());
            lists.extend(self.hosts.get(host).map(|l| &**l));
            self.by_headers(request.headers, &mut lists);
        }
        if let Some(peer) = view.connection.peer.filter(|_| self.asks_for_names()) {
            for name in peer.names() {
                lists.extend(self.names.get(name.as_bytes()).map(|l| &**l));
                self.name_prefixes.of(name.as_bytes(), &mut lists);
            }
        }
        first_in_order(&mut lists, |position| test(position as usize)).map(|position| position as usize)
    }

    fn by_headers<'i>(&'i self, headers: &HeaderMap, lists: &mut Lists<'i>) {
        if self.headers.is_empty() {
            return;
        }
        for (name, value) in headers {
            let Some(known) = self.headers.get(name) else { continue };
            let value = value.as_bytes();
            if memchr::memchr(b',', value).is_none() {
                lists.extend(known.get(value).map(|l| &**l));
                continue;
            }
            // A long list may repeat itself: each of our lists is looked at once.
            let mut seen = HashSet::new();
            let elements = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            for list in elements.filter_map(|element| known.get(element)) {
                if seen.insert(list.as_ptr()) {
                    lists.push(list);
                }
            }
        }
    }

    fn asks_for_names(&self) -> bool {
        !(self.names.is_empty() && self.name_prefixes.list.is_empty())
    }
}

/// Every list of keys of which a request has one when `policy` matches it.
fn choices(policy: &Policy) -> Vec<Vec<Key>> {
    [&policy.permissions, &policy.principals].into_iter().flat_map(|rules| any_of(rules)).collect()
}

/// The keys of a rule: it holds only if, of each list, the request has one key.
fn keys(rule: &Rule) -> Vec<Vec<Key>> {
    match rule {
        Rule::And(rules) => rules.iter().flat_map(keys).collect(),
        Rule::Or(rules) => any_of(rules).into_iter().collect(),
        Rule::Path(text) => of_text(text, Key::Path, Key::PathPrefix),
        Rule::Authenticated(text) => of_text(text, Key::Name, Key::NamePrefix),
        Rule::Header { matcher, .. } => of_header(matcher).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The key of a header that must have one text. A list with that text in it has the key, too; several lines that make it up
/// together do not, so that a text with a separator has none.
fn of_header(matcher: &HeaderMatch) -> Option<Vec<Key>> {
    let HeaderMatch { key, rule: HeaderRule::Text(text), invert: false, missing_is_empty: _ } = matcher
    else {
        return None;
    };
    let StringMatch::Text { place: Place::Exact, text, ignore_case: false } = text else { return None };
    match key {
        HeaderKey::Authority => Some(vec![Key::Host(text.clone())]),
        HeaderKey::Name(name) if !text.is_empty() && !text.iter().any(|b| matches!(b, b',' | b';')) => {
            Some(vec![Key::Header(name.clone(), text.clone())])
        }
        _ => None,
    }
}

/// One list for rules of which one must hold; None when one of them can hold without any key.
fn any_of(rules: &[Rule]) -> Option<Vec<Key>> {
    let lists: Option<Vec<Vec<Key>>> =
        rules.iter().map(|r| keys(r).into_iter().min_by_key(Vec::len)).collect();
    Some(lists?.concat())
}

fn of_text(text: &StringMatch, exact: fn(Box<[u8]>) -> Key, prefix: fn(Box<[u8]>) -> Key) -> Vec<Vec<Key>> {
    match text {
        StringMatch::Text { place: Place::Exact, text, ignore_case: false } => {
            vec![vec![exact(text.clone())]]
        }
        StringMatch::Text { place: Place::Prefix, text, ignore_case: false } => {
            vec![vec![prefix(text.clone())]]
        }
        _ => Vec::new(),
    }
}

/// A set of prefixes, sorted. All that a text begins with are found by one binary search: the greatest entry that is not
/// greater than the text either is such a prefix, or has one among those that it begins with itself.
#[derive(Debug, Default)]
struct Prefixes {
    list: Vec<Prefix>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<[u8]>,
    positions: Positions,
    /// The longest other entry that this one begins with.
    parent: Option<usize>,
}

impl Prefixes {
    fn entry(&mut self, text: &[u8]) -> &mut Positions {
        let at = match self.list.binary_search_by(|p| (*p.text).cmp(text)) {
            Ok(at) => at,
            Err(at) => {
                let new = Prefix { text: text.into(), positions: Positions::new(), parent: None };
                self.list.insert(at, new);
                at
            }
        };
        &mut self.list[at].positions
    }

    /// To be called when all entries are there.
    fn link(&mut self) {
        for at in 1..self.list.len() {
            let mut parent = Some(at - 1);
            while let Some(candidate) = parent {
                if self.list[at].text.starts_with(&self.list[candidate].text) {
                    break;
                }
                parent = self.list[candidate].parent;
            }
            self.list[at].parent = parent;
        }
    }

    /// Appends the positions of every prefix of `text`.
    fn of<'p>(&'p self, text: &[u8], lists: &mut Lists<'p>) {
        let after = self.list.partition_point(|p| *p.text <= *text);
        let mut next = after.checked_sub(1);
        while let Some(prefix) = next.and_then(|at| self.list.get(at)) {
            if text.starts_with(&prefix.text) {
                lists.push(&prefix.positions);
            }
            next = prefix.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_prefix_is_found(texts in proptest::collection::vec("[ab/]{0,5}", 0..20), text in "[ab/]{0,8}") {
            let mut set = Prefixes::default();
            for (position, text) in (0u32..).zip(&texts) {
                set.entry(text.as_bytes()).push(position);
            }
            set.link();
            let mut lists = SmallVec::new();
            set.of(text.as_bytes(), &mut lists);
            let mut found: Vec<u32> = lists.iter().flat_map(|l| l.iter().copied()).collect();
            found.sort_unstable();
            let want: Vec<u32> = (0u32..).zip(&texts).filter(|(_, t)| text.starts_with(&***t)).map(|(p, _)| p).collect();
            prop_assert_eq!(found, want);
        }
    }
}
