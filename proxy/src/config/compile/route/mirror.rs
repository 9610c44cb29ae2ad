//! `request_mirror_policies`.

use std::sync::Arc;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::{TableContext, non_empty};
use crate::config::compile::Scope;
use crate::config::compile::common::{header_key, runtime_fraction};
use crate::config::compile::fields::refuse;
use crate::route::action::{ClusterRef, MirrorPolicy};

impl TableContext {
    /// The policies of one level; those of `above` when it has none.
    pub(super) fn mirrors(
        &mut self,
        list: &[RequestMirrorPolicy],
        above: &Arc<[MirrorPolicy]>,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Arc<[MirrorPolicy]> {
        if list.is_empty() {
            return Arc::clone(above);
        }
        let at = at.field("request_mirror_policies");
        list.iter().enumerate().filter_map(|(i, pb)| self.mirror(pb, &at.index(i), scope)).collect()
    }

    fn mirror(
        &mut self,
        pb: &RequestMirrorPolicy,
        at: &At<'_>,
        scope: &mut Scope<'_>,
    ) -> Option<MirrorPolicy> {
        let RequestMirrorPolicy {
            cluster,
            cluster_header,
            runtime_fraction: fraction,
            trace_sampled: _, // Nothing is traced.
            disable_shadow_host_suffix_append,
            request_headers_mutations,
            host_rewrite_literal,
        } = pb;
        refuse!(scope, at; request_headers_mutations, host_rewrite_literal);
        let cluster = match (non_empty(cluster), non_empty(cluster_header)) {
            (Some(name), None) => ClusterRef::Id(self.cluster(name, &at.field("cluster"), scope)),
            (None, Some(name)) => ClusterRef::Header(header_key(name, &at.field("cluster_header"), scope)?),
            _ => {
                scope.errors.report(at, "needs one of cluster and cluster_header");
                return None;
            }
        };
        let fraction_at = at.field("runtime_fraction");
        Some(MirrorPolicy {
            cluster,
            share: fraction.as_ref().and_then(|pb| runtime_fraction(pb, &fraction_at, scope)),
            mark_host: !*disable_shadow_host_suffix_append,
        })
    }
}
