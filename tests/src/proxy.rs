//! The proxy as a process of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::certs::ClientTls;
use crate::client::http1::{Http1Client, Response};
use crate::client::http2::Http2Client;
use crate::config::{Bootstrap, Listener, cluster, cluster_http2, direct, to_cluster, with_our_defaults};
use crate::http1::Broken;
use crate::process::{beside, signal};
use crate::upstream::Upstream;
use crate::wait::{eventually, eventually_async};

/// A running proxy. Dropping it kills the process; when the test failed, what it wrote to stderr is shown.
#[derive(Debug)]
pub struct Proxy {
    process: Child,
    flavor: Flavor,
    folder: tempfile::TempDir,
    /// The admin page.
    pub admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
}

/// Which proxy is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// This project's.
    Remora,
    /// Envoy, to debug the tests themselves.
    Envoy,
}

/// The binary under test: `REMORA_BIN`, or the one that `cargo test` built beside the tests.
///
/// # Panics
/// When it is nowhere.
#[must_use]
pub fn binary() -> (PathBuf, Flavor) {
    if let Some(path) = std::env::var_os("REMORA_BIN").map(PathBuf::from) {
        let envoy = path.file_name().is_some_and(|name| name == "envoy");
        return (path, if envoy { Flavor::Envoy } else { Flavor::Remora });
    }
    (beside("remora-under-test").expect("remora-under-test beside the tests"), Flavor::Remora)
}

/// Where the address of the admin page is written to.
const ADMIN_FILE: &str = "admin-address";

/// How to start a proxy.
#[derive(Debug)]
pub struct Builder {
    bootstrap: Bootstrap,
    folder: tempfile::TempDir,
    program: Option<PathBuf>,
    workers: usize,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// What `ulimit` says before the start.
    open_files: Option<String>,
}

impl Proxy {
    /// A proxy with a bootstrap to fill.
    ///
    /// # Panics
    /// When there is no temporary folder.
    #[must_use]
    pub fn builder() -> Builder {
        let folder = tempfile::Builder::new().prefix("remora-test-").tempdir().expect("temporary folder");
        Builder {
            bootstrap: Bootstrap::default(),
            folder,
            program: None,
            workers: 1,
            arguments: Vec::new(),
            environment: Vec::new(),
            open_files: None,
        }
    }

    /// The standard proxy: listener `ingress` with `/admin` refused by 403 and everything else forwarded.
    pub async fn in_front_of(upstream: &impl Upstream) -> Self {
        Self::builder().listener(guarded("ingress")).upstream("origin", upstream).start().await
    }

    /// Where a listener listens.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn address(&self, listener: &str) -> SocketAddr {
        *self.listeners.get(listener).unwrap_or_else(|| panic!("no listener {listener}"))
    }

    /// Connects to listener `ingress` in plaintext.
    pub async fn http1(&self) -> Http1Client {
        Http1Client::connect(self.address("ingress")).await
    }

    /// Connects to listener `ingress` with TLS.
    ///
    /// # Panics
    /// When the handshake fails.
    pub async fn https1(&self, tls: &ClientTls) -> Http1Client {
        Http1Client::connect_tls(self.address("ingress"), tls).await.expect("TLS handshake")
    }

    /// Connects to listener `ingress` with HTTP/2 by prior knowledge.
    pub async fn http2(&self) -> Http2Client {
        Http2Client::connect(self.address("ingress")).await
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether this is our own proxy.
    #[must_use]
    pub fn is_remora(&self) -> bool {
        self.flavor == Flavor::Remora
    }

    /// The folder of its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("process");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("number");
        kib * 1024
    }

    /// CPU time used so far, in clock ticks (10 ms).
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("process");
        let after = stat.rsplit_once(')').expect("stat").1;
        let fields: Vec<_> = after.split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }

    /// Open file descriptors.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("process").count()
    }

    /// Sends a signal by its name, as [`signal`] knows it.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the process to end by itself.
    pub async fn exited(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("exit of the proxy", || {
            status = self.process.try_wait().expect("wait");
            status.is_some()
        })
        .await;
        status.expect("waited for")
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("wait").is_none()
    }

    /// The value of a series of `/stats/prometheus`, written as there: name and labels. 0 when it is not there.
    ///
    /// # Panics
    /// When there is no such page.
    pub async fn count(&self, series: &str) -> u64 {
        let page = self.admin("GET", "/stats/prometheus").await.expect("metrics").text();
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// Waits until a series has this value: what a client sees may come before it is counted.
    pub async fn counts(&self, series: &str, value: u64) {
        eventually_async(&format!("{series} {value}"), async || self.count(series).await == value).await;
    }

    /// Waits until the address of the admin page is known.
    ///
    /// # Panics
    /// When the process ends before.
    pub async fn find_admin(&mut self) {
        let (mut address, file) = (None, self.folder.path().join(ADMIN_FILE));
        eventually("address of the admin page", || {
            let ended = self.process.try_wait().expect("wait");
            assert!(ended.is_none(), "the proxy ended with {ended:?} before it was ready");
            address = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            address.is_some()
        })
        .await;
        self.admin = address.expect("waited for");
    }

    /// Asks the admin page where listeners listen.
    pub async fn find_listeners(&mut self) {
        self.listeners = listeners(self).await;
    }

    /// One request to the admin page.
    ///
    /// # Errors
    /// What went wrong on the connection.
    pub async fn admin(&self, method: &str, path: &str) -> Result<Response, Broken> {
        admin(self.admin, method, path).await
    }
}

