//! `remora token`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::status::Output;
use super::table::{duration, table};
use super::{ServerArgs, run};
use crate::ca::tokens::{Listed, Terms};
use crate::clock::left;
use crate::run::time;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora token create --service-account shop                    good for one certificate, for an hour
  remora token create -n bank --service-account ledger --ttl 10m --uses 5
  TOKEN=$(remora token create --service-account shop)
  remora token list
  remora token delete 5f0c1a2b3c4d5e6f

A token is what a program on a machine without any identity gets its first certificate with. It is shown once, on standard output; the
store has a hash of it. Exit status: 0, 1 when the control plane refuses or cannot be asked, 2 for wrong arguments.")]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token
    Create {
        /// Namespace of the identity
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Service account of the identity
        #[arg(long, value_name = "NAME")]
        service_account: String,
        /// How long it may be used
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
        ttl: Duration,
        /// How many certificates it is good for
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
    },
    /// Show all tokens, without their secrets
    List {
        /// A table, or everything
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Remove tokens
    Delete {
        /// Ids, as `list` shows them
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

const PATH: &str = "/remora/v1/tokens";

pub(crate) fn token(args: TokenArgs) -> ExitCode {
    run("token", 1, async {
        let server = args.server.open()?;
        match args.verb {
            Verb::Create { namespace, service_account, ttl, uses } => {
                let terms = Terms { namespace, service_account, ttl_seconds: ttl.as_secs(), uses };
                let answer = server.call(Method::POST, PATH, Some(&json!(terms))).await?;
                println!("{}", answer["token"].as_str().context("the control plane answers something else")?);
            }
            Verb::List { output } => {
                let answer = server.call(Method::GET, PATH, None).await?;
                match output {
                    Output::Table => show(serde_json::from_value(answer["items"].clone())?),
                    output => output.print(&answer),
                }
            }
            Verb::Delete { ids } => {
                for id in ids {
                    server.call(Method::DELETE, &format!("{PATH}/{id}"), None).await?;
                    println!("token/{id} deleted");
                }
            }
        }
        Ok(0)
    })
}

fn show(tokens: Vec<Listed>) {
    if tokens.is_empty() {
        return eprintln!("No tokens found.");
    }
    let row = |token: &Listed| {
        let ends = left(&token.expires, SystemTime::now());
        let ends = ends.map_or_else(|| "ended".to_owned(), |left| format!("in {}", duration(left)));
        vec![token.id.clone(), token.identity.clone(), token.uses.to_string(), ends]
    };
    print!(
        "{}",
        table(&["ID", "IDENTITY", "USES LEFT", "ENDS"], &tokens.iter().map(row).collect::<Vec<_>>())
    );
}
