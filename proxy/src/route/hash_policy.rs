//! What a request is hashed by (`RouteAction.hash_policy`), so that consistent hashing sends it where others like it went.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use smallvec::SmallVec;

use super::matcher::{HeaderKey, HeaderView, cookie, parameter};
use super::re2::Substitution;
use crate::balance::hash::{combine, xx, xx_seeded};
use crate::http::head::RequestHead;

/// A compiled `HashPolicy`.
#[derive(Debug)]
pub struct HashPolicy {
    /// `policy_specifier`.
    pub source: HashSource,
    /// `terminal`: if there is a hash by then, the rest of the list is left out.
    pub terminal: bool,
}

/// `policy_specifier`.
#[derive(Debug)]
pub enum HashSource {
    /// `header`: all its values, whatever their order.
    Header {
        /// `header_name`.
        key: HeaderKey,
        /// `regex_rewrite`, of every value.
        rewrite: Option<Substitution>,
    },
    /// `cookie`.
    Cookie {
        /// `name`.
        name: Box<str>,
        /// What is made for a client that has no such cookie; None without `ttl`.
        make: Option<NewCookie>,
    },
    /// `connection_properties.source_ip`.
    SourceIp,
    /// `query_parameter.name`: the first of that name.
    Query(Box<str>),
}

/// A cookie that the proxy makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCookie {
    /// `ttl`; zero makes a cookie that ends with the browser's session.
    pub ttl: Duration,
    /// `path`.
    pub path: Box<str>,
    /// `attributes`, with their values.
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

/// The values of one header.
type Parts<'a> = SmallVec<[Cow<'a, [u8]>; 2]>;

impl NewCookie {
    /// `Set-Cookie` for this cookie with `value`.
    #[must_use]
    pub fn header(&self, name: &str, value: &str) -> Option<HeaderValue> {
        let mut text = format!("{name}=\"{value}\"");
        if !self.ttl.is_zero() {
            let _ = write!(text, "; Max-Age={}", self.ttl.as_secs());
        }
        if !self.path.is_empty() {
            let _ = write!(text, "; Path={}", self.path);
        }
        for (name, value) in &self.attributes {
            let _ =
                if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
        }
        text.push_str("; HttpOnly");
        HeaderValue::try_from(text).ok()
    }
}

/// A request as the policies see it.
#[derive(Debug, Clone, Copy)]
pub struct Hashed<'a> {
    /// Its head, before the route changes it.
    pub head: &'a RequestHead,
    /// The client, as the listener knows it (`X-Forwarded-For` included).
    pub client: SocketAddr,
    /// Both ends of its connection.
    pub connection: (SocketAddr, SocketAddr),
}

