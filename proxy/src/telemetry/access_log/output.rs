//! One open sink. Writing never waits for a reader: a pipe, terminal or socket is asked first whether it takes more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;

use super::Sink;
use super::writer::{Chunk, Shared};

/// What may wait for one sink that takes nothing: what is more is dropped and counted.
const MAX_WAITING: usize = 1 << 20;
/// A pipe that is ready takes at least this much without blocking (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;
/// A file that could not be opened is tried again after this time.
const OPEN_RETRY: Duration = Duration::from_secs(1);

pub(super) struct Output {
    sink: Sink,
    open: Option<Open>,
    waiting: VecDeque<Chunk>,
    waiting_bytes: usize,
    /// How much of the first chunk is written.
    offset: usize,
    retry_at: Option<Instant>,
    /// The last write failed: only the first failure of a row is reported.
    failing: bool,
}

struct Open {
    file: File,
    /// Not a regular file: writing may block.
    may_block: bool,
}

enum Step {
    Written(usize),
    /// The sink takes nothing now.
    Full,
}

impl Output {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            sink,
            open: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            offset: 0,
            retry_at: None,
            failing: false,
        }
    }

    pub(super) fn sink(&self) -> &Sink {
        &self.sink
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, chunk: Chunk, shared: &Shared) {
        if self.is_waiting() && self.waiting_bytes + chunk.bytes.len() > MAX_WAITING {
            shared.sink_full.fetch_add(u64::from(chunk.records), Ordering::Relaxed);
            return;
        }
        self.waiting_bytes += chunk.bytes.len();
        self.waiting.push_back(chunk);
    }

    /// Closes a file; standard streams stay.
    pub(super) fn close(&mut self) {
        if matches!(self.sink, Sink::File(_)) {
            self.open = None;
            self.retry_at = None;
        }
    }

    /// Writes what waits, as far as the sink takes it.
    pub(super) fn write(&mut self, shared: &Shared) {
        while self.is_waiting() {
            match self.step() {
                Ok(Step::Full) => return,
                Ok(Step::Written(n)) => {
                    self.failing = false;
                    self.offset += n;
                    if self.waiting.front().is_none_or(|chunk| self.offset >= chunk.bytes.len()) {
                        let records = self.pop();
                        shared.written.fetch_add(records, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    self.report(&error);
                    if error.kind() == ErrorKind::BrokenPipe {
                        self.close();
                    }
                    let records = self.pop();
                    shared.write_error.fetch_add(records, Ordering::Relaxed);
                }
            }
        }
    }

    /// Opens the sink if need be and writes once.
    fn step(&mut self) -> io::Result<Step> {
        if self.open.is_none() {
            self.open = Some(self.open_now()?);
        }
        match (&mut self.open, self.waiting.front()) {
            (Some(open), Some(chunk)) => open.step(&chunk.bytes[self.offset..]),
            _ => Ok(Step::Full),
        }
    }

    fn pop(&mut self) -> u64 {
        self.offset = 0;
        self.waiting.pop_front().map_or(0, |chunk| {
            self.waiting_bytes -= chunk.bytes.len();
            u64::from(chunk.records)
        })
    }

    fn report(&mut self, error: &io::Error) {
        if !self.failing {
            self.failing = true;
            tracing::warn!(sink = %self.sink, %error, "access log records are dropped");
        }
    }

    fn open_now(&mut self) -> io::Result<Open> {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| now < at) {
            return Err(io::Error::from(ErrorKind::NotConnected));
        }
        self.retry_at = Some(now + OPEN_RETRY);
        let file = match &self.sink {
            Sink::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Sink::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            // Without O_NONBLOCK, opening a named pipe waits for its reader.
            Sink::File(path) => File::options()
                .append(true)
                .create(true)
                .mode(0o644)
                .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0))
                .open(path)?,
        };
        let may_block = !file.metadata()?.is_file();
        self.retry_at = None;
        Ok(Open { file, may_block })
    }
}

impl Open {
    fn step(&mut self, bytes: &[u8]) -> io::Result<Step> {
        let mut bytes = bytes;
        if self.may_block {
            if !self.is_ready()? {
                return Ok(Step::Full);
            }
            bytes = &bytes[..bytes.len().min(PIECE)];
        }
        match self.file.write(bytes) {
            Ok(0) => Err(io::Error::from(ErrorKind::WriteZero)),
            Ok(n) => Ok(Step::Written(n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Step::Full),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Step::Written(0)),
            Err(error) => Err(error),
        }
    }

    fn is_ready(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        // An error or a hang-up also counts as ready: the write then says what it is.
        Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }
}
