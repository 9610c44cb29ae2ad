use serde_json::json;

use super::*;

#[test]
fn probes_go_through_the_sidecar() {
    let report = object(&probed(), &settings()).unwrap();
    let pod = report.object.unwrap();
    let mut seen: Vec<_> = ["web", "db", "other"].iter().map(|name| container(&pod, name).clone()).collect();
    seen.push(bootstrap_of(&pod)["static_resources"]["listeners"].clone());
    seen.push(bootstrap_of(&pod)["static_resources"]["clusters"].clone());
    insta::assert_snapshot!(remora_xds::write_yaml(&seen.into()));
    assert_eq!(
        report.notes,
        ["Pod shop/web: spec.containers[2].livenessProbe asks example.com, and is left as it is"]
    );
    assert_eq!(option(container(&pod, INIT), "--exclude-inbound-ports").unwrap(), "15021,15030");
}

#[test]
fn probes_stay_where_the_kubelet_reaches_the_program() {
    for annotation in ["remora.dev/rewrite-probes", "sidecar.istio.io/rewriteAppHTTPProbers"] {
        let mut pod = probed();
        pod["metadata"]["annotations"] = json!({annotation: "false"});
        assert_eq!(container(&of(&pod), "web"), container(&pod, "web"), "{annotation}");
    }
    let mut pod = probed();
    pod["metadata"]["annotations"] = json!({"remora.dev/interception": "none"});
    assert_eq!(container(&of(&pod), "db"), container(&pod, "db"));
}

/// The proxy's own code reads what the pod would start it with.
#[test]
fn the_proxy_takes_the_bootstrap() {
    for interception in [Interception::Init, Interception::None] {
        let pod = object(&probed(), &Settings { interception, ..settings() }).unwrap().object.unwrap();
        let text = expanded(&option(container(&pod, PROXY), "--config-yaml").unwrap());
        let loaded = remora_proxy::app::load_text(&text, "bootstrap", true);
        loaded.and_then(remora_proxy::app::check).unwrap_or_else(|error| panic!("{error}"));
        let bootstrap: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bootstrap["node"]["id"], "sidecar~10.0.0.9~web-1.shop~shop.svc");
        assert_eq!(text.contains("\"/ready$(X)$$a$b$$(POD_IP)$\""), interception == Interception::Init);
    }
}

#[test]
fn the_options_are_those_of_the_proxy() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: remora_proxy::cli::ProxyArgs,
    }
    let pod = of(&pod_with(&json!({}), &json!({"terminationGracePeriodSeconds": 20})));
    let proxy = container(&pod, PROXY);
    let args: Vec<_> = proxy["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let parsed = <Command as clap::Parser>::try_parse_from(&args).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(parsed.args.drain_time_s, 15, "5 s before it is killed");
}

#[test]
fn a_classic_sidecar_of_a_job_is_warned_about() {
    let job = |native| {
        let pod = pod_with(&json!({}), &json!({"restartPolicy": "Never"}));
        object(&pod, &Settings { native, ..settings() }).unwrap().notes
    };
    assert!(job(Native::No)[0].contains("quitquitquit"));
    assert_eq!(job(Native::Yes), [] as [String; 0]);
}
