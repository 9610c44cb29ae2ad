//! `remora why`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::bail;
use clap::Args;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use remora_proxy::error::Party;
use remora_proxy::why::Cause;
use serde_json::{Value, json};

use super::run;
use super::status::Output;
use super::table::{duration, table};
use crate::client::Server;
use crate::clock::age;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora why                      what was refused or lost here lately, the newest first
  remora why rbac_denied          what a reason means, what to do, and who met with it lately
  remora why 6f1d9c52-8e0b-4a7e-9d55-2f0d7c1b9a10
                                  one request by its x-request-id, or one connection by its number
  remora why --admin 127.0.0.1:15001 -o json | jq '.stories[].rule'

A caller has the reason from `x-remora-reason` of the answer; the request id is in the access log, and in the answer if
always_set_request_id_in_response is set. A proxy keeps the last 128 refusals of each of its workers. What went well is not kept, and how a
request would be treated cannot be asked yet.

Exit status: 0, 1 when nothing is known of the id or the proxy cannot be asked, 2 for wrong arguments. What a reason means is told
without a proxy, too.")]
pub(crate) struct WhyArgs {
    /// A request by its x-request-id, a connection by its number, or a reason
    #[arg(value_name = "REQUEST-ID|REASON-ID")]
    id: Option<String>,
    /// Admin page of the proxy
    #[arg(long, value_name = "HOST:PORT", env = "REMORA_ADMIN", default_value = "127.0.0.1:15000")]
    admin: String,
    /// Text for people, or everything
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

pub(crate) fn why(args: &WhyArgs) -> ExitCode {
    run("why", 1, async {
        let proxy = Server::proxy(&args.admin)?;
        let Some(id) = &args.id else {
            let stories = stories(&proxy, "").await?;
            match args.output {
                Output::Table => print!("{}", list(&stories)),
                output => output.print(&json!({ "stories": stories })),
            }
            return Ok(0);
        };
        let Some(cause) = Cause::by_id(id) else {
            let stories =
                stories(&proxy, &format!("&id={}", utf8_percent_encode(id, NON_ALPHANUMERIC))).await?;
            if stories.is_empty() {
                bail!(
                    "{} knows nothing of {id}: it was not refused there, or has been pushed out by newer ones",
                    args.admin
                );
            }
            match args.output {
                Output::Table => stories.iter().for_each(|story| print!("{}", whole(story))),
                output => output.print(&json!({ "stories": stories })),
            }
            return Ok(0);
        };
        let stories = stories(&proxy, &format!("&reason={id}")).await;
        match args.output {
            Output::Table => {
                println!("{}", explanation(cause));
                match stories {
                    Ok(stories) => print!("{}", list(&stories)),
                    Err(error) => println!("No proxy was asked for those that met with it: {error:#}"),
                }
            }
            output => {
                let (stories, error) = match stories {
                    Ok(stories) => (stories.into(), Value::Null),
                    Err(error) => (Value::Null, format!("{error:#}").into()),
                };
                output.print(&json!({ "reason": meaning(cause), "stories": stories, "error": error }));
            }
        }
        Ok(0)
    })
}

/// What the proxy keeps. `more` is the rest of the query.
async fn stories(proxy: &Server, more: &str) -> anyhow::Result<Vec<Value>> {
    let mut answer = proxy.ask(Method::GET, &format!("/why?format=json{more}"), None).await?;
    let stories = answer.body.get_mut("stories").map(Value::take);
    match (answer.status, stories) {
        (StatusCode::OK, Some(Value::Array(stories))) => Ok(stories),
        (StatusCode::NOT_FOUND, None) if answer.body["error"].is_string() => Ok(Vec::new()),
        (status, _) => {
            bail!("what is asked has no page /why (status {status}): is it this version of remora?")
        }
    }
}

/// The reason as data.
fn meaning(cause: Cause) -> Value {
    let (http, grpc, flag) = match cause {
        Cause::Request(reason) => {
            (reason.status().as_u16().into(), (reason.grpc() as u8).into(), reason.flag().into())
        }
        Cause::Connection(_) => (Value::Null, Value::Null, Value::Null),
    };
    json!({
        "id": cause.id(), "meaning": cause.explain(), "advice": cause.advice(), "http_status": http, "grpc_status": grpc,
        "response_flag": flag, "party": cause.party().as_str(),
    })
}

/// The same for people.
fn explanation(cause: Cause) -> String {
    let seen = match cause {
        Cause::Request(reason) => {
            let flag = if reason.flag().is_empty() { "none" } else { reason.flag() };
            let (status, grpc) = (reason.status().as_u16(), reason.grpc());
            format!("HTTP {status}, gRPC {} {grpc:?}, response flag {flag}", grpc as u8)
        }
        Cause::Connection(_) => "the connection is closed".to_owned(),
    };
    let by = match cause.party() {
        Party::Downstream => "the client",
        Party::Proxy => "the proxy",
        Party::Upstream => "the upstream",
    };
    format!(
        "{}\n  {}\n  {seen}; ended by {by}\n\nTo do\n  {}\n",
        painted(cause.id(), cause),
        cause.explain(),
        cause.advice()
    )
}

fn list(stories: &[Value]) -> String {
    if stories.is_empty() {
        return "Nothing is kept: not met with here, or pushed out by newer ones.\n".to_owned();
    }
    let rows: Vec<_> = stories.iter().map(row).collect();
    let mut text = table(&["AGE", "REASON", "STATUS", "RULE", "WHAT", "ID"], &rows);
    for cause in Cause::all() {
        // Only whole words; no other column has words like these.
        let word = format!(" {} ", cause.id());
        text = text.replace(&word, &format!(" {} ", painted(cause.id(), cause)));
    }
    text
}

fn row(story: &Value) -> Vec<String> {
    let or = |names: &[&str]| {
        let mut words = names.iter().map(|name| word(&story[*name]));
        words.find(|word| !word.is_empty()).unwrap_or_else(|| "-".to_owned())
    };
    let what = match story["method"].as_str() {
        Some(_) => format!("{} {}{}", word(&story["method"]), word(&story["host"]), word(&story["path"])),
        None => format!("from {}", word(&story["downstream"])),
    };
    let age = story["time"].as_str().and_then(|time| age(time, SystemTime::now()));
    vec![
        age.map_or_else(String::new, duration),
        word(&story["reason"]),
        or(&["status"]),
        or(&["rule"]),
        what,
        or(&["request_id", "connection_id"]),
    ]
}

/// Everything about one, and what it means.
fn whole(story: &Value) -> String {
    let facts: Vec<_> = story.as_object().into_iter().flatten().collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines = facts.iter().map(|(name, fact)| format!("  {name:width$}  {}\n", word(fact)));
    let cause = story["reason"].as_str().and_then(Cause::by_id);
    // A newer proxy may have reasons that are not known here.
    let head = cause.map_or_else(|| format!("{}\n", word(&story["reason"])), explanation);
    format!("{head}\nStory\n{}\n", lines.collect::<String>())
}

/// A fact as one word or line: what a peer chose does not reach the terminal as a command.
fn word(fact: &Value) -> String {
    match fact {
        Value::Null => String::new(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
        other => other.to_string(),
    }
}

/// A reason in colour on a terminal: yellow for what the client did, red for the rest.
fn painted(text: &str, cause: Cause) -> String {
    if !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = if cause.party() == Party::Downstream { 33 } else { 31 };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_explained_without_a_proxy() {
        let text = explanation(Cause::by_id("jwt_expired").unwrap());
        assert!(text.starts_with("jwt_expired\n  The token's time is over.\n"), "{text}");
        assert!(
            text.contains("HTTP 401, gRPC 16 Unauthenticated, response flag none; ended by the proxy\n"),
            "{text}"
        );
        let text = explanation(Cause::by_id("tls_not_tls").unwrap());
        assert!(text.contains("the connection is closed; ended by the client\n"), "{text}");
    }

    #[test]
    fn rows_tell_requests_from_connections_and_carry_no_commands() {
        let stories = [
            json!({"time": "2026-11-26T10:00:00.000Z", "reason": "rbac_denied", "status": 403, "rule": "a", "method": "GET",
                   "host": "shop", "path": "/\u{1b}[2J", "request_id": "r-1", "connection_id": 3}),
            json!({"time": "", "reason": "tls_not_tls", "downstream": "10.0.0.1:4000", "connection_id": 4}),
        ];
        let text = list(&stories);
        assert!(text.contains("rbac_denied   403      a      GET shop/\u{fffd}[2J"), "{text}");
        assert!(text.contains("tls_not_tls   -        -      from 10.0.0.1:4000   4\n"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
