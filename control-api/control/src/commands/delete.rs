//! `remora delete`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use http::{Method, StatusCode};

use super::files::FileArgs;
use super::{DryRun, ServerArgs, apply, query, run};
use crate::client::Refused;
use crate::kinds::Kind;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora delete -f mesh.yaml
  remora delete httproute checkout -n shop
  remora delete svc/orders --dry-run=server

A document that others refer to is not removed alone: name all of them (-f), or --force. Exit status: 0 when all were removed, 1 when one
was not there or could not be removed, 2 for wrong arguments.")]
pub(crate) struct DeleteArgs {
    /// A kind and names of it, or KIND/NAME
    #[arg(value_name = "KIND NAME", conflicts_with = "files")]
    names: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// none, or server: everything but removing
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
    /// Also if other documents are no longer right after it
    #[arg(long)]
    force: bool,
    /// What is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn delete(args: &DeleteArgs) -> ExitCode {
    run("delete", 1, async {
        if args.names.is_empty() { from_files(args).await } else { by_name(args).await }
    })
}

async fn from_files(args: &DeleteArgs) -> anyhow::Result<u8> {
    if args.files.files.is_empty() {
        bail!("what? Name documents (KIND NAME) or files (-f)");
    }
    let body = args.files.body(&args.namespace)?;
    let flags = [("force", args.force), ("ignoreNotFound", args.ignore_not_found)];
    let path = format!("/remora/v1/delete{}", query(args.dry_run, &flags));
    let answer = args.server.open()?.call(Method::POST, &path, Some(&body)).await?;
    let results = serde_json::from_value(answer).context("the control plane answers something else")?;
    apply::tell(&results, args.dry_run);
    Ok(0)
}

async fn by_name(args: &DeleteArgs) -> anyhow::Result<u8> {
    let server = args.server.open()?;
    let mut status = 0;
    for (kind, name) in documents(&args.names)? {
        let path = format!(
            "{}/namespaces/{}/{}/{name}{}",
            kind.root(),
            args.namespace,
            kind.plural,
            query(args.dry_run, &[("force", args.force)])
        );
        match server.call(Method::DELETE, &path, None).await {
            Ok(_) => println!("{}/{name} deleted{}", kind.qualified(), args.dry_run.suffix()),
            Err(error) if is_not_found(&error) => {
                if !args.ignore_not_found {
                    eprintln!("{error}");
                    status = 1;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(status)
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

/// `KIND NAME…` or `KIND/NAME…`.
pub(super) fn documents(words: &[String]) -> anyhow::Result<Vec<(&'static Kind, String)>> {
    let meant = |word: &str| Kind::meant(word).map_err(anyhow::Error::msg);
    if words.iter().any(|word| word.contains('/')) {
        let pair = |word: &String| match word.split_once('/') {
            Some((kind, name)) if !name.is_empty() => Ok((meant(kind)?, name.to_owned())),
            _ => bail!("{word:?} is no KIND/NAME"),
        };
        return words.iter().map(pair).collect();
    }
    let Some((kind, names)) = words.split_first() else { bail!("which kind?") };
    if names.is_empty() {
        bail!("which {kind}? Name it: KIND NAME, or KIND/NAME");
    }
    let kind = meant(kind)?;
    Ok(names.iter().map(|name| (kind, name.clone())).collect())
}
