use super::*;
use crate::config::names::Names;
use crate::route::matcher::tests::get;
use crate::route::table::{Found, Query};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use remora_xds::pb::envoy::r#type::matcher::v3 as matcher_pb;
use remora_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use remora_xds::pb::envoy::r#type::v3::{FractionalPercent, Int64Range};
use remora_xds::pb::google::protobuf::{BoolValue, Duration};

use pb::header_matcher::HeaderMatchSpecifier;
use pb::query_parameter_matcher::QueryParameterMatchSpecifier;
use pb::route_action::{ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, UpgradeConfig};
use pb::route_match::PathSpecifier;
use pb::weighted_cluster::ClusterWeight;

mod meaning;
mod random;

fn compile(pb: &pb::RouteConfiguration) -> (RouteTable, Vec<String>) {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let table = compile_route_table(pb, &At::root(), &mut Scope { errors: &mut errors, names: &mut names });
    let list = errors.into_list();
    let show = |e: &remora_xds::diag::ConfigError| {
        let fix = e.fix.as_ref().map(|f| format!(" ({f})")).unwrap_or_default();
        format!("{}: {}{fix}", e.path, e.message)
    };
    (table, list.iter().map(show).collect())
}

#[track_caller]
fn good(pb: &pb::RouteConfiguration) -> RouteTable {
    let (table, errors) = compile(pb);
    assert_eq!(errors, Vec::<String>::new());
    table
}

fn table(routes: Vec<pb::Route>) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name: "t".into(),
        virtual_hosts: vec![host("h", &["*"], routes)],
        ..Default::default()
    }
}

fn host(name: &str, domains: &[&str], routes: Vec<pb::Route>) -> pb::VirtualHost {
    let domains = domains.iter().map(|d| (*d).to_owned()).collect();
    pb::VirtualHost { name: name.into(), domains, routes, ..Default::default() }
}

fn on(path: PathSpecifier) -> pb::RouteMatch {
    pb::RouteMatch { path_specifier: Some(path), ..Default::default() }
}

fn prefix(text: &str) -> pb::RouteMatch {
    on(PathSpecifier::Prefix(text.into()))
}

fn route(r#match: pb::RouteMatch, action: pb::RouteAction) -> pb::Route {
    pb::Route { r#match: Some(r#match), action: Some(pb::route::Action::Route(action)), ..Default::default() }
}

fn to(cluster: &str) -> pb::RouteAction {
    pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }
}

fn redirect_route(redirect: pb::RedirectAction) -> pb::Route {
    pb::Route {
        r#match: Some(prefix("/")),
        action: Some(pb::route::Action::Redirect(redirect)),
        ..Default::default()
    }
}

fn direct(status: u32, body: &str) -> pb::Route {
    let specifier = Some(core::data_source::Specifier::InlineString(body.into()));
    let body = Some(core::DataSource { watched_directory: None, specifier });
    let direct = pb::DirectResponseAction { status, body, body_format: None };
    let action = Some(pb::route::Action::DirectResponse(direct));
    pb::Route { r#match: Some(prefix("/")), action, ..Default::default() }
}

fn add(name: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
    let header = core::HeaderValue { key: name.into(), value: value.into(), raw_value: vec![] };
    core::HeaderValueOption { header: Some(header), append_action: action as i32, ..Default::default() }
}

fn append(name: &str, value: &str) -> core::HeaderValueOption {
    add(name, value, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn pattern(regex: &str) -> matcher_pb::RegexMatcher {
    matcher_pb::RegexMatcher { regex: regex.into(), engine_type: None }
}

fn replace(regex: &str, with: &str) -> matcher_pb::RegexMatchAndSubstitute {
    matcher_pb::RegexMatchAndSubstitute { pattern: Some(pattern(regex)), substitution: with.into() }
}

fn weight(name: &str, weight: u32) -> ClusterWeight {
    ClusterWeight { name: name.into(), weight: Some(UInt32Value { value: weight }), ..Default::default() }
}

fn weighted(clusters: Vec<ClusterWeight>) -> pb::RouteAction {
    let weighted = pb::WeightedCluster { clusters, ..Default::default() };
    pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
        ..Default::default()
    }
}

fn header(name: &str, specifier: Option<HeaderMatchSpecifier>) -> pb::HeaderMatcher {
    pb::HeaderMatcher { name: name.into(), header_match_specifier: specifier, ..Default::default() }
}

fn exact(text: &str) -> matcher_pb::StringMatcher {
    matcher_pb::StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::Exact(text.into())) }
}

