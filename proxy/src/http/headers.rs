//! What a proxy adds to and takes from a request and a response, whichever route it takes: Envoy's connection manager
//! rules (docs: `http_conn_man/headers`), with the mesh's own for identity headers.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::Scheme;

use super::downstream::Downstream;
use super::forwarded;
use super::head::{RequestHead, ResponseHead};
use crate::config::spec::{ClientCertHeader, ClientCertMode, HttpSpec, ServerHeader, StripPort};
use crate::resilience::EXPECTED_TIMEOUT;
use crate::resilience::timeout::millis;
use crate::route::action::port_start;
use crate::tls::identity::PeerIdentity;
use crate::traffic::concurrency::PRIORITY;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
static X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
static X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
/// Correlates the hops of one request.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that steer our own behaviour: from outside the mesh they are not obeyed, and not passed on.
static STEERING: [HeaderName; 11] = [
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// What forwarding writes, besides the timeout among the above.
static WRITTEN: [HeaderName; 4] = [
    HeaderName::from_static("x-envoy-attempt-count"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-original-host"),
    HeaderName::from_static("x-forwarded-host"),
];

/// Only this mesh may say these; an edge removes them from external requests.
static EDGE: [HeaderName; 2] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-original-path"),
];

/// What the request's headers say about where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The client, as far as the trusted hops tell.
    pub client: SocketAddr,
    /// It comes from inside (Envoy `x-envoy-internal`).
    pub internal: bool,
    /// How long the proxy in front of us waits for the answer, when the router believes that.
    pub waits: Option<Duration>,
}

/// Applies the listener's rules to a request head.
pub fn prepare_request(
    head: &mut RequestHead,
    downstream: &Downstream,
    http: &HttpSpec,
    rng: &mut fastrand::Rng,
) -> Origin {
    if http.strip_trailing_dot {
        shorten_host(head);
    }
    strip_port(head, http.strip_host_port, downstream.local.port());
    client_cert(&mut head.headers, downstream, http.client_cert);
    let mut origin = forwarded_for(head, downstream, http);
    if !origin.internal {
        // From outside of the mesh a short time could have an endpoint be taken for a slow one.
        if http.respect_expected_timeout && !http.use_remote_address {
            let said = head.headers.get(&EXPECTED_TIMEOUT).and_then(millis);
            origin.waits = said.filter(|waits| !waits.is_zero());
        }
        remove_steering(&mut head.headers);
        if http.use_remote_address {
            head.headers.remove(&PRIORITY);
            if has_envoy_headers(&head.headers) {
                for name in &EDGE {
                    head.headers.remove(name);
                }
            }
        }
    }
    forwarded_proto(head, http);
    request_id(head, http, rng);
    if let Some(via) = &http.via {
        append_list(&mut head.headers, &header::VIA, b", ", via.as_bytes());
    }
    origin
}

fn has_envoy_headers(headers: &HeaderMap) -> bool {
    headers.keys().any(|n| n.as_str().starts_with("x-envoy-"))
}

/// Takes away what steers us: it is not for the next hop.
pub fn remove_steering(headers: &mut HeaderMap) {
    if has_envoy_headers(headers) {
        for name in &STEERING {
            headers.remove(name);
        }
    }
}

/// Whether there is something that forwarding writes or takes away.
pub fn has_written(headers: &HeaderMap) -> bool {
    let may_be = |name: &str| name.starts_with("x-envoy-") || name == "x-forwarded-host";
    headers.keys().any(|name| may_be(name.as_str()) && (WRITTEN.contains(name) || STEERING.contains(name)))
}

/// A copy without all of that.
pub fn without_written(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in WRITTEN.iter().chain(&STEERING) {
        headers.remove(name);
    }
    headers
}

/// `x-forwarded-client-cert`: only a certificate that we verified speaks for the peer, so that a peer without one counts
/// as one without a certificate.
fn client_cert(headers: &mut HeaderMap, downstream: &Downstream, rules: ClientCertHeader) {
    let peer = downstream.tls.as_ref().and_then(|tls| tls.peer.as_deref()).filter(|peer| peer.verified);
    match (rules.mode, peer) {
        (ClientCertMode::Always, _) | (ClientCertMode::Forward, Some(_)) => {}
        (ClientCertMode::Sanitize, _) | (_, None) => {
            headers.remove(&X_FORWARDED_CLIENT_CERT);
        }
        (ClientCertMode::Append | ClientCertMode::Set, Some(peer)) => {
            if rules.mode == ClientCertMode::Set {
                headers.remove(&X_FORWARDED_CLIENT_CERT);
            }
            join_lines(headers, &X_FORWARDED_CLIENT_CERT);
            let element = client_cert_element(peer, own_identity(downstream).as_deref(), rules);
            append_list(headers, &X_FORWARDED_CLIENT_CERT, b",", element.as_bytes());
        }
    }
}

