//! The bare-hyper reverse proxy of the side-by-side runs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use remora_benches::floor::{self, Mode, TlsFiles};
use tokio::net::TcpListener;

/// A reverse proxy of bare hyper on one thread, without features: the floor of what a proxy on hyper costs.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What stands on either side.
    #[arg(long, value_enum)]
    mode: Mode,
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Where requests go.
    #[arg(long)]
    upstream: SocketAddr,
    /// Certificate chain of this side (PEM), for the mTLS modes.
    #[arg(long, requires_all = ["key", "ca"])]
    cert: Option<PathBuf>,
    /// Key of this side (PEM).
    #[arg(long)]
    key: Option<PathBuf>,
    /// What the peer's certificate must chain to (PEM).
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The name in the server's certificate.
    #[arg(long, default_value = "b.bench")]
    server_name: String,
    /// End when the process that started this one ends.
    #[arg(long)]
    end_with_parent: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.end_with_parent {
        remora_benches::end_with_parent()?;
    }
    let tls = match (&args.cert, &args.key, &args.ca) {
        (Some(certificate), Some(key), Some(authority)) => {
            Some(TlsFiles { certificate, key, authority, server_name: &args.server_name })
        }
        _ => None,
    };
    remora_benches::local_runtime()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await?;
        floor::serve(listener, args.upstream, args.mode, tls.as_ref()).await
    })
}
