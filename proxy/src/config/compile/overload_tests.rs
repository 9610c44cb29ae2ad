//! What an `overload_manager` means, and mistakes in it, with their paths.

use prost::Name;
use remora_xds::any;
use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::google::protobuf::Any;
use remora_xds::wire::Wire;

use super::*;
use crate::config::names::Names;

fn compile(pb: &OverloadManager) -> (OverloadSpec, Vec<String>) {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    let scope = &mut Scope { errors: &mut errors, names: &mut names };
    let spec = compile_overload(Some(pb), &At::root().field("o"), scope);
    (spec, errors.into_list().iter().map(|e| format!("{}: {}", e.path, e.message)).collect())
}

fn monitor_of<M: Wire + Name>(pb: &M) -> ResourceMonitor {
    let any: Any = any::pack(pb);
    ResourceMonitor { name: "some".into(), config_type: Some(ConfigType::TypedConfig(any)) }
}

fn when(name: &str, value: f64) -> TriggerPb {
    let trigger_oneof = Some(TriggerOneof::Threshold(ThresholdTrigger { value }));
    TriggerPb { name: name.into(), trigger_oneof }
}

fn action_of(name: &str, triggers: Vec<TriggerPb>) -> OverloadAction {
    OverloadAction { name: name.into(), triggers, typed_config: None }
}

#[test]
fn what_is_written_replaces_what_holds_by_itself() {
    let scaled = ScaledTrigger { scaling_threshold: 0.8, saturation_threshold: 0.9 };
    let scaled =
        TriggerPb { name: Monitor::Heap.name().into(), trigger_oneof: Some(TriggerOneof::Scaled(scaled)) };
    let pb = OverloadManager {
        resource_monitors: vec![
            monitor_of(&FixedHeapConfig { max_heap_size_bytes: 1000, max_heap_size_bytes_runtime: None }),
            monitor_of(&DownstreamConnectionsConfig { max_active_downstream_connections: 5 }),
        ],
        actions: vec![action_of(Action::StopAccepting.name(), vec![scaled])],
        ..Default::default()
    };
    let (spec, mistakes) = compile(&pb);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let trigger = Trigger { monitor: Monitor::Heap, from: 0.8, full: 0.9 };
    let wanted = OverloadSpec {
        interval: Duration::from_secs(1),
        heap: Some(1000),
        cgroup: None,
        connections: Some(5),
        actions: vec![(Action::StopAccepting, vec![trigger])],
    };
    assert_eq!(spec, wanted);
}

#[test]
fn mistakes_are_told_with_their_paths() {
    assert_eq!(compile(&OverloadManager::default()).1, ["o.resource_monitors: must not be empty"]);
    let cgroup = monitor_of(&CgroupMemoryConfig { max_memory_bytes: 0 });
    let memory = Monitor::Cgroup.name();
    let refuse = Action::RefuseRequests.name();
    let pb = OverloadManager {
        resource_monitors: vec![
            cgroup.clone(),
            cgroup,
            monitor_of(&FixedHeapConfig::default()),
            ResourceMonitor::default(),
        ],
        actions: vec![
            action_of(refuse, vec![when(memory, 1.5)]),
            action_of(refuse, vec![when("envoy.resource_monitors.cpu_utilization", 0.5)]),
            action_of("envoy.overload_actions.shrink_heap", Vec::new()),
        ],
        ..Default::default()
    };
    assert_eq!(
        compile(&pb).1,
        [
            "o.resource_monitors[1]: stands here twice",
            "o.resource_monitors[2].typed_config.max_heap_size_bytes: must be at least 1",
            "o.resource_monitors[3].typed_config: is required",
            "o.actions[0].triggers[0].threshold.value: must be from 0 to 1",
            "o.actions[1].triggers[0].name: `envoy.resource_monitors.cpu_utilization` is none of the resource_monitors that can trigger something",
            "o.actions[1].name: stands here twice",
            "o.actions[2].name: the overload action `envoy.overload_actions.shrink_heap` is not supported",
            "o.actions[2].triggers: must not be empty",
        ]
    );
}
