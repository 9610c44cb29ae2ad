//! `remora status`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use http::Method;
use serde_json::Value;

use super::table::{duration, table};
use super::{ServerArgs, run};
use crate::board::Proxy;
use crate::clock::age;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora status
  remora status -o json | jq '.proxies[].state'

A proxy is Synced when it has everything that it is to have, Syncing while something is on its way, Waiting while its workload is not
known, Refused when it does not take something. Exit status: 0, 1 when the control plane cannot be asked, 3 when a proxy refuses something.")]
pub(crate) struct StatusArgs {
    /// A table, or everything
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
    Yaml,
}

impl Output {
    /// Prints everything: as JSON, or as YAML.
    pub(super) fn print(self, answer: &Value) {
        match self {
            Self::Yaml => print!("{}", remora_xds::write_yaml(answer)),
            // A Value is always JSON.
            Self::Json | Self::Table => {
                println!("{}", serde_json::to_string_pretty(answer).unwrap_or_default())
            }
        }
    }
}

const REFUSED: u8 = 3;

pub(crate) fn status(args: &StatusArgs) -> ExitCode {
    run("status", 1, async {
        let answer = args.server.open()?.call(Method::GET, "/status", None).await?;
        let proxies: Vec<Proxy> = serde_json::from_value(answer["proxies"].clone())
            .context("the control plane answers something else")?;
        match args.output {
            Output::Table => show(&answer, &proxies),
            output => output.print(&answer),
        }
        let refused = proxies.iter().any(|proxy| !proxy.refusals.is_empty());
        Ok(if refused { REFUSED } else { 0 })
    })
}

fn show(answer: &Value, proxies: &[Proxy]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let store = &answer["store"];
    println!(
        "store {} ({}), revision {}: {} documents, {} instances, {} proxies",
        text(&store["address"]),
        text(&store["state"]),
        text(&store["revision"]),
        answer["documents"],
        answer["instances"],
        proxies.len()
    );
    if let Some(why) = store["error"].as_str() {
        println!("the store does not answer: {why}");
    }
    if proxies.is_empty() {
        return;
    }
    println!();
    let row = |proxy: &Proxy| {
        vec![
            proxy.workload.clone().unwrap_or_else(|| proxy.node.clone()),
            proxy.state.clone(),
            format!("{}/{}", proxy.in_force, proxy.wanted),
            proxy.variant.clone(),
            proxy.agent.clone(),
            age(&proxy.since, SystemTime::now()).map_or_else(String::new, duration),
        ]
    };
    let rows: Vec<_> = proxies.iter().map(row).collect();
    let head = ["PROXY", "STATE", "RESOURCES", "VARIANT", "AGENT", "CONNECTED"];
    print!("{}", coloured(&table(&head, &rows)));
    for proxy in proxies {
        for problem in &proxy.problems {
            println!("\n{} cannot be sent a part of {problem}", proxy.node);
        }
        for refusal in &proxy.refusals {
            println!("\n{} refuses {} {}: {}", proxy.node, refusal.kind, refusal.name, refusal.reason);
            if !refusal.documents.is_empty() {
                println!("  made of {}", refusal.documents.join(", "));
            }
        }
    }
}

/// States in colour on a terminal.
fn coloured(table: &str) -> String {
    if !std::io::stdout().is_terminal() {
        return table.to_owned();
    }
    let paint =
        |text: String, word: &str, code: &str| text.replace(word, &format!("\x1b[{code}m{word}\x1b[0m"));
    let text = paint(table.to_owned(), " Synced ", "32");
    let text = paint(text, " Syncing ", "33");
    let text = paint(text, " Waiting ", "33");
    paint(text, " Refused ", "31")
}
