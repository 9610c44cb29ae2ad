//! The places of a port, and who gives one up when somebody waits: the connection on which nothing has come to its end for longest.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// What a connection has from its beginning, whoever waits.
const GRACE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Places {
    slots: Arc<Semaphore>,
    guests: Arc<Guests>,
    next: AtomicU64,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(most)), guests: Arc::default(), next: AtomicU64::new(0) }
    }

    /// A place, when there is one.
    pub(super) async fn take(&self) -> Option<Place> {
        let slot = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => self.wait().await?,
        };
        let doing = watch::Sender::new(Doing::new(Instant::now()));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.guests.all().insert(number, doing.clone());
        Some(Place { _slot: slot, number, doing, guests: Arc::clone(&self.guests) })
    }

    /// Tells one after the other to leave, until there is a place. None never comes: the places are never closed.
    async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        let mut free = pin!(Arc::clone(&self.slots).acquire_owned());
        loop {
            let again = self.guests.make_room(Instant::now());
            tokio::select! {
                slot = &mut free => return slot.ok(),
                () = sleep_until(again) => {}
            }
        }
    }
}

/// Those that have a place.
#[derive(Debug, Default)]
struct Guests(Mutex<BTreeMap<u64, watch::Sender<Doing>>>);

impl Guests {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, watch::Sender<Doing>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells one to leave, if one may be told. The answer is when to look again.
    fn make_room(&self, now: Instant) -> Instant {
        let all = self.all();
        // What is meant to last goes only where there is nothing else: who is new would be shut out by it for hours.
        let only_long = all.values().all(|guest| guest.borrow().is_long());
        let mut again = now + GRACE;
        let mut longest: Option<(Instant, &watch::Sender<Doing>)> = None;
        for guest in all.values() {
            let doing = guest.borrow();
            if doing.stays || doing.told || doing.is_long() && !only_long {
                continue;
            }
            if doing.came + GRACE > now {
                again = again.min(doing.came + GRACE);
            } else if longest.is_none_or(|(since, _)| doing.since() < since) {
                longest = Some((doing.since(), guest));
            }
        }
        let Some((_, guest)) = longest else { return again };
        guest.send_modify(|doing| doing.told = true);
        now + GRACE
    }
}

/// What runs on a connection.
#[derive(Debug)]
pub(super) struct Doing {
    came: Instant,
    /// By their numbers.
    running: BTreeMap<u64, Exchange>,
    /// The number of the next.
    next: u64,
    /// When the last one ended.
    ended: Option<Instant>,
    /// It is to leave.
    pub(super) told: bool,
    /// It does not have to, whoever waits.
    stays: bool,
}

/// From the head of a request to the end of its answer.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    began: Instant,
    until: Instant,
    /// It is meant to last.
    long: bool,
}

impl Doing {
    const fn new(came: Instant) -> Self {
        Self { came, running: BTreeMap::new(), next: 0, ended: None, told: false, stays: false }
    }

    /// Since when nothing has come to its end.
    fn since(&self) -> Instant {
        let began = self.running.values().map(|exchange| exchange.began).min();
        began.into_iter().chain(self.ended).max().unwrap_or(self.came)
    }

    fn is_long(&self) -> bool {
        self.running.values().any(|exchange| exchange.long)
    }

    /// When the first of what runs has to be over; None: nothing does.
    pub(super) fn due(&self) -> Option<Instant> {
        self.running.values().map(|exchange| exchange.until).min()
    }

    /// When the last exchange ended; None: there was none.
    pub(super) const fn ended(&self) -> Option<Instant> {
        self.ended
    }
}

/// The place of a connection among those that there may be at one time. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _slot: OwnedSemaphorePermit,
    number: u64,
    doing: watch::Sender<Doing>,
    guests: Arc<Guests>,
}

impl Place {
    /// Ends after `limit`, or earlier when somebody waits for this place.
    pub(crate) async fn patience(&self, limit: Duration) {
        let mut doing = self.doing.subscribe();
        // The other end of it is here.
        let told = async { drop(doing.wait_for(|doing| doing.told).await) };
        tokio::select! {
            () = sleep(limit) => {}
            () = told => {}
        }
    }

    /// It is kept, whoever waits.
    pub(crate) fn stays(&self) {
        self.doing.send_modify(|doing| doing.stays = true);
    }

    pub(super) const fn doing(&self) -> &watch::Sender<Doing> {
        &self.doing
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.all().remove(&self.number);
    }
}

/// An exchange that runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Runs {
    on: watch::Sender<Doing>,
    number: u64,
}

impl Runs {
    pub(super) fn new(on: &watch::Sender<Doing>, within: Duration) -> Self {
        let (mut number, began) = (0, Instant::now());
        on.send_modify(|doing| {
            number = doing.next;
            doing.next += 1;
            doing.running.insert(number, Exchange { began, until: began + within, long: false });
        });
        Self { on: on.clone(), number }
    }

    /// It is meant to last, until then.
    pub(super) fn lasts(&self, until: Instant) {
        self.on.send_modify(|doing| {
            if let Some(exchange) = doing.running.get_mut(&self.number) {
                (exchange.until, exchange.long) = (until, true);
            }
        });
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.on.send_modify(|doing| {
            doing.running.remove(&self.number);
            doing.ended = Some(Instant::now());
        });
    }
}
