use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn probe() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"httpGet": {"path": "/a?b=c", "port": "http"}})),
        Just(json!({"httpGet": {"port": 8443, "scheme": "HTTPS"}})),
        Just(json!({"tcpSocket": {"port": 5432}, "periodSeconds": 1})),
        (1_u16..5).prop_map(|port| json!({"grpc": {"port": port}})),
        Just(json!({"exec": {"command": ["true"]}})),
        Just(Value::Null),
    ]
}

fn one_container(name: &'static str) -> impl Strategy<Value = Value> {
    (probe(), probe(), any::<bool>()).prop_map(move |(live, ready, always)| {
        let mut container = json!({
            "name": name, "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": live, "readinessProbe": ready,
        });
        if always && name.starts_with("init") {
            container["restartPolicy"] = "Always".into();
        }
        container
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let inits = prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        one_container("init-a").prop_map(|one| json!([one])),
        (one_container("init-a"), one_container("init-b")).prop_map(|(a, b)| json!([a, b])),
    ];
    let annotations = prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!({"remora.dev/interception": "cni"})),
        Just(json!({"remora.dev/interception": "none", "a~b/c": "d"})),
    ];
    let spec = (inits, one_container("web"), prop::option::of(one_container("db")), any::<bool>());
    (spec, annotations).prop_map(|((inits, web, db, volumes), annotations)| {
        let mut pod = pod_with(&json!({"annotations": annotations}), &json!({"initContainers": inits}));
        pod["spec"]["containers"] = std::iter::once(web).chain(db).collect();
        if volumes {
            pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        }
        pod
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn twice_is_once_and_the_patch_makes_the_same(pod in any_pod(), classic in any::<bool>()) {
        let settings = Settings { native: if classic { Native::No } else { Native::Yes }, ..settings() };
        let once = object(&pod, &settings).unwrap().object.unwrap();
        let twice = object(&once, &settings).unwrap();
        prop_assert_eq!(&twice.object, &None);
        prop_assert_eq!(twice.skipped[0].1, Skip::Injected);
        let mut patched = pod.clone();
        apply(&mut patched, &diff(&pod, &once).into());
        prop_assert_eq!(&patched, &once);
        // The same through text.
        let text = remora_xds::write_yaml(&pod);
        let text = documents(&texts(&text), &settings).unwrap().yaml;
        prop_assert_eq!(&documents(&texts(&text), &settings).unwrap().yaml, &text);
        prop_assert_eq!(text, remora_xds::write_yaml(&once));
    }
}
