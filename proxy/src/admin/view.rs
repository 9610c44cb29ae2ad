//! The running proxy as the admin pages show it.

use std::sync::Arc;

use remora_xds::{Kind, Schema};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::certificates;
use super::source::{
    AdminSource, Certificate, CircuitStatus, ClusterStatus, DrainListeners, EdsHealth, HealthFlags,
    HostStats, HostStatus, ListenerStatus, Locality, ServerInfo, Thresholds,
};
use crate::app::Shared;
use crate::config::manager::Unpacker;
use crate::resilience::breaker::{RoutingPriority, Thresholds as Limits};
use crate::resilience::circuit::Circuit;
use crate::resilience::outlier::Monitor;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::{Endpoint, HealthStatus};

/// See the module.
#[derive(Debug)]
pub struct AdminView {
    shared: Arc<Shared>,
    drain: mpsc::Sender<DrainListeners>,
}

impl AdminView {
    /// A view of `shared`; `drain` takes what `/drain_listeners` asks for.
    #[must_use]
    pub const fn new(shared: Arc<Shared>, drain: mpsc::Sender<DrainListeners>) -> Self {
        Self { shared, drain }
    }
}

impl AdminSource for AdminView {
    fn config_dump(&self) -> Vec<Value> {
        let schema = Schema::load();
        let version = self.shared.config.load().version.to_string();
        let section = |dump: &str, list: &str, field: &str, kind: Kind| {
            let dumped = self.shared.dump.of(kind);
            let mut unpacker = Unpacker::default();
            let items: Vec<Value> = dumped
                .iter()
                .map(|(name, dumped)| {
                    let resource = schema.any_to_redacted_json(&dumped.any(kind, &mut unpacker));
                    let version = dumped.version.as_deref().unwrap_or(&version);
                    if kind == Kind::Listener {
                        json!({"name": &**name, "active_state": {"version_info": version, field: resource}})
                    } else {
                        json!({"version_info": version, field: resource})
                    }
                })
                .collect();
            json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{dump}"), list: items})
        };
        let endpoints = ("dynamic_endpoint_configs", "endpoint_config");
        let mut sections = vec![
            section("ClustersConfigDump", "dynamic_active_clusters", "cluster", Kind::Cluster),
            section("ListenersConfigDump", "dynamic_listeners", "listener", Kind::Listener),
            section("RoutesConfigDump", "dynamic_route_configs", "route_config", Kind::RouteConfiguration),
            section("SecretsConfigDump", "dynamic_active_secrets", "secret", Kind::Secret),
            section("EndpointsConfigDump", endpoints.0, endpoints.1, Kind::ClusterLoadAssignment),
        ];
        let control_plane = self.shared.control_plane.load();
        if let Some(cluster) = &control_plane.cluster {
            sections.push(json!({"control_plane": {
                "cluster": &**cluster,
                "connected": control_plane.connected,
                "from_disk": control_plane.from_disk,
                "error": control_plane.error,
            }}));
        }
        sections
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let mut clusters: Vec<_> = self.shared.config.load().clusters().map(|c| cluster_status(c)).collect();
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        clusters
    }

    fn circuits(&self) -> Vec<CircuitStatus> {
        let now = Instant::now();
        let status =
            |circuit: Arc<Circuit>| CircuitStatus { name: circuit.name.to_string(), view: circuit.view(now) };
        self.shared.config.load().circuits.all().into_iter().map(status).collect()
    }

    fn set_circuit(&self, name: &str, state: &str) -> Result<bool, &'static str> {
        let all = self.shared.config.load().circuits.all();
        let found = all.iter().find(|circuit| *circuit.name == *name);
        found.map_or(Ok(false), |circuit| circuit.set_state(state).map(|()| true))
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let bound = self.shared.bound.load();
        bound
            .iter()
            .map(|(name, at)| ListenerStatus { name: name.to_string(), addresses: at.clone() })
            .collect()
    }

    fn certificates(&self) -> Vec<Certificate> {
        certificates::in_use(&self.shared.config.load())
    }

    fn server_info(&self) -> ServerInfo {
        let settings = &self.shared.settings;
        let options = &self.shared.options;
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.shared.started.elapsed().unwrap_or_default(),
            node: json!({"id": &*settings.node_id, "cluster": &*settings.node_cluster}),
            command_line_options: json!({
                "config_path": options.config.display().to_string(),
                "concurrency": options.concurrency,
                "drain_time": format!("{}s", options.drain_time.as_secs()),
            }),
        }
    }

    fn drain_listeners(&self, request: DrainListeners) {
        if self.drain.try_send(request).is_err() {
            tracing::warn!("too many drain requests at once; one was dropped");
        }
    }
}

fn cluster_status(cluster: &Cluster) -> ClusterStatus {
    let spec = cluster.spec();
    let limits = |priority| {
        let Limits { max_connections, max_pending, max_requests, max_retries, .. } =
            *spec.thresholds(priority);
        Thresholds {
            connections: max_connections,
            pending_requests: max_pending,
            requests: max_requests,
            retries: max_retries,
        }
    };
    ClusterStatus {
        name: spec.name.to_string(),
        observability_name: spec.stat_name.to_string(),
        added_via_api: false,
        thresholds: [limits(RoutingPriority::Default), limits(RoutingPriority::High)],
        hosts: cluster.endpoints().endpoints().iter().map(|e| host_status(e)).collect(),
    }
}

fn host_status(endpoint: &Endpoint) -> HostStatus {
    let spec = &endpoint.spec;
    let locality = &spec.group.locality;
    let standing = endpoint.state.standing();
    let rates = endpoint.state.known_monitor().map_or([None; 2], Monitor::success_rates);
    let [success_rate, local_origin_success_rate] = rates;
    HostStatus {
        address: spec.address,
        hostname: spec.hostname.as_deref().unwrap_or_default().to_owned(),
        stats: HostStats {
            rq_active: u64::from(endpoint.state.active()),
            rq_total: endpoint.state.requests(),
            ..HostStats::default()
        },
        health: HealthFlags {
            failed_active_hc: standing.has_failed_health_check(),
            failed_outlier_check: standing.is_ejected(),
            failed_eds_health: spec.health == HealthStatus::Unhealthy,
            ..HealthFlags::default()
        },
        eds_health: match spec.health {
            HealthStatus::Healthy => EdsHealth::Healthy,
            HealthStatus::Degraded => EdsHealth::Degraded,
            HealthStatus::Draining => EdsHealth::Draining,
            HealthStatus::Unhealthy => EdsHealth::Unhealthy,
        },
        weight: spec.weight,
        locality: Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            sub_zone: locality.sub_zone.to_string(),
        },
        priority: spec.group.priority,
        success_rate,
        local_origin_success_rate,
    }
}
