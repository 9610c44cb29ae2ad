//! Starts and ends the proxies.

use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::wire::{Wire, encode};

/// Which program, with which arguments in front.
#[derive(Debug, Clone)]
pub struct Program {
    /// For messages.
    pub name: &'static str,
    /// The binary.
    pub path: PathBuf,
    /// Arguments before `-c`.
    pub before: Vec<String>,
    /// Arguments at the end.
    pub after: Vec<String>,
}

impl Program {
    /// Envoy, which writes its access log to disk only every 10 s unless told otherwise.
    pub fn envoy(path: PathBuf) -> Self {
        let after = ["--disable-hot-restart", "-l", "error"].map(str::to_owned).to_vec();
        Self { name: "Envoy", path, before: Vec::new(), after }
    }
    /// Remora.
    pub fn remora(path: PathBuf) -> Self {
        Self { name: "Remora", path, before: vec!["proxy".into()], after: Vec::new() }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    output: PathBuf,
    /// Port of each listener by name.
    pub listeners: BTreeMap<String, u16>,
}

impl Proxy {
    /// Starts `program` with `bootstrap` and waits until it is ready; its files go to `dir`.
    pub async fn start(program: &Program, bootstrap: &str, dir: &Path) -> anyhow::Result<Self> {
        let config = dir.join("bootstrap.yaml");
        let admin = dir.join("admin-address");
        let output = dir.join("output");
        std::fs::write(&config, bootstrap)?;
        let file = std::fs::File::create(&output)?;
        let child = Command::new(&program.path)
            .args(&program.before)
            .arg("-c")
            .arg(&config)
            .args(["--concurrency", "1", "--admin-address-path"])
            .arg(&admin)
            .args(&program.after)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.path.display()))?;
        let mut proxy = Self { child, output, listeners: BTreeMap::new() };
        match proxy.ready(&admin).await {
            Ok(listeners) => proxy.listeners = listeners,
            Err(e) => bail!("{} does not become ready: {e:#}\n{}", program.name, proxy.tail()),
        }
        Ok(proxy)
    }

    async fn ready(&mut self, admin: &Path) -> anyhow::Result<BTreeMap<String, u16>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        loop {
            tick.tick().await;
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}");
            }
            let last = match Self::poll(admin).await {
                Ok(listeners) => return Ok(listeners),
                Err(e) => e,
            };
            if Instant::now() > deadline {
                return Err(last.context("not ready after 20 s"));
            }
        }
    }

    async fn poll(admin: &Path) -> anyhow::Result<BTreeMap<String, u16>> {
        let address = std::fs::read_to_string(admin).context("no admin address yet")?;
        get(&address, "/ready").await?;
        let page = get(&address, "/listeners?format=json").await?;
        let page: serde_json::Value = serde_json::from_slice(&page)?;
        let mut listeners = BTreeMap::new();
        for listener in page["listener_statuses"].as_array().context("no listener_statuses")? {
            let name = listener["name"].as_str().context("a listener without a name")?;
            let port =
                listener["local_address"]["socket_address"]["port_value"].as_u64().context("no port")?;
            let port = u16::try_from(port)?;
            ensure!(port != 0, "listener {name} has no port yet");
            listeners.insert(name.to_owned(), port);
        }
        ensure!(!listeners.is_empty(), "no listeners");
        Ok(listeners)
    }

    /// Ends it the polite way and waits.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid =
            self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let pid = pid.with_context(|| format!("it had already ended\n{}", self.tail()))?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        match tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                ensure!(status.success(), "it ended with {status} after SIGTERM\n{}", self.tail());
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("it did not end within 10 s of SIGTERM\n{}", self.tail())
            }
        }
    }

    /// The end of what it printed.
    pub fn tail(&self) -> String {
        let text =
            std::fs::read(&self.output).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

async fn get(address: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut wire = Wire::new(Box::new(TcpStream::connect(address.trim()).await?));
    let fields =
        [("host".to_owned(), address.trim().to_owned()), ("connection".to_owned(), "close".to_owned())];
    wire.send(&encode(&format!("GET {path} HTTP/1.1"), &fields)).await?;
    let head = wire.head().await?.context("no answer")?;
    ensure!(head.word(1) == "200", "{path}: {}", head.start);
    Ok(wire.body(&head, false, false).await?.bytes)
}
