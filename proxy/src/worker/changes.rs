//! Tells the connections and streams of one worker that listeners or routes changed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use slab::Slab;

/// The worker's side. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Changes(Rc<State>);

#[derive(Debug, Default)]
struct State {
    count: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl Changes {
    /// Wakes everybody who follows.
    pub fn announce(&self) {
        self.0.count.set(self.0.count.get() + 1);
        let wakers: Vec<Waker> = self.0.waiting.borrow().iter().map(|(_, waker)| waker.clone()).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Follows the changes from now on.
    #[must_use]
    pub fn follow(&self) -> Follower {
        Follower { state: Rc::clone(&self.0), seen: Cell::new(self.0.count.get()), slot: Cell::new(None) }
    }
}

/// A connection's or stream's side. It stays in one task, so its waker is kept once, when it is first asked for.
#[derive(Debug)]
pub struct Follower {
    state: Rc<State>,
    seen: Cell<u64>,
    slot: Cell<Option<usize>>,
}

impl Follower {
    /// Whether there was a change since the last time that this was asked. If not, the task is woken by the next one.
    pub fn poll_changed(&self, cx: &Context<'_>) -> bool {
        let count = self.state.count.get();
        if self.seen.replace(count) != count {
            return true;
        }
        if self.slot.get().is_none() {
            self.slot.set(Some(self.state.waiting.borrow_mut().insert(cx.waker().clone())));
        }
        false
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.get() {
            self.state.waiting.borrow_mut().remove(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    #[tokio::test]
    async fn a_change_wakes_who_waits_and_counts_for_who_did_not() {
        let changes = Changes::default();
        let (waits, late) = (changes.follow(), changes.follow());
        let change = async {
            tokio::task::yield_now().await;
            changes.announce();
        };
        let woken = poll_fn(|cx| if waits.poll_changed(cx) { Poll::Ready(()) } else { Poll::Pending });
        tokio::join!(woken, change);
        poll_fn(|cx| {
            assert!(late.poll_changed(cx) && !late.poll_changed(cx));
            Poll::Ready(())
        })
        .await;
        assert_eq!(changes.0.waiting.borrow().len(), 2);
        drop((waits, late));
        assert!(changes.0.waiting.borrow().is_empty());
    }
}
