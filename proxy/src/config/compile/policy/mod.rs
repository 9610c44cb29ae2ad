//! Policy filters and what routes say about them.

mod authz;
pub mod filters;
pub mod jwt;
mod metadata;
mod rbac;
mod session;

pub use authz::{asked_by_grpc, authz_filter as compile_authz};
pub use jwt::jwt_filter as compile_jwt;
pub use rbac::{http_filter as compile_http_rbac, network_filter as compile_network_rbac};
pub use session::session_filter as compile_session;

#[cfg(test)]
mod tests;
