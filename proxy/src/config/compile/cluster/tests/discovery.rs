//! Where endpoints come from, and what is said in other words.

use super::*;

#[test]
fn an_endpoint_that_is_listed_twice_counts_twice() {
    let spec = compile(&statics(vec![lb_endpoint("10.0.0.1", 80), lb_endpoint("10.0.0.1", 80)])).unwrap();
    let Discovery::Static(assignment) = spec.discovery else { panic!("static") };
    assert_eq!(assignment.endpoints.iter().map(|e| e.weight).collect::<Vec<_>>(), [2]);
}

#[test]
fn eds_sources() {
    let with = |source| {
        let config = core::ConfigSource { config_source_specifier: source, ..Default::default() };
        let eds_cluster_config =
            Some(EdsClusterConfig { eds_config: Some(config), service_name: String::new() });
        Cluster { eds_cluster_config, ..cluster(DiscoveryType::Eds) }
    };
    let Ok(ClusterSpec { discovery: Discovery::Eds(ads), .. }) =
        compile(&with(Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {}))))
    else {
        panic!("eds")
    };
    assert_eq!((&*ads.service_name, ads.source), ("c", EdsSource::Ads));
    let file = core::PathConfigSource { path: "/etc/eds.yaml".into(), ..Default::default() };
    assert!(compile(&with(Some(ConfigSourceSpecifier::PathConfigSource(file)))).is_ok());
    assert_eq!(errors(&with(None)), ["eds_cluster_config.eds_config: names no source"]);
    assert_eq!(
        errors(&with(Some(ConfigSourceSpecifier::ApiConfigSource(core::ApiConfigSource::default())))),
        ["eds_cluster_config.eds_config.api_config_source: is not supported"]
    );
    assert_eq!(
        errors(&cluster(DiscoveryType::Eds)),
        ["eds_cluster_config: is required in a cluster of type EDS"]
    );
}

#[test]
fn logical_dns_has_one_endpoint() {
    let logical =
        |list| Cluster { load_assignment: Some(assignment(list)), ..cluster(DiscoveryType::LogicalDns) };
    let Ok(ClusterSpec { discovery: Discovery::Dns(spec), .. }) =
        compile(&logical(vec![lb_endpoint("db", 1)]))
    else {
        panic!("dns")
    };
    assert!(spec.targets[0].template.logical);
    assert_eq!(spec.targets[0].template.hostname.as_deref(), Some("db"));
    let two = logical(vec![lb_endpoint("a", 1), lb_endpoint("b", 1)]);
    assert_eq!(
        errors(&two),
        ["load_assignment.endpoints: a LOGICAL_DNS cluster must have exactly one endpoint"]
    );
    assert_eq!(errors(&cluster(DiscoveryType::StrictDns)), ["load_assignment: is required"]);
}

#[test]
fn the_newer_dns_cluster_type_means_the_same() {
    let config = DnsCluster {
        dns_refresh_rate: seconds(9),
        all_addresses_in_single_endpoint: true,
        dns_lookup_family: 5,
        ..Default::default()
    };
    let custom = pb::envoy::config::cluster::v3::cluster::CustomClusterType {
        name: "envoy.clusters.dns".into(),
        typed_config: Some(any(&config)),
    };
    let pb = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)),
        load_assignment: Some(assignment(vec![lb_endpoint("db", 1)])),
        ..cluster(DiscoveryType::Static)
    };
    let Ok(ClusterSpec { discovery: Discovery::Dns(spec), .. }) = compile(&pb) else { panic!("dns") };
    assert_eq!((spec.kind, spec.refresh.rate), (DnsKind::Logical, Duration::from_secs(9)));
    assert_eq!(spec.family, crate::upstream::dns::LookupFamily::All);
}

#[test]
fn durations_are_bounded() {
    let with = |connect_timeout| Cluster { connect_timeout, ..statics(vec![]) };
    assert!(compile(&with(seconds(315_576_000_000))).is_ok());
    for wrong in [(i64::MAX, 0), (315_576_000_001, 0), (-1, 0), (1, -1), (1, 1_000_000_000), (0, 0)] {
        assert_eq!(errors(&with(Some(PbDuration { seconds: wrong.0, nanos: wrong.1 }))).len(), 1);
    }
}

