//! Files named by `path_config_source`, watched. The directory is watched, not the file: an editor replaces a file by
//! renaming another over it, and Kubernetes replaces a ConfigMap by swapping the `..data` link beside it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Config, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Several events come for one change; they are waited out for this long.
const SETTLE: Duration = Duration::from_millis(20);

/// Watches directories and tells when something in them changed.
#[derive(Debug)]
pub struct FileWatcher {
    watcher: AnyWatcher,
    directories: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    /// When a change that was seen has settled.
    settled: Option<Instant>,
}

enum AnyWatcher {
    Notify(RecommendedWatcher),
    /// Some file systems have no notifications.
    Poll(PollWatcher),
}

impl std::fmt::Debug for AnyWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Notify(_)) { "inotify" } else { "poll" })
    }
}

impl FileWatcher {
    /// A watcher of nothing yet.
    ///
    /// # Errors
    /// Neither notifications nor polling can be set up.
    pub fn new() -> notify::Result<Self> {
        let (tell, events) = mpsc::channel(1);
        let poll_tell = tell.clone();
        let told = |tell: &mpsc::Sender<()>, event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and we read them.
            if event.is_ok_and(|e| !matches!(e.kind, EventKind::Access(_))) {
                // A full channel means that the news is on its way already.
                let _ = tell.try_send(());
            }
        };
        let watcher = match RecommendedWatcher::new(move |e| told(&tell, e), Config::default()) {
            Ok(watcher) => AnyWatcher::Notify(watcher),
            Err(error) => {
                tracing::warn!(%error, "no file notifications; polling every two seconds");
                let config =
                    Config::default().with_poll_interval(Duration::from_secs(2)).with_compare_contents(true);
                AnyWatcher::Poll(PollWatcher::new(move |e| told(&poll_tell, e), config)?)
            }
        };
        Ok(Self { watcher, directories: BTreeSet::new(), events, settled: None })
    }

    /// Watches the directories of `files` and `directories`, and no others.
    pub fn watch(&mut self, files: &BTreeSet<PathBuf>, directories: BTreeSet<PathBuf>) {
        let mut wanted = directories;
        wanted.extend(files.iter().map(|f| directory(f)));
        for gone in self.directories.difference(&wanted) {
            // It may have been deleted, which ends the watch as well.
            let _ = self.watcher.inner().unwatch(gone);
        }
        for new in wanted.difference(&self.directories) {
            if let Err(error) = self.watcher.inner().watch(new, RecursiveMode::NonRecursive) {
                tracing::error!(directory = %new.display(), %error, "cannot watch");
            }
        }
        self.directories = wanted;
    }

    /// Waits until something changed and has settled. Nothing is lost when it is not waited for to the end.
    pub async fn changed(&mut self) {
        if self.settled.is_none() && self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let settled = *self.settled.get_or_insert_with(|| Instant::now() + SETTLE);
        tokio::time::sleep_until(settled).await;
        self.settled = None;
        while self.events.try_recv().is_ok() {}
    }
}

impl AnyWatcher {
    fn inner(&mut self) -> &mut dyn Watcher {
        match self {
            Self::Notify(watcher) => watcher,
            Self::Poll(watcher) => watcher,
        }
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rename_over_the_file_and_a_link_swap_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("routes.yaml");
        std::fs::write(&file, "a").unwrap();
        let mut watcher = FileWatcher::new().unwrap();
        watcher.watch(&BTreeSet::from([file.clone()]), BTreeSet::new());
        let patience = Duration::from_secs(10);

        std::fs::write(dir.path().join("new"), "b").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        tokio::time::timeout(patience, watcher.changed()).await.unwrap();

        std::os::unix::fs::symlink("v2", dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        tokio::time::timeout(patience, watcher.changed()).await.unwrap();
    }
}
