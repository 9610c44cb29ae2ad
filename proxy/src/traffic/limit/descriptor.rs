//! What a request counts as: descriptors, made by `rate_limits` of routes (`envoy.config.route.v3.RateLimit`).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::http::head::RequestHead;
use crate::route::matcher::{HeaderKey, HeaderMatch, HeaderView as _, QueryMatch, decoded_parameter};

/// One of `rate_limits`: one descriptor, or none when an action finds nothing.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `stage`: filters of this stage look at it.
    pub stage: u32,
    /// `actions`.
    pub actions: Box<[Action]>,
    /// `hits_addend.number`, default 1.
    pub hits: u64,
}

/// `RateLimit.Action`.
#[derive(Debug, Clone)]
pub enum Action {
    /// `generic_key`, and `source_cluster`, which is `node.cluster`.
    Fixed(Arc<str>, Arc<str>),
    /// `destination_cluster`.
    Destination,
    /// `remote_address`.
    Address,
    /// `masked_remote_address`: lengths of prefixes.
    Network {
        /// `v4_prefix_mask_len`.
        v4: u8,
        /// `v6_prefix_mask_len`.
        v6: u8,
    },
    /// `request_headers`: its first value.
    Header {
        /// `header_name`.
        name: HeaderKey,
        /// `descriptor_key`.
        key: Arc<str>,
        /// `skip_if_absent`.
        optional: bool,
    },
    /// `query_parameters`.
    Query {
        /// `query_parameter_name`.
        name: Box<str>,
        /// `descriptor_key`.
        key: Arc<str>,
        /// `skip_if_absent`.
        optional: bool,
    },
    /// `header_value_match`.
    HeaderMatch {
        /// `descriptor_key` and `descriptor_value`.
        entry: (Arc<str>, Arc<str>),
        /// `headers`.
        headers: Box<[HeaderMatch]>,
        /// `expect_match`.
        expect: bool,
    },
    /// `query_parameter_value_match`.
    QueryMatch {
        /// `descriptor_key` and `descriptor_value`.
        entry: (Arc<str>, Arc<str>),
        /// `query_parameters`.
        query: Box<[QueryMatch]>,
        /// `expect_match`.
        expect: bool,
    },
}

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The request.
    pub head: &'a RequestHead,
    /// The client, as trusted hops tell it.
    pub client: IpAddr,
    /// The route's cluster.
    pub cluster: Option<&'a str>,
}

/// What one rule made of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Keys and values.
    pub entries: Entries,
    /// How many tokens it takes.
    pub hits: u64,
}

/// Keys and values in their order.
pub type Entries = SmallVec<[Entry; 4]>;

/// A key and its value.
pub type Entry = (Arc<str>, Arc<str>);

/// What an action found.
enum Part {
    Entry(Arc<str>, Arc<str>),
    Skip,
    Missing,
}

impl Rule {
    /// The descriptor of a request; None when an action finds nothing.
    #[must_use]
    pub fn describe(&self, asker: &Asker<'_>) -> Option<Descriptor> {
        let mut entries = Entries::new();
        for action in &self.actions {
            match action.find(asker) {
                Part::Entry(key, value) => entries.push((key, value)),
                Part::Skip => {}
                Part::Missing => return None,
            }
        }
        (!entries.is_empty()).then_some(Descriptor { entries, hits: self.hits })
    }
}

impl Action {
    fn find(&self, asker: &Asker<'_>) -> Part {
        let found = |key: &Arc<str>, value: Option<&str>, optional: bool| match value {
            Some(value) => Part::Entry(Arc::clone(key), value.into()),
            None if optional => Part::Skip,
            None => Part::Missing,
        };
        let when = |holds: bool, (key, value): &(Arc<str>, Arc<str>)| {
            if holds { Part::Entry(Arc::clone(key), Arc::clone(value)) } else { Part::Missing }
        };
        let query = || asker.head.path.query();
        match self {
            Self::Fixed(key, value) => Part::Entry(Arc::clone(key), Arc::clone(value)),
            Self::Destination => found(&"destination_cluster".into(), asker.cluster, false),
            Self::Address => Part::Entry("remote_address".into(), asker.client.to_string().into()),
            Self::Network { v4, v6 } => {
                let length = if asker.client.is_ipv4() { *v4 } else { *v6 };
                let network = IpNet::new(asker.client, length).map(|net| net.trunc().to_string());
                network.map_or(Part::Missing, |net| Part::Entry("masked_remote_address".into(), net.into()))
            }
            Self::Header { name, key, optional } => {
                let values = asker.head.values(name);
                found(key, values.first().map(|value| String::from_utf8_lossy(value)).as_deref(), *optional)
            }
            Self::Query { name, key, optional } => {
                let value = query().and_then(|query| decoded_parameter(query, name));
                found(key, value.as_deref().map(String::from_utf8_lossy).as_deref(), *optional)
            }
            Self::HeaderMatch { entry, headers, expect } => {
                when(headers.iter().all(|header| header.is_match(asker.head)) == *expect, entry)
            }
            Self::QueryMatch { entry, query: wanted, expect } => {
                when(wanted.iter().all(|one| one.is_match_decoded(query())) == *expect, entry)
            }
        }
    }
}

