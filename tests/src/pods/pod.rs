//! A pod: what Kubernetes makes of a manifest that `remora inject` has seen, by hand.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::network::{Addresses, Network};
use crate::netns::{Namespace, Running, Said};
use crate::wait::eventually;

/// Whom the programs of the pods run as.
pub const USER: u32 = 2000;

/// What a pod is.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name, and that of its Workload.
    pub name: &'static str,
    /// Its label `app`, and its service account.
    pub app: &'static str,
    /// On which node.
    pub node: u8,
    /// Last part of its addresses.
    pub number: u8,
    /// Where its program listens.
    pub ports: &'static [u16],
    /// Whether its program sees the addresses of its clients (TPROXY).
    pub shows_clients: bool,
}

impl Spec {
    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses::of_pod(self.node, self.number)
    }

    /// What somebody would give to Kubernetes.
    fn manifest(&self) -> Value {
        let ports: Vec<_> = self.ports.iter().map(|port| json!({"containerPort": port})).collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": "default", "labels": {"app": self.app, "version": "v1"},
                "annotations": {"remora.dev/interception-mode": if self.shows_clients { "TPROXY" } else { "REDIRECT" }},
            },
            "spec": {
                "serviceAccountName": self.app, "terminationGracePeriodSeconds": 20,
                "containers": [{"name": "program", "image": "program", "ports": ports}],
            },
        })
    }

    /// What the control plane is told of it.
    #[must_use]
    pub fn workload(&self) -> Value {
        let ports: Vec<_> = self.ports.iter().map(|port| json!({"port": port})).collect();
        let own = self.addresses();
        json!({
            "apiVersion": "remora.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": self.name, "labels": {"app": self.app, "version": "v1"}},
            "spec": {
                "address": own.v4, "addresses": [own.v6], "interception": "Redirect",
                "serviceAccount": self.app, "ports": ports,
            },
        })
    }
}

/// A pod that has a network namespace, its rules, and maybe a sidecar and programs.
#[derive(Debug)]
pub struct Pod {
    /// What it is.
    pub spec: Spec,
    /// Where it runs.
    pub namespace: Namespace,
    /// Its files.
    pub folder: PathBuf,
    manifest: Value,
    binary: PathBuf,
    sidecar: Option<Running>,
    programs: BTreeMap<String, Running>,
}

impl Pod {
    /// Injects, makes the namespace with `hosts` as its names, and runs the init container.
    ///
    /// # Panics
    /// When one of these does not work.
    #[must_use]
    pub fn new(spec: Spec, network: &Network, files: &Files, hosts: &str) -> Self {
        let folder = files.root.join(spec.name);
        for volume in ["remora-state", "remora-roots", "remora-token", "program"] {
            fs::create_dir_all(folder.join(volume)).expect("folder of a volume");
        }
        fs::write(folder.join("remora-roots/roots.pem"), &files.roots).expect("roots");
        fs::write(folder.join("remora-token/token"), format!("token:default:{}", spec.app)).expect("token");
        // As a volume is that everybody may write to.
        fs::set_permissions(folder.join("remora-state"), Permissions::from_mode(0o777)).expect("mode");
        chown(folder.join("program"), Some(USER), Some(USER)).expect("owner");
        let manifest = inject(&spec, &folder, &files.binary);
        let namespace = network.pod(spec.name, spec.node, spec.number);
        namespace.names(hosts);
        let pod = Self {
            spec,
            namespace,
            folder,
            manifest,
            binary: files.binary.clone(),
            sidecar: None,
            programs: BTreeMap::new(),
        };
        let said = pod.init();
        assert_eq!(said.status, 0, "remora-init of {}: {}{}", spec.name, said.out, said.err);
        pod
    }

    /// The init container, with the one capability that the manifest gives it.
    fn init(&self) -> Said {
        let container = self.container("remora-init");
        let caps = "--bounding-set=-all,+net_admin";
        let mut command = self.namespace.command(&["setpriv", caps, "--no-new-privs"]);
        command.arg(&self.binary).args(self.arguments(container));
        command.output().expect("remora init").into()
    }

    fn container(&self, name: &str) -> &Value {
        let list = self.manifest["spec"]["initContainers"].as_array().expect("initContainers");
        list.iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// As the kubelet gives them: with variables replaced, and paths in the volumes that are mounted there.
    fn arguments(&self, container: &Value) -> Vec<String> {
        let own = self.spec.addresses();
        let env: BTreeMap<_, _> = container["env"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|variable| {
                let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
                let value = match field {
                    Some("metadata.name") => self.spec.name.to_owned(),
                    Some("metadata.namespace") => "default".to_owned(),
                    Some("status.podIP") => own.v4.to_string(),
                    Some("status.podIPs") => format!("{},{}", own.v4, own.v6),
                    other => panic!("field {other:?} of a pod"),
                };
                (variable["name"].as_str().expect("name of a variable").to_owned(), value)
            })
            .collect();
        let mounts: Vec<_> = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mount| {
                let text = |field: &str| mount[field].as_str().expect("text").to_owned();
                (text("mountPath"), self.folder.join(text("name")).display().to_string())
            })
            .collect();
        let args = container["args"].as_array().expect("args").iter();
        args.map(|arg| {
            let arg = expand(arg.as_str().expect("text"), &env);
            let mounted = mounts.iter().find_map(|(path, volume)| {
                arg.strip_prefix(path.as_str()).map(|rest| format!("{volume}{rest}"))
            });
            mounted.unwrap_or(arg)
        })
        .collect()
    }

