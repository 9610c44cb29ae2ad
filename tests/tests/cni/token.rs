//! The token in the plugin's kubeconfig, while `remora cni install` runs and at its end.

use std::net::TcpListener;
use std::time::Duration;

use remora_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::host::{Host, list, write};
use crate::node::{Api, DAEMON_SET, NAMESPACE, refusal};

const TOKEN: &str = "/api/v1/namespaces/remora-system/serviceaccounts/remora-cni/token";
const OFTEN: [&str; 4] = ["--every", "50ms", "--decide-within", "500ms"];
/// So long that nothing happens but what is asked for.
const SELDOM: [&str; 4] = ["--every", "1h", "--decide-within", "500ms"];

/// A node with a network, and an API server where the DaemonSet stands.
fn node() -> (Host, Api) {
    let (host, api) = (Host::new(), Api::start(json!({"metadata": {"name": "it"}})));
    write(&host.at("net.d/10-pods.conflist"), &list());
    (host, api)
}

fn granted(token: &str, seconds: u32) -> Value {
    json!({"spec": {"expirationSeconds": seconds}, "status": {"token": token}})
}

fn refuse_tokens(api: &Api) {
    api.says_to(TOKEN, 403, refusal(403));
}

/// At the second question for a token nothing is left to be done for the first.
async fn refused_twice(api: &Api) {
    let _before = api.lines();
    for question in ["a question", "another one"] {
        eventually(question, || api.lines().iter().any(|line| line.starts_with("POST "))).await;
    }
}

/// One that is good when the installer's pod, to which its own is bound, is gone; and always a fresh one.
#[tokio::test]
async fn the_plugin_has_a_token_of_its_own() {
    let (host, api) = node();
    refuse_tokens(&api);
    let installer = host.installer(api.port, &OFTEN);
    // Better the installer's own than none; and it is replaced as that one is.
    eventually("the list", || host.is_installed()).await;
    assert!(host.holds("first"));
    std::fs::write(host.at("account/token"), "second").unwrap();
    eventually("the installer's other token", || host.holds("second")).await;
    eventually("what is wrong", || {
        host.said().contains("there is no new token of remora-system/remora-cni: no")
    })
    .await;
    // Nor is it put in the place of what another installer got, as in an update.
    let mut others = host.list("remora-cni.kubeconfig");
    others["users"][0]["user"]["token"] = "another".into();
    write(&host.at("net.d/remora-cni.kubeconfig"), &others);
    std::fs::write(host.at("account/token"), "third").unwrap();
    refused_twice(&api).await;
    assert!(host.holds("another"));

    api.says_to(TOKEN, 201, granted("granted", 4));
    eventually("its own token", || host.holds("granted")).await;
    let asked = api.asked().into_iter().rfind(|asked| asked.line.starts_with("POST ")).unwrap();
    assert_eq!(asked.line, format!("POST {TOKEN} HTTP/1.1"));
    assert_eq!(asked.authorization, "Bearer third", "the installer's own");
    let request: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(
        (&request["kind"], &request["spec"]["boundObjectRef"]),
        (&json!("TokenRequest"), &Value::Null)
    );
    api.says_to(TOKEN, 201, granted("renewed", 4));
    eventually("another one", || host.holds("renewed")).await;
    // What is there is good for a while.
    api.says_to(TOKEN, 500, refusal(500));
    std::fs::write(host.at("account/token"), "fourth").unwrap();
    refused_twice(&api).await;
    assert!(host.holds("renewed"));
    installer.end().await;
}

/// The account is made anew, another key signs, or the node slept for a day.
#[tokio::test]
async fn a_token_that_is_not_known_any_more_is_replaced() {
    let (host, api) = node();
    api.says_to(TOKEN, 201, granted("granted", 86_400));
    let installer = host.installer(api.port, &OFTEN);
    eventually("its own token", || host.holds("granted")).await;
    api.says_to(TOKEN, 201, granted("another", 86_400));
    api.forgets("granted");
    eventually("another token", || host.holds("another")).await;
    // Where there is none, the installer's own.
    refuse_tokens(&api);
    api.forgets("another");
    eventually("the installer's own", || host.holds("first")).await;
    // Nor is that: it is said.
    api.forgets("first");
    eventually("what is wrong", || host.said().contains("does not take the token that the plugin has")).await;
    assert!(host.is_installed(), "no pod comes up without its rules");
    installer.end().await;
}

