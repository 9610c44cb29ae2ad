//! The words of rules as RBAC's permissions and principals.

use remora_xds::pb::envoy::config::core::v3::CidrRange;
use remora_xds::pb::envoy::config::rbac::v3::permission::{Rule, Set as Rules};
use remora_xds::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier, Set as Ids};
use remora_xds::pb::envoy::config::rbac::v3::{Permission, Principal};
use remora_xds::pb::envoy::config::route::v3::HeaderMatcher;
use remora_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use remora_xds::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::matcher::v3::{PathMatcher, RegexMatcher, StringMatcher};

use super::parts;
use crate::document::cidr;

/// What may stand behind the name of a host.
const AFTER_HOST: &str = r"\.?(:[0-9]+)?";

/// Permissions.
pub(super) struct Permit;
/// Principals.
pub(super) struct Who;

/// A text with `*` at the beginning or the end.
pub(super) fn pattern(text: &str) -> MatchPattern {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => MatchPattern::SafeRegex(regex(".+".into())),
        (Some(end), _) => MatchPattern::Suffix(end.to_owned()),
        (_, Some(beginning)) => MatchPattern::Prefix(beginning.to_owned()),
        _ => MatchPattern::Exact(text.to_owned()),
    }
}

fn regex(regex: String) -> RegexMatcher {
    RegexMatcher { regex, ..RegexMatcher::default() }
}

pub(super) fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

/// RE2's special characters, each behind a backslash.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn header(name: &str, matcher: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

impl Permit {
    const fn of(rule: Rule) -> Permission {
        Permission { rule: Some(rule) }
    }

    /// All of them; anything when there is none.
    pub(super) fn all(mut all: Vec<Permission>) -> Permission {
        match all.len() {
            0 => Self::of(Rule::Any(true)),
            1 => all.remove(0),
            _ => Self::of(Rule::AndRules(Rules { rules: all })),
        }
    }

    /// One of them; nothing to say when there is none.
    pub(super) fn any_of(mut any: Vec<Permission>) -> Option<Permission> {
        match any.len() {
            0 => None,
            1 => Some(any.remove(0)),
            _ => Some(Self::of(Rule::OrRules(Rules { rules: any }))),
        }
    }

    /// None of them.
    pub(super) fn none_of(any: Vec<Permission>) -> Option<Permission> {
        Self::any_of(any).map(|any| Self::of(Rule::NotRule(Box::new(any))))
    }

    /// A host, whatever its case and port, and with the dot of its root (RFC 1034 §3.1): programs take both for the same.
    pub(super) fn host(host: &str) -> Permission {
        let body = match (host.strip_prefix('*'), host.strip_suffix('*')) {
            (Some(""), _) => ".+".to_owned(),
            (Some(end), _) => format!(".*{}{AFTER_HOST}", escaped(end)),
            (_, Some(beginning)) => format!("{}.*", escaped(beginning)),
            _ => format!("{}{AFTER_HOST}", escaped(host)),
        };
        let matcher = text(MatchPattern::SafeRegex(regex(format!("(?i){body}"))));
        Self::of(Rule::Header(header(":authority", matcher)))
    }

    pub(super) fn method(method: &str) -> Permission {
        Self::of(Rule::Header(header(":method", text(pattern(method)))))
    }

    pub(super) fn header(name: &str, value: &str) -> Permission {
        Self::of(Rule::Header(header(name, text(pattern(value)))))
    }

    pub(super) fn sni(name: &str) -> Permission {
        Self::of(Rule::RequestedServerName(text(pattern(name))))
    }

    /// A path: `{*}` is one segment, `{**}` any number of them.
    pub(super) fn path(path: &str) -> Permission {
        let pattern = if path.contains("{*}") || path.contains("{**}") {
            MatchPattern::SafeRegex(regex(template(path)))
        } else {
            pattern(path)
        };
        Self::of(Rule::UrlPath(PathMatcher { rule: Some(PathRule::Path(text(pattern))) }))
    }
}

fn template(path: &str) -> String {
    let (path, before) = path.strip_prefix('*').map_or((path, ""), |path| (path, ".*"));
    let (path, after) = path.strip_suffix('*').map_or((path, ""), |path| (path, ".*"));
    // Any number of segments, none included: what is between two slashes goes with one of them.
    let parts: Vec<_> = path.split("/{**}/").map(segments).collect();
    format!("{before}{}{after}", parts.join("/(.*/)?"))
}

