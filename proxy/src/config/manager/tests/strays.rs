//! Settings of filters in routes that come by themselves.

use super::*;

#[test]
fn settings_of_filters_that_are_not_there_are_found() {
    let schema = Schema::load();
    let mut manager = manager();
    let table = |filter: &str| {
        let typed = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
        let host = json!({ "name": "all", "domains": ["*"], "routes": [{
            "match": { "prefix": "/" },
            "direct_response": { "status": 200 },
            "typed_per_filter_config": { filter: { "@type": typed } },
        }]});
        let value = json!({ "name": "r", "virtual_hosts": [host] });
        incoming::<remora_xds::pb::envoy::config::route::v3::RouteConfiguration>(&schema, &value)
    };
    apply(&mut manager, Kind::Listener, vec![listener(&schema, "l", "r", "15s")]);
    let strays = |manager: &Manager| {
        let found = Arc::clone(&manager.listeners.get("l").unwrap().value);
        manager.strays(&found).map(|(routes, filter)| format!("{routes} {filter}")).collect::<Vec<_>>()
    };
    apply(&mut manager, Kind::RouteConfiguration, vec![table("misspelt")]);
    assert_eq!(strays(&manager), ["r misspelt"]);
    // A name is not enough: this one is of another kind.
    apply(&mut manager, Kind::RouteConfiguration, vec![table("envoy.filters.http.router")]);
    assert_eq!(strays(&manager), ["r envoy.filters.http.router"]);
}
