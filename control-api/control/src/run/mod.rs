//! `remora run`: one local program with a sidecar beside it, registered while it runs.

mod lease;
mod program;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use remora_mesh::Span;
use serde_json::{Map, Value, json};

use crate::client::Server;
use crate::commands::ServerArgs;
use crate::registry::instances::Registration;
use crate::sidecar::{self, Sidecar};

use lease::Lease;
use program::{Asked, Program};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora run --service orders --port 8080 -- ./orders --listen 127.0.0.1:8080
  remora run --egress stock=9080 -- curl http://127.0.0.1:9080/    only a caller, of one service
  remora run --http-proxy 15002 -- curl http://stock/    a caller, of any service by its name
  remora run --service orders --port 8080 --no-sidecar -- ./orders    only registered

The program is registered as an instance of the service, gets a sidecar that takes its configuration from the control plane, and is
drained on SIGTERM before it is asked to end. Exit status: that of the program (128 and the number when a signal ended it), 125 when it
could not be started, 2 for wrong arguments.")]
pub(crate) struct RunArgs {
    /// Service that the program is an instance of
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Port of the program on 127.0.0.1
    #[arg(long, value_name = "PORT", requires = "service")]
    port: Option<u16>,
    /// Name of the instance [default: made of the service, this machine and the process]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Further labels of the instance
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Service that the program calls, and where it finds it on 127.0.0.1 [default: all of the namespace, on their own ports]
    #[arg(short, long, value_name = "SERVICE[.NAMESPACE]=PORT", value_parser = egress)]
    egress: Vec<Egress>,
    /// An HTTP proxy for the program on this port of 127.0.0.1, by which it calls services by name; sets http_proxy and no_proxy for it
    #[arg(long, value_name = "PORT", conflicts_with = "no_sidecar", value_parser = clap::value_parser!(u16).range(1..))]
    http_proxy: Option<u16>,
    /// Service account: the identity is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(long, value_name = "ACCOUNT", default_value = "default")]
    service_account: String,
    /// Address under which others reach the sidecar
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port under which others reach the sidecar [default: a free one]
    #[arg(long, value_name = "PORT")]
    inbound_port: Option<u16>,
    /// Where the sidecar finds the control plane (CA and ADS, by TLS)
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15012")]
    control: SocketAddr,
    /// File with a join token for the sidecar [default: one that is asked for here]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Give the sidecar's identity to the program by a UNIX socket: SPIFFE Workload API, and SDS
    #[arg(long, value_name = "PATH")]
    identity_socket: Option<PathBuf>,
    /// Only register the program
    #[arg(long)]
    no_sidecar: bool,
    /// How long callers have to notice that it drains, before the program is asked to end
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    drain_time: Duration,
    #[command(flatten)]
    server: ServerArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// As other programs that run programs (env, timeout, docker).
const CANNOT: u8 = 125;
/// The status of a program that SIGTERM ended.
const ENDED: u8 = 128 + 15;
/// How long the sidecar may finish what it has, after the program.
const SIDECAR_DRAINS_IN: Duration = Duration::from_secs(10);

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A Service on a port of loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Egress {
    service: String,
    namespace: Option<String>,
    local_port: u16,
}

fn egress(text: &str) -> Result<Egress, String> {
    let wrong = || "write it as stock=9080 or stock.shop=9080".to_owned();
    let (name, port) = text.split_once('=').ok_or_else(wrong)?;
    let local_port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let (service, namespace) = match name.split_once('.') {
        Some((service, namespace)) => (service, Some(namespace.to_owned())),
        None => (name, None),
    };
    Ok(Egress { service: service.to_owned(), namespace, local_port })
}

/// A time as people write it, for arguments.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    Span::parse(text).map(|span| span.0).ok_or_else(|| "write it as 2s or 500ms".into())
}

pub(crate) fn run(args: &RunArgs) -> ExitCode {
    crate::commands::run("run", CANNOT, together(args))
}