/// The rights for tokens are missing, and the pod to which the token was bound is gone.
#[tokio::test]
async fn what_an_earlier_installer_lent_is_replaced() {
    let (host, api) = node();
    refuse_tokens(&api);
    let installer = host.installer(api.port, &OFTEN);
    eventually("the list", || host.is_installed()).await;
    installer.end().await;
    assert!(host.holds("first") && host.is_installed());
    api.forgets("first");
    std::fs::write(host.at("account/token"), "second").unwrap();
    let installer = host.installer(api.port, &OFTEN);
    eventually("its own", || host.holds("second")).await;
    installer.end().await;
}

/// Its list is needed by every pod that is made meanwhile.
#[tokio::test]
async fn an_api_server_that_does_not_answer_is_not_waited_for() {
    let (host, _api) = node();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let _installer = host.installer(silent.local_addr().unwrap().port(), &OFTEN);
    eventually("the program", || host.at("bin/remora-cni").is_file()).await;
    let started = Instant::now();
    eventually("the list", || host.is_installed()).await;
    assert!(host.holds("first"));
    write(&host.at("net.d/10-pods.conflist"), &list());
    eventually("the list again", || host.is_installed()).await;
    // Less than one question may take.
    assert!(started.elapsed() < Duration::from_millis(4500), "{:?}", started.elapsed());
}

/// No more are asked for than can be kept.
#[tokio::test]
async fn a_token_that_cannot_be_written_is_kept() {
    let (host, api) = node();
    api.says_to(TOKEN, 201, granted("granted", 86_400));
    // A file is not put in the place of a folder.
    let kubeconfig = host.at("net.d/remora-cni.kubeconfig");
    std::fs::create_dir(&kubeconfig).unwrap();
    let installer = host.installer(api.port, &OFTEN);
    eventually("that it is said", || host.said().contains("not in place")).await;
    let mut asked = 0;
    for _ in 0..10 {
        std::fs::remove_file(host.at("bin/remora-cni")).unwrap();
        eventually("a look", || host.at("bin/remora-cni").is_file()).await;
        asked += api.lines().len();
    }
    assert!(asked <= 1, "{asked}");
    std::fs::remove_dir(&kubeconfig).unwrap();
    eventually("it", || host.holds("granted")).await;
    installer.end().await;
}

/// Whoever is not known cannot say that the DaemonSet is gone.
#[tokio::test]
async fn a_dead_token_does_not_decide_at_the_end() {
    for (own_is_known, stays) in [(true, true), (false, false)] {
        let (host, api) = node();
        api.says_to(TOKEN, 201, granted("granted", 86_400));
        let installer = host.installer(api.port, &SELDOM);
        eventually("the list", || host.is_installed()).await;
        eventually("its own token", || host.holds("granted")).await;
        let _before = api.lines();
        api.forgets("granted");
        if !own_is_known {
            api.forgets("first");
        }
        installer.end().await;
        assert_eq!(host.is_installed(), stays, "{own_is_known}");
        let mut wanted = vec![format!("GET {NAMESPACE} HTTP/1.1"); 2];
        wanted.extend(own_is_known.then(|| format!("GET {DAEMON_SET} HTTP/1.1")));
        // Where neither is known, each is asked by again.
        let lines = api.lines();
        assert!(lines.chunks(wanted.len()).all(|again| again == wanted), "{lines:?}");
        assert_eq!(lines.len() > wanted.len(), !own_is_known, "{lines:?}");
    }
}

/// An API server that starts knows nobody for a moment, or no rights.
#[tokio::test]
async fn a_refusal_that_passes_does_not_decide_at_the_end() {
    for status in [401, 403] {
        let (host, api) = node();
        let installer = host.installer(api.port, &["--every", "1h", "--decide-within", "20s"]);
        eventually("the list", || host.is_installed()).await;
        api.says_to(DAEMON_SET, status, refusal(status));
        let _before = api.lines();
        let passes = async {
            eventually("a question", || api.lines().iter().any(|line| line.contains(DAEMON_SET))).await;
            api.says_to(DAEMON_SET, 200, json!({"metadata": {"name": "remora-cni"}}));
        };
        tokio::join!(installer.end(), passes);
        assert!(host.is_installed(), "{status}: {}", host.said());
        assert!(host.said().contains("asking again"), "{status}: {}", host.said());
    }
}
