//! `remora inject`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

use super::{Interception, Native, Settings, Version, documents, values};
use crate::commands::FileArgs;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora inject -f web.yaml --control 10.96.0.12:15012 | kubectl apply -f -
  helm template shop | remora inject -f - --control 10.96.0.12:15012
  remora inject -f manifests/ -R --control 10.96.0.12:15012 --cluster-version 1.32 > injected.yaml
  remora inject -f web.yaml --control 10.96.0.12:15012 --native false    a sidecar beside the program, for clusters before 1.29
  remora inject -f web.yaml --control 10.96.0.12:15012 --interception none

Pods, Deployments, ReplicaSets, ReplicationControllers, StatefulSets, DaemonSets, Jobs, CronJobs and Lists of them get a sidecar; other documents
are printed as they are. Injecting twice is injecting once. The result goes to standard output, who got a sidecar and who did not to standard error.

Exit status: 0, 1 when a file cannot be read, 2 for wrong arguments or a pod that cannot be injected; then nothing is printed.")]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Control plane: its TLS port, as pods reach it
    #[arg(long, value_name = "IP:PORT", env = "REMORA_CONTROL")]
    control: SocketAddr,
    /// Image with /usr/local/bin/remora [default: remora:VERSION]
    #[arg(long, value_name = "IMAGE", value_parser = values::image)]
    image: Option<String>,
    /// Sidecars that are init containers; auto: from Kubernetes 1.29
    #[arg(long, value_enum, value_name = "auto|true|false", default_value = "auto")]
    native: Native,
    /// Version of the cluster [default: one with native sidecars]
    #[arg(long, value_name = "VERSION")]
    cluster_version: Option<Version>,
    /// Who leads traffic to the sidecar: an init container with NET_ADMIN, a CNI plugin, or nobody
    #[arg(long, value_enum, value_name = "init|cni|none", default_value = "init")]
    interception: Interception,
    /// ConfigMap of the pod's namespace whose roots.pem the control plane is believed by at first
    #[arg(long, value_name = "NAME", default_value = "remora-roots")]
    roots_config_map: String,
    /// Audience of the service account token (--token-review-audience of the control plane)
    #[arg(long, value_name = "AUDIENCE", default_value = "istio-ca")]
    token_audience: String,
    /// Worker threads of a sidecar
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Only pods that say remora.dev/inject: "true"
    #[arg(long)]
    opt_in: bool,
}

impl InjectArgs {
    fn settings(&self) -> Settings {
        let defaults = Settings::new(self.control);
        Settings {
            image: self.image.clone().unwrap_or_else(|| defaults.image.clone()),
            roots: self.roots_config_map.clone(),
            audience: self.token_audience.clone(),
            native: self.native,
            cluster: self.cluster_version,
            interception: self.interception,
            by_default: !self.opt_in,
            concurrency: self.concurrency,
            ..defaults
        }
    }
}

pub(crate) fn run(args: &InjectArgs) -> ExitCode {
    let texts = match args.files.read() {
        Ok(texts) => texts,
        Err(error) => {
            eprintln!("remora inject: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let done = match documents(&texts, &args.settings()) {
        Ok(done) => done,
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("{mistake}");
            }
            eprintln!("remora inject: {} mistake(s), nothing is printed", mistakes.len());
            return ExitCode::from(2);
        }
    };
    print!("{}", done.yaml);
    for who in &done.injected {
        eprintln!("{who}: injected");
    }
    for (who, why) in &done.skipped {
        eprintln!("{who}: not injected: {why}");
    }
    for note in &done.notes {
        eprintln!("note: {note}");
    }
    ExitCode::SUCCESS
}
