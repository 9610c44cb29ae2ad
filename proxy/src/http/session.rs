//! `envoy.filters.http.stateful_session`: a session stays with its endpoint. The endpoint's address is in a cookie or a header that the
//! client sends back; it goes before what the balancer would pick, as long as the endpoint is healthy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::Message;

use super::context::RequestCtx;
use super::filters::{self, Answering};
use super::head::RequestHead;
use crate::balance::context::OverrideHost;
use crate::route::hash_policy::NewCookie;
use crate::route::matcher::cookie;

/// A compiled `StatefulSession`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter {
    /// `session_state`.
    pub state: SessionState,
    /// `strict`: no other endpoint will do.
    pub strict: bool,
}

/// Where the client keeps the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// `CookieBasedSessionState`.
    Cookie {
        /// `cookie.name`.
        name: Box<str>,
        /// What is set.
        cookie: NewCookie,
    },
    /// `HeaderBasedSessionState.name`, of requests and answers.
    Header(HeaderName),
}

/// Envoy's `envoy.Cookie`, the value of the cookie.
#[derive(Clone, PartialEq, Eq, Message)]
struct CookieValue {
    /// `1.2.3.4:80`.
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds since 1970; 0 is never.
    #[prost(uint64, tag = "2")]
    expires: u64,
}

/// A longer value holds no address.
const MAX_VALUE: usize = 256;

/// Asks for the endpoint of the request's session, and for its address in the answer.
pub(super) fn begin(ctx: &mut RequestCtx, filter: &Arc<SessionFilter>) {
    if !filter.state.covers(ctx.head.path.path()) {
        return;
    }
    let known = filter.state.read(&ctx.head, SystemTime::now());
    if let Some(address) = known {
        filters::findings(ctx).host = Some(OverrideHost { address, strict: filter.strict });
    }
    ctx.answering.push(Answering::Session { filter: Arc::clone(filter), known });
}

/// Tells the client which endpoint answered, unless it knows.
pub(super) fn answer(
    ctx: &RequestCtx,
    filter: &SessionFilter,
    known: Option<SocketAddr>,
    headers: &mut HeaderMap,
) {
    let Some(active) = &ctx.active else { return };
    let address = active.endpoint().spec.address;
    if known != Some(address) {
        filter.state.write(address, SystemTime::now(), headers);
    }
}

impl SessionState {
    /// Whether a cookie with this path is sent with requests for `path` (RFC 6265 §5.1.4).
    fn covers(&self, path: &str) -> bool {
        let Self::Cookie { cookie, .. } = self else { return true };
        let Some(rest) = path.strip_prefix(&*cookie.path) else { return false };
        rest.is_empty() || rest.starts_with('/') || cookie.path.is_empty() || cookie.path.ends_with('/')
    }

    /// The address that a request brings.
    fn read(&self, head: &RequestHead, now: SystemTime) -> Option<SocketAddr> {
        let value = match self {
            Self::Cookie { name, .. } => cookie(&head.headers, name)?,
            Self::Header(name) => head.headers.get(name)?.as_bytes(),
        };
        let decoded = BASE64_STANDARD.decode(value.get(..value.len().min(MAX_VALUE))?).ok()?;
        let text = match self {
            Self::Header(_) => String::from_utf8(decoded).ok()?,
            Self::Cookie { .. } => match CookieValue::decode(&*decoded) {
                Ok(CookieValue { expires, .. }) if expires != 0 && expires < seconds(now) => return None,
                Ok(CookieValue { address, .. }) => address,
                // As older versions of Envoy wrote it.
                Err(_) => String::from_utf8(decoded).ok()?,
            },
        };
        text.parse().ok()
    }