/// One text for `entries`, another one for any others.
#[must_use]
pub fn key<'e>(entries: impl IntoIterator<Item = (&'e str, &'e str)>) -> String {
    let mut out = String::new();
    for (key, value) in entries {
        for part in [key, value] {
            out.push_str(itoa::Buffer::new().format(part.len()));
            out.push(':');
            out.push_str(part);
        }
    }
    out
}

/// What stands for a key that is too long to be kept: 256 bits, so that nobody finds two of the same.
#[must_use]
pub fn digest(key: &str) -> String {
    use std::fmt::Write as _;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    hash.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::HeaderCase;
    use http::HeaderName;
    use http::uri::Scheme;
    use http::{HeaderMap, Method, Version};

    fn head(path: &str, headers: &[(&'static str, &str)]) -> RequestHead {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        RequestHead {
            method: Method::GET,
            scheme: Scheme::HTTP,
            authority: None,
            path: path.parse().unwrap(),
            version: Version::HTTP_11,
            headers,
            case: HeaderCase::default(),
        }
    }

    fn describe(action: Action, head: &RequestHead, client: &str) -> Option<Vec<String>> {
        let rule = Rule { stage: 0, actions: [action].into(), hits: 1 };
        let asker = Asker { head, client: client.parse().unwrap(), cluster: Some("a") };
        let descriptor = rule.describe(&asker)?;
        Some(descriptor.entries.iter().map(|(key, value)| format!("{key}={value}")).collect())
    }

    #[test]
    fn every_action() {
        let head = head("/p?user=ann&x=", &[("x-user", "bob")]);
        let v4 = "10.1.2.3";
        let one = |action| describe(action, &head, v4).map(|list| list.join(","));
        assert_eq!(one(Action::Fixed("k".into(), "v".into())).as_deref(), Some("k=v"));
        assert_eq!(one(Action::Destination).as_deref(), Some("destination_cluster=a"));
        assert_eq!(one(Action::Address).as_deref(), Some("remote_address=10.1.2.3"));
        let network = Action::Network { v4: 16, v6: 32 };
        assert_eq!(one(network.clone()).as_deref(), Some("masked_remote_address=10.1.0.0/16"));
        assert_eq!(
            describe(network, &head, "2001:db8:1::1").unwrap(),
            ["masked_remote_address=2001:db8::/32"]
        );
        let header = |name, optional| {
            one(Action::Header { name: HeaderKey::parse(name).unwrap(), key: "user".into(), optional })
        };
        assert_eq!(header("x-user", false).as_deref(), Some("user=bob"));
        assert_eq!(header(":method", false).as_deref(), Some("user=GET"));
        assert_eq!(header("x-none", false), None);
        assert_eq!(header("x-none", true), None, "nothing is left of it");
        let query = |name: &str| Action::Query { name: name.into(), key: "q".into(), optional: false };
        assert_eq!(one(query("user")).as_deref(), Some("q=ann"));
        assert_eq!(one(query("x")).as_deref(), Some("q="));
        assert_eq!(one(query("none")), None);
    }

    /// Whoever writes an escape asks for the same.
    #[test]
    fn another_spelling_of_a_query_is_no_way_around() {
        let ask = |path: &str| {
            let action = Action::Query { name: "op".into(), key: "op".into(), optional: false };
            describe(action, &head(path, &[]), "10.1.2.3").map(|entries| entries.join(","))
        };
        for path in ["/?op=search", "/?op=sea%72ch", "/?o%70=search", "/?a=b&%6fp=%73earch&op=x"] {
            assert_eq!(ask(path).as_deref(), Some("op=search"), "{path}");
        }
        assert_eq!(ask("/?op%3dsearch"), None);
    }

    #[test]
    fn keys_are_told_apart() {
        assert_eq!(digest("").len(), 64);
        let texts = [
            key([("a", "b")]),
            key([("ab", "")]),
            key([("a", "b1:c")]),
            key([("a", ""), ("b", "")]),
            key([("a", "1:b"), ("", "")]),
        ];
        for (i, text) in texts.iter().enumerate() {
            assert!(!texts[..i].contains(text), "{text}");
        }
    }
}
