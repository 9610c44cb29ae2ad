//! Routes that lead everything to one cluster: the program, or the pod that was called.

use remora_xds::pb::envoy::config::route::v3::route::Action;
use remora_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use remora_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use remora_xds::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};

use super::{parts, retry};

/// Every request to one cluster, without a time limit: that is the caller's to set.
pub(super) fn to(name: &str, cluster: String) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.clone())),
        timeout: parts::seconds(0),
        max_stream_duration: Some(parts::by_the_caller()),
        retry_policy: Some(retry::unprocessed()),
        ..RouteAction::default()
    };
    let route = Route {
        name: "default".into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost {
        name: name.into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    RouteConfiguration { name: cluster, virtual_hosts: vec![host], ..RouteConfiguration::default() }
}
