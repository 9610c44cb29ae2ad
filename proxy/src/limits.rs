//! What the machine lets the process have.

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