#[test]
fn defaults_of_a_plain_route_are_envoys() {
    insta::assert_debug_snapshot!(good(&table(vec![route(prefix("/"), to("c"))])));
}

#[test]
fn every_matcher() {
    let mut all = prefix("/api");
    all.case_sensitive = Some(BoolValue { value: false });
    all.headers = vec![
        header("x-present", None),
        header("x-absent", Some(HeaderMatchSpecifier::PresentMatch(false))),
        header(":method", Some(HeaderMatchSpecifier::StringMatch(exact("GET")))),
        header("host", Some(HeaderMatchSpecifier::StringMatch(exact("a.example")))),
        header("X-Range", Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start: -1, end: 5 }))),
    ];
    all.query_parameters = vec![
        pb::QueryParameterMatcher { name: "q".into(), query_parameter_match_specifier: None },
        pb::QueryParameterMatcher {
            name: "v".into(),
            query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(exact("1"))),
        },
    ];
    all.cookies =
        vec![pb::CookieMatcher { name: "c".into(), string_match: Some(exact("1")), invert_match: true }];
    all.grpc = Some(pb::route_match::GrpcRouteMatchOptions {});
    all.runtime_fraction = Some(core::RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 5, denominator: 1 }),
        runtime_key: "k".into(),
    });
    let routes = vec![
        route(all, to("c")),
        route(on(PathSpecifier::Path("/exact".into())), to("c")),
        route(on(PathSpecifier::PathSeparatedPrefix("/sep".into())), to("c")),
        route(on(PathSpecifier::SafeRegex(pattern(r"/v\d+/.*"))), to("c")),
        route(on(PathSpecifier::ConnectMatcher(pb::route_match::ConnectMatcher {})), to("c")),
    ];
    let table = good(&table(routes));
    let matchers: Vec<_> = table.hosts[0].routes.iter().map(|r| &r.matcher).collect();
    insta::assert_debug_snapshot!(matchers);
}

#[test]
fn everything_a_forwarding_route_can_say() {
    let mut action = to("c");
    action.cluster_not_found_response_code = 1;
    action.priority = 1;
    action.prefix_rewrite = "/new".into();
    action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral("b.example:81".into()));
    action.append_x_forwarded_host = true;
    action.timeout = seconds(3);
    action.idle_timeout = seconds(0);
    action.upgrade_configs = vec![
        UpgradeConfig {
            upgrade_type: "WebSocket".into(),
            enabled: Some(BoolValue { value: false }),
            connect_config: None,
        },
        UpgradeConfig {
            upgrade_type: "CONNECT".into(),
            enabled: None,
            connect_config: Some(Default::default()),
        },
    ];
    action.retry_policy = Some(pb::RetryPolicy {
        retry_on: "5xx, connect-failure,retriable-status-codes,unavailable".into(),
        num_retries: Some(UInt32Value { value: 3 }),
        per_try_timeout: seconds(1),
        per_try_idle_timeout: seconds(2),
        retry_host_predicate: vec![pb::retry_policy::RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: None,
        }],
        host_selection_retry_max_attempts: 5,
        retriable_status_codes: vec![429],
        retry_back_off: Some(pb::retry_policy::RetryBackOff {
            base_interval: seconds(1),
            max_interval: None,
        }),
        rate_limited_retry_back_off: Some(pb::retry_policy::RateLimitedRetryBackOff {
            reset_headers: vec![pb::retry_policy::ResetHeader { name: "Retry-After".into(), format: 0 }],
            max_interval: None,
        }),
        ..Default::default()
    });
    let mut pb = table(vec![route(prefix("/old"), action)]);
    pb.virtual_hosts[0].include_request_attempt_count = true;
    pb.virtual_hosts[0].request_body_buffer_limit = Some(UInt64Value { value: 1024 });
    insta::assert_debug_snapshot!(good(&pb).hosts[0].routes[0].action);
}

#[test]
fn the_hedge_policy_of_a_route_or_else_of_its_virtual_host() {
    let hedge = |on| Some(pb::HedgePolicy { hedge_on_per_try_timeout: on, ..Default::default() });
    let with = |policy| pb::RouteAction { hedge_policy: policy, ..to("a") };
    let mut pb = table(vec![
        route(prefix("/off"), with(hedge(false))),
        route(
            prefix("/one"),
            with(Some(pb::HedgePolicy {
                initial_requests: Some(UInt32Value { value: 1 }),
                ..hedge(true).unwrap()
            })),
        ),
        route(prefix("/"), to("a")),
    ]);
    let hedges = |pb: &_| -> Vec<bool> {
        let table = good(pb);
        let actions = table.hosts[0].routes.iter().map(|r| &r.action);
        actions.map(|action| matches!(action, Action::Forward(forward) if forward.hedge)).collect()
    };
    assert_eq!(hedges(&pb), [false, true, false]);
    pb.virtual_hosts[0].hedge_policy = hedge(true);
    assert_eq!(hedges(&pb), [false, true, true]);
}