async fn together(args: &RunArgs) -> anyhow::Result<u8> {
    let mut asked = Asked::install()?;
    let server = args.server.open()?;
    let name = args.name.clone().unwrap_or_else(|| instance_name(args));
    let inbound = match (args.no_sidecar, args.inbound_port, args.port) {
        (_, Some(port), _) | (true, None, Some(port)) => port,
        _ => free_port(args.address)?,
    };
    let said = registration(args, inbound);
    let labels = said.labels.clone();
    let lease = Lease::take(server.clone(), &args.namespace, &name, said).await?;
    let done = beside(args, &server, (&name, &labels), &lease, &mut asked).await;
    lease.end().await;
    done
}

async fn beside(
    args: &RunArgs,
    server: &Server,
    (name, labels): (&str, &Labels),
    lease: &Lease,
    asked: &mut Asked,
) -> anyhow::Result<u8> {
    let folder = tempfile::Builder::new().prefix("remora-run-").tempdir().context("no temporary folder")?;
    let sidecar = match args.no_sidecar {
        true => None,
        false => {
            let token = token(args, server).await?;
            tokio::select! {
                started = Sidecar::start(options(args, name, labels, folder.path(), &token)) => Some(started?),
                () = asked.ending() => return Ok(ENDED),
            }
        }
    };
    if args.http_proxy.is_some() && std::env::var_os("HTTP_PROXY").is_some() {
        eprintln!("remora run: HTTP_PROXY is set: programs that prefer it to http_proxy pass by the sidecar");
    }
    let set = |name: &str| std::env::var_os(name).map(|list| list.to_string_lossy().into_owned());
    let said = ["no_proxy", "NO_PROXY"].map(set);
    let program = Program::start(&args.command, &environment(args, &said))?;
    let status = supervise(args.drain_time, program, lease, asked).await;
    if let Some(sidecar) = sidecar {
        sidecar.end().await;
    }
    status
}

async fn token(args: &RunArgs, server: &Server) -> anyhow::Result<String> {
    match &args.token_file {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string()),
        None => sidecar::join_token(server, &args.namespace, &args.service_account).await,
    }
}

fn options<'a>(
    args: &'a RunArgs,
    name: &'a str,
    labels: &'a Labels,
    folder: &'a Path,
    token: &'a str,
) -> sidecar::Options<'a> {
    sidecar::Options {
        control: args.control,
        token,
        socket: args.identity_socket.as_deref(),
        namespace: &args.namespace,
        workload: name,
        labels,
        address: args.address,
        folder,
        log: None,
        drain: SIDECAR_DRAINS_IN,
    }
}

/// Until the program ends, by itself or because it was asked to.
async fn supervise(
    drain: Duration,
    mut program: Program,
    lease: &Lease,
    asked: &mut Asked,
) -> anyhow::Result<u8> {
    tokio::select! {
        status = program.ended() => return status,
        () = asked.ending() => {}
    }
    lease.drain().await;
    let noticed = tokio::time::sleep(drain);
    tokio::select! {
        status = program.ended() => return status,
        () = noticed => {}
        // Who asks twice means now.
        () = asked.ending() => {}
    }
    program.ask_to_end();
    program.ended().await
}

type Labels = BTreeMap<String, String>;

fn registration(args: &RunArgs, inbound: u16) -> Registration {
    let mut labels: Labels = args.label.iter().cloned().collect();
    if let Some(service) = &args.service {
        labels.entry("app".into()).or_insert_with(|| service.clone());
    }
    let mut workload = Map::new();
    workload.insert("address".into(), args.address.to_string().into());
    workload.insert("inboundPort".into(), inbound.into());
    if let Some(port) = args.port {
        workload.insert("ports".into(), json!([{"name": "http", "port": port}]));
    }
    if !args.egress.is_empty() {
        let item =
            |e: &Egress| json!({"service": e.service, "namespace": e.namespace, "localPort": e.local_port});
        workload.insert("egress".into(), args.egress.iter().map(item).collect());
    }
    if let Some(port) = args.http_proxy {
        workload.insert("httpProxy".into(), json!({"port": port}));
    }
    workload.insert("serviceAccount".into(), Value::String(args.service_account.clone()));
    Registration { labels, services: args.service.iter().cloned().collect(), workload, ttl_ms: None }
}