/// The rest of a template: `{*}` is one segment, `{**}` anything.
fn segments(path: &str) -> String {
    let anything: Vec<_> = path
        .split("{**}")
        .map(|part| part.split("{*}").map(escaped).collect::<Vec<_>>().join("[^/]+"))
        .collect();
    anything.join(".*")
}

impl Who {
    const fn of(identifier: Identifier) -> Principal {
        Principal { identifier: Some(identifier) }
    }

    /// All of them; anybody when there is none.
    pub(super) fn all(mut all: Vec<Principal>) -> Principal {
        match all.len() {
            0 => Self::of(Identifier::Any(true)),
            1 => all.remove(0),
            _ => Self::of(Identifier::AndIds(Ids { ids: all })),
        }
    }

    /// One of them; nothing to say when there is none.
    pub(super) fn any_of(mut any: Vec<Principal>) -> Option<Principal> {
        match any.len() {
            0 => None,
            1 => Some(any.remove(0)),
            _ => Some(Self::of(Identifier::OrIds(Ids { ids: any }))),
        }
    }

    /// None of them.
    pub(super) fn none_of(any: Vec<Principal>) -> Option<Principal> {
        Self::any_of(any).map(|any| Self::of(Identifier::NotId(Box::new(any))))
    }

    fn authenticated(name: Option<MatchPattern>) -> Principal {
        Self::of(Identifier::Authenticated(Authenticated { principal_name: name.map(text) }))
    }

    /// A SPIFFE ID; `*` is everybody who has one.
    pub(super) fn principal(id: &str) -> Principal {
        match pattern(id) {
            MatchPattern::SafeRegex(_) => Self::authenticated(Some(MatchPattern::Prefix("spiffe://".into()))),
            suffix @ MatchPattern::Suffix(_) => Self::authenticated(Some(suffix)),
            MatchPattern::Prefix(id) => Self::authenticated(Some(MatchPattern::Prefix(whole(&id)))),
            _ => Self::authenticated(Some(MatchPattern::Exact(whole(id)))),
        }
    }

    /// A namespace of the trust domain.
    pub(super) fn namespace(domain: &str, namespace: &str) -> Principal {
        let pattern = match pattern(namespace) {
            MatchPattern::Exact(name) => MatchPattern::Prefix(format!("spiffe://{domain}/ns/{name}/sa/")),
            MatchPattern::Prefix(name) => MatchPattern::Prefix(format!("spiffe://{domain}/ns/{name}")),
            MatchPattern::Suffix(name) => MatchPattern::SafeRegex(regex(format!(
                "spiffe://{}/ns/[^/]*{}/sa/.+",
                escaped(domain),
                escaped(&name)
            ))),
            _ => MatchPattern::Prefix(format!("spiffe://{domain}/ns/")),
        };
        Self::authenticated(Some(pattern))
    }

    pub(super) fn direct_ip(block: &str) -> Principal {
        Self::of(Identifier::DirectRemoteIp(range(block)))
    }

    pub(super) fn remote_ip(block: &str) -> Principal {
        Self::of(Identifier::RemoteIp(range(block)))
    }
}

/// A SPIFFE ID may be written without its scheme, as in Istio.
fn whole(id: &str) -> String {
    if id.starts_with("spiffe://") { id.to_owned() } else { format!("spiffe://{id}") }
}

/// Checked: it is one.
fn range(block: &str) -> CidrRange {
    let found = cidr(block);
    CidrRange {
        address_prefix: found.map_or_else(|| block.to_owned(), |(address, _)| address.to_string()),
        prefix_len: found.and_then(|(_, length)| parts::number(length.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_hosts_are_regular_expressions() {
        assert_eq!(template("/a.b/{*}/c/{**}"), r"/a\.b/[^/]+/c/.*");
        assert_eq!(template("/a/{**}/b"), "/a/(.*/)?b");
        assert_eq!(template("/a/{*}/admin*"), "/a/[^/]+/admin.*");
        assert_eq!(template("*/{*}/b"), ".*/[^/]+/b");
        assert_eq!(template("/{*"), r"/\{.*");
        let Some(Rule::Header(matcher)) = Permit::host("*.Shop.example").rule else { panic!() };
        let said = format!("{matcher:?}");
        assert!(said.contains(r#"(?i).*\\.Shop\\.example\\.?(:[0-9]+)?"#), "{said}");
    }
}
