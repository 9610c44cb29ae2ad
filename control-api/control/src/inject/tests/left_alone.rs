use serde_json::json;

use super::*;

#[test]
fn who_is_left_alone() {
    let no = json!({"labels": {"sidecar.istio.io/inject": "false"}});
    assert_eq!(skip(&pod_with(&no, &json!({}))), Skip::OptedOut);
    assert_eq!(skip(&annotated(&json!({"remora.dev/inject": "false"}))), Skip::OptedOut);
    assert_eq!(skip(&pod_with(&json!({}), &json!({"hostNetwork": true}))), Skip::HostNetwork);
    assert_eq!(skip(&pod_with(&json!({}), &json!({"os": {"name": "windows"}}))), Skip::Windows);
    assert_eq!(
        skip(&pod_with(&json!({}), &json!({"nodeSelector": {"kubernetes.io/os": "windows"}}))),
        Skip::Windows
    );
    assert_eq!(skip(&annotated(&json!({"kubernetes.io/config.mirror": "x"}))), Skip::Static);
    assert_eq!(skip(&pod_with(&json!({"namespace": "kube-system"}), &json!({}))), Skip::System);
    let copied = annotated(&json!({"remora.dev/injected": "0.0.1"}));
    assert_eq!(
        of(&copied),
        of(&pod_with(&json!({"annotations": {}}), &json!({}))),
        "the annotation alone is no sidecar"
    );
    // Whatever they ask for, in whatever words.
    let unclear = json!({"namespace": "kube-system", "labels": {"remora.dev/inject": "enabled"}});
    assert_eq!(skip(&pod_with(&unclear, &json!({}))), Skip::System);
    let unclear = json!({"labels": {"remora.dev/inject": "enabled"}});
    assert_eq!(skip(&pod_with(&unclear, &json!({"hostNetwork": true}))), Skip::HostNetwork);
    assert_eq!(skip(&pod_with(&unclear, &json!({"os": {"name": "windows"}}))), Skip::Windows);
    let by_hand = json!({"initContainers": [{"name": PROXY}]});
    assert_eq!(skip(&pod_with(&json!({}), &by_hand)), Skip::Injected);
    let ask = Settings { by_default: false, ..settings() };
    let plain = pod_with(&json!({}), &json!({}));
    assert_eq!(object(&plain, &ask).unwrap().skipped[0].1, Skip::NotAsked);
    let asks = pod_with(&json!({"labels": {"remora.dev/inject": "true"}}), &json!({}));
    assert!(object(&asks, &ask).unwrap().object.is_some());
}

#[test]
fn who_cannot_have_one_is_told_why() {
    let with = |spec: Value| failure(&pod_with(&json!({}), &spec));
    let container = |name: &str| json!({"containers": [{"name": "web"}, {"name": name}]});
    let said = [
        with(container("istio-proxy")),
        with(container("linkerd-proxy")),
        with(json!({"initContainers": [{"name": "istio-init"}]})),
        with(container("remora-init")),
        with(json!({"volumes": [{"name": "remora-state"}]})),
        with(json!({"securityContext": {"runAsUser": 1337}})),
        with(json!({"containers": [{"name": "web", "securityContext": {"runAsUser": 1337}}]})),
        with(json!({"containers": [{"name": "web", "ports": [{"containerPort": 15021}]}]})),
        with(
            json!({"containers": [{"name": "web", "ports": [{"containerPort": 15030}], "livenessProbe": {"grpc": {"port": 9}}}]}),
        ),
        with(json!({"containers": [{"name": "web", "ports": [{"containerPort": 15090}]}]})),
        with(json!({"containers": []})),
        with(json!({"containers": [{"name": "web", "livenessProbe": {"httpGet": {"port": "metrics"}}}]})),
        with(json!({"containers": [{"name": "web", "readinessProbe": {"tcpSocket": {"port": 70_000}}}]})),
        failure(
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {}}),
        ),
    ];
    insta::assert_snapshot!(said.join("\n"));
}
