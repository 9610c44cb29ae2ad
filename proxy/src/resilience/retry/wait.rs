//! How long to wait before a retry, when the upstream said something about that.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use super::RetryPolicy;
use crate::http::head::ResponseHead;
use crate::resilience::backoff::asked_for;

/// The longest `Retry-After` that is waited for when the policy does not say what to do with it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// `RateLimitedRetryBackOff`: the upstream says when to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackoff {
    /// `reset_headers`, tried in order.
    pub headers: Box<[(HeaderName, ResetFormat)]>,
    /// `max_interval`, default 300 s: a longer wait is not accepted.
    pub max: Duration,
}

/// `ResetHeaderFormat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    /// SECONDS from now.
    Seconds,
    /// UNIX_TIMESTAMP, seconds.
    UnixTimestamp,
}

impl RateLimitedBackoff {
    /// The wait that `headers` ask for.
    #[must_use]
    pub fn wait(&self, headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
        self.headers.iter().find_map(|(name, format)| {
            let number: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let seconds = match format {
                ResetFormat::Seconds => number,
                ResetFormat::UnixTimestamp => number.checked_sub(unix(wall))?,
            };
            Some(Duration::from_secs(seconds)).filter(|d| *d <= self.max)
        })
    }
}

fn unix(wall: SystemTime) -> u64 {
    wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl RetryPolicy {
    /// The wait before retry `n` (the first is 1) that follows `answer`, if one came. None: the upstream asks for a pause that is too
    /// long, and its answer is the answer.
    ///
    /// With `rate_limited_retry_back_off` it is as in Envoy: a pause that is too long is not looked at. Without it `Retry-After`
    /// of 429 and 503 (RFC 9110 section 10.2.3, RFC 6585 section 4) holds.
    #[must_use]
    pub fn wait(
        &self,
        n: u32,
        answer: Option<&ResponseHead>,
        wall: SystemTime,
        rng: &mut fastrand::Rng,
    ) -> Option<Duration> {
        let asked = match (&self.rate_limited, answer) {
            (_, None) => None,
            (Some(rule), Some(head)) => rule.wait(&head.headers, wall),
            (None, Some(head)) => match retry_after(head, wall) {
                Some(wait) if wait > MAX_RETRY_AFTER => return None,
                wait => wait,
            },
        };
        Some(match asked {
            Some(wait) => asked_for(wait, rng),
            None => self.backoff.delay(n, rng),
        })
    }
}

/// `Retry-After` in seconds or as a date; a date that is over asks for nothing.
fn retry_after(head: &ResponseHead, wall: SystemTime) -> Option<Duration> {
    if !matches!(head.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = HeaderValue::to_str(head.headers.get(RETRY_AFTER)?).ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // More digits than a number has.
        Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => Some(Duration::MAX),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(wall).ok(),
    }
}