/// The hash of a request, and the cookies that its answer has to set.
#[must_use]
pub fn hash(policies: &[HashPolicy], request: &Hashed<'_>) -> (Option<u64>, SmallVec<[HeaderValue; 1]>) {
    let mut hash = None;
    let mut cookies = SmallVec::new();
    for policy in policies {
        if let Some(next) = one(&policy.source, request, &mut cookies) {
            hash = Some(combine(hash, next));
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    (hash, cookies)
}

fn one(source: &HashSource, request: &Hashed<'_>, cookies: &mut SmallVec<[HeaderValue; 1]>) -> Option<u64> {
    match source {
        HashSource::Header { key, rewrite } => header(request.head, key, rewrite.as_ref()),
        HashSource::Cookie { name, make } => match cookie(&request.head.headers, name) {
            Some(value) if !value.is_empty() => Some(xx(value)),
            _ => {
                let value = cookie_value(request.connection);
                cookies.extend(make.as_ref()?.header(name, &value));
                Some(xx(value.as_bytes()))
            }
        },
        HashSource::SourceIp => Some(source_ip(request.client)),
        HashSource::Query(name) => {
            parameter(request.head.path.query()?, name).map(|value| xx(value.as_bytes()))
        }
    }
}

/// The hash of a client's address, without its port.
#[must_use]
pub fn source_ip(client: SocketAddr) -> u64 {
    // The longest address has 45 bytes.
    const ROOM: usize = 48;
    let mut text = [0; ROOM];
    let mut left = &mut text[..];
    let _ = std::io::Write::write_fmt(&mut left, format_args!("{}", client.ip()));
    let written = ROOM - left.len();
    xx(&text[..written])
}

/// The same for all streams of a connection, so that requests that race get one cookie.
fn cookie_value((remote, local): (SocketAddr, SocketAddr)) -> String {
    format!("{:016x}", xx(format!("{remote}{local}").as_bytes()))
}

fn header(head: &RequestHead, key: &HeaderKey, rewrite: Option<&Substitution>) -> Option<u64> {
    let rewritten = |value| match (rewrite, std::str::from_utf8(value)) {
        (Some(rewrite), Ok(text)) => match rewrite.replace_all(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        _ => Cow::Borrowed(value),
    };
    let mut parts: Parts<'_> = head.values(key).into_iter().map(rewritten).collect();
    parts.sort_unstable();
    let (first, rest) = parts.split_first()?;
    Some(rest.iter().fold(xx(first), |hash, part| xx_seeded(hash, part)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matcher::tests::get;

    fn policy(source: HashSource) -> HashPolicy {
        HashPolicy { source, terminal: false }
    }

    fn by_header(name: &str) -> HashPolicy {
        policy(HashSource::Header { key: HeaderKey::parse(name).unwrap(), rewrite: None })
    }

    fn run(policies: &[HashPolicy], head: &RequestHead) -> (Option<u64>, Vec<String>) {
        let address = |text: &str| text.parse().unwrap();
        let connection = (address("10.0.0.9:4000"), address("10.0.0.1:80"));
        let (hash, cookies) = hash(policies, &Hashed { head, client: address("192.0.2.1:77"), connection });
        (hash, cookies.iter().map(|c| c.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn headers_parameters_and_addresses() {
        let head = get("h", "/p?user=u%201&user=x", &[("x-a", "1"), ("x-b", "z"), ("x-b", "a")]);
        assert_eq!(run(&[by_header("x-a")], &head).0, Some(xx(b"1")));
        assert_eq!(run(&[by_header("x-none")], &head).0, None);
        assert_eq!(run(&[by_header(":path")], &head).0, Some(xx(b"/p?user=u%201&user=x")));
        let swapped = get("h", "/", &[("x-b", "a"), ("x-b", "z")]);
        assert_eq!(run(&[by_header("x-b")], &head).0, run(&[by_header("x-b")], &swapped).0);
        assert_eq!(run(&[policy(HashSource::Query("user".into()))], &head).0, Some(xx(b"u%201")));
        assert_eq!(run(&[policy(HashSource::SourceIp)], &head).0, Some(xx(b"192.0.2.1")));
        let rewrite = Some(Substitution::new("^(.).*$", r"\1").unwrap());
        let key = HeaderKey::parse("x-a").unwrap();
        let first = policy(HashSource::Header { key, rewrite });
        assert_eq!(run(&[first], &get("h", "/", &[("x-a", "12345")])).0, Some(xx(b"1")));
    }

    #[test]
    fn addresses_are_hashed_as_text() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for ip in ["1.2.3.4", "::1", longest, "::ffff:255.255.255.255"] {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            assert_eq!(source_ip(SocketAddr::new(ip, 9)), xx(ip.to_string().as_bytes()));
        }
    }

    #[test]
    fn policies_add_up_until_a_terminal_one() {
        let head = get("h", "/", &[("x-a", "1"), ("x-b", "2")]);
        let both = combine(Some(xx(b"1")), xx(b"2"));
        assert_eq!(run(&[by_header("x-a"), by_header("x-b")], &head).0, Some(both));
        let terminal = |name| HashPolicy { terminal: true, ..by_header(name) };
        assert_eq!(run(&[terminal("x-a"), by_header("x-b")], &head).0, Some(xx(b"1")));
        assert_eq!(run(&[terminal("x-none"), by_header("x-b")], &head).0, Some(xx(b"2")));
        // Also one that found nothing itself, as in Envoy.
        assert_eq!(run(&[by_header("x-a"), terminal("x-none"), by_header("x-b")], &head).0, Some(xx(b"1")));
    }

    #[test]
    fn a_cookie_is_made_for_who_has_none() {
        let attributes = [("SameSite".into(), "Lax".into()), ("Secure".into(), "".into())].into();
        let make = NewCookie { ttl: Duration::from_secs(60), path: "/p".into(), attributes };
        let policies = [policy(HashSource::Cookie { name: "s".into(), make: Some(make) })];
        let value = cookie_value(("10.0.0.9:4000".parse().unwrap(), "10.0.0.1:80".parse().unwrap()));
        let (hash, cookies) = run(&policies, &get("h", "/", &[]));
        assert_eq!(hash, Some(xx(value.as_bytes())));
        let want = format!("s=\"{value}\"; Max-Age=60; Path=/p; SameSite=Lax; Secure; HttpOnly");
        assert_eq!(cookies, [want]);
        let returning = get("h", "/", &[("cookie", &format!("a=b; s=\"{value}\""))]);
        assert_eq!(run(&policies, &returning), (hash, Vec::new()));
        let passive = [policy(HashSource::Cookie { name: "s".into(), make: None })];
        assert_eq!(run(&passive, &get("h", "/", &[])), (None, Vec::new()));
    }
}
