//! Files of lines of JSON that say what happened, bounded: `audit.jsonl`, `issued.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::error;

use crate::files;

/// A file is put aside when it is this long…
const MOST_BYTES: u64 = 16 << 20;
/// …and so many are kept besides the newest.
const OLD_FILES: u32 = 4;

/// A file that grows by lines.
#[derive(Debug, Clone)]
pub(crate) struct Lines(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    most_bytes: u64,
    file: Option<File>,
}

impl Lines {
    /// At `path`, readable by nobody else.
    pub(crate) fn at(path: &Path) -> Self {
        Self::bounded(path, MOST_BYTES)
    }

    pub(crate) fn bounded(path: &Path, most_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Log { path: path.to_owned(), most_bytes, file: None })))
    }

    /// Writes whole lines. When that fails, it is an error in the log of the process, and no reason to refuse what has happened.
    pub(crate) async fn append(&self, lines: String) {
        let log = Arc::clone(&self.0);
        let written = tokio::task::spawn_blocking(move || {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.append(lines.as_bytes()).map_err(|error| format!("{}: {error}", log.path.display()))
        });
        if let Err(why) = written.await.map_err(|error| error.to_string()).flatten() {
            error!(why, "what happened cannot be written down");
        }
    }

    /// What the newest two files say, oldest first; lines that cannot be read are left out.
    pub(crate) fn read(&self) -> Vec<serde_json::Value> {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner).path.clone();
        let texts = [old(&path, 1), path].map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

fn old(path: &Path, number: u32) -> PathBuf {
    path.with_extension(format!("jsonl.{number}"))
}

impl Log {
    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            self.file = Some(files::open_private(OpenOptions::new().append(true), &self.path)?);
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
        for number in (1..OLD_FILES).rev() {
            match std::fs::rename(old(&self.path, number), old(&self.path, number + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, old(&self.path, 1))
    }
}
