//! `remora apply`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use http::Method;

use super::files::FileArgs;
use super::{DryRun, ServerArgs, query, run, wait};
use crate::kinds::Kind;
use crate::registry::change::Verb;
use crate::rest::{Outcome, Results};
use crate::run::time;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora apply -f mesh.yaml
  remora apply -f deploy/ -R -n shop
  cat route.yaml | remora apply -f -
  remora apply -f mesh.yaml --dry-run=server
  remora apply -f mesh.yaml --wait       ends when the proxies have it, or with the words of one that refuses it

All documents are checked together, and with those that are there; when one is wrong, none is written, and every mistake is named with
its line. Exit status: 0 when everything was applied (and is in force, with --wait), 1 when it was refused or could not be, 2 for wrong
arguments.")]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// none, or server: everything but writing
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
    /// Also if other documents are no longer right after it
    #[arg(long)]
    force: bool,
    /// Wait until every connected proxy that uses the documents has them
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long --wait waits, such as 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    timeout: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn apply(args: &ApplyArgs) -> ExitCode {
    run("apply", 1, async {
        let body = args.files.body(&args.namespace)?;
        let path = format!("/remora/v1/apply{}", query(args.dry_run, &[("force", args.force)]));
        let server = args.server.open()?;
        let answer = server.call(Method::POST, &path, Some(&body)).await?;
        let results: Results =
            serde_json::from_value(answer).context("the control plane answers something else")?;
        if results.results.is_empty() {
            bail!("there are no documents in these files");
        }
        tell(&results, args.dry_run);
        if args.wait {
            let took = wait::in_force(&server, &results.results, args.timeout).await?;
            println!("in force after {} ms", took.as_millis());
        }
        Ok(0)
    })
}

/// A line for each document: `httproute.gateway.networking.k8s.io/checkout configured`.
pub(super) fn tell(results: &Results, dry_run: DryRun) {
    for outcome in &results.results {
        println!("{} {}{}", named(outcome), word(outcome.result), dry_run.suffix());
    }
}

pub(super) fn named(outcome: &Outcome) -> String {
    let kind = Kind::named(&outcome.kind).map_or_else(|| outcome.kind.clone(), Kind::qualified);
    format!("{kind}/{}", outcome.name)
}

const fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Created => "created",
        Verb::Configured => "configured",
        Verb::Unchanged => "unchanged",
        Verb::Deleted => "deleted",
    }
}
