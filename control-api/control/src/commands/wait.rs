//! Waiting until proxies have what was applied.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::bail;
use http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::apply::named;
use super::get::condition;
use crate::client::Server;
use crate::kinds::Kind;
use crate::rest::Outcome;

/// The first pause between two questions, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Waits until every proxy that uses one of the documents has it. The time that it took.
///
/// # Errors
/// One is refused, cannot be sent to a proxy, or is not everywhere in time.
pub(super) async fn in_force(
    server: &Server,
    outcomes: &[Outcome],
    most: Duration,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let (mut pause, longest) = PAUSE;
    let mut waiting: Vec<_> = outcomes.iter().collect();
    loop {
        let (mut left, mut why) = (Vec::new(), String::new());
        for outcome in waiting {
            let document = server.call(Method::GET, &path(outcome), None).await?;
            if condition(&document, "Programmed", "status") == "True" {
                continue;
            }
            let text = reason(&document);
            if is_final(&document) {
                bail!("{}: {text}", named(outcome));
            }
            // Writing to a String does not fail.
            let _ = write!(why, "\n{}: {text}", named(outcome));
            left.push(outcome);
        }
        if left.is_empty() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > most {
            bail!("not in force everywhere after {} s:{why}", most.as_secs_f64());
        }
        progress(&format!("waiting for {} of {} documents", left.len(), outcomes.len()));
        sleep(pause).await;
        pause = (pause * 2).min(longest);
        waiting = left;
    }
}

fn path(outcome: &Outcome) -> String {
    let Outcome { kind, namespace, name, .. } = outcome;
    match Kind::named(kind) {
        Some(kind) => format!("{}/namespaces/{namespace}/{}/{name}", kind.root(), kind.plural),
        None => format!("/{kind}/{namespace}/{name}"),
    }
}

/// Whether waiting does not help.
fn is_final(document: &Value) -> bool {
    condition(document, "Programmed", "reason") != "Pending"
}

fn reason(document: &Value) -> String {
    let messages = ["RefusedBy", "Accepted", "Programmed"].map(|kind| condition(document, kind, "message"));
    messages.into_iter().find(|message| !message.is_empty()).unwrap_or_else(|| "no reason is given".into())
}

/// A line that the next one replaces, on a terminal.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text}\x1b[K\r");
    }
}
