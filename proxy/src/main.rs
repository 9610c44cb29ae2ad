//! `remora-proxy`: the slim data plane.

use clap::Parser;
use remora_proxy::cli::{self, ProxyArgs};

/// Gives pages back quickly after a burst; one arena per CPU would hold on to them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The Remora data plane
#[derive(Debug, Parser)]
#[command(name = "remora-proxy", version)]
struct Arguments {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> std::process::ExitCode {
    cli::run(&Arguments::parse().proxy)
}
