//! What compiled tables mean.

use super::*;

#[test]
fn timeouts() {
    let policy = |change: &dyn Fn(&mut pb::RouteAction)| {
        let mut action = to("c");
        change(&mut action);
        let table = good(&table(vec![route(prefix("/"), action)]));
        let Action::Forward(action) = &table.hosts[0].routes[0].action else { panic!("forwards") };
        format!("{:?}", action.timeouts)
    };
    assert_eq!(
        policy(&|a| a.timeout = seconds(0)),
        "TimeoutPolicy { request: None, grpc_request: None, idle: Inherit, stream: Inherit, grpc_stream: None }"
    );
    #[expect(deprecated, reason = "what is tested")]
    let old = policy(&|a| {
        a.max_grpc_timeout = seconds(0);
        a.grpc_timeout_offset = seconds(1);
    });
    assert_eq!(
        old,
        "TimeoutPolicy { request: Some(15s), grpc_request: Some(GrpcHeader { max: None, offset: 1s }), idle: Inherit, stream: Inherit, grpc_stream: None }"
    );
    let new = policy(&|a| {
        a.timeout = seconds(0);
        a.max_stream_duration = Some(MaxStreamDuration {
            max_stream_duration: seconds(9),
            grpc_timeout_header_max: seconds(5),
            grpc_timeout_header_offset: None,
        });
    });
    assert_eq!(
        new,
        "TimeoutPolicy { request: None, grpc_request: None, idle: Inherit, stream: After(9s), grpc_stream: Some(GrpcHeader { max: Some(5s), offset: 0ns }) }"
    );
}

#[test]
fn a_route_inherits_the_retry_policy_of_its_host_whole_or_not_at_all() {
    let mut own = to("c");
    own.retry_policy = Some(pb::RetryPolicy { retry_on: "reset".into(), ..Default::default() });
    let mut short = to("c");
    short.timeout = seconds(1);
    let mut pb = table(vec![route(prefix("/own"), own), route(prefix("/short"), short)]);
    pb.virtual_hosts[0].retry_policy =
        Some(pb::RetryPolicy { retry_on: "5xx".into(), per_try_timeout: seconds(5), ..Default::default() });
    let table = good(&pb);
    let retries: Vec<_> = table.hosts[0]
        .routes
        .iter()
        .map(|r| match &r.action {
            Action::Forward(a) => {
                a.retry.as_ref().map(|p| format!("{:?} {:?}", p.on, p.per_try_timeout)).unwrap()
            }
            _ => panic!("forwards"),
        })
        .collect();
    assert_eq!(retries, ["[reset] None", "[5xx] Some(5s)"]);
}

#[test]
fn a_compiled_table_routes() {
    let mut pb = table(vec![
        route(prefix("/api"), to("api")),
        route(prefix("/"), weighted(vec![weight("a", 1), weight("b", 0), weight("c", 3)])),
    ]);
    pb.virtual_hosts.push(host("teapot", &["Tea.Example", "*.tea.example"], vec![direct(418, "tea")]));
    let table = good(&pb);
    let ids: Vec<_> = table.clusters.iter().map(|c| (c.id.index(), &*c.path)).collect();
    assert_eq!(
        ids,
        [
            (0, "virtual_hosts[0].routes[0].route.cluster"),
            (1, "virtual_hosts[0].routes[1].route.weighted_clusters.clusters[0].name"),
            (2, "virtual_hosts[0].routes[1].route.weighted_clusters.clusters[1].name"),
            (3, "virtual_hosts[0].routes[1].route.weighted_clusters.clusters[2].name"),
        ]
    );
    let status =
        |name: &str| match table.find(&Query { head: &get(name, "/x", &[]), internal: false, random: 0 }) {
            Found::Route(_, Route { action: Action::Direct(d), .. }) => d.status.as_u16(),
            Found::Route(..) => 200,
            _ => 404,
        };
    assert_eq!([status("TEA.example"), status("hot.tea.example"), status("x")], [418, 418, 200]);
}

#[test]
fn the_header_of_the_virtual_host() {
    let compile_with = |name: &str| {
        let (table, errors) = compile(&pb::RouteConfiguration { vhost_header: name.into(), ..table(vec![]) });
        (table.rules.vhost_header.map(|n| n.to_string()), errors.len())
    };
    assert_eq!(compile_with(""), (None, 0));
    assert_eq!(compile_with("Host"), (None, 0));
    assert_eq!(compile_with("X-VHost"), (Some("x-vhost".into()), 0));
    assert_eq!(compile_with(":path"), (None, 1));
}

#[test]
fn dangling_clusters_are_reported_where_they_are_named() {
    let pb = table(vec![route(prefix("/a"), to("known")), route(prefix("/"), to("unknown"))]);
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let known = names.clusters.intern("known");
    let mut scope = Scope { errors: &mut errors, names: &mut names };
    let table = compile_route_table(&pb, &At::root().field("route_config"), &mut scope);
    check_clusters(&table, &mut scope, |id| id == known);
    let list = errors.into_list();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].path, "route_config.virtual_hosts[0].routes[1].route.cluster");
    assert_eq!(list[0].message, "cluster \"unknown\" does not exist");
}
