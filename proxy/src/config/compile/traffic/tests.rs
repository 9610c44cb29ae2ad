//! Mistakes in traffic filters, with their paths; what outlives an edit.

use std::sync::Arc;

use prost::{Message, Name};
use remora_xds::diag::{At, Errors, SourceMap};
use remora_xds::pb::envoy::config::route::v3::RateLimit;
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use remora_xds::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::adaptive_concurrency::ConcurrencyControllerConfig;
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::{
    ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
};
use remora_xds::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency, GradientControllerConfig,
};
use remora_xds::pb::envoy::extensions::filters::http::buffer::v3::Buffer;
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3 as compressor;
use remora_xds::pb::envoy::extensions::filters::http::compressor::v3::compressor::ResponseDirectionConfig;
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use remora_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use remora_xds::pb::envoy::extensions::filters::http::ratelimit::v3 as global;
use remora_xds::pb::envoy::r#type::v3::{Percent, TokenBucket};
use remora_xds::pb::google::protobuf::{Any, Duration, UInt32Value};

use super::{compile_rules, traffic_filter};
use crate::config::compile::Scope;
use crate::config::names::Names;
use crate::config::spec::HttpFilter;
use crate::traffic::limit::LocalLimit;

fn mistakes<M: Message + Name>(filter: &M) -> Vec<String> {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let any = Any { type_url: M::type_url(), value: filter.encode_to_vec() };
    let scope = &mut Scope { errors: &mut errors, names: &mut names };
    assert!(traffic_filter(&"f".into(), &any, &At::root().field("f"), scope).is_some(), "not one of ours");
    errors.into_list().iter().map(|e| format!("{}: {}", e.path, e.message)).collect()
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn bucket(max_tokens: u32, interval: Option<Duration>) -> Option<TokenBucket> {
    Some(TokenBucket { max_tokens, tokens_per_fill: None, fill_interval: interval })
}

#[test]
fn mistakes_are_told_with_their_paths() {
    let abort = FaultAbort { error_type: Some(ErrorType::HttpStatus(99)), ..Default::default() };
    let fault = HttpFault { abort: Some(abort), ..Default::default() };
    assert_eq!(mistakes(&fault), ["f.abort.http_status: must be from 200 to 599"]);

    assert_eq!(mistakes(&Buffer { max_request_bytes: None }), ["f.max_request_bytes: is required"]);
    let much = Buffer { max_request_bytes: Some(UInt32Value { value: u32::MAX }) };
    assert_eq!(mistakes(&much).len(), 1);

    let entry = Entry { key: "k".into(), value: String::new() };
    let descriptor = LocalRateLimitDescriptor {
        entries: vec![entry],
        token_bucket: bucket(1, Some(Duration { seconds: 0, nanos: 49_000_000 })),
        ..Default::default()
    };
    let local = LocalRateLimit {
        token_bucket: bucket(u32::MAX, seconds(3600)),
        descriptors: vec![descriptor.clone(), descriptor],
        ..Default::default()
    };
    assert_eq!(
        mistakes(&local),
        [
            "f.stat_prefix: must not be empty",
            "f.token_bucket: takes more than 1825 days to be full",
            "f.descriptors[0].token_bucket.fill_interval: must be at least 50ms",
            "f.descriptors[1]: stands here twice",
            "f.descriptors[1].token_bucket.fill_interval: must be at least 50ms",
        ]
    );

    let service = global::RateLimit { request_type: "some".into(), ..Default::default() };
    assert_eq!(
        mistakes(&service),
        [
            "f.domain: must not be empty",
            "f.request_type: \"some\" is none of internal, external and both",
            "f.rate_limit_service: is required",
        ]
    );

    let response = ResponseDirectionConfig {
        disable_on_etag_header: true,
        weaken_etag_on_compress: true,
        ..Default::default()
    };
    let both = compressor::Compressor { response_direction_config: Some(response), ..Default::default() };
    assert_eq!(
        mistakes(&both),
        [
            "f.response_direction_config.weaken_etag_on_compress: contradicts disable_on_etag_header",
            "f.compressor_library: is required",
        ]
    );
}

mod quota {
    use super::*;
    use pb::rate_limit_quota_bucket_settings as settings;
    use remora_xds::any::pack;
    use remora_xds::pb::envoy::config::core::v3::GrpcService;
    use remora_xds::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use remora_xds::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
    use remora_xds::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
    use remora_xds::pb::google::rpc::Status;
    use remora_xds::pb::xds::core::v3::TypedExtensionConfig;
    use remora_xds::pb::xds::r#type::matcher::v3::Matcher;
    use remora_xds::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
    use remora_xds::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Kind;
    use remora_xds::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherTree, MatcherType, OnMatch};
    use settings::bucket_id_builder::ValueBuilder;
    use settings::bucket_id_builder::value_builder::ValueSpecifier;

    fn extension<M: Message + Name>(message: &M) -> TypedExtensionConfig {
        TypedExtensionConfig { name: "x".into(), typed_config: Some(pack(message)) }
    }

    fn action(settings: &pb::RateLimitQuotaBucketSettings) -> OnMatch {
        OnMatch { keep_matching: false, on_match: Some(Kind::Action(extension(settings))) }
    }

    fn settings(name: &str, interval: Option<Duration>) -> pb::RateLimitQuotaBucketSettings {
        let value = ValueBuilder { value_specifier: Some(ValueSpecifier::StringValue(name.into())) };
        let builder = settings::BucketIdBuilder { bucket_id_builder: [("name".to_owned(), value)].into() };
        pb::RateLimitQuotaBucketSettings {
            bucket_id_builder: Some(builder),
            reporting_interval: interval,
            ..Default::default()
        }
    }

    fn filter(matcher: Matcher) -> pb::RateLimitQuotaFilterConfig {
        let target = EnvoyGrpc { cluster_name: "control".into(), ..Default::default() };
        pb::RateLimitQuotaFilterConfig {
            rlqs_server: Some(GrpcService {
                target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)),
                ..Default::default()
            }),
            domain: "shop".into(),
            bucket_matchers: Some(matcher),
            ..Default::default()
        }
    }

    fn by_header(map: &[(&str, OnMatch)], otherwise: Option<OnMatch>) -> Matcher {
        let input = HttpRequestHeaderMatchInput { header_name: "x-tier".into() };
        let map = map.iter().map(|(value, on_match)| ((*value).to_owned(), on_match.clone())).collect();
        Matcher {
            matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
                input: Some(extension(&input)),
                tree_type: Some(TreeType::ExactMatchMap(MatchMap { map })),
            })),
            on_no_match: otherwise.map(Box::new),
        }
    }

    #[test]
    fn a_header_and_on_no_match_lead_to_buckets() {
        let gold = action(&settings("gold", seconds(1)));
        let rest = action(&settings("rest", seconds(1)));
        assert!(mistakes(&filter(by_header(&[("gold", gold)], Some(rest)))).is_empty());
    }

    #[test]
    fn what_is_not_supported_is_told_with_its_path() {
        let all = Matcher { on_no_match: Some(Box::new(action(&Default::default()))), matcher_type: None };
        let at = "f.bucket_matchers.on_no_match.action.typed_config";
        assert_eq!(
            mistakes(&filter(all)),
            [format!("{at}.reporting_interval: is required"), format!("{at}.bucket_id_builder: is required")]
        );

        let denial = settings::DenyResponseSettings {
            grpc_status: Some(Status { code: 3, ..Default::default() }),
            ..Default::default()
        };
        let bad = pb::RateLimitQuotaBucketSettings {
            deny_response_settings: Some(denial),
            expired_assignment_behavior: Some(Default::default()),
            ..settings("", Some(Duration { seconds: 0, nanos: 100_000_000 }))
        };
        let at = "f.bucket_matchers.matcher_tree.exact_match_map.map.gold.action.typed_config";
        assert_eq!(
            mistakes(&filter(by_header(&[("gold", action(&bad))], None))),
            [
                format!("{at}.reporting_interval: must be more than 100ms"),
                format!("{at}.expired_assignment_behavior: says nothing"),
                format!("{at}.bucket_id_builder.bucket_id_builder.name.string_value: must not be empty"),
                format!("{at}.deny_response_settings.grpc_status.code: 3 is not supported"),
            ]
        );

        let list = Matcher {
            matcher_type: Some(MatcherType::MatcherList(MatcherList::default())),
            on_no_match: None,
        };
        assert_eq!(
            mistakes(&filter(list)),
            [
                "f.bucket_matchers.matcher_list: this field is not supported",
                "f.bucket_matchers: leads to no bucket",
            ]
        );
        assert_eq!(
            mistakes(&pb::RateLimitQuotaFilterConfig::default()),
            ["f.domain: must not be empty", "f.rlqs_server: is required"]
        );
    }
}

