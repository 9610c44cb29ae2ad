//! Names that are answered here (`inline_dns_table`).

use std::net::IpAddr;
use std::time::Duration;

use foldhash::HashMap;

use super::wire;

/// Addresses of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// IPv4.
    pub v4: Vec<IpAddr>,
    /// IPv6.
    pub v6: Vec<IpAddr>,
    /// `answer_ttl`, default 300 s.
    pub ttl: Duration,
}

/// Names with their addresses. Case of letters does not count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    exact: HashMap<Box<[u8]>, Domain>,
    /// By what is behind `*.`.
    below: HashMap<Box<[u8]>, Domain>,
}

/// Why a name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// It is no name.
    #[error("is not a name: labels have 1 to 63 bytes, and all of it 253 at most")]
    NotAName,
    /// It was there.
    #[error("stands here twice")]
    Twice,
}

impl Table {
    /// Adds a name, or with `*.` in front all names below it.
    ///
    /// # Errors
    /// It is no name, or there already.
    pub fn insert(&mut self, name: &str, domain: Domain) -> Result<(), Mistake> {
        let (names, name) = match name.strip_prefix("*.") {
            Some(rest) => (&mut self.below, rest),
            None => (&mut self.exact, name),
        };
        let labels = wire::labels(name).ok_or(Mistake::NotAName)?;
        if names.contains_key(&labels) {
            return Err(Mistake::Twice);
        }
        names.insert(labels, domain);
        Ok(())
    }

    /// The addresses of a name, which is in lower case as in a message: its own, or those of the longest `*.` above it.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&Domain> {
        if let Some(found) = self.exact.get(name) {
            return Some(found);
        }
        if self.below.is_empty() {
            return None;
        }
        let mut rest = name;
        while let Some((length, labels)) = rest.split_first().filter(|(length, _)| **length > 0) {
            rest = labels.get(usize::from(*length)..)?;
            if let Some(found) = self.below.get(rest) {
                return Some(found);
            }
        }
        None
    }

    /// How many names it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.exact.len() + self.below.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(last: u8) -> Domain {
        Domain { v4: vec![IpAddr::from([10, 0, 0, last])], ..Domain::default() }
    }

    fn found(table: &Table, name: &str) -> Option<Domain> {
        table.find(&wire::labels(name).unwrap()).cloned()
    }

    #[test]
    fn the_longest_wildcard_wins_and_an_exact_name_over_it() {
        let mut table = Table::default();
        table.insert("*.Example.com", domain(1)).unwrap();
        table.insert("*.b.example.com.", domain(2)).unwrap();
        table.insert("a.B.example.com", domain(3)).unwrap();
        assert_eq!(found(&table, "x.example.com"), Some(domain(1)));
        assert_eq!(found(&table, "x.y.example.com"), Some(domain(1)));
        assert_eq!(found(&table, "x.b.example.com"), Some(domain(2)));
        assert_eq!(found(&table, "a.b.example.com"), Some(domain(3)));
        assert_eq!(found(&table, "example.com"), None, "a wildcard is for what is below it");
        assert_eq!(found(&table, "notexample.com"), None);
        assert_eq!(table.find(&[0]), None, "the root");
    }

    #[test]
    fn what_is_no_name_or_there_twice_is_not_taken() {
        let mut table = Table::default();
        table.insert("a.b", domain(1)).unwrap();
        assert_eq!(table.insert("A.b.", domain(1)), Err(Mistake::Twice));
        table.insert("*.a.b", domain(1)).unwrap();
        for wrong in ["", "a..b", ".", "a".repeat(64).as_str(), "a.".repeat(140).as_str()] {
            assert_eq!(table.insert(wrong, domain(1)), Err(Mistake::NotAName), "{wrong}");
        }
        assert_eq!(table.len(), 2);
    }
}
