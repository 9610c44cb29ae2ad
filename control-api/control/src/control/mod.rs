//! `remora control`: store, registry, REST, compiler and ADS in one process.

mod folder;
mod plane;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use remora_mesh::Listening;
use tracing_subscriber::EnvFilter;

pub use plane::{Options, Plane, StartError};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora control                                     state in ./remora-data, proxies on 15010, people on 15014
  remora control --data /var/lib/remora -f /etc/remora/mesh
  remora control --store etcd://10.0.0.1:2379,10.0.0.2:2379
  remora control --listen-rest 127.0.0.1:0 --address-path ports.json

Documents of the folder (-f) are watched, and written to the store; what leaves the folder is removed. Exit status: 0 after an orderly
end, 1 when it cannot start, 2 for wrong arguments.")]
pub(crate) struct ControlArgs {
    /// Folder of the embedded store and the audit log
    #[arg(long, value_name = "FOLDER", default_value = "./remora-data")]
    data: PathBuf,
    /// Another store: redb:FILE, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Where proxies connect (ADS, plaintext)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    listen_xds: SocketAddr,
    /// Where people and programs connect (REST)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15014")]
    listen_rest: SocketAddr,
    /// Folder (or file) of documents, watched
    #[arg(short, long = "filename", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Write the bound addresses to this file, as JSON
    #[arg(long, value_name = "FILE")]
    address_path: Option<PathBuf>,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// Folder, on the machine of each proxy, with its certificate: chain.pem, key.pem and roots.pem
    #[arg(long, value_name = "FOLDER", default_value = "/etc/remora/identity")]
    identity_files: String,
    /// Proxies listen on any free ports, whatever the documents say: /listeners of their admin page tells which (for tests)
    #[arg(long)]
    ephemeral_ports: bool,
    /// Log level: error, warn, info, debug, or a filter such as remora_control=debug
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info", env = "REMORA_LOG")]
    log_level: String,
}

pub(crate) fn run(args: ControlArgs) -> ExitCode {
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("remora control: --log-level: {error}");
            return ExitCode::from(2);
        }
    };
    // A program that embeds this may have set its own subscriber, which then stays.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal());
    let _ = log.with_writer(std::io::stderr).try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("remora control: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let options = Options {
            data: args.data,
            store: args.store,
            listen_xds: args.listen_xds,
            listen_rest: args.listen_rest,
            folder: args.folder,
            trust_domain: args.trust_domain,
            identity_files: args.identity_files,
            listening: if args.ephemeral_ports { Listening::Ephemeral } else { Listening::AsWritten },
        };
        let plane = match Plane::start(options).await {
            Ok(plane) => plane,
            Err(error) => {
                eprintln!("remora control: {error}");
                return ExitCode::FAILURE;
            }
        };
        if let Some(path) = &args.address_path
            && let Err(error) = plane.write_addresses(path)
        {
            eprintln!("remora control: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        tracing::info!(xds = %plane.xds, rest = %plane.rest, store = plane.store, "serving");
        stop_signal().await;
        tracing::info!("stopping");
        ExitCode::SUCCESS
    })
}

/// SIGTERM or SIGINT. A control plane has nothing to finish: writes that were answered are in the store, and proxies go on with what
/// they have.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
