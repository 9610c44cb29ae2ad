//! Where a token may stand in a request.

use http::header::{AUTHORIZATION, COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName};

use crate::error::Reason;
use crate::http::head::RequestHead;

/// A place for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `from_headers`.
    Header {
        /// `name`.
        name: HeaderName,
        /// `value_prefix`.
        prefix: Box<str>,
    },
    /// `from_params`.
    Param(Box<str>),
    /// `from_cookies`.
    Cookie(Box<str>),
}

/// Where a token is looked for when a provider does not say: RFC 6750 §2.1 and §2.3.
#[must_use]
pub fn default_locations() -> Box<[Location]> {
    let bearer = Location::Header { name: AUTHORIZATION, prefix: "Bearer ".into() };
    [bearer, Location::Param("access_token".into())].into()
}

/// The one token at `locations`. The same text in several places is one token.
///
/// # Errors
/// [`Reason::JwtMalformed`] when there are several: nobody could say which one the server behind us believes (RFC 6750 §2 forbids it).
pub fn token<'h>(head: &'h RequestHead, locations: &[Location]) -> Result<Option<&'h str>, Reason> {
    let mut found = None;
    for location in locations {
        for token in location.tokens(head)? {
            if found.replace(token).is_some_and(|before| before != token) {
                return Err(Reason::JwtMalformed);
            }
        }
    }
    Ok(found)
}

/// A kind of place, and its names. They compare in the order in which Envoy looks: headers, then parameters, then cookies, each by name.
pub type Place<'l> = (u8, &'l str, &'l str);

/// The first place among `locations` where `token` stands.
#[must_use]
pub fn place<'l>(head: &RequestHead, locations: &'l [Location], token: &str) -> Option<Place<'l>> {
    let here = locations.iter().filter(|location| location.has(head, token));
    here.map(Location::place).min()
}

impl Location {
    fn place(&self) -> Place<'_> {
        match self {
            Self::Header { name, prefix } => (0, name.as_str(), prefix),
            Self::Param(name) => (1, name, ""),
            Self::Cookie(name) => (2, name, ""),
        }
    }

    fn has(&self, head: &RequestHead, token: &str) -> bool {
        self.tokens(head).is_ok_and(|found| found.contains(&token))
    }

    fn tokens<'h>(&self, head: &'h RequestHead) -> Result<Vec<&'h str>, Reason> {
        match self {
            Self::Header { name, prefix } => {
                let mut lines = head.headers.get_all(name).iter();
                let Some(line) = lines.next() else { return Ok(Vec::new()) };
                if lines.next().is_some() {
                    return Err(Reason::JwtMalformed);
                }
                let text = line.to_str().map_err(|_| Reason::JwtMalformed)?;
                Ok(text
                    .strip_prefix(&**prefix)
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .into_iter()
                    .collect())
            }
            Self::Param(name) => Ok(parameters(&head.path, name).collect()),
            Self::Cookie(name) => Ok(cookies(&head.headers, name).collect()),
        }
    }

    /// Takes `token` out of the request if it stands here. A cookie stays, as in Envoy.
    pub fn remove(&self, head: &mut RequestHead, token: &str) {
        if !self.has(head, token) {
            return;
        }
        match self {
            Self::Header { name, .. } => {
                head.headers.remove(name);
            }
            Self::Param(name) => {
                if let Some(path) = without_parameter(&head.path, name) {
                    head.path = path;
                }
            }
            Self::Cookie(_) => {}
        }
    }
}

fn parameters<'q>(path: &'q PathAndQuery, name: &str) -> impl Iterator<Item = &'q str> {
    let pairs = path.query().into_iter().flat_map(|query| query.split('&'));
    pairs.filter_map(move |pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

fn cookies<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';').filter_map(|pair| pair.trim().split_once('=')));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value.trim_matches('"'))
}

/// `path` without a parameter; None when it does not have it.
fn without_parameter(path: &PathAndQuery, name: &str) -> Option<PathAndQuery> {
    let query = path.query()?;
    let is_it = |pair: &&str| pair.split_once('=').map_or(*pair, |(key, _)| key) == name;
    if !query.split('&').any(|pair| is_it(&pair)) {
        return None;
    }
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_it(pair)).collect();
    let text =
        if rest.is_empty() { path.path().to_owned() } else { format!("{}?{}", path.path(), rest.join("&")) };
    text.parse().ok()
}
