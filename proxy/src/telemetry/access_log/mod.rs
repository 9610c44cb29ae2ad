//! Access logs: one line for each finished request or connection.
//!
//! A worker renders lines into its own buffers ([`WorkerLogs`]) and hands them over, when they hold 64 KiB or are one
//! second old, through a bounded channel to one thread that writes ([`LogWriter`]). A full disk, a stopped reader
//! of standard output or a slow file system never blocks a request: what does not fit is dropped and counted.

mod filter;
mod output;
#[cfg(test)]
mod tests;
mod worker;
mod writer;

use std::path::Path;
use std::sync::Arc;

use super::format::{Absent, DEFAULT_FORMAT, Format, FormatError, JsonFormat};
use super::record::AccessRecord;

pub use filter::{Compare, Filter};
pub use worker::WorkerLogs;
pub use writer::{LogControl, LogWriter};

/// A compiled `envoy.config.accesslog.v3.AccessLog`.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// What a line looks like.
    pub format: LogFormat,
    /// Which requests are logged; None is all.
    pub filter: Option<Filter>,
    /// Where lines go.
    pub sink: Sink,
}

/// A line's form.
#[derive(Debug, Clone, PartialEq)]
pub enum LogFormat {
    /// A format string; it ends its lines itself.
    Text(Format),
    /// A JSON object on each line.
    Json(JsonFormat),
}

/// Where lines go. Logs with the same sink share one open file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file that is appended to, made with mode 0644 when it is missing, and opened anew on demand.
    File(Arc<Path>),
}

impl LogFormat {
    /// Envoy's default text.
    ///
    /// # Errors
    /// Never in fact: the default compiles, and a test says so.
    pub fn envoy_default() -> Result<Self, FormatError> {
        Format::parse(DEFAULT_FORMAT, Absent::Dash).map(Self::Text)
    }

    /// Appends the line of `record` to `out`.
    pub fn render(&self, record: &AccessRecord<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Text(format) => format.render(record, out),
            Self::Json(format) => format.render(record, out),
        }
    }
}

impl Sink {
    /// The sink of `path`. The names of the standard streams mean the streams, also where a container gives a
    /// socket or a file of another user for them, which cannot be opened by name.
    #[must_use]
    pub fn path(path: &str) -> Self {
        match path {
            "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => Self::Stdout,
            "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" => Self::Stderr,
            path => Self::File(Path::new(path).into()),
        }
    }
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