    /// Starts the sidecar, as the user and with the capabilities that the manifest says; does not wait for it.
    ///
    /// # Panics
    /// When it runs already, or cannot be started.
    pub fn start_sidecar(&mut self) {
        assert!(self.sidecar.is_none(), "a sidecar runs in {}", self.spec.name);
        let container = self.container("remora-proxy");
        let context = &container["securityContext"];
        let [user, group] =
            ["runAsUser", "runAsGroup"].map(|field| context[field].as_u64().expect("a number").to_string());
        let added = context["capabilities"]["add"].as_array().into_iter().flatten();
        let caps: String =
            added.map(|name| format!(",+{}", name.as_str().expect("text").to_lowercase())).collect();
        let bounding = format!("--bounding-set=-all{caps}");
        let mut command = self.namespace.command(&["setpriv", "--reuid", &user, "--regid", &group]);
        command
            .args(["--clear-groups", &bounding, "--no-new-privs", "--pdeathsig", "KILL"])
            .arg(&self.binary)
            .args(self.arguments(container));
        self.sidecar = Some(self.spawn(command, "sidecar"));
    }

    /// Waits until the startup probe passes, asked from the node as the kubelet does.
    ///
    /// # Panics
    /// When the sidecar ends, or is not ready in time.
    pub async fn sidecar_ready(&mut self, network: &Network) {
        let probe = &self.container("remora-proxy")["startupProbe"]["httpGet"];
        let (port, path) = (&probe["port"], probe["path"].as_str().expect("path"));
        let url = format!("http://{}:{port}{path}", self.spec.addresses().v4);
        let name = self.spec.name;
        eventually(&format!("the startup probe of {name}"), || {
            let ended = self.sidecar.as_mut().expect("a sidecar").ended();
            assert!(ended.is_none(), "the sidecar of {name} ended: {ended:?}\n{}", self.log("sidecar"));
            network.node(self.spec.node).run(&["curl", "-sfo", "/dev/null", &url]).status == 0
        })
        .await;
    }

    /// The sidecar, to be signalled or waited for.
    ///
    /// # Panics
    /// When none runs.
    pub fn sidecar(&mut self) -> &mut Running {
        self.sidecar.as_mut().expect("a sidecar")
    }

    /// Forgets the sidecar; it is killed if it runs.
    pub fn drop_sidecar(&mut self) {
        self.sidecar = None;
    }

    /// Starts a program that stays, as [`USER`]; its output is in the log `name`.
    pub fn start(&mut self, name: &str, words: &[&str]) {
        let program = self.spawn(self.as_user(words), name);
        self.programs.insert(name.to_owned(), program);
    }

    /// A program that was started.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn program(&mut self, name: &str) -> &mut Running {
        self.programs.get_mut(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Waits until something in the pod listens there.
    ///
    /// # Panics
    /// When nothing does; says what the programs of the pod wrote.
    pub async fn listens(&self, port: u16) {
        let filter = format!("sport = :{port}");
        eventually(&format!("port {port} of {}", self.spec.name), || {
            !self.namespace.run(&["ss", "-Hltn", &filter]).out.is_empty()
        })
        .await;
    }

    /// A command as [`USER`], which may read the checkout, and has nobody's settings.
    #[must_use]
    pub fn as_user(&self, words: &[&str]) -> Command {
        let user = USER.to_string();
        let mut command = self.namespace.command(&["setpriv", "--reuid", &user, "--regid", &user]);
        command
            .args(["--clear-groups", "--pdeathsig", "KILL"])
            .args(["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"])
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.folder.join("program"))
            .current_dir(self.folder.join("program"));
        command
    }

    /// Runs a program to its end, as [`USER`].
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Said {
        self.as_user(words).output().expect("a program").into()
    }

    /// What a program, or the sidecar, wrote.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name).with_extension("log")).unwrap_or_default()
    }

    /// A page of the sidecar's admin.
    #[must_use]
    pub fn admin(&self, path: &str) -> String {
        self.namespace.run(&["curl", "-s", &format!("http://127.0.0.1:15000{path}")]).out
    }

    fn spawn(&self, mut command: Command, name: &str) -> Running {
        let path = self.folder.join(name).with_extension("log");
        let log = File::options().create(true).append(true).open(path).expect("a log");
        let out = log.try_clone().expect("a log");
        command.stdout(Stdio::from(out)).stderr(log).spawn().expect("a process").into()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sidecar of {}:\n{}", self.spec.name, self.log("sidecar"));
        }
    }
}

/// What all pods of a rig share.
#[derive(Debug)]
pub struct Files {
    /// Where they are; everybody may enter.
    pub root: PathBuf,
    /// Roots of the CA, PEM.
    pub roots: String,
    /// `remora`, where every user may run it.
    pub binary: PathBuf,
}

/// `remora inject` as somebody runs it.
fn inject(spec: &Spec, folder: &Path, binary: &Path) -> Value {
    let file = folder.join("pod.yaml");
    fs::write(&file, spec.manifest().to_string()).expect("manifest");
    let control = format!("{}:15012", Network::control_address().v4);
    let said = Command::new(binary).args(["inject", "--control", &control, "-f"]).arg(&file).output();
    let said = said.expect("remora inject");
    let problems = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "remora inject: {problems}");
    fs::write(folder.join("injected.yaml"), &said.stdout).expect("manifest");
    serde_saphyr::from_slice(&said.stdout).expect("YAML")
}

/// Kubernetes' way with `$(NAME)`: what is not known stays, and `$$` is `$`.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let named = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let replaced = named.and_then(|(name, tail)| Some((env.get(name)?, tail)));
        (out, rest) = match (after.strip_prefix('$'), replaced) {
            (Some(tail), _) => (out + "$", tail),
            (None, Some((value, tail))) => (out + value, tail),
            (None, None) => (out + "$", after),
        };
    }
    out + rest
}