#[test]
fn policies_from_extensions() {
    let policy = |config: Any| load_balancing_policy::Policy {
        typed_extension_config: Some(core::TypedExtensionConfig {
            name: "p".into(),
            typed_config: Some(config),
        }),
    };
    let unknown = || Any { type_url: "type.googleapis.com/my.Policy".into(), value: Vec::new() };
    let least = LeastRequest { selection_method: 1, ..Default::default() };
    let inner = LoadBalancingPolicy { policies: vec![policy(unknown()), policy(any(&least))] };
    let outer = WrrLocality { endpoint_picking_policy: Some(inner) };
    let with = |policies| Cluster {
        load_balancing_policy: Some(LoadBalancingPolicy { policies }),
        ..statics(vec![])
    };
    let lb = compile(&with(vec![policy(unknown()), policy(any(&outer))])).unwrap().lb;
    assert!(lb.locality_weighted);
    let choices = crate::balance::Choices::All;
    assert_eq!(lb.policy, crate::balance::LbPolicy::LeastRequest { choices, bias: 1.0 });
    assert_eq!(
        errors(&with(vec![policy(unknown())])),
        ["load_balancing_policy.policies: none of these policies is supported: my.Policy"]
    );
}

fn peak_ewma(type_url: &str, fields: &[(&str, &str)]) -> load_balancing_policy::Policy {
    let field = |text: &str| PbValue { kind: Some(Kind::StringValue(text.into())) };
    let fields = fields.iter().map(|(name, text)| ((*name).to_owned(), field(text))).collect();
    let config = remora_xds::typed_struct::TypedStruct {
        type_url: format!("type.googleapis.com/{type_url}"),
        value: Some(Struct { fields }),
    };
    load_balancing_policy::Policy {
        typed_extension_config: Some(core::TypedExtensionConfig {
            name: "remora.load_balancing_policies.peak_ewma".into(),
            typed_config: Some(any(&config)),
        }),
    }
}

#[test]
fn peak_ewma_is_a_typed_struct() {
    use crate::balance::LbPolicy as Policy;
    let with = |policy| Cluster {
        load_balancing_policy: Some(LoadBalancingPolicy { policies: vec![policy] }),
        ..statics(vec![])
    };
    let name = "remora.load_balancing_policies.peak_ewma";
    let spec = compile(&with(peak_ewma(name, &[("decay", "2.5s")]))).unwrap();
    let decay = Duration::from_millis(2_500);
    assert_eq!(
        spec.lb.policy,
        Policy::PeakEwma(crate::balance::ewma::PeakEwma { decay, ..Default::default() })
    );
    let value = "load_balancing_policy.policies[0].typed_extension_config.typed_config.value";
    assert_eq!(
        errors(&with(peak_ewma(name, &[("decay", "0s"), ("failure_penalty", "soon"), ("window", "1s")]))),
        [
            format!("{value}.decay: must be a duration from 0.001s to 3600s, such as \"10s\""),
            format!("{value}.failure_penalty: must be a duration from 0.001s to 3600s, such as \"10s\""),
            format!("{value}.window: is not a field of peak_ewma"),
        ]
    );
    assert_eq!(errors(&with(peak_ewma("some.Other", &[]))).len(), 1);
}

#[test]
#[expect(deprecated, reason = "what files still say")]
fn legacy_http_options() {
    let h2 = || Some(core::Http2ProtocolOptions::default());
    let spec = compile(&Cluster { http2_protocol_options: h2(), ..statics(vec![]) }).unwrap();
    assert_eq!(spec.http.protocol, crate::upstream::cluster::UpstreamProtocol::Http2);
    let both = Cluster {
        http2_protocol_options: h2(),
        http_protocol_options: Some(core::Http1ProtocolOptions::default()),
        ..statics(vec![])
    };
    let downstream = compile(&Cluster { protocol_selection: 1, ..both.clone() }).unwrap();
    assert_eq!(downstream.http.protocol, crate::upstream::cluster::UpstreamProtocol::Downstream);
    assert_eq!(errors(&both).len(), 1);
    let auto = http_options(hpo::UpstreamProtocolOptions::AutoConfig(hpo::AutoHttpConfig::default()));
    assert_eq!(errors(&with_http(both, &auto)).len(), 3);
    let auto = with_http(Cluster { transport_socket: tls_socket("c.test"), ..statics(vec![]) }, &auto);
    assert_eq!(compile(&auto).unwrap().http.protocol, crate::upstream::cluster::UpstreamProtocol::Auto);
}
