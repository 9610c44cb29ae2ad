//! `remora certs`.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::status::Output;
use super::table::{duration, table};
use super::{ServerArgs, run};
use crate::ca::Phase;
use crate::ca::authority::Reason;
use crate::clock::{age, left};
use crate::rest::{Distrust, Revocation, Shown};

/// Certificates that the table has.
const ROWS: usize = 20;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  remora certs                               roots with their phases, and the last certificates
  remora certs roots > roots.pem             what everybody trusts, in PEM
  remora certs rotate-root                   announces a new root; it signs after --root-overlap of the control plane
  remora certs distrust-root 5a91…           a root whose key was stolen, when another one signs
  remora certs revoke --serial 5a91…         one certificate
  remora certs revoke --identity spiffe://cluster.local/ns/bank/sa/ledger --reason key-compromise
  remora certs restore --identity spiffe://cluster.local/ns/bank/sa/ledger

Exit status: 0, 1 when the control plane refuses or cannot be asked, 2 for wrong arguments."
)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Tables, or everything
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the roots that are trusted, in PEM: all of them, also one that is announced or retires
    Roots,
    /// Announce a new root
    RotateRoot,
    /// Trust a root no more that does not sign, nor what it signed: its workloads need certificates of another one
    DistrustRoot {
        /// Its id, or the beginning of it
        #[arg(value_name = "ROOT")]
        root: String,
    },
    /// Put certificates on the revocation list
    Revoke {
        #[command(flatten)]
        what: What,
        /// Why
        #[arg(long, value_enum, default_value = "unspecified")]
        reason: Reason,
    },
    /// Let an identity have certificates again; those that are revoked stay so
    Restore {
        /// The identity
        #[arg(long, value_name = "SPIFFE-ID")]
        identity: String,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One certificate, by its serial number in hexadecimal
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// All certificates of an identity, and those that it would get
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<String>,
}

pub(crate) fn certs(args: CertsArgs) -> ExitCode {
    run("certs", 1, async {
        let server = args.server.open()?;
        let post = async |verb: &str, body: Option<Value>| {
            server.call(Method::POST, &format!("/remora/v1/ca/{verb}"), body.as_ref()).await
        };
        match args.verb {
            None => {
                let answer = server.call(Method::GET, "/remora/v1/ca", None).await?;
                match args.output {
                    Output::Table => {
                        show(
                            &serde_json::from_value(answer)
                                .context("the control plane answers something else")?,
                        );
                    }
                    output => output.print(&answer),
                }
            }
            Some(Verb::Roots) => {
                let answer = server.call(Method::GET, "/remora/v1/ca", None).await?;
                let roots = answer["trusted"].as_str().context("the control plane answers something else")?;
                println!("{}", roots.trim_end());
            }
            Some(Verb::RotateRoot) => {
                let answer = post("rotate", None).await?;
                println!("root {} announced", answer["root"].as_str().unwrap_or_default());
            }
            Some(Verb::DistrustRoot { root }) => {
                let answer = post("distrust", Some(json!(Distrust { root }))).await?;
                println!("root {} is trusted no more", answer["root"].as_str().unwrap_or_default());
            }
            Some(Verb::Revoke { what: What { serial, identity }, reason }) => {
                let asked = Revocation { serial, identity, reason };
                let answer = post("revoke", Some(json!(asked))).await?;
                asked
                    .identity
                    .iter()
                    .for_each(|identity| println!("{identity} gets no certificates any more"));
                for serial in answer["revoked"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    println!("certificate {serial} revoked");
                }
                if let Some(left) = answer["left"].as_u64().filter(|left| *left > 0) {
                    println!(
                        "{left} more are good for other workloads until they end: the revocation list is full"
                    );
                }
            }
            Some(Verb::Restore { identity }) => {
                let asked = Revocation { identity: Some(identity.clone()), ..Revocation::default() };
                post("restore", Some(json!(asked))).await?;
                println!("{identity} gets certificates again");
            }
        }
        Ok(0)
    })
}

fn show(ca: &Shown) {
    let now = SystemTime::now();
    let since = |time: &str| age(time, now).map_or_else(String::new, duration);
    let ends = |time: &str| {
        left(time, now).map_or_else(|| "ended".to_owned(), |left| format!("in {}", duration(left)))
    };
    println!(
        "trust domain {}: {} roots, {} certificates revoked",
        ca.trust_domain,
        ca.roots.len(),
        ca.revoked.len()
    );
    for identity in &ca.revoked_identities {
        println!("{} gets no certificates", identity["identity"].as_str().unwrap_or_default());
    }
    let rows: Vec<_> = ca
        .roots
        .iter()
        .map(|root| {
            let phase = match root.phase {
                Phase::Announced => "Announced",
                Phase::Signing => "Signing",
                Phase::Retiring => "Retiring",
            };
            let origin = if root.own { "own" } else { "file" };
            let id = root.id.chars().take(12).collect();
            vec![
                id,
                phase.into(),
                since(&root.since),
                origin.into(),
                ends(&root.signed_until),
                ends(&root.not_after),
            ]
        })
        .collect();
    print!("\n{}", table(&["ROOT", "PHASE", "SINCE", "FROM", "SIGNED UNTIL", "ENDS"], &rows));
    if !ca.waits_for.is_empty() {
        println!("\nthe announced root waits for {}", ca.waits_for.join(", "));
    }
    if ca.issued.is_empty() {
        return;
    }
    let rows: Vec<_> = ca
        .issued
        .iter()
        .take(ROWS)
        .map(|entry| {
            let revoked = ca.revoked.iter().any(|revoked| revoked["serial"] == *entry.serial);
            let ends = if revoked { "revoked".to_owned() } else { ends(&entry.not_after) };
            vec![
                entry.serial.clone(),
                entry.identity.clone(),
                entry.credential.clone(),
                since(&entry.time),
                ends,
            ]
        })
        .collect();
    print!("\n{}", table(&["SERIAL", "IDENTITY", "CREDENTIAL", "AGE", "ENDS"], &rows));
}
