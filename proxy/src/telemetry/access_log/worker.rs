//! One worker's side: render, gather, hand over.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::writer::{Chunk, Handover};
use super::{AccessLog, Sink};
use crate::telemetry::record::AccessRecord;

/// A buffer is handed over when it holds this much.
const FLUSH_BYTES: usize = 64 << 10;
/// And when its oldest line is this old.
const FLUSH_AGE: Duration = Duration::from_secs(1);
/// A longer line is dropped and counted. Header limits keep lines far below it.
const MAX_LINE: usize = 256 << 10;

/// The access log buffers of one worker. A clone is the same buffers.
#[derive(Debug, Clone)]
pub struct WorkerLogs(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    state: RefCell<State>,
    /// Tells the flusher that there is something to flush.
    filled: Notify,
}

#[derive(Debug)]
struct State {
    buffers: Vec<Buffer>,
    writer: Handover,
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Buffer {
    sink: Sink,
    bytes: Vec<u8>,
    records: u32,
    since: Instant,
}

impl WorkerLogs {
    pub(super) fn new(writer: Handover, rng: fastrand::Rng) -> Self {
        let state = RefCell::new(State { buffers: Vec::new(), writer, rng });
        Self(Rc::new(Shared { state, filled: Notify::new() }))
    }

    /// Logs `record` to each of `logs` whose filter lets it pass. Never blocks.
    pub fn log_all(&self, logs: &[Arc<AccessLog>], record: &AccessRecord<'_>, now: Instant) {
        for log in logs {
            self.log(log, record, now);
        }
    }

    /// Logs `record` to `log` if its filter lets it pass. Never blocks.
    pub fn log(&self, log: &AccessLog, record: &AccessRecord<'_>, now: Instant) {
        let mut state = self.0.state.borrow_mut();
        let State { buffers, writer, rng } = &mut *state;
        if log.filter.as_ref().is_some_and(|filter| !filter.matches(record, rng)) {
            return;
        }
        let at = buffers.iter().position(|b| b.sink == log.sink).unwrap_or_else(|| {
            buffers.push(Buffer { sink: log.sink.clone(), bytes: Vec::new(), records: 0, since: now });
            buffers.len() - 1
        });
        let buffer = &mut buffers[at];
        if buffer.bytes.is_empty() {
            buffer.since = now;
            self.0.filled.notify_one();
        }
        let before = buffer.bytes.len();
        log.format.render(record, &mut buffer.bytes);
        if buffer.bytes.len() - before > MAX_LINE {
            buffer.bytes.truncate(before);
            writer.count_oversized();
            return;
        }
        buffer.records += 1;
        if buffer.bytes.len() >= FLUSH_BYTES {
            buffer.hand_over(writer);
        }
    }

    /// Hands over every buffer whose oldest line is a second old or older.
    pub fn flush_due(&self, now: Instant) {
        self.flush_if(|b| now.saturating_duration_since(b.since) >= FLUSH_AGE);
    }

    /// Hands over everything: before the worker ends.
    pub fn flush_all(&self) {
        self.flush_if(|_| true);
    }

    fn flush_if(&self, due: impl Fn(&Buffer) -> bool) {
        let mut state = self.0.state.borrow_mut();
        let State { buffers, writer, .. } = &mut *state;
        for buffer in buffers.iter_mut().filter(|b| due(b)) {
            buffer.hand_over(writer);
        }
        // A sink that the configuration no longer has leaves no buffer behind.
        buffers.retain(|b| !b.bytes.is_empty());
    }

    /// Flushes by age until it is dropped: one local task for each worker. It sleeps while nothing is logged.
    pub async fn run_flusher(&self) {
        loop {
            self.0.filled.notified().await;
            while let Some(since) = self.oldest() {
                tokio::time::sleep_until(since + FLUSH_AGE).await;
                self.flush_due(Instant::now());
            }
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.0.state.borrow().buffers.iter().filter(|b| !b.bytes.is_empty()).map(|b| b.since).min()
    }
}

impl Buffer {
    fn hand_over(&mut self, writer: &Handover) {
        if self.bytes.is_empty() {
            return;
        }
        // The next buffer starts as large as this one became: a busy log does not grow it step by step again.
        let next = Vec::with_capacity(self.bytes.len().min(FLUSH_BYTES));
        let bytes = std::mem::replace(&mut self.bytes, next);
        let records = std::mem::take(&mut self.records);
        writer.send(Chunk { sink: self.sink.clone(), bytes, records });
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let Self { buffers, writer, .. } = self;
        for buffer in buffers {
            buffer.hand_over(writer);
        }
    }
}
