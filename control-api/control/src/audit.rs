//! Who changed what, and when: lines of JSON in a file beside the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::json;
use tracing::error;

use crate::clock::rfc3339;
use crate::registry::change::{Outcome, Verb};

/// A file is put aside when it is this long…
const MOST_BYTES: u64 = 16 << 20;
/// …and so many are kept besides the newest.
const OLD_FILES: u32 = 4;

/// The log of changes.
#[derive(Debug, Clone)]
pub struct Audit(Option<Arc<Mutex<Log>>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    most_bytes: u64,
    file: Option<File>,
}

impl Audit {
    /// A log at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self::bounded(path, MOST_BYTES)
    }

    fn bounded(path: &Path, most_bytes: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(Log { path: path.to_owned(), most_bytes, file: None }))))
    }

    /// No log.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Writes down what somebody changed. `actor` is the name that they give themselves. A log that cannot be written is an
    /// error in the log of the process, and no reason to refuse the change, which has happened.
    pub async fn write(&self, address: Option<SocketAddr>, actor: &str, outcomes: &[Outcome]) {
        let Some(log) = self.0.clone() else { return };
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
        let written = tokio::task::spawn_blocking(move || {
            log.lock().unwrap_or_else(PoisonError::into_inner).append(lines.as_bytes())
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "the audit log cannot be written"),
            Err(error) => error!(%error, "the audit log cannot be written"),
        }
    }
}

impl Log {
    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            self.file = Some(file);
        }
        let full = match &self.file {
            Some(file) => file.metadata()?.len() >= self.most_bytes,
            None => false,
        };
        if full {
            self.file = None;
            self.put_aside()?;
            return self.append(lines);
        }
        match &mut self.file {
            Some(file) => file.write_all(lines),
            None => Ok(()),
        }
    }

    fn put_aside(&self) -> std::io::Result<()> {
        let old = |number: u32| self.path.with_extension(format!("jsonl.{number}"));
        for number in (1..OLD_FILES).rev() {
            match std::fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, old(1))
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
        let audit = Audit::bounded(&path, 400);
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
