//! `/clusters`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Admin;
use super::pages::{Answer, one_line, socket_address, wants_json};
use super::query::Query;
use super::source::{ClusterStatus, HealthFlags, HostStatus};

const PRIORITIES: [&str; 2] = ["default", "high"];

pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let as_json = wants_json(&mut query)?;
    query.finish()?;
    let clusters = admin.source.clusters();
    if as_json {
        let statuses: Vec<Value> = clusters.iter().map(cluster_json).collect();
        return Ok(Answer::json(&json!({ "cluster_statuses": statuses })));
    }
    let mut out = String::new();
    for cluster in &clusters {
        // Writing to a String cannot fail.
        let _infallible = cluster_text(cluster, &mut out);
    }
    Ok(Answer::text(out))
}

/// Health as one word, as Envoy writes it: `healthy` or `/failed_active_hc/failed_outlier_check`.
fn health_words(health: HealthFlags) -> String {
    let words: String = [
        (health.failed_active_hc, "/failed_active_hc"),
        (health.failed_outlier_check, "/failed_outlier_check"),
        (health.failed_eds_health, "/failed_eds_health"),
        (health.pending_dynamic_removal, "/pending_dynamic_removal"),
    ]
    .iter()
    .filter(|(is, _)| *is)
    .map(|(_, word)| *word)
    .collect();
    if words.is_empty() { "healthy".to_owned() } else { words }
}

fn stats(host: &HostStatus) -> [(&'static str, u64, bool); 8] {
    let s = &host.stats;
    [
        ("cx_active", s.cx_active, true),
        ("cx_connect_fail", s.cx_connect_fail, false),
        ("cx_total", s.cx_total, false),
        ("rq_active", s.rq_active, true),
        ("rq_error", s.rq_error, false),
        ("rq_success", s.rq_success, false),
        ("rq_timeout", s.rq_timeout, false),
        ("rq_total", s.rq_total, false),
    ]
}

fn cluster_text(cluster: &ClusterStatus, out: &mut String) -> std::fmt::Result {
    let name = one_line(&cluster.name);
    writeln!(out, "{name}::observability_name::{}", one_line(&cluster.observability_name))?;
    for (priority, t) in PRIORITIES.iter().zip(&cluster.thresholds) {
        writeln!(out, "{name}::{priority}_priority::max_connections::{}", t.connections)?;
        writeln!(out, "{name}::{priority}_priority::max_pending_requests::{}", t.pending_requests)?;
        writeln!(out, "{name}::{priority}_priority::max_requests::{}", t.requests)?;
        writeln!(out, "{name}::{priority}_priority::max_retries::{}", t.retries)?;
    }
    writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api)?;
    for host in &cluster.hosts {
        let at = format!("{name}::{}", host.address);
        for (stat, value, _) in stats(host) {
            writeln!(out, "{at}::{stat}::{value}")?;
        }
        writeln!(out, "{at}::hostname::{}", one_line(&host.hostname))?;
        writeln!(out, "{at}::health_flags::{}", health_words(host.health))?;
        writeln!(out, "{at}::weight::{}", host.weight)?;
        writeln!(out, "{at}::region::{}", one_line(&host.locality.region))?;
        writeln!(out, "{at}::zone::{}", one_line(&host.locality.zone))?;
        writeln!(out, "{at}::sub_zone::{}", one_line(&host.locality.sub_zone))?;
        writeln!(out, "{at}::canary::false")?;
        writeln!(out, "{at}::priority::{}", host.priority)?;
        writeln!(out, "{at}::success_rate::{}", host.success_rate.unwrap_or(-1.0))?;
        let local = host.local_origin_success_rate.unwrap_or(-1.0);
        writeln!(out, "{at}::local_origin_success_rate::{local}")?;
    }
    Ok(())
}

/// `envoy.admin.v3.ClusterStatus`.
fn cluster_json(cluster: &ClusterStatus) -> Value {
    let thresholds = |(priority, t): (&str, &super::Thresholds)| {
        json!({
            "priority": priority,
            "max_connections": t.connections,
            "max_pending_requests": t.pending_requests,
            "max_requests": t.requests,
            "max_retries": t.retries,
        })
    };
    let thresholds: Vec<Value> =
        ["DEFAULT", "HIGH"].into_iter().zip(&cluster.thresholds).map(thresholds).collect();
    let hosts: Vec<Value> = cluster.hosts.iter().map(host_json).collect();
    json!({
        "name": cluster.name,
        "observability_name": cluster.observability_name,
        "added_via_api": cluster.added_via_api,
        "host_statuses": hosts,
        "circuit_breakers": {"thresholds": thresholds},
    })
}

/// `envoy.admin.v3.HostStatus`. 64-bit numbers are strings, as in every protobuf JSON.
fn host_json(host: &HostStatus) -> Value {
    let stat = |(name, value, gauge): (&str, u64, bool)| json!({"name": name, "value": value.to_string(), "type": if gauge { "GAUGE" } else { "COUNTER" }});
    let stats: Vec<Value> = stats(host).into_iter().map(stat).collect();
    let mut json = json!({
        "address": socket_address(host.address),
        "stats": stats,
        "health_status": {
            "failed_active_health_check": host.health.failed_active_hc,
            "failed_outlier_check": host.health.failed_outlier_check,
            "pending_dynamic_removal": host.health.pending_dynamic_removal,
            "eds_health_status": host.eds_health.as_str(),
        },
        "weight": host.weight,
        "hostname": host.hostname,
        "priority": host.priority,
        "locality": {
            "region": host.locality.region,
            "zone": host.locality.zone,
            "sub_zone": host.locality.sub_zone,
        },
    });
    let rates =
        [("success_rate", host.success_rate), ("local_origin_success_rate", host.local_origin_success_rate)];
    for (name, rate) in rates {
        if let (Some(rate), Some(fields)) = (rate, json.as_object_mut()) {
            fields.insert(name.to_owned(), json!({ "value": rate }));
        }
    }
    json
}
