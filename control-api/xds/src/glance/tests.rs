#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use proptest::prelude::*;

use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::google::protobuf::Any;
use crate::{Schema, Seen, any};

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::load);

/// A cluster as a control plane gives it to the sidecars of a mesh.
const CLUSTER: &str = r#"
static_resources:
  clusters:
  - name: outbound|80||shop.default.svc.cluster.local
    type: EDS
    eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}
    connect_timeout: 1s
    per_connection_buffer_limit_bytes: 65536
    lb_policy: LEAST_REQUEST
    circuit_breakers:
      thresholds:
      - max_requests: 10000
        retry_budget: {budget_percent: {value: 20}, min_retry_concurrency: 100, budget_interval: 10s}
    outlier_detection: {consecutive_5xx: 5, interval: 10s, max_ejection_percent: 50, max_ejection_time_jitter: 0s}
    metadata:
      filter_metadata:
        istio:
          services: [{host: shop.default.svc.cluster.local, name: shop, namespace: default}]
          weights: [1, 2.5, true, null, {}]
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: peak_ewma
          typed_config:
            "@type": type.googleapis.com/xds.type.v3.TypedStruct
            type_url: type.googleapis.com/remora.load_balancing_policies.peak_ewma
            value: {decay: 10s}
    common_lb_config: {healthy_panic_threshold: {value: 50}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: outbound_.80_._.shop.default.svc.cluster.local
        common_tls_context:
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          alpn_protocols: [h2]
          tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}, resource_api_version: V3}}]
          combined_validation_context:
            default_validation_context:
              match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/a/sa/b"}}]
            validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}, resource_api_version: V3}}
"#;

/// Clusters and listeners of sidecars.
static RESOURCES: LazyLock<Vec<Any>> = LazyLock::new(|| {
    let texts = [include_str!("../../tests/bootstrap.yaml"), CLUSTER];
    let statics = |text| SCHEMA.parse::<Bootstrap>(text, "f").unwrap().message.static_resources.unwrap();
    let packed = |text| {
        let statics = statics(text);
        let listeners: Vec<_> = statics.listeners.iter().map(any::pack).collect();
        statics.clusters.iter().map(any::pack).chain(listeners).collect::<Vec<_>>()
    };
    texts.into_iter().flat_map(packed).collect()
});

/// Whether a resource that comes alone is plainly right.
fn is_plainly_right(any: &Any) -> bool {
    SCHEMA.is_plainly_right(any, &mut Seen::default())
}

#[test]
fn resources_without_a_mistake_are_plainly_right() {
    assert!(RESOURCES.len() > 1);
    for any in &*RESOURCES {
        assert!(is_plainly_right(any), "{}", SCHEMA.any_to_yaml(any));
    }
}

#[test]
fn what_is_unknown_or_unreadable_is_not_plainly_right() {
    let any = &RESOURCES[0];
    let of_type = |type_url: &str| Any { type_url: type_url.into(), ..any.clone() };
    for wrong in ["", "x", "type.googleapis.com/x.Y", "type.googleapis.com/google.protobuf.Struct"] {
        assert!(!is_plainly_right(&of_type(wrong)), "{wrong}");
    }
    let empty = Any { value: Vec::new(), ..any.clone() };
    assert!(!is_plainly_right(&empty), "a cluster must have a name");
}

/// A cluster with a number so many structs deep in its metadata.
fn nested(structs: usize) -> Any {
    let value = |inner: String, _| format!("{{a: {inner}}}");
    let metadata = (0..structs).fold("1".to_owned(), value);
    let text = format!(
        "static_resources: {{clusters: [{{name: a, type: STATIC, metadata: {{filter_metadata: {{istio: {metadata}}}}}}}]}}"
    );
    any::pack(&SCHEMA.parse::<Bootstrap>(&text, "f").unwrap().message.static_resources.unwrap().clusters[0])
}

#[test]
fn what_was_right_may_be_too_deep_elsewhere() {
    let deepest = (1..30).take_while(|structs| is_plainly_right(&nested(*structs))).count();
    assert!(deepest > 3);
    let (shallow, deep) = (nested(deepest), nested(deepest + 1));
    let mut seen = Seen::default();
    assert!(SCHEMA.is_plainly_right(&shallow, &mut seen));
    assert!(!SCHEMA.is_plainly_right(&deep, &mut seen), "it has in it what was right");
    assert!(SCHEMA.is_plainly_right(&shallow, &mut seen));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_is_plainly_right_passes_the_other_check_as_well(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut any = which.get(&RESOURCES).clone();
        for (at, byte, how) in changes {
            let at = at.index(any.value.len());
            match how {
                0 => any.value[at] = byte,
                1 => any.value[at] = any.value[at].wrapping_add(byte % 9).wrapping_sub(4),
                _ => drop(any.value.remove(at)),
            }
        }
        let alone = is_plainly_right(&any);
        if alone {
            prop_assert_eq!(SCHEMA.check_fully(&any, "s"), Ok(()));
        }
        let mut seen = Seen::default();
        for other in &*RESOURCES {
            prop_assert!(SCHEMA.is_plainly_right(other, &mut seen));
        }
        prop_assert_eq!(SCHEMA.is_plainly_right(&any, &mut seen), alone, "after others that are right");
    }
}
