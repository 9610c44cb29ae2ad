//! What proxies make of the documents, as the conditions of each.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use remora_mesh::{Problem, Rule};
use serde_json::{Value, json};

use super::{Flaw, Refusal};
use crate::clock::rfc3339;
use crate::document::Record;
use crate::store::{Key, Revision};

/// Proxies that a condition names.
const NAMED: usize = 10;

/// What every proxy makes of every document, at one moment.
#[derive(Debug)]
pub struct Standing {
    /// The newest write that is in what proxies are to have.
    followed: Revision,
    /// The newest write that was looked at for flaws.
    checked: Revision,
    left_out: BTreeMap<Key, Vec<Flaw>>,
    /// By path of the document.
    marks: HashMap<String, Marks>,
}

/// What keeps a document from being in force everywhere.
#[derive(Debug, Default)]
struct Marks {
    refusals: Vec<String>,
    problems: Vec<String>,
    /// Nodes that do not have it yet.
    lacking: Vec<String>,
}

/// Whether something holds, and why.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    const fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }

    const fn yes(reason: &'static str) -> Self {
        Self { holds: true, reason, message: String::new() }
    }
}

impl Standing {
    pub(super) fn new(followed: Revision, (checked, left_out): (Revision, BTreeMap<Key, Vec<Flaw>>)) -> Self {
        Self { followed, checked, left_out, marks: HashMap::new() }
    }

    /// Whether a document was looked at as it is: else nobody knows whether it is right.
    #[must_use]
    pub const fn is_checked(&self, record: &Record) -> bool {
        record.revision <= self.checked
    }

    fn mark(&mut self, document: &str) -> &mut Marks {
        self.marks.entry(document.to_owned()).or_default()
    }

    pub(super) fn refusal(&mut self, node: &str, refusal: &Refusal) {
        let line = format!("{node}: {} {}: {}", refusal.kind, refusal.name, refusal.reason);
        for document in &refusal.documents {
            self.mark(document).refusals.push(line.clone());
        }
    }

    pub(super) fn lacking(&mut self, node: &str, document: &str) {
        self.mark(document).lacking.push(node.to_owned());
    }

    pub(super) fn problem(&mut self, node: &str, problem: &Problem) {
        let line = format!("{node}: {}", problem.message);
        self.mark(&problem.document.to_string()).problems.push(line);
    }

    /// What is wrong with a document.
    #[must_use]
    pub fn flaws(&self, document: &Key) -> &[Flaw] {
        self.left_out.get(document).map_or(&[], Vec::as_slice)
    }

    /// `status` of a document: whether it is right (Accepted), whether the proxies that use it have it (Programmed), and who does not
    /// want it (RefusedBy).
    #[must_use]
    pub fn of(&self, record: &Record) -> Value {
        self.told(record, self.flaws(&record.key).is_empty())
    }

    /// Like [`Self::of`], of a document that is in force as far as it can be compiled, whatever is wrong with it: a route that nobody
    /// checked before it was kept.
    #[must_use]
    pub fn as_far_as_it_goes(&self, record: &Record) -> Value {
        self.told(record, self.flaws(&record.key).iter().all(|flaw| flaw.rule != Rule::Syntax))
    }

    fn told(&self, record: &Record, in_force: bool) -> Value {
        let none = Marks::default();
        let marks = self.marks.get(&record.key.path()).unwrap_or(&none);
        let generation = record.generation();
        let since = record.metadata().get("creationTimestamp").cloned();
        let since = since.unwrap_or_else(|| rfc3339(SystemTime::now()).into());
        let condition = |kind: &str, verdict: Verdict| {
            json!({
                "type": kind, "status": if verdict.holds { "True" } else { "False" }, "reason": verdict.reason,
                "message": verdict.message, "observedGeneration": generation, "lastTransitionTime": since,
            })
        };
        let accepted = match self.left_out.get(&record.key) {
            None => Verdict::yes("Accepted"),
            Some(flaws) => {
                let texts: Vec<_> = flaws.iter().map(|flaw| flaw.text.as_str()).collect();
                Verdict::no("Invalid", texts.join("\n"))
            }
        };
        let programmed =
            if in_force { self.programmed(record, marks) } else { Verdict::no("NotAccepted", String::new()) };
        let mut conditions = vec![condition("Accepted", accepted), condition("Programmed", programmed)];
        if !marks.refusals.is_empty() {
            let message = some(&marks.refusals, "\n");
            conditions.push(condition("RefusedBy", Verdict { message, ..Verdict::yes("Refused") }));
        }
        json!({ "conditions": conditions })
    }

    fn programmed(&self, record: &Record, marks: &Marks) -> Verdict {
        if self.followed < record.revision {
            Verdict::no("Pending", "it is being compiled".into())
        } else if !marks.refusals.is_empty() {
            Verdict::no("Refused", format!("{} proxies refuse a part of it", marks.refusals.len()))
        } else if !marks.problems.is_empty() {
            Verdict::no("Conflict", some(&marks.problems, "\n"))
        } else if !marks.lacking.is_empty() {
            Verdict::no("Pending", format!("on its way to {}", some(&marks.lacking, ", ")))
        } else {
            Verdict::yes("Programmed")
        }
    }
}

fn some(lines: &[String], between: &str) -> String {
    let mut text = lines[..lines.len().min(NAMED)].join(between);
    if lines.len() > NAMED {
        text.push_str(&format!("{between}and {} more", lines.len() - NAMED));
    }
    text
}
