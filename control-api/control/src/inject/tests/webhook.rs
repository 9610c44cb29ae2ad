use serde_json::json;

use super::*;

fn asked(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": "shop", "object": object,
        },
    })
}

fn patched(pod: &Value, answer: &Value) -> Value {
    use base64::Engine;
    let patch = answer["response"]["patch"].as_str().unwrap();
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
    let mut pod = pod.clone();
    apply(&mut pod, &serde_json::from_slice(&patch).unwrap());
    pod
}

#[test]
fn the_webhook_answers_with_a_patch_that_makes_the_same_pod() {
    let pod = probed();
    let answer = review(&asked(&pod), &settings(), true);
    assert_eq!(
        (&answer["response"]["uid"], &answer["response"]["allowed"]),
        (&json!("705ab4f5"), &json!(true))
    );
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    assert_eq!(answer["response"]["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(patched(&pod, &answer), of(&pod));

    let mut bare = pod_with(&json!({}), &json!({}));
    bare["metadata"] = json!({"generateName": "web-"});
    for field in ["apiVersion", "kind"] {
        bare.as_object_mut().unwrap().shift_remove(field);
    }
    let done = patched(&bare, &review(&asked(&bare), &settings(), true));
    assert_eq!(done.as_object().unwrap().len(), 2, "nothing is added that only tells what it is");
    assert!(done["metadata"].get("namespace").is_none());
    assert_eq!(bootstrap_of(&done)["node"]["metadata"]["APP"], "web");
}

#[test]
fn the_webhook_leaves_alone_what_is_not_asked_for() {
    let allowed = |question: &Value, opted_in| {
        let answer = review(question, &settings(), opted_in);
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        answer["response"] == json!({"allowed": true, "uid": "705ab4f5"})
    };
    let pod = pod_with(&json!({}), &json!({}));
    assert!(allowed(&asked(&pod), false), "the namespace has not opted in");
    assert!(!allowed(
        &asked(&pod_with(&json!({"labels": {"remora.dev/inject": "true"}}), &json!({}))),
        false
    ));
    assert!(allowed(&asked(&of(&pod)), true), "it has been injected");
    let mut update = asked(&pod);
    update["request"]["operation"] = "UPDATE".into();
    assert!(allowed(&update, true));
    let mut service = asked(&pod);
    service["request"]["kind"]["kind"] = "Service".into();
    assert!(allowed(&service, true));
    let mut system = asked(&pod);
    system["request"]["namespace"] = "kube-system".into();
    system["request"]["object"]["metadata"].as_object_mut().unwrap().remove("namespace");
    assert!(allowed(&system, true));
}

#[test]
fn the_webhook_denies_what_it_cannot_do() {
    let denied = |question: &Value| {
        let answer = review(question, &settings(), true);
        assert_eq!(answer["response"]["allowed"], false);
        answer["response"]["status"]["message"].as_str().unwrap().to_owned()
    };
    let mut old = asked(&probed());
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let mut empty = asked(&probed());
    empty["request"]["object"] = Value::Null;
    let said = [
        denied(&old),
        denied(&empty),
        denied(&Value::Null),
        denied(&asked(&annotated(&json!({"remora.dev/proxy-cpu": "lots"})))),
    ];
    insta::assert_snapshot!(said.join("\n"));
}