async fn admin(address: SocketAddr, method: &str, path: &str) -> Result<Response, Broken> {
    let stream = tokio::net::TcpStream::connect(address).await;
    drop(stream.map_err(|e| Broken::Reset(e.to_string()))?);
    let mut client = Http1Client::connect(address).await;
    client
        .send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ))
        .await;
    client.response().await
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of the proxy (exit {:?}):\n{}", self.process.try_wait(), self.stderr());
        }
        let _gone = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Listener with the routes of [`Proxy::in_front_of`].
#[must_use]
pub fn guarded(name: &str) -> Listener {
    Listener::http(name).route(direct("/admin", 403, "guarded")).route(to_cluster("/", "origin"))
}

impl Builder {
    /// Adds a listener.
    #[must_use]
    pub fn listener(mut self, listener: impl Into<Value>) -> Self {
        self.bootstrap = self.bootstrap.listener(listener);
        self
    }

    /// Adds a cluster with one endpoint, in the protocol that the upstream speaks.
    #[must_use]
    pub fn upstream(self, name: &str, upstream: &impl Upstream) -> Self {
        let endpoints = [upstream.address()];
        if upstream.is_http2() {
            self.cluster(cluster_http2(name, &endpoints))
        } else {
            self.cluster(cluster(name, &endpoints))
        }
    }

    /// Adds a cluster.
    #[must_use]
    pub fn cluster(mut self, cluster: Value) -> Self {
        self.bootstrap = self.bootstrap.cluster(cluster);
        self
    }

    /// Sets the id of the node: who it is for a control plane.
    #[must_use]
    pub fn node(mut self, id: &str) -> Self {
        self.bootstrap = self.bootstrap.node(id);
        self
    }

    /// Sets `dynamic_resources`.
    #[must_use]
    pub fn dynamic(mut self, dynamic: Value) -> Self {
        self.bootstrap = self.bootstrap.dynamic(dynamic);
        self
    }

    /// Lays `patch` over the bootstrap.
    #[must_use]
    pub fn with(mut self, patch: Value) -> Self {
        self.bootstrap = self.bootstrap.with(patch);
        self
    }

    /// Starts another program than the binary under test, which takes its arguments.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Sets the number of workers, otherwise 1.
    #[must_use]
    pub const fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Adds a command-line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Limits the process's open files.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(format!("-n {limit}"));
        self
    }

    /// The limit on open files that the process begins with; it may raise it.
    #[must_use]
    pub fn first_open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(format!("-Sn {limit}"));
        self
    }

    /// The folder that its files will be in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Panics
    /// When it ends, or is not ready in time.
    pub async fn start(self) -> Proxy {
        let mut proxy = self.launch();
        proxy.find_admin().await;
        eventually_async("readiness of the proxy", async || {
            assert!(proxy.process.try_wait().expect("wait").is_none(), "the proxy ended before it was ready");
            admin(proxy.admin, "GET", "/ready").await.is_ok_and(|r| r.status == 200)
        })
        .await;
        proxy.find_listeners().await;
        proxy
    }

    /// Starts the process and waits for nothing: neither the admin page nor its listeners are known.
    #[must_use]
    pub fn launch(self) -> Proxy {
        let (process, flavor) = self.spawn();
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        Proxy { process, flavor, folder: self.folder, admin: unknown, listeners: BTreeMap::new() }
    }

    /// Starts a process that is expected to refuse its config, and returns its exit status and stderr.
    pub async fn refuse(self) -> (ExitStatus, String) {
        let mut proxy = self.launch();
        (proxy.exited().await, proxy.stderr())
    }

    fn spawn(&self) -> (Child, Flavor) {
        let folder = self.folder.path();
        let (binary, flavor) = binary();
        let path = self.program.clone().unwrap_or(binary);
        let mut bootstrap = self.bootstrap.to_json();
        if flavor == Flavor::Envoy {
            with_our_defaults(&mut bootstrap);
        }
        // JSON is YAML.
        let config = folder.join("bootstrap.yaml");
        std::fs::write(&config, format!("{bootstrap:#}")).expect("write bootstrap");
        let mut command = match &self.open_files {
            None => Command::new(&path),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]).arg(&path);
                shell
            }
        };
        // The slim binary has one command, and no name for it.
        if flavor == Flavor::Remora && path.file_name().is_none_or(|name| name != "remora-proxy") {
            command.arg("proxy");
        }
        command.arg("-c").arg(&config).args(["--concurrency", &self.workers.to_string()]);
        command.arg("--admin-address-path").arg(folder.join(ADMIN_FILE));
        if flavor == Flavor::Envoy {
            command.args(["--use-dynamic-base-id", "-l", "warn"]);
        }
        let log = std::fs::File::create(folder.join("stderr")).expect("stderr file");
        let process = command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("stdout file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (process, flavor)
    }
}

async fn listeners(proxy: &Proxy) -> BTreeMap<String, SocketAddr> {
    let answer = proxy.admin("GET", "/listeners?format=json").await.expect("list of listeners");
    let list: Value = serde_json::from_slice(&answer.body).expect("JSON list of listeners");
    let mut all = BTreeMap::new();
    for entry in list["listener_statuses"].as_array().into_iter().flatten() {
        let socket = &entry["local_address"]["socket_address"];
        let name = entry["name"].as_str().expect("name of a listener");
        let ip = socket["address"].as_str().and_then(|a| a.parse().ok()).expect("address of a listener");
        let port = socket["port_value"].as_u64().and_then(|p| u16::try_from(p).ok()).expect("port");
        all.insert(name.to_owned(), SocketAddr::new(ip, port));
    }
    all
}
