//! Compares outcomes. Everything is compared; what may differ is named by a row of docs/differences-from-envoy.md.

use std::collections::BTreeSet;
use std::path::Path;

use super::case::{Case, Expected, Forwarded, Outcome, Patch};

/// Differences that hold for every request, applied in [`as_remora`] and [`compare`].
pub const EVERYWHERE: [&str; 3] = ["server-name", "reason-header", "local-reply-text"];

fn header<'a>(headers: &'a [String], name: &str) -> Option<&'a str> {
    headers.iter().find_map(|h| {
        let (n, v) = h.split_once(": ").unwrap_or((h, ""));
        n.eq_ignore_ascii_case(name).then_some(v)
    })
}

fn without(headers: &[String], names: &[&str]) -> Vec<String> {
    let named =
        |h: &&String| names.iter().any(|n| h.split(':').next().is_some_and(|h| h.eq_ignore_ascii_case(n)));
    headers.iter().filter(|h| !named(h)).cloned().collect()
}

/// Whether no upstream made this answer and it reports a failure: a status of 400 and up, or a gRPC status other than 0.
fn failure(outcome: &Outcome) -> bool {
    let local = outcome.status.is_some() && header(&outcome.headers, "x-upstream").is_none();
    let grpc = header(&outcome.headers, "grpc-status").is_some_and(|s| s != "0");
    local && (outcome.status.is_some_and(|s| s >= 400) || grpc)
}

/// Envoy's outcome as Remora has it: the server's name, and the texts of failures that the proxy reports itself.
fn as_remora(envoy: &Outcome) -> Outcome {
    let mut outcome = envoy.clone();
    for header in &mut outcome.headers {
        if header.eq_ignore_ascii_case("server: envoy") {
            *header = header.replace("envoy", "remora");
        }
    }
    outcome
}

/// What of a failure's answer is not compared.
const FAILURE_TEXT: [&str; 5] =
    ["content-length", "content-type", "grpc-message", "transfer-encoding", "x-remora-reason"];

fn strip_failure(outcome: &mut Outcome) {
    outcome.headers = without(&outcome.headers, &FAILURE_TEXT);
    outcome.body.clear();
}

/// Applies a listed difference; returns the fields that cannot be compared as well.
fn apply(patch: &Patch, envoy: &Outcome, all: &Expected) -> Result<(Outcome, BTreeSet<String>), String> {
    let mut unchecked: BTreeSet<String> = patch.unchecked.iter().cloned().collect();
    let mut outcome = match &patch.like {
        Some(name) => {
            all.outcomes.get(name).ok_or_else(|| format!("differs.like: no request {name}"))?.clone()
        }
        None => envoy.clone(),
    };
    if let Some(status) = patch.answer {
        outcome = Outcome { status: Some(status), version: outcome.version, ..Outcome::default() };
        unchecked.extend(["headers", "body", "version", "closed", "certificate", "own"].map(str::to_owned));
    }
    macro_rules! replace {
        ($($field:ident),+) => { $(if let Some(value) = &patch.$field { outcome.$field.clone_from(value); })+ };
    }
    replace!(version, interim, body, trailers, end, attempts, statuses);
    outcome.status = patch.status.or(outcome.status);
    outcome.closed = patch.closed.or(outcome.closed);
    outcome.tunnel = patch.tunnel.clone().or(outcome.tunnel);
    edit(&mut outcome.headers, &patch.headers_set, &patch.headers_remove);
    if outcome.attempts.is_empty() && patch.attempts.is_some() {
        outcome.forwarded = None;
    }
    let forwarded = [patch.line.is_some(), patch.authority.is_some(), patch.forwarded_body.is_some()];
    let edits = !patch.forwarded_set.is_empty() || !patch.forwarded_remove.is_empty();
    if forwarded.contains(&true) || edits || patch.forwarded_trailers.is_some() {
        let sent = outcome.forwarded.get_or_insert_with(Forwarded::default);
        sent.line = patch.line.clone().unwrap_or_else(|| sent.line.clone());
        sent.authority = patch.authority.clone().or_else(|| sent.authority.clone());
        sent.body = patch.forwarded_body.clone().unwrap_or_else(|| sent.body.clone());
        sent.trailers = patch.forwarded_trailers.clone().unwrap_or_else(|| sent.trailers.clone());
        edit(&mut sent.headers, &patch.forwarded_set, &patch.forwarded_remove);
    }
    if outcome == *envoy && unchecked.is_empty() {
        return Err(format!("lists the difference {} where there is none", patch.id));
    }
    Ok((outcome, unchecked))
}

fn edit(headers: &mut Vec<String>, set: &[String], remove: &[String]) {
    let name = |h: &String| h.split(':').next().unwrap_or("").to_owned();
    let gone: Vec<String> = remove.iter().cloned().chain(set.iter().map(name)).collect();
    *headers = without(headers, &gone.iter().map(String::as_str).collect::<Vec<_>>());
    headers.extend(set.iter().cloned());
    headers.sort_by_key(name);
}

