//! What routes say about filters that their listeners do not have. In a listener itself that is refused; where both come by themselves, either
//! may be the first.

use super::{Manager, http_specs};
use crate::config::compile::listener::stray_override;
use crate::config::spec::ListenerSpec;

impl Manager {
    /// Tells of settings (`typed_per_filter_config`) that have no effect on `listener`.
    pub(super) fn warn_of_strays(&self, listener: &ListenerSpec) {
        for (routes, filter) in self.strays(listener) {
            tracing::warn!(
                listener = &*listener.name,
                routes,
                filter,
                "routes say something about a filter that the listener does not have: it has no effect"
            );
        }
    }

    /// Route configurations, and a filter of each.
    pub(super) fn strays<'m>(
        &'m self,
        listener: &'m ListenerSpec,
    ) -> impl Iterator<Item = (&'m str, &'m str)> {
        http_specs(listener).filter_map(|http| {
            let rds = http.rds.as_ref()?;
            let table = &self.route_tables.get(&rds.name)?.value;
            Some((&*rds.name, stray_override(table, &http.filters)?))
        })
    }
}
