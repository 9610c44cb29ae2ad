//! Cross-origin rules (`CorsPolicy`; the Fetch standard, §3.2): which origins may read answers, and what a preflight is told.

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};

use crate::http::head::RequestHead;
use crate::route::matcher::Fraction;
use crate::route::text::StringMatch;

static REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
static ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// A compiled `CorsPolicy`.
#[derive(Debug, Clone, Default)]
pub struct CorsPolicy {
    /// `allow_origin_string_match`.
    pub origins: Box<[StringMatch]>,
    /// `allow_methods`.
    pub methods: Option<HeaderValue>,
    /// `allow_headers`.
    pub headers: Option<HeaderValue>,
    /// `expose_headers`.
    pub expose: Option<HeaderValue>,
    /// `max_age`.
    pub max_age: Option<HeaderValue>,
    /// `allow_credentials`.
    pub credentials: Option<bool>,
    /// `allow_private_network_access`.
    pub private_network: Option<bool>,
    /// `forward_not_matching_preflights`, default true.
    pub forward_unmatched: Option<bool>,
    /// `filter_enabled`; None is always.
    pub enabled: Option<Fraction>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Cors {
    /// It has nothing to do with other origins, or with those that are allowed.
    Pass,
    /// It goes on, and its answer may be read by the origin.
    Share(HeaderValue),
    /// A preflight, answered here with these headers.
    Preflight(HeaderMap),
}

impl CorsPolicy {
    /// This policy, and for what it leaves open the one of the level above, as in Envoy. Whether it is enabled it says alone.
    #[must_use]
    pub fn below(&self, above: &Self) -> Self {
        let or =
            |own: &Option<HeaderValue>, above: &Option<HeaderValue>| own.clone().or_else(|| above.clone());
        let origins = if self.origins.is_empty() { &above.origins } else { &self.origins };
        Self {
            origins: origins.clone(),
            methods: or(&self.methods, &above.methods),
            headers: or(&self.headers, &above.headers),
            expose: or(&self.expose, &above.expose),
            max_age: or(&self.max_age, &above.max_age),
            credentials: self.credentials.or(above.credentials),
            private_network: self.private_network.or(above.private_network),
            forward_unmatched: self.forward_unmatched.or(above.forward_unmatched),
            enabled: self.enabled,
        }
    }

    /// Judges a request that drew `random`.
    #[must_use]
    pub fn judge(&self, head: &RequestHead, random: u64) -> Cors {
        let Some(origin) = head.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
            return Cors::Pass;
        };
        if !self.enabled.is_none_or(|share| share.contains(random)) {
            return Cors::Pass;
        }
        let any = |text: &StringMatch| text.is_match(b"*") || text.is_match(origin.as_bytes());
        let allowed = self.origins.iter().any(any);
        let preflight = head.method == Method::OPTIONS
            && head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
        match (preflight, allowed) {
            (true, true) => Cors::Preflight(self.preflight(Some(origin), &head.headers)),
            // Without an origin it allows nothing.
            (true, false) if self.forward_unmatched == Some(false) => {
                Cors::Preflight(self.preflight(None, &head.headers))
            }
            (_, false) => Cors::Pass,
            (false, true) => Cors::Share(origin.clone()),
        }
    }

    fn preflight(&self, origin: Option<&HeaderValue>, asked: &HeaderMap) -> HeaderMap {
        let mut out = HeaderMap::new();
        self.share(origin.cloned(), &mut out);
        let lists = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
            (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ];
        for (name, value) in lists {
            out.extend(value.clone().map(|value| (name, value)));
        }
        let private = asked.get(&REQUEST_PRIVATE_NETWORK).is_some_and(|v| v == "true");
        if private && self.private_network == Some(true) {
            out.insert(&ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        out
    }

    /// Lets `origin` read the answer with `headers`, whatever the upstream says about that.
    pub fn share(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        if self.credentials == Some(true) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}
