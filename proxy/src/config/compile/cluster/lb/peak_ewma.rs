//! Peak EWMA has no message in Envoy's API: a `TypedStruct` under a name of ours. Envoy does not know it and takes the next policy of
//! the list.

use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::google::protobuf::value::Kind;
use remora_xds::pb::google::protobuf::{Any, Value};
use remora_xds::typed_struct::TypedStruct;

use super::super::common::{is, type_name, unpack};
use crate::balance::ewma::PeakEwma;
use crate::config::compile::Scope;

/// The name of the policy, and of the type in its `TypedStruct`.
pub(super) const NAME: &str = "remora.load_balancing_policies.peak_ewma";

/// Reads the settings; what is left out has its default.
pub(super) fn compile(any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> PeakEwma {
    let mut spec = PeakEwma::default();
    if !is::<TypedStruct>(any) {
        let message = format!("is a {}, not an xds.type.v3.TypedStruct", type_name(any));
        scope.errors.report(at, message);
        return spec;
    }
    let Some(TypedStruct { type_url, value }) = unpack(any, at, scope) else { return spec };
    if type_url.rsplit('/').next() != Some(NAME) {
        let fix = format!("write type.googleapis.com/{NAME}");
        scope.errors.report(&at.field("type_url"), format!("{type_url:?} is not {NAME}")).fix(fix);
    }
    let at = at.field("value");
    let mut fields: Vec<(String, Value)> = value.unwrap_or_default().fields.into_iter().collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in fields {
        let at = at.field(&name);
        match name.as_str() {
            "decay" => spec.decay = time(&value, &at, scope).unwrap_or(spec.decay),
            "failure_penalty" => {
                spec.failure_penalty = time(&value, &at, scope).unwrap_or(spec.failure_penalty);
            }
            _ => {
                scope.errors.report(&at, "is not a field of peak_ewma").fix("decay and failure_penalty are");
            }
        }
    }
    spec
}

/// An hour is more than any latency, and keeps the arithmetic far from its ends.
const MAX: Duration = Duration::from_secs(3600);
const MIN: Duration = Duration::from_millis(1);

fn time(value: &Value, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Duration> {
    let time = match &value.kind {
        Some(Kind::StringValue(text)) => remora_xds::parse_duration(text),
        _ => None,
    };
    let time = time.filter(|t| (MIN..=MAX).contains(t));
    if time.is_none() {
        scope.errors.report(at, "must be a duration from 0.001s to 3600s, such as \"10s\"");
    }
    time
}