#[test]
fn mistakes_in_limits_of_concurrency() {
    assert_eq!(mistakes(&AdaptiveConcurrency::default()), ["f.gradient_controller_config: is required"]);
    let with = |limit, rtt| {
        let config = GradientControllerConfig {
            sample_aggregate_percentile: None,
            concurrency_limit_params: limit,
            min_rtt_calc_params: rtt,
        };
        let config = Some(ConcurrencyControllerConfig::GradientControllerConfig(config));
        mistakes(&AdaptiveConcurrency { concurrency_controller_config: config, ..Default::default() })
    };
    let at = |rest: &[&str]| -> Vec<String> {
        rest.iter().map(|rest| format!("f.gradient_controller_config.{rest}")).collect()
    };
    assert_eq!(
        with(None, None),
        at(&["concurrency_limit_params: is required", "min_rtt_calc_params: is required"])
    );
    assert_eq!(
        with(Some(Default::default()), Some(Default::default())),
        at(&[
            "min_rtt_calc_params: needs interval or fixed_value",
            "concurrency_limit_params.concurrency_update_interval: is required",
        ])
    );
    let number = |value| Some(UInt32Value { value });
    let percent = |value| Some(Percent { value });
    let limit = ConcurrencyLimitCalculationParams {
        max_concurrency_limit: number(5),
        concurrency_update_interval: seconds(1),
        min_concurrency_limit: None,
    };
    let rtt = MinimumRttCalculationParams { interval: seconds(60), ..Default::default() };
    assert!(with(Some(limit), Some(rtt)).is_empty());
    let wrong = MinimumRttCalculationParams {
        request_count: number(0),
        jitter: percent(101.0),
        min_concurrency: number(6),
        buffer: percent(f64::NAN),
        ..rtt
    };
    assert_eq!(
        with(Some(limit), Some(wrong)),
        at(&[
            "min_rtt_calc_params.jitter.value: must be from 0 to 100",
            "min_rtt_calc_params.request_count: 0 is not between 1 and 100000",
            "min_rtt_calc_params.buffer.value: must be from 0 to 100",
            "min_rtt_calc_params.min_concurrency: 6 contradicts a max_concurrency_limit of 5",
        ])
    );
    // What is not said gives way.
    let one = ConcurrencyLimitCalculationParams { max_concurrency_limit: number(1), ..limit };
    assert!(with(Some(one), Some(rtt)).is_empty());
}

