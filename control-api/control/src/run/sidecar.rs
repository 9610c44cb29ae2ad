//! The sidecar: a process of its own, from the same binary, configured over ADS.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::Server;

/// How long it may take to get its configuration.
const STARTS_IN: Duration = Duration::from_secs(30);
/// How long it may take to finish what it has.
const ENDS_IN: Duration = Duration::from_secs(15);

pub(super) struct Sidecar {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Sidecar {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(
        control: SocketAddr,
        namespace: &str,
        name: &str,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("remora-run-").tempdir().context("no temporary folder")?;
        let (config, admin) = (folder.path().join("bootstrap.yaml"), folder.path().join("admin"));
        let bootstrap = bootstrap(control, namespace, name, address);
        std::fs::write(&config, remora_xds::write_yaml(&bootstrap))?;
        let child = Command::new(std::env::current_exe().context("where is this program?")?)
            .arg("proxy")
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", "1", "--drain-time-s", "10", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is for the program; its sidecar ends after it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the sidecar")?;
        let mut sidecar = Self { child, _folder: folder };
        let deadline = Instant::now() + STARTS_IN;
        loop {
            if let Some(status) = sidecar.child.try_wait()? {
                bail!("the sidecar ended with {status}");
            }
            if let Ok(address) = std::fs::read_to_string(&admin)
                && let Ok(server) = Server::at(&address)
                && let Ok(answer) = server.ask(http::Method::GET, "/ready", None).await
                && answer.status.is_success()
            {
                return Ok(sidecar);
            }
            if Instant::now() > deadline {
                bail!(
                    "the sidecar has no configuration after {} s; `remora status` may say why",
                    STARTS_IN.as_secs()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets it finish what it has.
    pub(super) async fn end(mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(ENDS_IN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn bootstrap(control: SocketAddr, namespace: &str, name: &str, address: IpAddr) -> Value {
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "node": {"id": format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc"), "cluster": name},
        "admin": {"address": socket(SocketAddr::from(([127, 0, 0, 1], 0)))},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "remora-control"}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "remora-control", "type": "STATIC", "connect_timeout": "2s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http2, "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {
                "cluster_name": "remora-control",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(control)}}]}],
            },
        }]},
    })
}
