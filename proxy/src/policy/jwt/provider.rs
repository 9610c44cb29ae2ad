//! A provider: what its tokens must say, and what is passed on of them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use tokio::time::Instant;

use super::extract::Location;
use super::keys::Keys;
use super::token::Token;
use crate::error::Reason;
use crate::http::head::RequestHead;
use crate::policy::view::Claims;
use crate::route::text::StringMatch;

/// A compiled `JwtProvider`.
#[derive(Debug)]
pub struct Provider {
    /// Its key in `providers`.
    pub name: Arc<str>,
    /// `issuer`; None accepts every one.
    pub issuer: Option<Box<str>>,
    /// `audiences`, as [`audience`] writes them; empty accepts every one.
    pub audiences: Box<[Box<str>]>,
    /// `subjects`.
    pub subjects: Option<StringMatch>,
    /// `require_expiration`.
    pub require_expiration: bool,
    /// `max_lifetime`: most time until the token expires.
    pub max_lifetime: Option<Duration>,
    /// `clock_skew_seconds`, default 60.
    pub skew: u64,
    /// `local_jwks` or `remote_jwks`.
    pub keys: Keys,
    /// `from_headers`, `from_params`, `from_cookies`, or the default ones.
    pub locations: Box<[Location]>,
    /// `forward`: a token that was verified stays in the request.
    pub forward: bool,
    /// `forward_payload_header`, and `pad_forward_payload_header`.
    pub payload_header: Option<(HeaderName, bool)>,
    /// `claim_to_headers`: the path of each claim.
    pub claim_headers: Box<[(HeaderName, ClaimPath)]>,
    /// `payload_in_metadata`: under which key rules find the claims.
    pub metadata: Option<Arc<str>>,
}

/// The names on the way to a claim, outermost first.
pub type ClaimPath = Box<[Box<str>]>;

/// The time, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Seconds since 1970: what tokens count in.
    pub unix: u64,
    /// For the age of keys.
    pub instant: Instant,
}

/// A token that is genuine and says what it must.
#[derive(Debug)]
pub struct Verified<'f> {
    /// Whose it is.
    pub provider: &'f Provider,
    /// The claims.
    pub payload: Arc<Value>,
    /// The claims as they came, base64url.
    pub encoded: Box<str>,
}

/// An audience as Envoy compares it: without scheme and the slash at its end.
#[must_use]
pub fn audience(text: &str) -> &str {
    let text = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}

impl Provider {
    /// Checks a token: what it says first, as in Envoy, its signature last. `audiences` replace the provider's own.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(
        &self,
        token: Token<'_>,
        audiences: Option<&[Box<str>]>,
        now: Now,
    ) -> Result<Verified<'_>, Reason> {
        if self.issuer.as_deref().is_some_and(|issuer| token.issuer.as_deref() != Some(issuer)) {
            return Err(Reason::JwtUnknownIssuer);
        }
        self.check_time(&token, now.unix)?;
        let wanted = audiences.unwrap_or(&self.audiences);
        let said = token.audiences().unwrap_or_default();
        if !wanted.is_empty() && !said.iter().any(|said| wanted.iter().any(|w| **w == *audience(said))) {
            return Err(Reason::JwtAudience);
        }
        let named = |text: &StringMatch| token.subject().is_some_and(|sub| text.is_match(sub.as_bytes()));
        if !self.subjects.as_ref().is_none_or(named) {
            return Err(Reason::JwtSubject);
        }
        self.keys.verify(&token, now.instant)?;
        let encoded = token.encoded_payload.into();
        Ok(Verified { provider: self, payload: Arc::new(token.payload), encoded })
    }

    fn check_time(&self, token: &Token<'_>, now: u64) -> Result<(), Reason> {
        if token.not_before.is_some_and(|from| from > now.saturating_add(self.skew)) {
            return Err(Reason::JwtNotYetValid);
        }
        match (token.expires, self.max_lifetime) {
            (Some(until), _) if now > until.saturating_add(self.skew) => Err(Reason::JwtExpired),
            (Some(until), Some(most)) if until.saturating_sub(now) > most.as_secs() => {
                Err(Reason::JwtLifetime)
            }
            (None, Some(_)) => Err(Reason::JwtLifetime),
            (None, None) if self.require_expiration => Err(Reason::JwtLifetime),
            _ => Ok(()),
        }
    }
}

impl Verified<'_> {
    /// Passes on what the provider says, and takes the token away. Answers the claims for rules that come later.
    pub fn apply(self, head: &mut RequestHead) -> Option<Claims> {
        let provider = self.provider;
        if !provider.forward {
            for location in &provider.locations {
                location.remove(head);
            }
        }
        if let Some((name, pad)) = &provider.payload_header {
            let padding =
                if *pad { "=".repeat(self.encoded.len().wrapping_neg() % 4) } else { String::new() };
            if let Ok(value) = HeaderValue::try_from(format!("{}{padding}", self.encoded)) {
                head.headers.insert(name.clone(), value);
            }
        }
        for (name, path) in &provider.claim_headers {
            if let Some(value) = claim(&self.payload, path).and_then(claim_text) {
                head.headers.append(name.clone(), value);
            }
        }
        Some(Claims { key: Arc::clone(provider.metadata.as_ref()?), payload: self.payload })
    }
}

fn claim<'v>(payload: &'v Value, path: &[Box<str>]) -> Option<&'v Value> {
    path.iter().try_fold(payload, |at, key| at.get(&**key))
}

/// Plain values as they are, lists and objects as JSON in base64.
fn claim_text(value: &Value) -> Option<HeaderValue> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => BASE64_STANDARD.encode(value.to_string()),
    };
    HeaderValue::try_from(text).ok()
}
