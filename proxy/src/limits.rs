//! What the machine lets the process have.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::LazyLock;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one (`RLIMIT_NOFILE`, getrlimit(2)). Every connection is a file. The soft limit, mostly
/// 1,024, is for the sake of programs that use select(2), which this one does not.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(limit = before, %error, "the limit on open files cannot be raised");
    }
}

/// Files that connections of clients do not get: for the admin page, the control plane, DNS, and what is read for the configuration.
const RESERVE: u64 = 64;
/// Of few files that share is kept.
const RESERVE_SHARE: u64 = 8;

/// The limit when the first connection came; it was raised before.
static OPEN_FILES: LazyLock<u64> = LazyLock::new(|| getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));

/// How many more files there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Enough,
    /// What is left is for connections to endpoints: those who are there are served.
    Few,
    /// What is left is the reserve.
    Reserve,
}

/// What the descriptor of a new file says: the kernel gives the lowest number that is free (open(2)), so one near the limit means that
/// nearly all are taken. Costs no call into the kernel.
#[must_use]
pub fn room(file: &impl AsFd) -> Room {
    room_at(u64::try_from(file.as_fd().as_raw_fd()).unwrap_or(0), *OPEN_FILES)
}

/// The same of a descriptor's number and a limit.
const fn room_at(number: u64, limit: u64) -> Room {
    let share = limit / RESERVE_SHARE;
    let reserve = if share < RESERVE { share } else { RESERVE };
    if number < limit - reserve {
        Room::Enough
    } else if number < limit - reserve / 2 {
        Room::Few
    } else {
        Room::Reserve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_files_are_kept() {
        let bounds = |limit| {
            let first = |room| (0..=limit).find(|number| room_at(*number, limit) == room);
            (first(Room::Few), first(Room::Reserve))
        };
        assert_eq!(bounds(160), (Some(140), Some(150)));
        assert_eq!(bounds(1024), (Some(960), Some(992)));
        assert_eq!(bounds(100_000), (Some(99_936), Some(99_968)));
        assert_eq!(room_at(1 << 20, u64::MAX), Room::Enough, "no limit");
    }

    #[test]
    fn a_process_with_few_files_has_room() {
        assert_eq!(room(&std::io::stdin()), Room::Enough);
    }
}
