//! One refusal, with all that is known of it. No header value but the request id, no query string: nothing that lets somebody in.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Cause;
use crate::http::headers::X_REQUEST_ID;
use crate::policy::rbac;
use crate::telemetry::format::rfc3339_millis;
use crate::telemetry::record::AccessRecord;

/// Bytes of a text; a longer one is cut, and ends in `…`.
const LONGEST: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct Story {
    pub(super) cause: Cause,
    pub(super) ended: Instant,
    start: SystemTime,
    /// What is known, in the order in which it is shown.
    facts: Vec<(&'static str, Fact)>,
}

#[derive(Debug)]
enum Fact {
    Text(Box<str>),
    Address(SocketAddr),
    Number(u64),
}

/// Where it happened, as far as the record does not say it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The listener.
    pub listener: &'a str,
    /// The virtual host.
    pub virtual_host: Option<&'a str>,
    /// What said no, or what was asked for. None: the policy that the details name.
    pub rule: Option<&'a str>,
    /// Host and path as the client wrote them; None: as the record has them.
    pub asked: Option<(&'a str, &'a str)>,
}

impl Story {
    /// The story of what `record` says. `ended` is when it was closed, by both clocks.
    #[must_use]
    pub fn new(
        cause: impl Into<Cause>,
        record: &AccessRecord<'_>,
        place: &Place<'_>,
        ended: (Instant, SystemTime),
    ) -> Self {
        let duration = record.timings.total;
        let start = ended.1.checked_sub(duration.unwrap_or_default()).unwrap_or(ended.1);
        let cause = cause.into();
        let mut story = Self { cause, ended: ended.0, start, facts: Vec::with_capacity(24) };
        let details = record.termination_details.or(record.downstream.transport_failure);
        let details = details.or_else(|| record.details()).filter(|details| *details != cause.id());
        story.number("status", Some(record.status_code().into()).filter(|status| *status > 0));
        story.text("details", details);
        story.text("rule", place.rule.or_else(|| rbac::policy_in(details?)));
        story.request(record, place);
        story.text("listener", Some(place.listener));
        story.text("filter_chain", record.downstream.filter_chain);
        story.text("virtual_host", place.virtual_host);
        story.text("route", record.route_name);
        story.text("cluster", record.upstream.cluster);
        story.address("endpoint", record.upstream.remote);
        story.number("attempts", record.request.map(|_| record.attempts.into()));
        story.number("connection_id", record.downstream.connection_id);
        story.address("downstream", record.downstream.remote);
        story.address("destination", record.downstream.local);
        story.text("server_name", record.downstream.server_name);
        story.text("peer", record.downstream.peer_uri_san);
        let millis = duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        story.number("duration_ms", millis);
        story
    }

    fn request(&mut self, record: &AccessRecord<'_>, place: &Place<'_>) {
        let Some(head) = record.request else { return };
        let host = head.authority.as_ref().map_or("", |authority| authority.as_str());
        let (host, path) = place.asked.unwrap_or((host, head.path.as_str()));
        self.text("request_id", head.headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()));
        self.text("method", Some(head.method.as_str()));
        self.text("host", Some(host));
        self.text("path", path.split(['?', '#']).next());
    }

    fn text(&mut self, name: &'static str, text: Option<&str>) {
        let fact = text.filter(|text| !text.is_empty()).map(|text| Fact::Text(cut(text)));
        self.facts.extend(fact.map(|fact| (name, fact)));
    }

    fn address(&mut self, name: &'static str, address: Option<SocketAddr>) {
        self.facts.extend(address.map(|address| (name, Fact::Address(address))));
    }

    fn number(&mut self, name: &'static str, number: Option<u64>) {
        self.facts.extend(number.map(|number| (name, Fact::Number(number))));
    }

    /// Whether it is the story of this request, by its `x-request-id`, or of this connection, by its number.
    #[must_use]
    pub fn is_of(&self, id: &str) -> bool {
        self.facts.iter().any(|(name, fact)| match fact {
            Fact::Text(text) => *name == "request_id" && **text == *cut(id),
            Fact::Number(number) => *name == "connection_id" && id.parse().ok() == Some(*number),
            Fact::Address(_) => false,
        })
    }

    /// Why.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// All of it, as the admin page shows it.
    #[must_use]
    pub fn json(&self) -> Value {
        let fact = |fact: &Fact| match fact {
            Fact::Text(text) => Value::from(&**text),
            Fact::Address(address) => address.to_string().into(),
            Fact::Number(number) => (*number).into(),
        };
        let first = [
            ("time", rfc3339_millis(self.start).into()),
            ("reason", self.cause.id().into()),
            ("party", self.cause.party().as_str().into()),
        ];
        let rest = self.facts.iter().map(|(name, value)| (*name, fact(value)));
        Value::Object(
            first.into_iter().chain(rest).map(|(name, fact)| (name.to_owned(), fact)).collect::<Map<_, _>>(),
        )
    }
}

