//! `/why`.

use std::fmt::Write as _;

use http::StatusCode;
use serde_json::{Value, json};

use super::Admin;
use super::pages::{Answer, one_line, wants_json};
use super::query::Query;
use crate::why::Cause;

/// An id that no story has.
const UNKNOWN: &str =
    "not refused here, or pushed out by newer ones; /why has what is kept, and the access log the rest";

/// Columns of the list, each with its width; the last is as wide as it is.
const COLUMNS: [(&str, usize); 6] =
    [("time", 24), ("reason", 33), ("status", 6), ("id", 36), ("rule", 32), ("listener", 0)];

pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let (id, reason) = (query.take("id"), query.take("reason"));
    let as_json = wants_json(&mut query)?;
    query.finish()?;
    if let Some(reason) = &reason
        && Cause::by_id(reason).is_none()
    {
        return Err(Answer::bad_request("no such reason; docs/reference/reasons.md lists them"));
    }
    let stories = admin.stories.newest_first();
    let asked = stories.iter().filter(|story| {
        id.as_ref().is_none_or(|id| story.is_of(id))
            && reason.as_ref().is_none_or(|reason| story.cause().id() == reason)
    });
    let found: Vec<Value> = asked.map(|story| story.json()).collect();
    let answer = match (as_json, &id) {
        (true, _) if id.is_some() && found.is_empty() => Answer::json(&json!({ "error": UNKNOWN })),
        (true, _) => Answer::json(&json!({ "stories": found })),
        (false, Some(_)) if found.is_empty() => Answer::text(format!("{UNKNOWN}\n")),
        (false, Some(_)) => Answer::text(whole(&found)),
        (false, None) => Answer::text(list(&found)),
    };
    let known = id.is_none() || !found.is_empty();
    Ok(if known { answer } else { Answer { status: StatusCode::NOT_FOUND, ..answer } })
}

/// A line for each story.
fn list(stories: &[Value]) -> String {
    let mut out = String::new();
    let mut line = |cell: &dyn Fn(&str) -> String| {
        for (name, width) in COLUMNS {
            // Writing to a String cannot fail.
            let _infallible = write!(out, "{:width$}  ", cell(name));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    };
    line(&|name| name.to_uppercase());
    for story in stories {
        // A connection has a number alone.
        let id = if story["request_id"].is_null() { "connection_id" } else { "request_id" };
        line(&|name| word(&story[if name == "id" { id } else { name }]));
    }
    out
}

/// Everything about each of them.
fn whole(stories: &[Value]) -> String {
    let mut out = String::new();
    for story in stories {
        let facts = story.as_object().into_iter().flatten();
        for (name, fact) in facts {
            let _infallible = writeln!(out, "{name}: {}", word(fact));
        }
        let means = story["reason"].as_str().and_then(Cause::by_id);
        let _infallible = writeln!(out, "means: {}\n", means.map_or("", Cause::explain));
    }
    out
}

/// A fact on one line; `-` for none.
fn word(fact: &Value) -> String {
    match fact {
        Value::Null => "-".to_owned(),
        Value::String(text) => one_line(text),
        other => other.to_string(),
    }
}
