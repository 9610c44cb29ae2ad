//! `remora proxy`, the same as `remora-proxy`: arguments, exit codes, and the control runtime.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Args};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::admin::LevelControl;
use crate::admin::logging::Levels;
use crate::app::{self, StartError};
use crate::identity::{self, Address, Authority, Ca, Issuer};
use crate::limits;
use crate::restart::{Keeper, supervisor};

/// Runs the data plane from a bootstrap file in Envoy's v3 schema.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("issuer").args(["ca", "workload_api"]))]
#[command(group = ArgGroup::new("bootstrap").args(["config", "config_yaml"]).required(true), after_help = "Examples:
  remora proxy -c bootstrap.yaml                  run
  remora proxy -c bootstrap.yaml --check          only validate; all mistakes at once
  remora proxy -c bootstrap.yaml --concurrency 1  one worker thread
  remora proxy -c bootstrap.yaml --ca https://10.0.0.1:15012 --ca-roots roots.pem --token-file token --identity-dir /var/lib/remora
                                                  with an identity: the secrets `default` and `ROOTCA` are the CA's
  remora proxy -c bootstrap.yaml --workload-api unix:///run/spire/agent.sock
                                                  the same with the identity that SPIRE's agent gives to this process

Exit status: 0 after an orderly end, 1 when the proxy cannot start, 2 for wrong arguments or a wrong configuration.")]
pub struct ProxyArgs {
    /// Bootstrap file, YAML or JSON
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The bootstrap itself instead of a file, YAML or JSON
    #[arg(long, value_name = "TEXT")]
    pub config_yaml: Option<String>,
    /// Only validate the file and everything it names
    #[arg(long)]
    pub check: bool,
    /// Worker threads [default: the CPUs that the cgroup grants]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Write the address of the admin page to this file once it is bound
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// Take the listening sockets of the proxy that answers at this socket, and give them to the next one that asks there: a hot restart
    #[arg(long, value_name = "FILE", conflicts_with_all = ["supervise", "supervised"])]
    pub hot_restart_path: Option<PathBuf>,
    /// Run the proxy as a child that is started anew when it dies, and replaced without a lost request on SIGHUP or SIGUSR2
    #[arg(long, conflicts_with = "check")]
    pub supervise: bool,
    /// This is such a child
    #[arg(long, hide = true, conflicts_with = "check")]
    pub supervised: bool,
    /// How long connections may take to finish after SIGTERM, or after their filter chain was removed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 45, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    pub drain_time_s: u64,
    /// Keep the last good configuration of the control plane in this folder, and start from it while the control plane is down
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// CA of the control plane, https://IP:PORT (http:// on loopback): this process gets its certificate from there
    #[arg(long, value_name = "URL", env = "REMORA_CA")]
    pub ca: Option<Authority>,
    /// Certificates by one of which the CA's server is believed at first [default: the root that the join token names]
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub ca_roots: Option<PathBuf>,
    /// File with a join token or a service account token, shown to the CA when there is no certificate to show
    #[arg(long, value_name = "FILE", requires = "ca")]
    pub token_file: Option<PathBuf>,
    /// Keep key and certificate in this folder, and start from them while the CA is down
    #[arg(long, value_name = "DIR", requires = "ca")]
    pub identity_dir: Option<PathBuf>,
    /// SPIFFE Workload API, unix:///PATH or tcp://IP:PORT on loopback: this process gets its certificate from there, from SPIRE's agent for
    /// example [default without ADDRESS: the variable SPIFFE_ENDPOINT_SOCKET]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, conflicts_with_all = ["ca", "ca_roots", "token_file", "identity_dir"])]
    pub workload_api: Option<Option<Address>>,
    /// Give key and certificates to programs on this machine by a UNIX socket: SPIFFE Workload API, and SDS
    #[arg(long, value_name = "PATH", requires = "issuer")]
    pub identity_socket: Option<PathBuf>,
    /// Log level: error, warn, info, debug, or a filter such as remora_proxy::http=debug
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info", env = "REMORA_LOG")]
    pub log_level: String,
}

