use serde_json::json;

use super::*;

#[test]
fn a_pod_with_a_native_sidecar() {
    insta::assert_snapshot!(injected(POD, &settings()));
}

#[test]
fn a_pod_with_a_classic_sidecar() {
    insta::assert_snapshot!(injected(POD, &Settings { native: Native::No, ..settings() }));
}

#[test]
fn a_pod_without_interception() {
    insta::assert_snapshot!(injected(POD, &Settings { interception: Interception::None, ..settings() }));
}

#[test]
fn workloads_have_it_in_their_templates() {
    let mut all = String::new();
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
    ] {
        all.push_str(&workload(version, kind));
        all.push_str("---\n");
    }
    let indented = SPEC.replace('\n', "\n      ");
    all.push_str(&format!("apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: web}}\nspec:\n  schedule: '* * * * *'\n  jobTemplate:\n    spec:\n      {}\n", indented.trim_end()));
    let done = documents(&texts(&all), &settings()).unwrap();
    assert_eq!(done.injected.len(), 7, "{:?}", done.skipped);
    insta::assert_snapshot!(injected(&all, &settings()));
}

#[test]
fn a_list_and_what_has_no_pods() {
    let text = format!(
        "# kept\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}} # as it was\ndata: {{on: yes}}\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {}- apiVersion: v1\n  kind: Service\n  metadata: {{name: web}}\n",
        POD.replace('\n', "\n  ").trim_end().to_owned() + "\n"
    );
    let done = documents(&texts(&text), &settings()).unwrap();
    assert_eq!(done.injected, ["Pod shop/web"]);
    insta::assert_snapshot!(injected(&text, &settings()));
}

#[test]
fn documents_that_stay_are_printed_as_they_were() {
    let text = "# a comment\napiVersion: v1\nkind: Service\nmetadata: {name: a} # why\n---\n# only a comment\n---\n\napiVersion: example.com/v1\nkind: Pod\nspec: {}\n";
    let done = documents(&texts(text), &settings()).unwrap();
    assert_eq!(done.yaml, text.replace("---\n\n", "---\n"));
    assert_eq!((done.injected.len(), done.skipped.len()), (0, 0));
}

/// What is not the injector's means what kubectl reads in the file (YAML 1.1).
#[test]
fn scalars_mean_the_same_after_it() {
    let text = POD.replace("spec:\n", "spec:\n  readOnly: True\n  volumes:\n  - {name: a, secret: {defaultMode: 0400, optional: yes}}\n  - {name: b, secret: {defaultMode: \"0400\"}, size: 1.0}\n");
    let yaml = injected(&text, &settings());
    for line in [
        "readOnly: true\n",
        "defaultMode: 256\n",
        "optional: true\n",
        "defaultMode: \"0400\"\n",
        "size: 1.0\n",
    ] {
        assert!(yaml.contains(line), "{line}: {yaml}");
    }
    let node = POD.replace("spec:\n", "spec:\n  hostNetwork: True\n");
    let done = documents(&texts(&node), &settings()).unwrap();
    assert_eq!(done.skipped, [("Pod shop/web".to_owned(), Skip::HostNetwork)]);
}

#[test]
fn unknown_fields_stay() {
    let pod = pod_with(
        &json!({}),
        &json!({"resourceClaims": [{"name": "gpu"}], "futureField": {"x": [1.5, null]}}),
    );
    let new = of(&pod);
    assert_eq!(new["spec"]["futureField"], pod["spec"]["futureField"]);
    assert_eq!(new["spec"]["resourceClaims"], pod["spec"]["resourceClaims"]);
    assert_eq!(new["spec"]["containers"][0], pod["spec"]["containers"][0]);
}

#[test]
fn native_where_the_cluster_has_it() {
    let native = |native, version: Option<&str>| {
        let cluster = version.map(|v| v.parse().unwrap());
        let pod = object(&pod_with(&json!({}), &json!({})), &Settings { native, cluster, ..settings() });
        names(&pod.unwrap().object.unwrap(), "initContainers").contains(&PROXY.to_owned())
    };
    assert!(native(Native::Auto, None));
    assert!(native(Native::Auto, Some("1.29")));
    assert!(native(Native::Auto, Some("v1.32.4-gke.100")));
    assert!(!native(Native::Auto, Some("v1.28.9")));
    assert!(!native(Native::Auto, Some("1.9+")));
    assert!(native(Native::Yes, Some("1.28")));
    assert!(!native(Native::No, Some("1.32")));
    for wrong in ["1", "one.29", "1.x", ""] {
        assert!(wrong.parse::<Version>().is_err(), "{wrong}");
    }
    let classic = of(&annotated(&json!({"remora.dev/native-sidecar": "false"})));
    assert_eq!(names(&classic, "containers"), [PROXY, "web"]);
}

#[test]
fn the_programs_own_init_containers_can_call_others() {
    let own = json!({"initContainers": [{"name": "migrate", "image": "m"}]});
    assert_eq!(names(&of(&pod_with(&json!({}), &own)), "initContainers"), [INIT, PROXY, "migrate"]);
    let classic = json!({"annotations": {"remora.dev/native-sidecar": "false"}});
    assert_eq!(names(&of(&pod_with(&classic, &own)), "initContainers"), ["migrate", INIT]);
}