    fn write(&self, address: SocketAddr, now: SystemTime, headers: &mut HeaderMap) {
        match self {
            Self::Cookie { name, cookie } => {
                let lasting = !cookie.ttl.is_zero();
                let expires = if lasting { seconds(now).saturating_add(cookie.ttl.as_secs()) } else { 0 };
                let value = CookieValue { address: address.to_string(), expires };
                let value = BASE64_STANDARD.encode(value.encode_to_vec());
                if let Some(cookie) = cookie.header(name, &value) {
                    headers.append(header::SET_COOKIE, cookie);
                }
            }
            Self::Header(name) => {
                let value = BASE64_STANDARD.encode(address.to_string());
                if let Ok(value) = HeaderValue::try_from(value) {
                    headers.insert(name.clone(), value);
                }
            }
        }
    }
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matcher::tests::get;
    use proptest::prelude::*;
    use std::net::IpAddr;
    use std::time::Duration;

    fn by_cookie(path: &str, ttl: u64) -> SessionState {
        let cookie = NewCookie { ttl: Duration::from_secs(ttl), path: path.into(), attributes: [].into() };
        SessionState::Cookie { name: "s".into(), cookie }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn read(state: &SessionState, name: &str, value: &str, now: u64) -> Option<SocketAddr> {
        state.read(&get("h", "/", &[(name, value)]), at(now))
    }

    #[test]
    fn a_header_goes_there_and_back() {
        let state = SessionState::Header(HeaderName::from_static("x-session"));
        let mut headers = HeaderMap::new();
        state.write("1.2.3.4:80".parse().unwrap(), at(0), &mut headers);
        assert_eq!(headers["x-session"], "MS4yLjMuNDo4MA==");
        assert_eq!(read(&state, "x-session", "MS4yLjMuNDo4MA==", 0), Some("1.2.3.4:80".parse().unwrap()));
        for wrong in ["", "1.2.3.4:80", "MS4yLjMuNA==", "!"] {
            assert_eq!(read(&state, "x-session", wrong, 0), None, "{wrong}");
        }
    }

    #[test]
    fn a_cookie_goes_there_and_back_until_it_expires() {
        let state = by_cookie("/", 60);
        let mut headers = HeaderMap::new();
        let address: SocketAddr = "[::1]:8080".parse().unwrap();
        state.write(address, at(1_000), &mut headers);
        let set = headers[header::SET_COOKIE].to_str().unwrap().to_owned();
        let (pair, rest) = set.split_once("; ").unwrap();
        assert_eq!(rest, "Max-Age=60; Path=/; HttpOnly");
        assert_eq!(read(&state, "cookie", pair, 1_060), Some(address));
        assert_eq!(read(&state, "cookie", pair, 1_061), None);
        // As older versions of Envoy wrote it.
        assert_eq!(read(&state, "cookie", "s=\"MS4yLjMuNDo4MA==\"", 0), Some("1.2.3.4:80".parse().unwrap()));
    }

    #[test]
    fn a_cookie_counts_where_its_path_does() {
        for (path, request, want) in [
            ("/", "/a", true),
            ("", "/a", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/a/", "/a", false),
            ("/a", "/", false),
        ] {
            assert_eq!(by_cookie(path, 0).covers(request), want, "{path} {request}");
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_back(v4: bool, ip: u128, port: u16) {
            let ip = if v4 { IpAddr::V4((ip as u32).into()) } else { IpAddr::V6(ip.into()) };
            let address = SocketAddr::new(ip, port);
            let mut headers = HeaderMap::new();
            by_cookie("/", 0).write(address, at(0), &mut headers);
            let set = headers[header::SET_COOKIE].to_str().unwrap().to_owned();
            let pair = set.split("; ").next().unwrap();
            prop_assert_eq!(read(&by_cookie("/", 0), "cookie", pair, 9), Some(address));
        }

        #[test]
        fn what_nobody_wrote_is_no_address(bytes in prop::collection::vec(128_u8.., 0..300)) {
            let value = BASE64_STANDARD.encode(bytes);
            prop_assert_eq!(read(&by_cookie("/", 0), "cookie", &format!("s={value}"), 5), None);
        }
    }
}