#[test]
fn redirects_and_direct_answers() {
    let redirect = pb::RedirectAction {
        host_redirect: "b.example".into(),
        port_redirect: 8443,
        response_code: 4,
        strip_query: true,
        scheme_rewrite_specifier: Some(pb::redirect_action::SchemeRewriteSpecifier::HttpsRedirect(true)),
        path_rewrite_specifier: Some(pb::redirect_action::PathRewriteSpecifier::RegexRewrite(replace(
            "a", r"\0b",
        ))),
    };
    let table =
        good(&table(vec![redirect_route(redirect), redirect_route(Default::default()), direct(418, "tea")]));
    let actions: Vec<_> = table.hosts[0].routes.iter().map(|r| &r.action).collect();
    insta::assert_debug_snapshot!(actions);
}

/// Weighted cluster, route, virtual host, table; with `most_specific_header_mutations_wins` the last three are reversed.
#[test]
fn header_mutations_apply_in_envoys_order() {
    let set = |value: &str| {
        vec![append("x-order", value), add("x-last", value, HeaderAppendAction::OverwriteIfExistsOrAdd)]
    };
    let mut entry = weight("c", 1);
    entry.request_headers_to_add = set("cluster");
    let mut r = route(prefix("/"), weighted(vec![entry]));
    r.request_headers_to_add = set("route");
    r.response_headers_to_remove = vec!["Server".into()];
    let mut pb = table(vec![r]);
    pb.virtual_hosts[0].request_headers_to_add = set("host");
    pb.request_headers_to_add = set("table");
    let run = |pb: &pb::RouteConfiguration| {
        let table = good(pb);
        let route = &table.hosts[0].routes[0];
        let Action::Forward(action) = &route.action else { panic!("forwards") };
        let target = route.target(action, 0, &HeaderMap::new());
        let mut headers = HeaderMap::new();
        target.request_headers.apply(&mut headers, &mut |_, _| None);
        let mut answer: HeaderMap =
            [(http::header::SERVER, HeaderValue::from_static("s"))].into_iter().collect();
        target.response_headers.apply(&mut answer, &mut |_, _| None);
        assert!(answer.is_empty());
        let order: Vec<_> =
            headers.get_all("x-order").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        (order.join(" "), headers["x-last"].to_str().unwrap().to_owned())
    };
    assert_eq!(run(&pb), ("cluster route host table".into(), "table".into()));
    pb.most_specific_header_mutations_wins = true;
    assert_eq!(run(&pb), ("cluster table host route".into(), "route".into()));
}