/// Runs the proxy and gives the exit status.
#[must_use]
pub fn run(args: &ProxyArgs) -> ExitCode {
    let levels = match init_log(&args.log_level) {
        Ok(levels) => levels,
        Err(error) => {
            eprintln!("remora proxy: --log-level: {error}");
            return ExitCode::from(2);
        }
    };
    if args.supervise {
        return supervise(args);
    }
    let identity = match identity(args) {
        Ok(identity) => identity,
        Err(error) => {
            eprintln!("remora proxy: --workload-api: {error}");
            return ExitCode::from(2);
        }
    };
    let config = args.config.clone().unwrap_or_else(|| PathBuf::from("--config-yaml"));
    let loaded = match load(&config, args.config_yaml.as_deref(), identity.is_some()) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error),
    };
    if args.check {
        return match app::check(loaded) {
            Ok(()) => {
                println!("{}: OK", config.display());
                ExitCode::SUCCESS
            }
            Err(error) => refuse(&error),
        };
    }
    limits::raise_open_files();
    let options = app::Options {
        config,
        concurrency: args.concurrency,
        admin_address_path: args.admin_address_path.clone(),
        drain_time: Duration::from_secs(args.drain_time_s),
        state_dir: args.state_dir.clone(),
        identity,
        keeper: keeper(args),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&StartError::Resource("runtime".into(), error.to_string())),
    };
    match runtime.block_on(app::run(options, loaded, Some(levels))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// The parent of a proxy.
fn supervise(args: &ProxyArgs) -> ExitCode {
    limits::raise_open_files();
    let ended = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        runtime.block_on(supervisor::run(std::env::args_os(), Duration::from_secs(args.drain_time_s)))
    });
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(error) => refuse(&StartError::Resource("--supervise".into(), error.to_string())),
    }
}

fn keeper(args: &ProxyArgs) -> Option<Keeper> {
    let supervised = args.supervised.then_some(Keeper::Supervisor);
    supervised.or_else(|| args.hot_restart_path.clone().map(Keeper::Process))
}

fn identity(args: &ProxyArgs) -> Result<Option<identity::Options>, String> {
    let issuer = match (&args.workload_api, args.ca) {
        (Some(Some(address)), _) => Issuer::WorkloadApi(address.clone()),
        (Some(None), _) => Issuer::WorkloadApi(Address::of_environment()?),
        (None, Some(authority)) => Issuer::Ca(Ca {
            authority,
            roots: args.ca_roots.clone(),
            token: args.token_file.clone(),
            folder: args.identity_dir.clone(),
        }),
        (None, None) => return Ok(None),
    };
    Ok(Some(identity::Options { issuer, socket: args.identity_socket.clone() }))
}

/// Loads the bootstrap on a thread that then ends: reading text leaves a megabyte of small free blocks in its thread's
/// cache, which would otherwise stay for the life of the process.
fn load(path: &PathBuf, text: Option<&str>, agent: bool) -> Result<app::Loaded, StartError> {
    let read = || match text {
        Some(text) => app::load_text(text, "--config-yaml", agent),
        None => app::load(path, agent),
    };
    let loaded = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, read);
        thread.map(|thread| thread.join())
    });
    let failed = |what: String| StartError::Resource("thread that loads the configuration".into(), what);
    match loaded {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(_panicked)) => Err(failed("it panicked".into())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Whether `--log-level` takes this text.
#[must_use]
pub fn is_log_level(directives: &str) -> bool {
    Levels::<Registry>::new(directives).is_ok()
}

/// Logs go to standard error; `/logging` changes the levels later.
fn init_log(directives: &str) -> Result<Arc<dyn LevelControl>, String> {
    let (filter, levels) = Levels::<Registry>::new(directives)?;
    let ansi = std::io::stderr().is_terminal();
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    // A program that embeds the proxy may have set its own subscriber, which then stays.
    let _ = tracing_subscriber::registry().with(filter).with(text).try_init();
    Ok(levels)
}

fn refuse(error: &StartError) -> ExitCode {
    eprintln!("{error}");
    match error {
        StartError::Config(errors) => {
            eprintln!("remora proxy: {} mistake(s) in the configuration", errors.len());
            ExitCode::from(2)
        }
        StartError::Read(..) => ExitCode::from(2),
        StartError::Resource(..) => ExitCode::from(1),
    }
}
