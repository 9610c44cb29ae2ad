//! Who changed what, and when: lines of JSON in a file beside the store.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use serde_json::json;

use crate::clock::rfc3339;
use crate::lines::Lines;
use crate::registry::change::{Outcome, Verb};

/// The log of changes.
#[derive(Debug, Clone)]
pub struct Audit(Option<Lines>);

impl Audit {
    /// A log at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(Some(Lines::at(path)))
    }

    /// No log.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Writes down what somebody changed. `actor` is the name that they give themselves.
    pub async fn write(&self, address: Option<SocketAddr>, actor: &str, outcomes: &[Outcome]) {
        let Some(log) = &self.0 else { return };
        let time = rfc3339(SystemTime::now());
        let mut lines = String::new();
        for outcome in outcomes.iter().filter(|outcome| outcome.verb != Verb::Unchanged) {
            let line = json!({
                "time": time, "actor": actor, "address": address.map(|a| a.to_string()), "verb": outcome.verb,
                "kind": *outcome.key.kind, "namespace": *outcome.key.namespace, "name": *outcome.key.name,
                "resourceVersion": outcome.record.as_ref().map(|record| record.revision.to_string()),
                "diff": outcome.diff,
            });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        if lines.is_empty() {
            return;
        }
        log.append(lines).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    fn outcome(verb: Verb) -> Outcome {
        Outcome { key: Key::new("Service", "default", "a"), verb, diff: "-1\n+2\n".into(), record: None }
    }

    #[tokio::test]
    async fn changes_are_written_down_and_old_files_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit(Some(Lines::bounded(&path, 400)));
        let address = Some("127.0.0.1:4000".parse().unwrap());
        audit.write(address, "ada", &[outcome(Verb::Configured), outcome(Verb::Unchanged)]).await;
        let text = std::fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["actor"], &line["verb"], &line["diff"]),
            (&"ada".into(), &"configured".into(), &"-1\n+2\n".into())
        );
        for _ in 0..40 {
            audit.write(address, "ada", &[outcome(Verb::Created)]).await;
        }
        let mut files: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(
            files,
            ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3", "audit.jsonl.4"]
        );
    }
}
