//! `remora diff`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use http::Method;

use super::files::FileArgs;
use super::{DryRun, ServerArgs, query, run};
use crate::rest::Results;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora diff -f mesh.yaml
  remora diff -f mesh.yaml || remora apply -f mesh.yaml

Exit status: 0 when apply would change nothing, 1 when it would, 2 when the documents are wrong or the control plane cannot be asked.")]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    server: ServerArgs,
}

const DIFFERENT: u8 = 1;
const FAILED: u8 = 2;

pub(crate) fn diff(args: &DiffArgs) -> ExitCode {
    run("diff", FAILED, async {
        let body = args.files.body(&args.namespace)?;
        let path = format!("/remora/v1/apply{}", query(DryRun::Server, &[("force", true)]));
        let answer = args.server.open()?.call(Method::POST, &path, Some(&body)).await?;
        let results: Results =
            serde_json::from_value(answer).context("the control plane answers something else")?;
        let colour = std::io::stdout().is_terminal();
        for outcome in &results.results {
            show(&outcome.diff, colour);
        }
        let same = results.results.iter().all(|outcome| outcome.diff.is_empty());
        Ok(if same { 0 } else { DIFFERENT })
    })
}

fn show(diff: &str, colour: bool) {
    for line in diff.lines() {
        let code = match line.as_bytes().first() {
            Some(b'+') => "32",
            Some(b'-') => "31",
            Some(b'@') => "36",
            _ => "",
        };
        if colour && !code.is_empty() {
            println!("\x1b[{code}m{line}\x1b[0m");
        } else {
            println!("{line}");
        }
    }
}
