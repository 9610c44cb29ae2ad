//! The documents as JSON schemas, made of their types: what is said of a field in the code is said of it everywhere.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::document::{
    AuthenticationPolicySpec, AuthorizationPolicySpec, FaultPolicySpec, RateLimitPolicySpec,
    TrafficPolicySpec, WorkloadSpec,
};
use crate::kinds::Kind;

/// How a type that reads itself is written: a JSON schema of its own.
macro_rules! written {
    ($type:ty, $name:literal, $schema:tt) => {
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(crate) use written;

/// The schema of the `spec` of a kind of our own, without references; none for kinds that others define. `settings` say in which dialect.
#[must_use]
pub fn of(kind: Kind, settings: SchemaSettings) -> Option<Schema> {
    let generator = settings.with(|settings| settings.inline_subschemas = true).into_generator();
    let schema = match kind {
        Kind::Workload => root::<WorkloadSpec>(generator),
        Kind::TrafficPolicy => root::<TrafficPolicySpec>(generator),
        Kind::AuthenticationPolicy => root::<AuthenticationPolicySpec>(generator),
        Kind::AuthorizationPolicy => root::<AuthorizationPolicySpec>(generator),
        Kind::RateLimitPolicy => root::<RateLimitPolicySpec>(generator),
        Kind::FaultPolicy => root::<FaultPolicySpec>(generator),
        _ => return None,
    };
    Some(schema)
}

fn root<T: JsonSchema>(generator: SchemaGenerator) -> Schema {
    generator.into_root_schema_for::<T>()
}
