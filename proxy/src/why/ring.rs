//! Stories, bounded: the newest of each worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Cause, Place, Story};
use crate::telemetry::record::AccessRecord;

/// Stories that a worker keeps: enough for somebody who comes some minutes after the alarm, and about 200 KiB; some 600 if each of them
/// is as long as it can be.
const STORIES: usize = 128;

/// The stories of all workers.
#[derive(Debug, Default)]
pub struct Stories(Mutex<Vec<Arc<Mutex<Ring>>>>);

/// The stories of one worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerStories(Arc<Mutex<Ring>>);

/// A poisoned lock only means that another thread panicked; a ring is never half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stories {
    /// A ring for one worker.
    pub fn worker(&self) -> WorkerStories {
        let own = WorkerStories::default();
        lock(&self.0).push(Arc::clone(&own.0));
        own
    }

    /// What is kept, the newest first. Takes each worker's lock for as long as it takes to count references.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Arc<Story>> {
        let mut all: Vec<_> = lock(&self.0).iter().flat_map(|ring| lock(ring).0.clone()).collect();
        all.sort_by_key(|story| std::cmp::Reverse(story.ended));
        all
    }
}

impl WorkerStories {
    /// Keeps the story of what `record` says, which ended now.
    pub fn tell(&self, cause: impl Into<Cause>, record: &AccessRecord<'_>, place: &Place<'_>) {
        self.keep(Story::new(cause, record, place, (Instant::now(), SystemTime::now())));
    }

    /// What is allocated is made before the lock is taken, and freed after it.
    fn keep(&self, story: Story) {
        let story = Arc::new(story);
        let pushed_out = lock(&self.0).push(story);
        drop(pushed_out);
    }
}

/// The oldest first.
#[derive(Debug, Default)]
struct Ring(VecDeque<Arc<Story>>);

impl Ring {
    /// Over the bound, the cause with the most stories loses its oldest: a probe that is refused every second leaves the one story that
    /// matters where it is.
    fn push(&mut self, story: Arc<Story>) -> Option<Arc<Story>> {
        let loudest = if self.0.len() < STORIES { None } else { self.loudest() };
        let pushed_out = loudest.and_then(|at| self.0.remove(at));
        self.0.push_back(story);
        pushed_out
    }

    /// Where the oldest story of the most frequent cause is.
    fn loudest(&self) -> Option<usize> {
        let mut counts: SmallVec<[(Cause, usize, usize); 16]> = SmallVec::new();
        for (at, story) in self.0.iter().enumerate() {
            match counts.iter_mut().find(|(cause, ..)| *cause == story.cause) {
                Some((_, _, count)) => *count += 1,
                None => counts.push((story.cause, at, 1)),
            }
        }
        // Of several the one that began first.
        counts.iter().rev().max_by_key(|(.., count)| *count).map(|(_, first, _)| *first)
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::tests::story;
    use super::*;
    use crate::error::Reason;

    fn ids(stories: &Stories) -> Vec<String> {
        let id = |story: &Arc<Story>| story.json()["request_id"].as_str().map(str::to_owned);
        stories.newest_first().iter().filter_map(id).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_of_all_workers_come_first() {
        let stories = Stories::default();
        let workers = [stories.worker(), stories.worker()];
        for n in 0..6 {
            workers[n % 2].keep(story(Reason::NoRoute, &n.to_string()));
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(ids(&stories), ["5", "4", "3", "2", "1", "0"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_is_bounded_and_what_is_loud_pushes_out_itself() {
        let stories = Stories::default();
        let worker = stories.worker();
        worker.keep(story(Reason::RbacDenied, "rare"));
        for n in 0..3 * STORIES {
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
            worker.keep(story(Reason::NoRoute, &n.to_string()));
        }
        let kept = ids(&stories);
        assert_eq!(kept.len(), STORIES);
        assert_eq!((kept[0].as_str(), kept[STORIES - 1].as_str()), ("383", "rare"));
        assert_eq!(
            kept[STORIES - 2],
            (3 * STORIES - (STORIES - 1)).to_string(),
            "the oldest of the loud ones"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn two_loud_causes_share_the_room() {
        let stories = Stories::default();
        let worker = stories.worker();
        for n in 0..4 * STORIES {
            let reason = if n % 2 == 0 { Reason::NoRoute } else { Reason::JwtMissing };
            worker.keep(story(reason, "x"));
        }
        let all = stories.newest_first();
        let of = |reason: Reason| all.iter().filter(|s| s.cause == reason.into()).count();
        assert_eq!((of(Reason::NoRoute), of(Reason::JwtMissing)), (STORIES / 2, STORIES / 2));
    }
}
