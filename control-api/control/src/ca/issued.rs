//! What was signed, for whom and on which credential: lines of JSON in `issued.jsonl`, and those that have not ended in memory.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::keeper::now;
use crate::clock::rfc3339_of;
use crate::lines::Lines;

/// Certificates that are remembered.
const MOST: usize = 50_000;

/// A certificate that was signed here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When, RFC 3339.
    pub time: String,
    /// In hexadecimal.
    pub serial: String,
    /// `spiffe://…`.
    pub identity: String,
    /// What proved it: `token 1f0c…`, `certificate 5a91…`, `serviceaccount`, or `control` for a control plane's own.
    pub credential: String,
    /// Where the request came from.
    pub address: Option<SocketAddr>,
    /// When it ends, RFC 3339.
    pub not_after: String,
    /// The same in seconds since 1970.
    pub ends: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    lines: Lines,
    last: Mutex<VecDeque<Entry>>,
}

impl Log {
    /// The log at `path`, with what it says already.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let lines = Lines::at(path);
        let read = lines.read().into_iter().filter_map(|line| serde_json::from_value(line).ok());
        let mut last: VecDeque<Entry> = read.collect();
        last.drain(..last.len().saturating_sub(MOST));
        Self { lines, last: Mutex::new(last) }
    }

    fn last(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what was signed now.
    pub(crate) async fn write(
        &self,
        issued: &super::authority::Issued,
        identity: &str,
        credential: String,
        address: Option<SocketAddr>,
    ) {
        let entry = Entry {
            time: rfc3339_of(now()),
            serial: issued.serial.clone(),
            identity: identity.to_owned(),
            credential,
            address,
            not_after: rfc3339_of(issued.not_after),
            ends: issued.not_after,
        };
        let line = format!("{}\n", json!(entry));
        {
            let mut last = self.last();
            if last.len() >= MOST {
                last.pop_front();
            }
            last.push_back(entry);
        }
        self.lines.append(line).await;
    }

    /// The last `most` that were signed here, newest first.
    #[must_use]
    pub fn newest(&self, most: usize) -> Vec<Entry> {
        self.last().iter().rev().take(most).cloned().collect()
    }

    /// Serial number and end of those that have not ended and fit.
    #[must_use]
    pub fn living(&self, fits: impl Fn(&Entry) -> bool) -> Vec<(String, u64)> {
        let now = now();
        let living = self.last();
        let found = living.iter().filter(|entry| entry.ends > now && fits(entry));
        found.map(|entry| (entry.serial.clone(), entry.ends)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::authority::Issued;

    #[tokio::test]
    async fn what_was_signed_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issued.jsonl");
        let log = Log::at(&path);
        for (serial, not_after) in [("01", now() + 60), ("02", now() + 60), ("03", now() - 1)] {
            let (leaf, intermediates, roots) = Default::default();
            let issued = Issued { serial: serial.into(), not_after, leaf, intermediates, roots };
            log.write(&issued, if serial == "02" { "b" } else { "a" }, "token x".into(), None).await;
        }
        for log in [log, Log::at(&path)] {
            let serials: Vec<_> = log.newest(2).into_iter().map(|entry| entry.serial).collect();
            assert_eq!(serials, ["03", "02"]);
            let living = log.living(|entry| entry.identity == "a");
            assert_eq!(living.len(), 1, "{living:?}");
            assert_eq!(living[0].0, "01");
        }
    }
}