/// Compares two observations of one proxy, or of two that must not differ at all.
pub fn compare_same(expected: &Expected, actual: &Expected) -> Vec<String> {
    let mut out = Vec::new();
    for (name, wanted) in &expected.outcomes {
        match actual.outcomes.get(name) {
            Some(got) => {
                out.extend(fields(wanted, got, &BTreeSet::new()).into_iter().map(|d| format!("{name}: {d}")))
            }
            None => out.push(format!("{name}: not observed")),
        }
    }
    out.extend(
        actual
            .outcomes
            .keys()
            .filter(|n| !expected.outcomes.contains_key(*n))
            .map(|n| format!("{n}: not recorded")),
    );
    out.extend(log(&expected.log, &actual.log));
    out
}

/// Compares what Remora did with what Envoy did, less the differences that the case lists.
pub fn compare(case: &Case, envoy: &Expected, remora: &Expected) -> Vec<String> {
    let mut out = Vec::new();
    for spec in &case.requests.requests {
        let name = &spec.name;
        let (Some(wanted), Some(got)) = (envoy.outcomes.get(name), remora.outcomes.get(name)) else {
            out.push(format!("{name}: not recorded; run with ORACLE_RECORD=1"));
            continue;
        };
        let patched = match &spec.differs {
            Some(patch) => apply(patch, wanted, envoy),
            None => Ok((wanted.clone(), BTreeSet::new())),
        };
        match patched {
            Ok((wanted, unchecked)) => {
                // What a route answers directly is not a failure of the proxy, and is compared to the byte.
                let own = !spec.exact && (failure(&wanted) || unchecked.contains("own"));
                out.extend(one(&wanted, got, &unchecked, own).into_iter().map(|d| format!("{name}: {d}")));
            }
            Err(e) => out.push(format!("{name}: {e}")),
        }
    }
    out.extend(log(&envoy.log, &remora.log));
    out
}

/// `own`: the answer is a failure that the proxy reports itself.
fn one(wanted: &Outcome, got: &Outcome, unchecked: &BTreeSet<String>, own: bool) -> Vec<String> {
    let mut wanted = as_remora(wanted);
    let mut got = got.clone();
    let mut out = Vec::new();
    let reason = header(&got.headers, "x-remora-reason").is_some();
    let made_upstream = header(&got.headers, "x-upstream").is_some();
    if reason && made_upstream {
        out.push("x-remora-reason on an answer that an upstream made".into());
    }
    if own {
        if !reason && got.status.is_some_and(|s| s >= 400) {
            out.push("no x-remora-reason on a failure that the proxy reports".into());
        }
        strip_failure(&mut wanted);
        strip_failure(&mut got);
    }
    got.headers = without(&got.headers, &["x-remora-reason"]);
    out.extend(fields(&wanted, &got, unchecked));
    out
}

fn fields(wanted: &Outcome, got: &Outcome, unchecked: &BTreeSet<String>) -> Vec<String> {
    let mut out = Vec::new();
    macro_rules! same {
        ($($field:ident),+) => { $(
            if !unchecked.contains(stringify!($field)) && wanted.$field != got.$field {
                out.push(format!(concat!(stringify!($field), ": wanted {:?}, got {:?}"), wanted.$field, got.$field));
            }
        )+ };
    }
    same!(
        status,
        version,
        interim,
        body,
        trailers,
        end,
        certificate,
        tunnel,
        closed,
        attempts,
        statuses,
        distinct
    );
    if !unchecked.contains("headers") {
        out.extend(list("header", &wanted.headers, &got.headers));
    }
    if unchecked.contains("forwarded") {
        return out;
    }
    match (&wanted.forwarded, &got.forwarded) {
        (Some(wanted), Some(got)) => out.extend(forwarded(wanted, got)),
        (None, None) => {}
        (wanted, _) => {
            let (was, is) = if wanted.is_some() { ("", "not ") } else { ("not ", "") };
            out.push(format!("wanted it {was}forwarded, and it was {is}forwarded"));
        }
    }
    out
}

fn forwarded(wanted: &Forwarded, got: &Forwarded) -> Vec<String> {
    let mut out = Vec::new();
    macro_rules! same {
        ($($field:ident),+) => { $(
            if wanted.$field != got.$field {
                out.push(format!(
                    concat!("forwarded ", stringify!($field), ": wanted {:?}, got {:?}"), wanted.$field, got.$field
                ));
            }
        )+ };
    }
    same!(line, authority, body, trailers, truncated, tls);
    out.extend(list("forwarded header", &wanted.headers, &got.headers));
    out
}

/// Differences of two lists of lines, as what is missing and what is too much.
fn list(what: &str, wanted: &[String], got: &[String]) -> Vec<String> {
    let mut rest = got.to_vec();
    let mut out = Vec::new();
    for line in wanted {
        match rest.iter().position(|l| l == line) {
            Some(i) => drop(rest.remove(i)),
            None => out.push(format!("{what} missing: {line}")),
        }
    }
    out.extend(rest.iter().map(|line| format!("{what} too much: {line}")));
    if out.is_empty() && wanted != got {
        out.push(format!("{what}s in another order: wanted {wanted:?}, got {got:?}"));
    }
    out
}

