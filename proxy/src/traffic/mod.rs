//! What filters do to traffic besides access: faults, limits, cross-origin rules. Pure: `now` and random numbers are passed in.
//!
//! - [`compress`][]: `envoy.filters.http.compressor`.
//! - [`concurrency`][]: `envoy.filters.http.adaptive_concurrency`, what a request is to it.
//! - [`cors`][]: `envoy.filters.http.cors`.
//! - [`fault`][]: `envoy.filters.http.fault`.
//! - [`limit`][]: token buckets, descriptors and `envoy.filters.http.local_ratelimit`.

pub mod compress;
pub mod concurrency;
pub mod cors;
pub mod fault;
pub mod limit;
