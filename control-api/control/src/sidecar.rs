//! A sidecar beside a local program: a process of its own, from the same binary, configured over ADS.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use remora_mesh::names;
use remora_proxy::identity::CONTROL_PLANE;
use remora_proxy::notify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::ca::tokens::Terms;
use crate::client::Server;
use crate::files::private;

/// How long it may take to get its configuration, on a slow machine.
const STARTS_IN: Duration = Duration::from_secs(60);
/// How much longer than its drain time it may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long a token that it was given may be used.
const JOINS_IN: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);

/// Which sidecar.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The TLS port of the control plane (CA and ADS).
    pub(crate) control: SocketAddr,
    /// A join token for its identity.
    pub(crate) token: &'a str,
    /// Where programs may take its identity.
    pub(crate) socket: Option<&'a Path>,
    pub(crate) namespace: &'a str,
    /// Its Workload or registration.
    pub(crate) workload: &'a str,
    /// Labels of the workload, for the metrics.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// Under which others reach it.
    pub(crate) address: IpAddr,
    /// For its own files.
    pub(crate) folder: &'a Path,
    /// Instead of the standard error of this process.
    pub(crate) log: Option<File>,
    /// How long it may finish what it has.
    pub(crate) drain: Duration,
}

/// A sidecar that runs, and ends with this value.
pub(crate) struct Sidecar {
    /// Its admin page.
    pub(crate) admin: SocketAddr,
    child: Child,
    ends_in: Duration,
}

impl Sidecar {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or has no configuration in time.
    pub(crate) async fn start(options: Options<'_>) -> anyhow::Result<Self> {
        let (config, address) = (options.folder.join("bootstrap.yaml"), options.folder.join("admin"));
        std::fs::write(&config, remora_xds::write_yaml(&bootstrap(&options)))?;
        let token = options.folder.join("token");
        private(&token, options.token)?;
        let child = Command::new(std::env::current_exe().context("where is this program?")?)
            .arg("proxy")
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&address)
            .arg("--drain-time-s")
            .arg(options.drain.as_secs().to_string())
            .args(["--concurrency", "1", "--log-level", "warn"])
            .arg("--ca")
            .arg(format!("https://{}", options.control))
            .arg("--token-file")
            .arg(&token)
            .arg("--identity-dir")
            .arg(options.folder.join("identity"))
            .args(
                options
                    .socket
                    .map(|path| ["--identity-socket".as_ref(), path.as_os_str()])
                    .into_iter()
                    .flatten(),
            )
            // Whether the program is ready is not for its sidecar to say.
            .env_remove(notify::SOCKET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(options.log.map_or_else(Stdio::inherit, Stdio::from))
            // Ctrl-C is for whoever started it, and ends it in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the sidecar")?;
        let admin = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sidecar = Self { admin, child, ends_in: options.drain + GRACE };
        sidecar.ready(&address).await?;
        Ok(sidecar)
    }

    async fn ready(&mut self, address: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + STARTS_IN;
        loop {
            if let Some(status) = self.ended() {
                bail!("the sidecar ended with {status}");
            }
            if let Ok(text) = std::fs::read_to_string(address)
                && let (Ok(admin), Ok(server)) = (text.parse(), Server::at(&text))
                && let Ok(answer) = server.ask(http::Method::GET, "/ready", None).await
                && answer.status.is_success()
            {
                self.admin = admin;
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = STARTS_IN.as_secs();
                bail!("the sidecar has no configuration after {seconds} s; `remora status` may say why");
            }
            sleep(POLL).await;
        }
    }

    /// Its exit status, when it has one already.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end; [`Self::end`] waits for that.
    pub(crate) fn ask_to_end(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Lets it finish what it has.
    pub(crate) async fn end(mut self) {
        self.ask_to_end();
        if tokio::time::timeout(self.ends_in, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// A join token for one certificate of an identity.
///
/// # Errors
/// The control plane refuses, or cannot be asked.
pub(crate) async fn join_token(server: &Server, namespace: &str, account: &str) -> anyhow::Result<String> {
    let terms = Terms {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        ttl_seconds: JOINS_IN.as_secs(),
        uses: 1,
    };
    let made = server.call(http::Method::POST, "/remora/v1/tokens", Some(&json!(terms))).await?;
    made["token"].as_str().map(ToOwned::to_owned).context("the control plane made no token")
}

fn bootstrap(options: &Options<'_>) -> Value {
    let Options { control, namespace, workload, labels, address, .. } = options;
    let label = |name: &str, otherwise: &str| labels.get(name).map_or(otherwise, String::as_str).to_owned();
    // With Istio's keys.
    let metadata = json!({
        "WORKLOAD_NAME": workload, "NAMESPACE": namespace,
        "APP": label("app", workload), "CANONICAL_SERVICE": label("app", workload),
        "VERSION": label("version", "latest"), "CANONICAL_REVISION": label("version", "latest"),
    });
    let mut whole = dynamic(*control);
    whole["node"] = json!({
        "id": format!("sidecar~{address}~{workload}.{namespace}~{namespace}.svc"),
        "cluster": format!("{}.{namespace}", label("app", workload)), "metadata": metadata,
    });
    whole["admin"] = json!({"address": socket(SocketAddr::from(([127, 0, 0, 1], 0)))});
    whole
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// The part of a bootstrap that has everything else from the control plane.
pub(crate) fn dynamic(control: SocketAddr) -> Value {
    json!({
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": names::CONTROL_PLANE}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": names::CONTROL_PLANE, "type": "STATIC", "connect_timeout": "2s",
            "transport_socket": mutual_tls(),
            "typed_extension_protocol_options": http2(),
            "load_assignment": {
                "cluster_name": names::CONTROL_PLANE,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(control)}}]}],
            },
        }]},
    })
}

/// `typed_extension_protocol_options` of a cluster that speaks HTTP/2.
pub(crate) fn http2() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        },
    })
}

/// To the control plane, and to nobody else: with the certificate of the identity agent, and the roots that came with it.
fn mutual_tls() -> Value {
    let accepted = json!([{"san_type": "URI", "matcher": {"suffix": CONTROL_PLANE}}]);
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{"name": names::OWN_SECRET}],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": accepted},
                    "validation_context_sds_secret_config": {"name": names::ROOTS_SECRET},
                },
            },
        },
    })
}