/// What tells the program of its HTTP proxy. Nothing about HTTPS: what the program encrypts cannot be routed, and most of it goes to others. `said`:
/// `no_proxy` and `NO_PROXY` as they are set. Programs look at one of the two, or at one first: both are what either said, and loopback. `*` is
/// everything, and that only where it stands alone.
fn environment(args: &RunArgs, said: &[Option<String>; 2]) -> Vec<(&'static str, String)> {
    let Some(port) = args.http_proxy else { return Vec::new() };
    let said = said.iter().flatten().flat_map(|list| list.split(',')).map(str::trim);
    let mut direct: Vec<&str> = Vec::new();
    for host in said.chain(["localhost", "127.0.0.1", "::1"]).filter(|host| !host.is_empty()) {
        if !direct.contains(&host) {
            direct.push(host);
        }
    }
    let direct = if direct.contains(&"*") { "*".to_owned() } else { direct.join(",") };
    let proxy = format!("http://127.0.0.1:{port}");
    vec![("http_proxy", proxy), ("no_proxy", direct.clone()), ("NO_PROXY", direct)]
}

/// `orders-laptop-4711`, as a DNS label.
fn instance_name(args: &RunArgs) -> String {
    let program = args.command.first().map(String::as_str).unwrap_or_default();
    let base = args.service.as_deref().unwrap_or_else(|| program.rsplit('/').next().unwrap_or(program));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = host.split('.').next().unwrap_or_default().to_owned();
    let short = |text: &str| -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        text.chars().map(fits).take(24).collect::<String>().trim_matches('-').to_owned()
    };
    let parts = [short(base), short(&host), std::process::id().to_string()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// A port that was free a moment ago. The sidecar binds it next; who takes it in between makes it fail loudly.
fn free_port(address: IpAddr) -> anyhow::Result<u16> {
    let bound = TcpListener::bind(SocketAddr::new(address, 0)).and_then(|listener| listener.local_addr());
    match bound {
        Ok(address) => Ok(address.port()),
        Err(error) => bail!("--address {address}: {error}"),
    }
}

/// A client of the control plane that says how to find it.
async fn first(server: &Server) -> anyhow::Result<()> {
    server.call(http::Method::GET, "/readyz", None).await.map(drop).context("is `remora control` running?")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parsed(more: &[&str]) -> Result<RunArgs, clap::Error> {
        let line = Line::try_parse_from([&["run"][..], more, &["--", "curl"]].concat());
        line.map(|line| line.args)
    }

    #[test]
    fn a_program_is_told_of_its_http_proxy_when_it_has_one() {
        let args = parsed(&["--http-proxy", "15002"]).unwrap();
        assert_eq!(Value::from(registration(&args, 1).workload)["httpProxy"], json!({"port": 15002}));
        let told = |no_proxy: Option<&str>, upper: Option<&str>| {
            environment(&args, &[no_proxy.map(str::to_owned), upper.map(str::to_owned)])
        };
        let proxy = ("http_proxy", "http://127.0.0.1:15002".to_owned());
        let both = |list: &str| [proxy.clone(), ("no_proxy", list.to_owned()), ("NO_PROXY", list.to_owned())];
        assert_eq!(told(None, None), both("localhost,127.0.0.1,::1"));
        assert_eq!(told(Some(".a.example"), None), both(".a.example,localhost,127.0.0.1,::1"));
        assert_eq!(
            told(Some("localhost, b,"), Some("b,.a.example")),
            both("localhost,b,.a.example,127.0.0.1,::1")
        );
        assert_eq!(told(Some(".a.example"), Some("*")), both("*"));
        let args = parsed(&[]).unwrap();
        assert!(registration(&args, 1).workload.get("httpProxy").is_none());
        assert!(environment(&args, &[None, None]).is_empty());
        assert!(
            parsed(&["--http-proxy", "0"]).is_err()
                && parsed(&["--http-proxy", "1", "--no-sidecar"]).is_err()
        );
    }
}
