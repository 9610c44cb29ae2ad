//! How an endpoint is chosen.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, Visitor};

use super::{HashOn, Session};
use crate::span::Span;

/// How an endpoint is chosen. Documents may write the policy alone: `loadBalancing: Random`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct LoadBalancing {
    /// `PeakEwma` for HTTP, `LeastRequest` for TCP when it is left out.
    #[serde(default)]
    pub policy: Option<LbPolicy>,
    /// Of `PeakEwma`: how long a slow answer is remembered; 10 seconds when it is left out.
    #[serde(default)]
    pub decay: Option<Span>,
    /// Of `LeastRequest`: among how many random endpoints it chooses; 2 when it is left out.
    #[serde(default)]
    pub choice_count: Option<u32>,
    /// Of `RingHash` and `Maglev`: what is hashed, in order.
    #[serde(default)]
    pub hash_on: Vec<HashOn>,
    /// Of `RingHash`: fewest points of the ring; 1024 when it is left out.
    #[serde(default)]
    pub minimum_ring_size: Option<u64>,
    /// Of `Maglev`: slots of the table, a prime; 65537 when it is left out.
    #[serde(default)]
    pub table_size: Option<u64>,
    /// Of `RingHash` and `Maglev`: no endpoint has more than this percentage of the average load; not bounded when it is left out.
    #[serde(default)]
    pub bounded_load: Option<u32>,
    /// Of `LeastRequest` and `RoundRobin`: new endpoints get their share little by little.
    #[serde(default)]
    pub slow_start: Option<SlowStart>,
    /// Sessions stay with their endpoints, whatever the policy.
    #[serde(default)]
    pub session: Option<Session>,
    /// Percentage of healthy endpoints below which all of them are used; 50 when it is left out.
    #[serde(default)]
    pub panic_threshold: Option<u32>,
}

impl<'de> Deserialize<'de> for LoadBalancing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Short)
    }
}

// A name alone, or a mapping: no structural schema can say both.
crate::schema::written!(LoadBalancing, "LoadBalancing", { "x-kubernetes-preserve-unknown-fields": true });

/// A policy alone, or all fields.
struct Short;

impl<'de> Visitor<'de> for Short {
    type Value = LoadBalancing;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, or the name of a policy")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<LoadBalancing, E> {
        let policy = LbPolicy::deserialize(text.into_deserializer())?;
        Ok(LoadBalancing { policy: Some(policy), ..LoadBalancing::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<LoadBalancing, A::Error> {
        LoadBalancing::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Who is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LbPolicy {
    /// Of two random ones the one whose latency, as a peak that decays, times its load is less.
    PeakEwma,
    /// The less busy one of two random ones.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// By a hash of the request, on a ring.
    RingHash,
    /// By a hash of the request, in a table.
    Maglev,
}

/// New endpoints get their share little by little.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStart {
    /// How long it takes. 10 seconds are right for most programs on a JVM.
    pub window: Span,
    /// The share that it begins with, percent of the whole one; 10 when it is left out.
    #[serde(default)]
    pub min_weight_percent: Option<u32>,
}