/// One element of `x-forwarded-client-cert`, its keys in Envoy's order.
fn client_cert_element(peer: &PeerIdentity, own: Option<&str>, rules: ClientCertHeader) -> String {
    let mut out = String::with_capacity(160);
    if let Some(own) = own {
        let _ = write!(out, "By={own};");
    }
    let _ = write!(out, "Hash={}", peer.fingerprint_hex());
    if rules.subject {
        out.push_str(";Subject=\"");
        for c in peer.subject.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    if rules.uri {
        let uri = peer.uri_sans.first().map_or("", |uri| uri);
        let _ = write!(out, ";URI={uri}");
    }
    for name in peer.dns_sans.iter().filter(|_| rules.dns) {
        let _ = write!(out, ";DNS={name}");
    }
    out
}

/// The URI name of our own certificate. When there are several certificates with several names, nobody knows here which
/// of them the peer saw, and there is none.
pub(super) fn own_identity(downstream: &Downstream) -> Option<Box<str>> {
    let mut names = downstream.chain.tls.as_ref()?.certificates().map(|own| own.uri.clone());
    let first = names.next()??;
    names.all(|name| name.as_ref() == Some(&first)).then_some(first)
}

/// Joins the lines of a list header into one, as Envoy does with those it knows.
pub(super) fn join_lines(headers: &mut HeaderMap, name: &HeaderName) {
    let mut lines = headers.get_all(name).iter();
    if lines.nth(1).is_none() {
        return;
    }
    let joined: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(value) = HeaderValue::from_bytes(&joined.join(&b","[..])) {
        headers.insert(name.clone(), value);
    }
}

/// X-Forwarded-For and who the client is (`use_remote_address`, `xff_num_trusted_hops`, `skip_xff_append`).
fn forwarded_for(head: &mut RequestHead, downstream: &Downstream, http: &HttpSpec) -> Origin {
    let peer = downstream.remote;
    let hops = http.trusted_hops as usize;
    let internal = |ip: IpAddr| http.internal_addresses.iter().any(|net| net.contains(&ip));
    join_lines(&mut head.headers, &X_FORWARDED_FOR);
    if http.use_remote_address {
        forwarded::keep_trusted(&mut head.headers, hops);
        let had_list = head.headers.contains_key(&X_FORWARDED_FOR);
        let client = if hops > 0 { address_from_end(&head.headers, hops - 1) } else { None };
        if !http.skip_xff_append {
            append_list(&mut head.headers, &X_FORWARDED_FOR, b",", peer.ip().to_string().as_bytes());
        }
        let client = client.map_or(peer, |ip| SocketAddr::new(ip, 0));
        let internal = !had_list && internal(peer.ip());
        mark(head, internal, client.ip());
        return Origin { client, internal, waits: None };
    }
    let client = address_from_end(&head.headers, hops);
    let single = head.headers.get(&X_FORWARDED_FOR).is_some_and(|v| !v.as_bytes().contains(&b','));
    let internal = single && client.is_some_and(internal);
    if internal {
        head.headers.insert(X_ENVOY_INTERNAL.clone(), HeaderValue::from_static("true"));
    } else {
        head.headers.remove(&X_ENVOY_INTERNAL);
    }
    Origin { client: client.map_or(peer, |ip| SocketAddr::new(ip, 0)), internal, waits: None }
}

/// An edge tells the mesh behind it what it found.
fn mark(head: &mut RequestHead, internal: bool, client: IpAddr) {
    if internal {
        head.headers.insert(X_ENVOY_INTERNAL.clone(), HeaderValue::from_static("true"));
        head.headers.remove(&X_ENVOY_EXTERNAL_ADDRESS);
    } else {
        head.headers.remove(&X_ENVOY_INTERNAL);
        if let Ok(value) = HeaderValue::from_str(&client.to_string()) {
            head.headers.insert(X_ENVOY_EXTERNAL_ADDRESS.clone(), value);
        }
    }
}

/// The `n`th address from the end of X-Forwarded-For.
fn address_from_end(headers: &HeaderMap, n: usize) -> Option<IpAddr> {
    let mut addresses: smallvec::SmallVec<[&str; 8]> = smallvec::SmallVec::new();
    for value in headers.get_all(&X_FORWARDED_FOR) {
        addresses.extend(value.to_str().ok()?.split(',').map(str::trim));
    }
    addresses.iter().rev().nth(n)?.parse().ok()
}

fn forwarded_proto(head: &mut RequestHead, http: &HttpSpec) {
    let untrusted = http.use_remote_address && http.trusted_hops == 0;
    if untrusted || !head.headers.contains_key(&X_FORWARDED_PROTO) {
        let proto = if head.scheme == Scheme::HTTPS { "https" } else { "http" };
        head.headers.insert(X_FORWARDED_PROTO.clone(), HeaderValue::from_static(proto));
    }
}

fn request_id(head: &mut RequestHead, http: &HttpSpec, rng: &mut fastrand::Rng) {
    if !http.generate_request_id {
        return;
    }
    let edge = http.use_remote_address && !http.preserve_request_id;
    if edge || !head.headers.contains_key(&X_REQUEST_ID) {
        head.headers.insert(X_REQUEST_ID.clone(), new_request_id(rng));
    }
}

/// A version 4 UUID (RFC 9562 §5.4). It correlates log lines; it is no secret.
fn new_request_id(rng: &mut fastrand::Rng) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits = rng.u128(..);
    bits = bits & !(0xf << 76) | 4 << 76;
    bits = bits & !(0b11 << 62) | 0b10 << 62;
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (i, slot) in text.iter_mut().enumerate() {
        if !matches!(i, 8 | 13 | 18 | 23) {
            shift -= 4;
            *slot = HEX[(bits >> shift) as usize & 15];
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

/// Appends to a comma-separated header.
pub(crate) fn append_list(headers: &mut HeaderMap, name: &HeaderName, comma: &[u8], item: &[u8]) {
    let old = headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let sep: &[u8] = if old.is_empty() { b"" } else { comma };
    if let Ok(value) = HeaderValue::from_bytes(&[old, sep, item].concat()) {
        headers.insert(name.clone(), value);
    }
}

fn strip_port(head: &mut RequestHead, mode: StripPort, own: u16) {
    let Some(authority) = &head.authority else { return };
    let Some(port) = authority.port_u16() else { return };
    if mode == StripPort::Any || (mode == StripPort::Matching && port == own) {
        let mut host = String::new();
        let _ = write!(host, "{}", authority.host());
        head.authority = host.parse().ok().or_else(|| head.authority.take());
    }
}

/// `a.example.` and `a.example.:80` lose the dot (Envoy `strip_trailing_host_dot`). Where that is wished, other spellings of one host are one as well:
/// an IPv6 address is that of RFC 5952, a port has no zeros in front.
fn shorten_host(head: &mut RequestHead) {
    let Some(authority) = &head.authority else { return };
    if let Some(shortest) = shortest(authority.as_str()).and_then(|host| host.parse().ok()) {
        head.authority = Some(shortest);
    }
}

/// None: it is spelt so already, or it is no host.
fn shortest(authority: &str) -> Option<String> {
    let (name, port) = port_start(authority).map_or((authority, ""), |colon| authority.split_at(colon));
    let port = match port.strip_prefix(':') {
        Some(digits) => format!(":{}", digits.parse::<u16>().ok()?),
        None => String::new(),
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = match address {
        Some(address) => format!("[{}]", address.parse::<Ipv6Addr>().ok()?),
        None => name.strip_suffix('.').unwrap_or(name).to_owned(),
    };
    Some(name + &port).filter(|shortest| shortest != authority)
}

/// Applies the listener's rules to a response head.
pub fn finish_response(head: &mut ResponseHead, http: &HttpSpec, date: &HeaderValue) {
    if !head.headers.contains_key(header::DATE) {
        head.headers.insert(header::DATE, date.clone());
    }
    match &http.server_header {
        ServerHeader::Overwrite(value) => {
            head.headers.insert(header::SERVER, value.clone());
        }
        ServerHeader::AppendIfAbsent(value) => {
            if !head.headers.contains_key(header::SERVER) {
                head.headers.insert(header::SERVER, value.clone());
            }
        }
        ServerHeader::PassThrough => {}
    }
    if let Some(via) = &http.via {
        append_list(&mut head.headers, &header::VIA, b", ", via.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_however_it_is_spelt() {
        for (spelt, short) in [
            ("a.example.", "a.example"),
            ("a.example.:080", "a.example:80"),
            ("[fd00:0:0::50]:5432", "[fd00::50]:5432"),
            ("[FD00:0:0:0:0:0:0:0050]:05432", "[fd00::50]:5432"),
            ("[fd00:0::50]", "[fd00::50]"),
            ("10.96.0.50:00080", "10.96.0.50:80"),
            ("a.example:00", "a.example:0"),
        ] {
            assert_eq!(shortest(spelt).as_deref(), Some(short), "{spelt}");
        }
        // Octal to some, no address, no port, and what is short.
        for spelt in ["010.96.0.50:80", "[fd00::50", "[x]", "a:99999", "a:", "", "a.example:80", "[::1]"] {
            assert_eq!(shortest(spelt), None, "{spelt}");
        }
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let mut rng = fastrand::Rng::with_seed(7);
        let id = new_request_id(&mut rng);
        let id = id.to_str().unwrap();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!("89ab".contains(&id[19..20]) && id.bytes().filter(|b| *b == b'-').count() == 4, "{id}");
        assert_ne!(new_request_id(&mut rng).to_str().unwrap(), id);
    }

    #[test]
    fn the_client_is_counted_from_the_end() {
        let mut headers = HeaderMap::new();
        headers.append(&X_FORWARDED_FOR, HeaderValue::from_static("1.1.1.1, 2.2.2.2"));
        headers.append(&X_FORWARDED_FOR, HeaderValue::from_static("3.3.3.3"));
        assert_eq!(address_from_end(&headers, 0), "3.3.3.3".parse().ok());
        assert_eq!(address_from_end(&headers, 2), "1.1.1.1".parse().ok());
        assert_eq!(address_from_end(&headers, 3), None);
    }
}
