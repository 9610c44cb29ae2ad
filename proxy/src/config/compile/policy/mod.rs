//! Policy filters and what routes say about them.

pub mod filters;
mod metadata;
mod rbac;

pub use rbac::{http_filter as compile_http_rbac, network_filter as compile_network_rbac};
