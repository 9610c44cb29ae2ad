//! Which pages of other origins may call, and copies of requests: filters of HTTPRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use super::BackendObjectReference;

/// `cors` of a filter (GEP-1767).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// `scheme://host[:port]`, with `*` for the first labels of the host; `*` is everybody.
    #[serde(default)]
    pub allow_origins: Vec<String>,
    /// Whether pages may send cookies and the like.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Methods; `*` is all of them.
    #[serde(default)]
    pub allow_methods: Vec<String>,
    /// Headers of requests; `*` is all of them.
    #[serde(default)]
    pub allow_headers: Vec<String>,
    /// Headers of answers that pages may read; `*` is all of them.
    #[serde(default)]
    pub expose_headers: Vec<String>,
    /// For how many seconds a browser may believe that; 5 when it is left out.
    #[serde(default)]
    pub max_age: Option<u32>,
}

/// `requestMirror` of a filter: a copy goes there, and its answer nowhere.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where copies go.
    pub backend_ref: BackendObjectReference,
    /// Of how many requests; of all of them when neither this nor `fraction` is there.
    #[serde(default)]
    pub percent: Option<u32>,
    /// The same in other words.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

impl RequestMirror {
    /// Of how many of a million requests; None: of all of them.
    #[must_use]
    pub fn millionths(&self) -> Option<u32> {
        let of = |fraction: &Fraction| {
            let million = u64::from(fraction.numerator) * 1_000_000 / u64::from(fraction.denominator.max(1));
            u32::try_from(million).unwrap_or(u32::MAX).min(1_000_000)
        };
        self.percent.map(|percent| percent.min(100) * 10_000).or_else(|| self.fraction.as_ref().map(of))
    }
}

/// A part of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// So many
    pub numerator: u32,
    /// of these; 100 when it is left out.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

const fn hundred() -> u32 {
    100
}