#[test]
fn header_options_old_and_new() {
    let mut old = append("a", "1");
    #[expect(deprecated, reason = "what is tested")]
    {
        old.append = Some(BoolValue { value: false });
    }
    let mut r = route(prefix("/"), to("c"));
    r.request_headers_to_add = vec![old, append("b", "100%%"), append("c", "%REQ(x)%"), append("d", "")];
    r.request_headers_to_remove = vec!["X-Gone".into()];
    let table = good(&table(vec![r]));
    insta::assert_debug_snapshot!(table.hosts[0].routes[0].request_headers, @r#"
    [
        remove x-gone; Overwrite a: "1"; Append b: "100%"; Append c: template "%REQ(x)%"; ,
    ]
    "#);
}

/// One table with a mistake of each kind: all are reported in one pass, each with its path.
#[test]
fn mistakes_of_tables_hosts_and_matches() {
    let mut bad_match = prefix("/");
    bad_match.tls_context = Some(Default::default());
    let look_ahead = matcher_pb::StringMatcher {
        ignore_case: false,
        match_pattern: Some(MatchPattern::SafeRegex(pattern("a(?=b)"))),
    };
    bad_match.headers = vec![header("x", Some(HeaderMatchSpecifier::StringMatch(look_ahead)))];
    bad_match.query_parameters = vec![pb::QueryParameterMatcher::default()];
    let mut extra = route(prefix("/"), to("c"));
    extra.stat_prefix = "s".into();
    extra.typed_per_filter_config.insert("envoy.filters.http.fault".into(), Default::default());
    extra.request_headers_to_add =
        vec![append("host", "x"), append(":path", "x"), append("x", "%NOPE%"), append("content-length", "0")];
    extra.request_headers_to_remove = vec!["bad name".into()];
    let routes = vec![
        pb::Route::default(),
        route(pb::RouteMatch::default(), to("c")),
        route(bad_match, to("c")),
        route(on(PathSpecifier::SafeRegex(pattern("/[a"))), to("c")),
        route(on(PathSpecifier::PathSeparatedPrefix("/a/".into())), to("c")),
        extra,
        direct(99, "x"),
        direct(200, &"x".repeat(5000)),
    ];
    let mut pb = table(routes);
    pb.vhds = Some(Default::default());
    pb.vhost_header = "a b".into();
    pb.virtual_hosts.push(host("two", &["a.example", "A.Example", "*", "a*b", "*a*", "", "a b"], vec![]));
    pb.virtual_hosts.push(host("", &[], vec![]));
    pb.virtual_hosts[2].require_tls = 7;
    insta::assert_snapshot!(compile(&pb).1.join("\n"));
}

#[test]
fn mistakes_of_actions() {
    let change = |f: &dyn Fn(&mut pb::RouteAction)| {
        let mut action = to("c");
        f(&mut action);
        route(prefix("/"), action)
    };
    let retry = |f: &dyn Fn(&mut pb::RetryPolicy)| {
        let mut policy = pb::RetryPolicy { retry_on: "5xx".into(), ..Default::default() };
        f(&mut policy);
        change(&|a| a.retry_policy = Some(policy.clone()))
    };
    let mut nameless = weight("", 1);
    nameless.host_rewrite_specifier = None;
    let mut no_weight = weight("c", 1);
    no_weight.weight = None;
    let mut total = weighted(vec![weight("a", 1), weight("b", 2)]);
    if let Some(ClusterSpecifier::WeightedClusters(w)) = &mut total.cluster_specifier {
        #[expect(deprecated, reason = "what is tested")]
        {
            w.total_weight = Some(UInt32Value { value: 100 });
        }
    }
    let routes = vec![
        route(prefix("/"), pb::RouteAction::default()),
        route(prefix("/"), to("")),
        route(prefix("/"), weighted(vec![weight("a", 0), weight("b", 0)])),
        route(prefix("/"), weighted(vec![weight("a", u32::MAX), weight("b", 1)])),
        route(prefix("/"), weighted(vec![nameless, no_weight])),
        route(prefix("/"), total),
        change(&|a| a.timeout = seconds(-1)),
        change(&|a| {
            a.timeout = seconds(1);
            a.max_stream_duration = Some(Default::default());
        }),
        change(&|a| {
            a.prefix_rewrite = "/x".into();
            a.regex_rewrite = Some(replace("a", "b"));
        }),
        change(&|a| a.prefix_rewrite = "/a b".into()),
        change(&|a| a.regex_rewrite = Some(replace("a", r"\1"))),
        change(&|a| a.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral("a b".into()))),
        change(&|a| a.hash_policy = vec![Default::default()]),
        change(&|a| a.priority = 9),
        change(&|a| {
            a.upgrade_configs = vec![UpgradeConfig {
                upgrade_type: "websocket".into(),
                enabled: None,
                connect_config: Some(Default::default()),
            }]
        }),
        retry(&|p| p.retry_on = "5xx,sometimes".into()),
        change(&|a| {
            a.hedge_policy = Some(pb::HedgePolicy {
                initial_requests: Some(UInt32Value { value: 2 }),
                additional_request_chance: Some(Default::default()),
                ..Default::default()
            });
        }),
        retry(&|p| p.per_try_timeout = seconds(16)),
        retry(&|p| p.retriable_status_codes = vec![503, 7]),
        retry(&|p| p.host_selection_retry_max_attempts = -1),
        retry(&|p| {
            p.retry_back_off =
                Some(pb::retry_policy::RetryBackOff { base_interval: seconds(2), max_interval: seconds(1) })
        }),
        retry(&|p| p.retry_back_off = Some(Default::default())),
        retry(&|p| {
            p.retry_host_predicate =
                vec![pb::retry_policy::RetryHostPredicate { name: "other".into(), config_type: None }]
        }),
        retry(&|p| p.rate_limited_retry_back_off = Some(Default::default())),
        redirect_route(pb::RedirectAction { port_redirect: 70_000, response_code: 9, ..Default::default() }),
        redirect_route(pb::RedirectAction { host_redirect: "a b".into(), ..Default::default() }),
    ];
    insta::assert_snapshot!(compile(&table(routes)).1.join("\n"));
}
