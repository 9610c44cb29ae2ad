//! `MetadataMatcher` over the claims of verified tokens.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::policy::view::{self, Claims};
use crate::route::text::StringMatch;

/// A compiled `MetadataMatcher` of the filter `envoy.filters.http.jwt_authn`.
#[derive(Debug, Clone)]
pub struct ClaimMatch {
    /// The first key: `payload_in_metadata` of a provider.
    pub payload: Arc<str>,
    /// The keys inside of the payload.
    pub path: Box<[Box<str>]>,
    /// `value`.
    pub value: ValueMatch,
    /// `invert`.
    pub invert: bool,
}

/// A compiled `ValueMatcher`.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// `null_match`.
    Null,
    /// `double_match.exact`.
    Number(f64),
    /// `double_match.range`.
    Range(Range<f64>),
    /// `string_match`.
    Text(StringMatch),
    /// `bool_match`.
    Bool(bool),
    /// `present_match: true`.
    Present,
    /// `list_match.one_of`.
    OneOf(Box<Self>),
    /// `or_match`.
    Or(Box<[Self]>),
}

impl ClaimMatch {
    /// Whether a claim matches. A claim that is not there is no value, which only `invert` accepts.
    #[must_use]
    pub fn is_match(&self, claims: &[Claims]) -> bool {
        let payload = view::payload(claims, &self.payload);
        let value = self.path.iter().try_fold(payload, |at, key| Some(at?.get(&**key)));
        self.value.is_match(value.flatten()) != self.invert
    }
}

impl ValueMatch {
    fn is_match(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Present => value.is_some(),
            Self::Null => value.is_some_and(Value::is_null),
            Self::Number(exact) => value.and_then(Value::as_f64).is_some_and(|n| n == *exact),
            Self::Range(range) => value.and_then(Value::as_f64).is_some_and(|n| range.contains(&n)),
            Self::Text(text) => value.and_then(Value::as_str).is_some_and(|s| text.is_match(s.as_bytes())),
            Self::Bool(wanted) => value.and_then(Value::as_bool) == Some(*wanted),
            Self::OneOf(one) => {
                value.and_then(Value::as_array).is_some_and(|l| l.iter().any(|v| one.is_match(Some(v))))
            }
            Self::Or(any) => any.iter().any(|m| m.is_match(value)),
        }
    }
}