fn log(wanted: &[String], got: &[String]) -> Vec<String> {
    list("access log line", wanted, got)
}

/// Rows of the table in docs/differences-from-envoy.md: the id, and the cases in the last column.
pub fn documented(file: &Path) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let text = std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
    let rows = text.lines().filter(|l| l.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let cases = cells.last().unwrap_or(&"").split([',', ' ']).filter(|c| !c.is_empty());
        (cells[0].trim_matches('`').to_owned(), cases.map(str::to_owned).collect())
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let line = |t: &str| t.to_owned();
        Outcome {
            status: Some(200),
            version: line("HTTP/1.1"),
            headers: vec![line("server: envoy"), line("x-upstream: A")],
            body: line("upstream A\n"),
            attempts: vec![line("A")],
            forwarded: Some(Forwarded {
                line: line("GET / HTTP/1.1"),
                authority: Some(line("a.example")),
                headers: vec![line("x-forwarded-proto: http")],
                ..Forwarded::default()
            }),
            ..Outcome::default()
        }
    }

    fn remora() -> Outcome {
        as_remora(&outcome())
    }

    /// Every field of an outcome, changed by itself, is reported: the comparison can fail.
    #[test]
    fn each_field_is_compared() {
        type Change = fn(&mut Outcome);
        let changes: [(&str, Change); 18] = [
            ("status", |o| o.status = Some(503)),
            ("version", |o| o.version = "HTTP/2".into()),
            ("interim", |o| o.interim = vec![100]),
            ("header missing", |o| drop(o.headers.remove(0))),
            ("header too much", |o| o.headers.push("x-more: 1".into())),
            ("header missing", |o| o.headers[1] = "x-upstream: B".into()),
            ("body", |o| o.body = "upstream B\n".into()),
            ("trailers", |o| o.trailers = vec!["grpc-status: 0".into()]),
            ("end", |o| o.end = super::super::case::End::Truncated),
            ("certificate", |o| o.certificate = Some("b".into())),
            ("tunnel", |o| o.tunnel = Some("x".into())),
            ("closed", |o| o.closed = Some(true)),
            ("attempts", |o| o.attempts.push("A".into())),
            ("statuses", |o| o.statuses = [("200".to_owned(), 1)].into()),
            ("distinct", |o| o.distinct = Some(1)),
            ("not forwarded", |o| o.forwarded = None),
            ("forwarded line", |o| o.forwarded.as_mut().expect("set above").line = "GET /x HTTP/1.1".into()),
            ("forwarded header", |o| o.forwarded.as_mut().expect("set above").headers.clear()),
        ];
        assert_eq!(one(&outcome(), &remora(), &BTreeSet::new(), false), Vec::<String>::new());
        for (what, change) in changes {
            let mut got = remora();
            change(&mut got);
            let found = one(&outcome(), &got, &BTreeSet::new(), false);
            assert!(found.iter().any(|d| d.contains(what)), "{what}: {found:?}");
        }
    }

    #[test]
    fn a_listed_difference_must_be_one() {
        let all = Expected::default();
        let none = Patch { id: "x".into(), status: Some(200), ..Patch::default() };
        assert!(apply(&none, &outcome(), &all).is_err());
        let real = Patch { id: "x".into(), status: Some(404), ..Patch::default() };
        let (wanted, unchecked) = apply(&real, &outcome(), &all).expect("a difference");
        assert!(
            !one(&wanted, &remora(), &unchecked, false).is_empty(),
            "Remora must then differ in just this way"
        );
    }

    #[test]
    fn a_failure_of_the_proxy_carries_its_reason_and_its_own_text() {
        let envoy = Outcome {
            status: Some(503),
            headers: vec!["content-length: 19".into(), "server: envoy".into()],
            body: "no healthy upstream".into(),
            ..Outcome::default()
        };
        let mut got = Outcome {
            status: Some(503),
            headers: vec!["server: remora".into(), "x-remora-reason: no_healthy_upstream".into()],
            body: "no endpoint of cluster a may be used".into(),
            ..Outcome::default()
        };
        assert!(failure(&envoy) && !failure(&outcome()));
        assert_eq!(one(&envoy, &got, &BTreeSet::new(), true), Vec::<String>::new());
        assert_eq!(
            one(&envoy, &got, &BTreeSet::new(), false).len(),
            2,
            "a direct response is compared to the byte"
        );
        got.headers.pop();
        assert_eq!(one(&envoy, &got, &BTreeSet::new(), true).len(), 1);
    }

    #[test]
    fn the_order_of_equal_header_names_matters() {
        let wanted = ["x-a: 1".to_owned(), "x-a: 2".to_owned()];
        let got = ["x-a: 2".to_owned(), "x-a: 1".to_owned()];
        assert_eq!(list("header", &wanted, &got).len(), 1);
    }
}
