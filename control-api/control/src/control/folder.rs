//! A folder of documents: what is in it is in the store, and what leaves it leaves the store.
//!
//! Looked at again and again instead of watched: a mounted ConfigMap, NFS and a plain folder change in different ways, and half a second
//! is soon enough.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tracing::{error, info};

use crate::audit::Audit;
use crate::board::Board;
use crate::clock::rfc3339;
use crate::document::{Record, Text, read};
use crate::files;
use crate::registry::Registry;
use crate::registry::change::{How, Mode, Outcome, Refused, Verb};
use crate::registry::mirror::{ORIGIN, origin};
use crate::store::{Key, Revision};

/// Between looks.
const LOOK: Duration = Duration::from_millis(500);
/// Texts of one file.
const MAX_FILE: u64 = 16 << 20;
/// Value of the annotation [`ORIGIN`].
const FOLDER: &str = "folder";

/// Length and time of each file: what differs is read.
type Marks = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Follows the folder for ever.
pub(super) async fn follow(path: PathBuf, registry: Arc<Registry>, board: Arc<Board>, audit: Arc<Audit>) {
    registry.filled().await;
    let mut seen: Option<Marks> = None;
    // The revision of a mesh in which its documents are wrong. They may become right without a change of them.
    let mut wrong_at: Option<Revision> = None;
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let place = path.clone();
        let looked = tokio::task::spawn_blocking(move || look(&place)).await;
        let marks = match looked {
            Ok(Ok(marks)) => marks,
            Ok(Err(why)) => {
                report(&board, &path, &[why.to_string()]);
                continue;
            }
            Err(why) => {
                report(&board, &path, &[why.to_string()]);
                continue;
            }
        };
        let revision = registry.revision();
        let same = seen.as_ref() == Some(&marks);
        if same && wrong_at.is_none_or(|wrong_at| wrong_at == revision) {
            continue;
        }
        match take(&registry, &audit, &path, &marks).await {
            Ok(text) => {
                info!(folder = %path.display(), "{text}");
                report(&board, &path, &[]);
                (seen, wrong_at) = (Some(marks), None);
            }
            Err(Wrong::Texts(mistakes)) => {
                for mistake in mistakes.iter().filter(|_| !same) {
                    error!(folder = %path.display(), "{mistake}");
                }
                report(&board, &path, &mistakes);
                // The last good documents stay, until the files change again, or what they refer to.
                (seen, wrong_at) = (Some(marks), Some(revision));
            }
            // Tried again at the next look.
            Err(Wrong::ForNow(why)) => report(&board, &path, &[why]),
        }
    }
}

fn report(board: &Board, path: &Path, mistakes: &[String]) {
    let state: Value = json!({"folder": path, "mistakes": mistakes, "at": rfc3339(SystemTime::now())});
    board.set_files(state);
}

fn look(path: &Path) -> std::io::Result<Marks> {
    let mut marks = Marks::new();
    for path in files::list(path, true)? {
        let metadata = std::fs::metadata(&path)?;
        marks.insert(path, (metadata.len(), metadata.modified().ok()));
    }
    Ok(marks)
}

enum Wrong {
    /// What the documents say.
    Texts(Vec<String>),
    /// The files or the store cannot be read or written at this moment.
    ForNow(String),
}

async fn take(registry: &Registry, audit: &Audit, folder: &Path, marks: &Marks) -> Result<String, Wrong> {
    let mut texts = Vec::new();
    for (path, (length, _)) in marks {
        let name = path.display().to_string();
        if *length > MAX_FILE {
            return Err(Wrong::Texts(vec![format!("{name}: more than {MAX_FILE} bytes")]));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Wrong::ForNow(format!("{name}: {e}")))?;
        texts.push(Text { name, text });
    }
    let told = |mistakes: Vec<crate::document::Mistake>| {
        Wrong::Texts(mistakes.iter().map(ToString::to_string).collect())
    };
    let mut documents = read(&texts, "default").map_err(told)?;
    documents.iter_mut().for_each(|document| document.annotate(ORIGIN, Some(FOLDER)));
    let wanted: BTreeSet<&Key> = documents.iter().map(|document| &document.key).collect();
    let gone: Vec<Key> = registry
        .documents()
        .iter()
        .filter(|record| is_marked(record) && !wanted.contains(&record.key))
        .map(|record| record.key.clone())
        .collect();
    // What refers to something that goes away goes first or changes with it: the folder is taken as a whole.
    let how = How { mode: Mode::Apply, dry_run: false, force: true };
    let refused = |refused: Refused| match refused {
        Refused::Invalid(mistakes) => told(mistakes),
        other => Wrong::ForNow(format!("{other:?}")),
    };
    let actor = format!("folder {}", folder.display());
    let audited = async |outcomes: Result<Vec<Outcome>, Refused>| {
        if let Ok(done) | Err(Refused::Partly(done, _)) = &outcomes {
            audit.write(None, &actor, done).await;
        }
        outcomes.map_err(refused)
    };
    let written = audited(registry.write(&documents, how).await).await?;
    audited(registry.remove(&gone, None, how).await).await?;
    let changed = written.iter().filter(|outcome| outcome.verb != Verb::Unchanged).count();
    Ok(format!("{} documents, {changed} of them new or changed, {} removed", documents.len(), gone.len()))
}

fn is_marked(record: &Record) -> bool {
    origin(record).as_deref() == Some(FOLDER)
}
