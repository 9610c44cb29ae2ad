//! Envoy as an oracle: the same bootstrap file and the same requests through Envoy 1.40 and Remora, the same outcome.
//!
//! `tests/oracle/NN-name/` holds a case; tests/oracle/README.md tells how to add and record one.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `REMORA_ORACLE` | path of Envoy; without it Remora is compared with what was recorded from Envoy |
//! | `REMORA_BIN` | another Remora than the one that cargo built |
//! | `ORACLE_RECORD=1` | write `expected.yaml` from Envoy instead of comparing |
//! | `ORACLE_CASE` | only cases whose name contains this |
//! | `ORACLE_SELF=1` | `REMORA_BIN` is an Envoy as well: nothing may differ |
//! | `ORACLE_JOBS` | cases at the same time, default 4 |

#[expect(unreachable_pub, reason = "the runner's modules are written like those of a library")]
#[path = "../oracle/runner/mod.rs"]
mod runner;

use anyhow::Context as _;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use runner::case::{Case, corpus};
use runner::diff::{EVERYWHERE, compare, compare_same, documented};
use runner::proxy::Program;
use runner::{Fixture, observe};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle")
}

fn set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0")
}

struct Plan {
    envoy: Option<Program>,
    remora: Program,
    record: bool,
    same: bool,
}

/// Runs one case; returns what is wrong.
async fn check(case: &Case, plan: &Plan, fixture: &Fixture) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    if let Some(envoy) = &plan.envoy {
        let (seen, broken) = observe(case, envoy, fixture).await.context("Envoy")?;
        wrong.extend(broken.into_iter().map(|b| format!("Envoy: {b}")));
        if plan.record {
            case.record(&seen)?;
            return Ok(wrong);
        }
        let drift = compare_same(&case.expected()?, &seen);
        wrong.extend(drift.into_iter().map(|d| format!("Envoy is not as recorded: {d}")));
    }
    if !case.requests.refused.is_empty() && !plan.same {
        wrong.extend(refusal(case, plan, fixture).await);
        return Ok(wrong);
    }
    let (seen, broken) = observe(case, &plan.remora, fixture).await.context("Remora")?;
    wrong.extend(broken.into_iter().map(|b| format!("Remora: {b}")));
    let expected = case.expected()?;
    let differences =
        if plan.same { compare_same(&expected, &seen) } else { compare(case, &expected, &seen) };
    wrong.extend(differences.into_iter().map(|d| format!("Remora: {d}")));
    Ok(wrong)
}

/// A file with unsupported fields must not be run without them.
async fn refusal(case: &Case, plan: &Plan, fixture: &Fixture) -> Vec<String> {
    match observe(case, &plan.remora, fixture).await {
        Ok(_) => vec!["Remora: runs a file that it should refuse: is the case supported now?".into()],
        Err(error) => {
            let text = format!("{error:#}");
            let missing = case.requests.refused.iter().filter(|field| !text.contains(*field));
            missing.map(|field| format!("Remora: does not refuse {field}: {text}")).collect()
        }
    }
}

fn plan() -> Plan {
    let envoy = std::env::var_os("REMORA_ORACLE").filter(|v| !v.is_empty()).map(|p| Program::envoy(p.into()));
    let remora =
        std::env::var_os("REMORA_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_remora-under-test").into());
    let plan = Plan {
        envoy,
        remora: Program::remora(remora.into()),
        record: set("ORACLE_RECORD"),
        same: set("ORACLE_SELF"),
    };
    assert!(plan.envoy.is_some() || !plan.record, "ORACLE_RECORD needs REMORA_ORACLE, the path of Envoy");
    if plan.envoy.is_none() {
        eprintln!(
            "SKIPPED: no live Envoy (REMORA_ORACLE is not set); Remora is compared with the recorded outcomes"
        );
    }
    plan
}

#[tokio::test]
async fn the_same_file_and_requests_give_the_same_outcome() {
    let only = std::env::var("ORACLE_CASE").unwrap_or_default();
    let plan = Arc::new(plan());
    let fixture = Arc::new(Fixture::new().expect("certificates"));
    let jobs = std::env::var("ORACLE_JOBS").ok().and_then(|j| j.parse().ok()).unwrap_or(4);
    let permits = Arc::new(Semaphore::new(jobs));
    let mut set = JoinSet::new();
    for case in corpus(&root()).expect("a readable corpus") {
        if !case.name.contains(&only) {
            continue;
        }
        let (plan, fixture, permits) = (Arc::clone(&plan), Arc::clone(&fixture), Arc::clone(&permits));
        set.spawn(async move {
            let _permit = permits.acquire().await.expect("never closed");
            let wrong = check(&case, &plan, &fixture).await.unwrap_or_else(|e| vec![format!("{e:#}")]);
            (case, wrong)
        });
    }
    let mut results = set.join_all().await;
    results.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    assert!(!results.is_empty(), "no case matches {only}");
    let mut failed = 0;
    for (case, wrong) in &results {
        let verdict = if wrong.is_empty() { "ok" } else { "FAILED" };
        eprintln!(
            "{verdict:<6} {:<28} {:>3} requests  {}",
            case.name,
            case.requests.requests.len(),
            case.requests.about
        );
        for line in wrong {
            eprintln!("         {line}");
        }
        failed += usize::from(!wrong.is_empty());
    }
    let requests: usize = results.iter().map(|(c, _)| c.requests.requests.len()).sum();
    eprintln!("{} cases, {requests} requests, {failed} failed", results.len());
    assert_eq!(failed, 0, "{failed} cases differ; see above");
}

/// The table in docs/ and the corpus name the same differences.
#[test]
fn every_difference_is_explained() {
    let table = documented(&root().join("../../docs/differences-from-envoy.md")).expect("the table");
    let cases = corpus(&root()).expect("a readable corpus");
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for case in &cases {
        for patch in case.requests.requests.iter().filter_map(|r| r.differs.as_ref()) {
            used.insert((patch.id.clone(), case.name.clone()));
        }
        if !case.requests.refused.is_empty() {
            used.insert(("unsupported-fields-refused".into(), case.name.clone()));
        }
    }
    let ids: Vec<&String> = table.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "an id twice in the table");
    for id in used.iter().map(|(id, _)| id.as_str()).chain(EVERYWHERE) {
        assert!(ids.iter().any(|i| *i == id), "{id} has no row in docs/differences-from-envoy.md");
    }
    for (id, listed) in &table {
        let in_corpus: BTreeSet<&str> =
            used.iter().filter(|(i, _)| i == id).map(|(_, c)| c.as_str()).collect();
        let listed: BTreeSet<&str> =
            listed.iter().map(String::as_str).filter(|c| cases.iter().any(|k| k.name == *c)).collect();
        assert_eq!(listed, in_corpus, "row {id}: the cases in its last column, and the cases that list it");
    }
}

#[test]
fn the_corpus_is_as_large_as_promised() {
    let cases = corpus(&root()).expect("a readable corpus");
    assert!(cases.len() >= 110, "{} bootstrap files", cases.len());
    let number = |case: &Case| case.name.split('-').next().and_then(|n| n.parse::<u32>().ok());
    let numbers = cases.iter().filter_map(number);
    let resilience = numbers.filter(|n| matches!(n, 53..=56 | 70..=74 | 90..=98 | 105..=139)).count();
    assert!(resilience >= 50, "{resilience} cases of resilience and traffic");
    for case in &cases {
        let expected = case.expected().expect("recorded");
        assert_eq!(expected.outcomes.len(), case.requests.requests.len(), "{}: record again", case.name);
    }
}