#[test]
fn rules_of_routes_say_what_they_count() {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let rule = RateLimit { hits_addend: Some(Default::default()), ..Default::default() };
    compile_rules(&[rule], &At::root().field("r"), &mut Scope { errors: &mut errors, names: &mut names });
    let paths: Vec<_> = errors.into_list().iter().map(|e| e.path.to_string()).collect();
    assert_eq!(paths, ["r[0].hits_addend", "r[0].actions"]);
}

/// Buckets belong to a place and their settings: an edit elsewhere keeps them, another listener has others.
#[test]
fn buckets_outlive_an_edit_that_leaves_them_alone() {
    let mut names = Names::default();
    let mut compile = |owner: &str, max| -> Arc<LocalLimit> {
        let mut errors = Errors::new("t", SourceMap::default());
        let pb = LocalRateLimit {
            stat_prefix: "s".into(),
            token_bucket: bucket(max, seconds(1)),
            ..Default::default()
        };
        let any = Any { type_url: LocalRateLimit::type_url(), value: pb.encode_to_vec() };
        names.enter("Listener", owner);
        let scope = &mut Scope { errors: &mut errors, names: &mut names };
        match traffic_filter(&"f".into(), &any, &At::root().field("f"), scope) {
            Some(Some(HttpFilter::LocalLimit(_, filter))) => filter,
            other => panic!("{other:?}"),
        }
    };
    let first = compile("one", 5);
    assert!(Arc::ptr_eq(&first.limits, &compile("one", 5).limits));
    assert!(!Arc::ptr_eq(&first.limits, &compile("two", 5).limits));
    assert!(!Arc::ptr_eq(&first.limits, &compile("one", 6).limits));
}
