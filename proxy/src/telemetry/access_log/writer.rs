//! The thread that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use super::output::Output;
use super::{Sink, WorkerLogs};
use crate::telemetry::metrics::{Collect, MetricFamily, counters};

/// Chunks of about 64 KiB that may wait for the writer: what is more is dropped and counted.
const QUEUE: usize = 64;
/// How often the writer tries again to write to a pipe that was full.
const RETRY: Duration = Duration::from_millis(20);

/// Whole lines for one sink.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) sink: Sink,
    pub(super) bytes: Vec<u8>,
    /// How many records `bytes` holds: what a drop counts.
    pub(super) records: u32,
}

#[derive(Debug)]
enum Message {
    Chunk(Chunk),
    /// Look at `Shared::reopen` and `Shared::stop`.
    Wake,
    /// Answer once everything sent before has been written as far as possible.
    Barrier(SyncSender<()>),
}

/// Counters and switches that workers, the writer and the control share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) written: AtomicU64,
    /// The writer did not keep up.
    queue_full: AtomicU64,
    /// One sink did not keep up: a stopped reader of a pipe.
    pub(super) sink_full: AtomicU64,
    /// The system refused: disk full, no permission, reader gone.
    pub(super) write_error: AtomicU64,
    oversized: AtomicU64,
    reopen: AtomicU64,
    stop: AtomicBool,
}

/// A worker's way to the writer.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl Handover {
    pub(super) fn send(&self, chunk: Chunk) {
        if let Err(
            TrySendError::Full(Message::Chunk(chunk)) | TrySendError::Disconnected(Message::Chunk(chunk)),
        ) = self.queue.try_send(Message::Chunk(chunk))
        {
            self.shared.queue_full.fetch_add(u64::from(chunk.records), Ordering::Relaxed);
        }
    }

    pub(super) fn count_oversized(&self) {
        self.shared.oversized.fetch_add(1, Ordering::Relaxed);
    }
}

/// Owner of the thread that writes access logs.
#[derive(Debug)]
pub struct LogWriter {
    control: LogControl,
    done: Receiver<()>,
}

/// Controls the writer and reads its counters. A clone is the same writer.
#[derive(Debug, Clone)]
pub struct LogControl(Handover);

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let (ended, done) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared::default());
        let mut writer = Writer { messages, shared: Arc::clone(&shared), outputs: Vec::new(), reopened: 0 };
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            writer.run();
            drop(ended);
        })?;
        Ok(Self { control: LogControl(Handover { queue, shared }), done })
    }

    /// The buffers of one worker; to be made on the worker.
    #[must_use]
    pub fn worker(&self, rng: fastrand::Rng) -> WorkerLogs {
        self.control.worker(rng)
    }

    /// Reopens files, flushes, counts.
    #[must_use]
    pub fn control(&self) -> LogControl {
        self.control.clone()
    }

    /// Writes what is there and ends the thread. Blocks for at most `timeout`; what is not written by then is lost.
    pub fn shutdown(self, timeout: Duration) {
        self.control.0.shared.stop.store(true, Ordering::Release);
        // A full queue means that the writer is awake and will see the switch.
        let _seen_either_way = self.control.0.queue.try_send(Message::Wake);
        let _ended_or_too_late = self.done.recv_timeout(timeout);
    }
}

impl LogControl {
    /// The buffers of one worker; to be made on the worker.
    #[must_use]
    pub fn worker(&self, rng: fastrand::Rng) -> WorkerLogs {
        WorkerLogs::new(self.0.clone(), rng)
    }

    /// Closes all log files; the next line opens them anew: log rotation, by SIGUSR1 or `POST /reopen_logs`.
    pub fn reopen(&self) {
        self.0.shared.reopen.fetch_add(1, Ordering::Release);
        // A full queue means that the writer is awake and will see the switch.
        let _seen_either_way = self.0.queue.try_send(Message::Wake);
    }

    /// Waits until all that was handed over before is written, as far as the sinks take it. Blocks the thread.
    /// False when that takes longer than `timeout`.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let (answer, answered) = mpsc::sync_channel(1);
        self.0.queue.try_send(Message::Barrier(answer)).is_ok() && answered.recv_timeout(timeout).is_ok()
    }

    /// Records that were dropped, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops().iter().map(|(_, n)| n).sum()
    }

    /// Records that were written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.0.shared.written.load(Ordering::Relaxed)
    }

    fn drops(&self) -> [(&'static str, u64); 4] {
        let s = &self.0.shared;
        [
            ("queue_full", s.queue_full.load(Ordering::Relaxed)),
            ("sink_full", s.sink_full.load(Ordering::Relaxed)),
            ("write_error", s.write_error.load(Ordering::Relaxed)),
            ("oversized", s.oversized.load(Ordering::Relaxed)),
        ]
    }
}

impl Collect for LogControl {
    fn collect(&self, out: &mut Vec<MetricFamily>) {
        let drops = self.drops();
        let by_reason = drops.iter().map(|(reason, n)| (vec![("reason", *reason)], *n));
        out.push(counters(
            "remora_access_log_dropped_total",
            "Access log records that were dropped.",
            by_reason,
        ));
        let written = std::iter::once((Vec::new(), self.written()));
        out.push(counters(
            "remora_access_log_written_total",
            "Access log records that were written.",
            written,
        ));
    }
}

struct Writer {
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    outputs: Vec<Output>,
    reopened: u64,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let waiting = self.outputs.iter().any(Output::is_waiting);
            let message = if waiting {
                self.messages.recv_timeout(RETRY)
            } else {
                self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let mut barrier = None;
            let mut end = false;
            match message {
                Ok(Message::Chunk(chunk)) => self.accept(chunk),
                Ok(Message::Barrier(answer)) => barrier = Some(answer),
                Ok(Message::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => end = true,
            }
            self.write();
            if let Some(answer) = barrier {
                // Nobody waits any more when this fails.
                let _gone = answer.try_send(());
            }
            if end || self.shared.stop.load(Ordering::Acquire) {
                return self.finish();
            }
        }
    }

    fn accept(&mut self, chunk: Chunk) {
        let at = self.outputs.iter().position(|o| *o.sink() == chunk.sink).unwrap_or_else(|| {
            self.outputs.push(Output::new(chunk.sink.clone()));
            self.outputs.len() - 1
        });
        self.outputs[at].push(chunk, &self.shared);
    }

    fn write(&mut self) {
        for output in &mut self.outputs {
            output.write(&self.shared);
        }
        let generation = self.shared.reopen.load(Ordering::Acquire);
        if generation != self.reopened {
            self.reopened = generation;
            self.outputs.retain_mut(|output| {
                output.close();
                output.is_waiting()
            });
        }
    }

    /// The last words: what the queue holds, as far as the sinks take it now.
    fn finish(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Chunk(chunk) = message {
                self.accept(chunk);
                self.write();
            }
        }
        self.write();
    }
}
