//! A node: the plugin, an API server, and the network namespace of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use remora_control::inject::{Interception, Settings, object};
use remora_tests::netns::{self, Namespace, Said};
use remora_tests::proxy::binary;
use serde_json::{Value, json};

pub(crate) const POD: &str = "/api/v1/namespaces/shop/pods/web";
pub(crate) const NAMESPACE: &str = "/api/v1/namespaces/remora-system";
pub(crate) const DAEMON_SET: &str = "/apis/apps/v1/namespaces/remora-system/daemonsets/remora-cni";

/// Answers each request with a status and a body, by its path where there is something for that, and keeps it.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) port: u16,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Answer = (u16, Value);

#[derive(Debug)]
struct Answers {
    any: Answer,
    by_path: BTreeMap<String, Answer>,
    /// `Authorization` of those that are answered with 401.
    forgotten: BTreeSet<String>,
}

/// A request.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Its first line.
    pub(crate) line: String,
    /// `Authorization`.
    pub(crate) authorization: String,
    pub(crate) body: String,
}

impl Asked {
    fn read(stream: &mut impl BufRead) -> Self {
        let (mut asked, mut length) = (Self::default(), 0);
        for line in stream.by_ref().lines() {
            let line = line.unwrap_or_default();
            if line.is_empty() {
                break;
            }
            if asked.line.is_empty() {
                asked.line = line;
                continue;
            }
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    asked.authorization = value.to_owned();
                }
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                _ => {}
            }
        }
        stream.take(length).read_to_string(&mut asked.body).unwrap();
        asked
    }
}

impl Api {
    pub(crate) fn start(pod: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(Mutex::new(Answers {
            any: (200, pod),
            by_path: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        }));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answered, told) = (Arc::clone(&answers), Arc::clone(&asked));
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, answered, told) =
                    (stream.unwrap(), Arc::clone(&answered), Arc::clone(&told));
                // One that says nothing keeps no other from being served.
                std::thread::spawn(move || {
                    let request = Asked::read(&mut BufReader::new(stream.try_clone().unwrap()));
                    // Before it is told: what a test says after it was told is for the next one.
                    let (status, body) = answered.lock().unwrap().of(&request);
                    told.lock().unwrap().push(request);
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let _gone = stream.write_all(format!("{head}{body}").as_bytes());
                });
            }
        });
        Self { port, answers, asked }
    }

    /// To whatever nothing else is said to.
    pub(crate) fn says(&self, status: u16, body: Value) {
        self.answers.lock().unwrap().any = (status, body);
    }

    pub(crate) fn says_to(&self, path: &str, status: u16, body: Value) {
        self.answers.lock().unwrap().by_path.insert(path.to_owned(), (status, body));
    }

    /// The token is not known any more.
    pub(crate) fn forgets(&self, token: &str) {
        self.answers.lock().unwrap().forgotten.insert(format!("Bearer {token}"));
    }

    pub(crate) fn refuses(&self, status: u16) {
        self.says(status, refusal(status));
    }

    /// What came since this was asked last.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The first lines of it.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

impl Answers {
    fn of(&self, request: &Asked) -> Answer {
        if self.forgotten.contains(&request.authorization) {
            return (401, refusal(401));
        }
        let path = request.line.split(' ').nth(1).unwrap_or_default();
        self.by_path.get(path).unwrap_or(&self.any).clone()
    }
}

/// As API servers have it.
pub(crate) fn refusal(status: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "x", "code": status})
}

pub(crate) fn pod(interception: Interception) -> Value {
    // The injector refuses a pod that says what is captured when nothing is.
    let annotations = match interception {
        Interception::None => json!({}),
        _ => json!({"remora.dev/exclude-outbound-ports": "3306"}),
    };
    injected(interception, &annotations)
}

/// A pod that says this.
pub(crate) fn injected(interception: Interception, annotations: &Value) -> Value {
    let plain = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "annotations": annotations},
        "spec": {"containers": [{"name": "web", "image": "web:1"}]},
    });
    let settings = Settings { interception, ..Settings::new("10.96.0.12:15012".parse().unwrap()) };
    object(&plain, &settings).unwrap().object.unwrap()
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) api: Api,
    pub(crate) pod: Namespace,
}

/// What the plugin before ours made.
pub(crate) fn made() -> Value {
    json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "198.51.100.1/24"}], "dns": {}})
}

impl Node {
    /// None, and says why, where this cannot be tested.
    pub(crate) fn new() -> Option<Self> {
        if netns::skipped("cni", &["ip", "nft", "setpriv"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("remora-test-").tempdir().unwrap();
        let api = Api::start(pod(Interception::Cni));
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{}", api.port)}}],
            "users": [{"name": "u", "user": {"token": "t"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let pod = connected();
        Some(Self { folder, api, pod })
    }

    pub(crate) fn configuration(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "remora-cni", "kubeconfig": self.folder.path().join("kubeconfig"),
            "excludeNamespaces": ["kube-system"], "prevResult": made(),
        })
    }

    pub(crate) fn netns(&self) -> String {
        format!("/run/netns/{}", self.pod.name())
    }

    pub(crate) fn call(&self, command: &str) -> Said {
        self.call_with(command, "shop", &self.configuration(), &self.netns())
    }

    pub(crate) fn call_with(
        &self,
        command: &str,
        namespace: &str,
        configuration: &Value,
        netns: &str,
    ) -> Said {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u");
        let plugin = self.folder.path().join("remora-cni");
        if !plugin.exists() {
            std::os::unix::fs::symlink(binary().0, &plugin).unwrap();
        }
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args.as_str()),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let mut child = Command::new(plugin)
            .envs(variables)
            // As runtimes have it, for images.
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _unread = child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes());
        child.wait_with_output().unwrap().into()
    }

    pub(crate) fn rules(&self) -> String {
        self.pod.must("nft -s list ruleset")
    }
}

/// A pod's namespace as the plugin before ours leaves it: an interface, an address, a route.
pub(crate) fn connected() -> Namespace {
    let pod = Namespace::new("pod");
    pod.must(
        "ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up;
         ip address add 198.51.100.1/24 dev eth0; ip route add default via 198.51.100.2",
    );
    pod
}