fn cut(text: &str) -> Box<str> {
    const MARK: &str = "…";
    if text.len() <= LONGEST {
        return text.into();
    }
    let end = text.floor_char_boundary(LONGEST - MARK.len());
    [&text[..end], MARK].concat().into()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use http::uri::{Authority, PathAndQuery, Scheme};
    use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
    use serde_json::json;

    use super::*;
    use crate::error::Reason;
    use crate::http::head::RequestHead;
    use crate::telemetry::metrics::Refusal;
    use crate::telemetry::record::{Downstream, Timings, Upstream};
    use crate::tls::error::TlsFailure;

    fn head(path: &str, id: &str) -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_str(id).unwrap());
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        headers.insert("cookie", HeaderValue::from_static("session=secret"));
        RequestHead {
            method: Method::GET,
            scheme: Scheme::HTTP,
            authority: Some(Authority::from_static("shop.example:8080")),
            path: PathAndQuery::try_from(path).unwrap(),
            version: Version::HTTP_11,
            headers,
            case: Default::default(),
        }
    }

    fn ended() -> (Instant, SystemTime) {
        (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(3600))
    }

    /// Of a request with this id.
    pub(in super::super) fn story(reason: Reason, id: &str) -> Story {
        let head = head("/", id);
        let record = AccessRecord { request: Some(&head), reason: Some(reason), ..AccessRecord::default() };
        Story::new(reason, &record, &Place::default(), ended())
    }

    #[test]
    fn a_story_says_what_is_known_and_no_secret() {
        let head = head("/rewritten", "r-1");
        let record = AccessRecord {
            request: Some(&head),
            reason: Some(Reason::RbacDenied),
            status: Some(StatusCode::FORBIDDEN),
            response_code_details: Some("rbac_access_denied_matched_policy[shop/only:rules[0]]"),
            timings: Timings { total: Some(Duration::from_millis(1500)), ..Timings::default() },
            route_name: Some("all"),
            attempts: 1,
            downstream: Downstream {
                connection_id: Some(7),
                remote: Some("10.0.0.1:4000".parse().unwrap()),
                filter_chain: Some("in/0"),
                peer_uri_san: Some("spiffe://td/ns/a/sa/b"),
                ..Downstream::default()
            },
            upstream: Upstream { cluster: Some("shop"), ..Upstream::default() },
            ..AccessRecord::default()
        };
        let place = Place {
            listener: "in",
            virtual_host: Some("shop"),
            asked: Some(("shop.example", "/orders?token=secret")),
            ..Place::default()
        };
        let story = Story::new(Reason::RbacDenied, &record, &place, ended());
        let expected = json!({
            "time": "1970-01-01T00:59:58.500Z", "reason": "rbac_denied", "party": "proxy", "status": 403,
            "details": "rbac_access_denied_matched_policy[shop/only:rules[0]]", "rule": "shop/only:rules[0]",
            "request_id": "r-1", "method": "GET", "host": "shop.example", "path": "/orders",
            "listener": "in", "filter_chain": "in/0", "virtual_host": "shop", "route": "all", "cluster": "shop",
            "attempts": 1, "connection_id": 7, "downstream": "10.0.0.1:4000", "peer": "spiffe://td/ns/a/sa/b",
            "duration_ms": 1500,
        });
        assert_eq!(story.json(), expected);
        assert!(!format!("{story:?}").contains("secret"));
        assert!(story.is_of("r-1") && story.is_of("7") && !story.is_of("r-2") && !story.is_of("1500"));
    }

    #[test]
    fn a_handshake_that_failed_has_no_request() {
        let record = AccessRecord {
            downstream: Downstream {
                transport_failure: Some("peer sent no certificates"),
                ..Downstream::default()
            },
            ..AccessRecord::default()
        };
        let why = Refusal::Tls(TlsFailure::NoClientCertificate);
        let story = Story::new(why, &record, &Place { listener: "in", ..Place::default() }, ended());
        let expected = json!({
            "time": "1970-01-01T01:00:00.000Z", "reason": "tls_no_client_certificate", "party": "downstream",
            "details": "peer sent no certificates", "listener": "in",
        });
        assert_eq!(story.json(), expected);
    }

    #[test]
    fn what_is_long_is_cut_between_characters_and_still_found() {
        let id = "i".repeat(1000);
        let story = story(Reason::NoRoute, &id);
        assert!(story.is_of(&id));
        let shown = story.json()["request_id"].as_str().unwrap().to_owned();
        assert!(shown.len() <= LONGEST && shown.ends_with('…'), "{shown}");
        for fits in ["a".repeat(LONGEST), "ä".repeat(LONGEST / 2)] {
            assert_eq!(*cut(&fits), fits);
        }
        for long in ["a".repeat(LONGEST + 1), "ä".repeat(LONGEST), "a€".repeat(LONGEST)] {
            let cut = cut(&long);
            assert!(cut.len() <= LONGEST && long.starts_with(cut.trim_end_matches('…')), "{cut}");
        }
    }
}
