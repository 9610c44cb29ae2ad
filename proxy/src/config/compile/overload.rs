//! `overload_manager` of the bootstrap (`envoy.config.overload.v3.OverloadManager`).

use std::time::Duration;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::overload::v3::resource_monitor::ConfigType;
use remora_xds::pb::envoy::config::overload::v3::trigger::TriggerOneof;
use remora_xds::pb::envoy::config::overload::v3::{
    OverloadAction, OverloadManager, ResourceMonitor, ScaledTrigger, ThresholdTrigger, Trigger as TriggerPb,
};
use remora_xds::pb::envoy::extensions::resource_monitors::cgroup_memory::v3::CgroupMemoryConfig;
use remora_xds::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use remora_xds::pb::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;

use super::Scope;
use super::common::positive_duration;
use super::fields::{holds, refuse, unpack};
use crate::resilience::overload::{Action, CgroupSpec, Monitor, OverloadSpec, Trigger};

/// Compiles what is watched and done about it; without a message what holds by itself.
#[must_use]
pub fn compile_overload(pb: Option<&OverloadManager>, at: &At<'_>, scope: &mut Scope<'_>) -> OverloadSpec {
    let Some(pb) = pb else { return OverloadSpec::default() };
    let OverloadManager {
        refresh_interval,
        resource_monitors,
        actions,
        loadshed_points,
        buffer_factory_config,
    } = pb;
    refuse!(scope, at; loadshed_points, buffer_factory_config);
    let interval = refresh_interval.as_ref();
    let interval = interval.and_then(|pb| positive_duration(Some(pb), &at.field("refresh_interval"), scope));
    let mut spec = OverloadSpec {
        interval: interval.unwrap_or(Duration::from_secs(1)),
        heap: None,
        cgroup: None,
        connections: None,
        actions: Vec::new(),
    };
    let at_monitors = at.field("resource_monitors");
    if resource_monitors.is_empty() {
        scope.errors.report(&at_monitors, "must not be empty");
    }
    for (i, pb) in resource_monitors.iter().enumerate() {
        monitor(&mut spec, pb, &at_monitors.index(i), scope);
    }
    let at_actions = at.field("actions");
    for (i, pb) in actions.iter().enumerate() {
        let at = at_actions.index(i);
        let Some((action, triggers)) = action(&spec, pb, &at, scope) else { continue };
        if spec.actions.iter().any(|(other, _)| *other == action) {
            scope.errors.report(&at.field("name"), "stands here twice");
        }
        spec.actions.push((action, triggers));
    }
    spec
}

/// Puts a monitor into `spec`. As in Envoy its type says what it is.
fn monitor(spec: &mut OverloadSpec, pb: &ResourceMonitor, at: &At<'_>, scope: &mut Scope<'_>) {
    let ResourceMonitor { name: _, config_type } = pb;
    let at_any = at.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        scope.errors.report(&at_any, "is required");
        return;
    };
    let known = if holds::<FixedHeapConfig>(any) {
        let Some(pb) = unpack::<FixedHeapConfig>(any, &at_any, scope) else { return };
        spec.heap.replace(heap(&pb, &at_any, scope)).is_some()
    } else if holds::<CgroupMemoryConfig>(any) {
        let Some(CgroupMemoryConfig { max_memory_bytes }) = unpack(any, &at_any, scope) else { return };
        let max = Some(max_memory_bytes).filter(|max| *max > 0);
        spec.cgroup.replace(CgroupSpec { max, whole: true }).is_some()
    } else if holds::<DownstreamConnectionsConfig>(any) {
        let Some(pb) = unpack::<DownstreamConnectionsConfig>(any, &at_any, scope) else { return };
        let most = u64::try_from(pb.max_active_downstream_connections).unwrap_or(0);
        if most == 0 {
            scope.errors.report(&at_any.field("max_active_downstream_connections"), "must be at least 1");
        }
        spec.connections.replace(most).is_some()
    } else {
        let message = format!("the resource monitor `{}` is not supported", any.type_url);
        scope.errors.report(&at_any, message).fix("use fixed_heap, cgroup_memory or downstream_connections");
        return;
    };
    if known {
        scope.errors.report(at, "stands here twice");
    }
}

fn heap(pb: &FixedHeapConfig, at: &At<'_>, scope: &mut Scope<'_>) -> u64 {
    let FixedHeapConfig { max_heap_size_bytes, max_heap_size_bytes_runtime } = pb;
    refuse!(scope, at; max_heap_size_bytes_runtime);
    if *max_heap_size_bytes == 0 {
        scope.errors.report(&at.field("max_heap_size_bytes"), "must be at least 1");
    }
    *max_heap_size_bytes
}

fn action(
    spec: &OverloadSpec,
    pb: &OverloadAction,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Action, Vec<Trigger>)> {
    let OverloadAction { name, triggers, typed_config } = pb;
    refuse!(scope, at; typed_config);
    let action = Action::ALL.into_iter().find(|action| action.name() == name);
    if action.is_none() {
        let known = Action::ALL.map(Action::name).join(", ");
        let message = format!("the overload action `{name}` is not supported");
        scope.errors.report(&at.field("name"), message).fix(format!("use one of {known}"));
    }
    let at_triggers = at.field("triggers");
    if triggers.is_empty() {
        scope.errors.report(&at_triggers, "must not be empty");
    }
    let triggers = triggers.iter().enumerate();
    let triggers = triggers.filter_map(|(i, pb)| trigger(spec, pb, &at_triggers.index(i), scope)).collect();
    Some((action?, triggers))
}

fn trigger(spec: &OverloadSpec, pb: &TriggerPb, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Trigger> {
    let TriggerPb { name, trigger_oneof } = pb;
    let there = |monitor: &Monitor| match monitor {
        Monitor::Heap => spec.heap.is_some(),
        Monitor::Cgroup => spec.cgroup.is_some(),
    };
    let monitor = Monitor::ALL.into_iter().find(|monitor| monitor.name() == name);
    let monitor = monitor.filter(there);
    if monitor.is_none() {
        let message = format!("`{name}` is none of the resource_monitors that can trigger something");
        scope
            .errors
            .report(&at.field("name"), message)
            .fix("name a fixed_heap or cgroup_memory that is there");
    }
    let share = |value: f64, at: At<'_>, scope: &mut Scope<'_>| {
        if !(0.0..=1.0).contains(&value) {
            scope.errors.report(&at, "must be from 0 to 1");
        }
        value
    };
    let (from, full) = match trigger_oneof {
        Some(TriggerOneof::Threshold(ThresholdTrigger { value })) => {
            let value = share(*value, at.field("threshold").field("value"), scope);
            (value, value)
        }
        Some(TriggerOneof::Scaled(ScaledTrigger { scaling_threshold, saturation_threshold })) => {
            let at = at.field("scaled");
            let from = share(*scaling_threshold, at.field("scaling_threshold"), scope);
            let full = share(*saturation_threshold, at.field("saturation_threshold"), scope);
            if from >= full {
                let message = "must be less than saturation_threshold";
                scope.errors.report(&at.field("scaling_threshold"), message);
            }
            (from, full)
        }
        None => {
            scope.errors.report(at, "needs threshold or scaled");
            return None;
        }
    };
    Some(Trigger { monitor: monitor?, from, full })
}

#[cfg(test)]
#[path = "overload_tests.rs"]
mod tests;
