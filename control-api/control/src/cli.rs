//! Arguments of `remora`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use remora_proxy::cli::ProxyArgs;

use crate::{bench, check, cni, commands, control, demo, init, inject, run};

/// A service mesh in one binary
#[derive(Debug, Parser)]
#[command(
    name = "remora",
    version,
    after_help = "Examples:
  remora demo                       two services with their sidecars, live, on this machine
  remora demo --for 20s             the same, ending by itself with a report
  remora proxy -c bootstrap.yaml    the data plane, from a bootstrap in Envoy's v3 schema
  remora control -f mesh/           the control plane
  remora run --service orders --port 8080 -- ./orders
                                    a program with a sidecar, registered while it runs
  remora init                       rules that bring the traffic of this network namespace to its proxy
  remora apply -f mesh.yaml         mesh documents; also get, diff, delete, status
  remora token create --service-account orders
                                    what a program on another machine gets its identity with
  remora certs                      roots and certificates; also certs roots, certs rotate-root, certs revoke
  remora why rbac_denied            what a refusal means, and who met with it; also why REQUEST-ID
  remora inject -f web.yaml --control 10.96.0.12:15012 | kubectl apply -f -
                                    pods with sidecars
  remora check -f mesh.yaml         every mistake in mesh documents or bootstraps, with its line

`remora COMMAND --help` has more."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run two services with a sidecar beside every instance, and watch them
    Demo(demo::DemoArgs),
    /// Run the data plane
    Proxy(ProxyArgs),
    /// Run a control plane
    Control(Box<control::ControlArgs>),
    /// Run one program with a sidecar beside it, registered while it runs
    Run(run::RunArgs),
    /// Set up the rules that bring the traffic of this network namespace to its proxy
    Init(Box<init::InitArgs>),
    /// Create or update mesh documents
    Apply(commands::ApplyArgs),
    /// Show mesh documents
    Get(commands::GetArgs),
    /// Show what apply would change
    Diff(commands::DiffArgs),
    /// Remove mesh documents
    Delete(commands::DeleteArgs),
    /// Show every connected proxy with its sync state
    Status(commands::StatusArgs),
    /// Show roots and certificates; rotate the root, revoke certificates
    Certs(commands::CertsArgs),
    /// Explain a refusal: by its request id, or by its reason
    Why(commands::WhyArgs),
    /// Make, show and remove join tokens
    Token(commands::TokenArgs),
    /// Whether the proxy beside is ready; waits for it
    Ready(commands::ReadyArgs),
    /// The same rules as a CNI plugin of a Kubernetes node; puts it there
    Cni(cni::CniArgs),
    /// Give the pods of Kubernetes manifests a sidecar
    Inject(Box<inject::InjectArgs>),
    /// Check mesh documents and bootstraps without running anything
    Check(check::CheckArgs),
    /// Measure
    Bench(bench::BenchArgs),
}

/// Runs `remora` with the arguments of this process.
///
/// Exit status: 0 when it did what was asked, 1 when it could not, 2 for wrong arguments or a wrong configuration.
#[must_use]
pub fn main() -> ExitCode {
    // Container runtimes have no arguments for a plugin.
    if cni::is_called(std::env::args_os().next().as_deref()) {
        return cni::plugin();
    }
    let command = Arguments::parse().command;
    // Those that have many connections. What `run` starts has the limit that it would have had without it.
    if matches!(command, Command::Demo(_) | Command::Control(_) | Command::Bench(_)) {
        remora_proxy::limits::raise_open_files();
    }
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Proxy(args) => remora_proxy::cli::run(&args),
        Command::Control(args) => control::run(*args),
        Command::Run(args) => run::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Apply(args) => commands::apply(&args),
        Command::Get(args) => commands::get(&args),
        Command::Diff(args) => commands::diff(&args),
        Command::Delete(args) => commands::delete(&args),
        Command::Status(args) => commands::status(&args),
        Command::Certs(args) => commands::certs(args),
        Command::Why(args) => commands::why(&args),
        Command::Token(args) => commands::token(args),
        Command::Ready(args) => commands::ready(&args),
        Command::Cni(args) => cni::run(args),
        Command::Inject(args) => inject::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
