//! How often an address may fail: nobody guesses tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Failures of one address in a window.
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are kept count of.
const ADDRESSES: usize = 4096;

/// Failures of the last minute, by address.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<IpAddr, (Instant, u32)>);

impl Failures {
    /// Whether `address` may ask.
    pub(super) fn admits(&self, address: IpAddr, now: Instant) -> bool {
        self.0.get(&address).is_none_or(|(began, count)| *began + WINDOW <= now || *count < MOST)
    }

    /// It was refused.
    pub(super) fn note(&mut self, address: IpAddr, now: Instant) {
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&address) {
            self.0.retain(|_, (began, _)| *began + WINDOW > now);
            // Still full of others: the oldest makes room, so that the newest is counted.
            let oldest = self.0.iter().min_by_key(|(_, (began, _))| *began).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| self.0.len() >= ADDRESSES) {
                self.0.remove(&oldest);
            }
        }
        let (began, count) = self.0.entry(address).or_insert((now, 0));
        if *began + WINDOW <= now {
            (*began, *count) = (now, 0);
        }
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_waits_after_too_many_failures_and_others_do_not() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let (bad, good) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..MOST {
            assert!(failures.admits(bad, now));
            failures.note(bad, now);
        }
        assert!(!failures.admits(bad, now) && failures.admits(good, now));
        assert!(failures.admits(bad, now + WINDOW));
        failures.note(bad, now + WINDOW);
        assert!(failures.admits(bad, now + WINDOW));
    }

    #[test]
    fn addresses_that_are_counted_are_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for n in 0..2 * ADDRESSES as u32 {
            failures.note(IpAddr::from(n.to_be_bytes()), now + Duration::from_millis(n.into()) / 1000);
        }
        assert_eq!(failures.0.len(), ADDRESSES);
    }
}
