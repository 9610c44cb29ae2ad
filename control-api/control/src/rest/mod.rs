//! The REST interface: documents as in the Kubernetes API, registrations, and what the control plane knows.
//!
//! The same list of [`routes`] makes the router and the OpenAPI document, so that neither has what the other has not.

mod body;
mod bulk;
mod discovery;
mod documents;
mod failure;
mod instances;
mod openapi;
mod pages;
mod routes;
mod selector;
mod serve;
mod watch;

use std::sync::Arc;

use axum::Router;

use crate::audit::Audit;
use crate::board::Board;
use crate::registry::Registry;
use crate::registry::instances::Instances;

pub use bulk::{Outcome, Results, Texts};
pub use serve::serve;

/// What every answer is made of.
#[derive(Debug, Clone)]
pub struct App {
    /// Documents.
    pub registry: Arc<Registry>,
    /// Instances.
    pub instances: Arc<Instances>,
    /// Proxies, and what they make of the documents.
    pub board: Arc<Board>,
    /// Who changed what.
    pub audit: Arc<Audit>,
}

/// The router of everything.
#[must_use]
pub fn router(app: App) -> Router {
    let routes = routes::routes();
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(failure::no_such_path)
        .method_not_allowed_fallback(failure::no_such_method)
        .with_state(app)
}
