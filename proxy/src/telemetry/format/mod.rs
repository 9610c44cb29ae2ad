//! Envoy's format strings (`%REQ(:METHOD)% %RESPONSE_CODE%`): compiled once, rendered into a buffer that the caller
//! reuses, without allocation.
//!
//! The same compiler serves access logs (text and JSON) and header values with operators; the latter render from a
//! record that is only partly filled in. Operators: Envoy's `usage.rst`, of which the module `fields` and `parse` hold the
//! supported ones; any other is refused by name. Remora's own are `%REMORA_REASON%` (reason id) and
//! `%REMORA_PARTY%` (who ended the request).

mod fields;
mod json;
mod parse;
mod render;
#[cfg(test)]
mod tests;
mod time;

pub(crate) use time::{rfc3339, rfc3339_millis};

use http::HeaderName;

use crate::telemetry::record::AccessRecord;

pub use fields::SUPPORTED;
pub use json::JsonFormat;

use fields::Field;
use time::TimeFormat;

/// Envoy's default access log format.
pub const DEFAULT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

/// What an operator without a value becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Absent {
    /// `-` in text, null in JSON: the default of access logs.
    #[default]
    Dash,
    /// Nothing in text, the key left out in JSON: `omit_empty_values`, and always in header values.
    Omit,
}

/// A compiled format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    ops: Box<[Op]>,
    absent: Absent,
}

/// A format string that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operator}: {message}")]
pub struct FormatError {
    /// The operator as written, or the rest of the text where no operator can be made out.
    pub operator: String,
    /// What is wrong with it.
    pub message: String,
}

/// One step of rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Literal(Box<[u8]>),
    Header {
        place: Place,
        main: HeaderRef,
        alternative: Option<HeaderRef>,
        max: usize,
    },
    StartTime(TimeFormat),
    Grpc(GrpcStyle),
    Field {
        field: Field,
        max: usize,
    },
    /// A value that is known when the format is compiled.
    Constant {
        value: Box<str>,
        max: usize,
    },
}

/// Which header map an operator reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Request,
    Response,
    Trailer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HeaderRef {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Named(HeaderName),
}

/// How `%GRPC_STATUS%` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GrpcStyle {
    /// `DeadlineExceeded`.
    Camel,
    /// `DEADLINE_EXCEEDED`.
    Snake,
    /// `4`.
    Number,
}

impl Op {
    /// Whether a JSON value that is this operator alone is a number.
    fn is_number(&self) -> bool {
        match self {
            Self::Field { field, .. } => field.is_number(),
            Self::Grpc(style) => *style == GrpcStyle::Number,
            _ => false,
        }
    }
}

impl Format {
    /// Compiles `text`.
    ///
    /// # Errors
    /// An operator that is unknown, not supported or has a wrong argument, or a `%` that begins none (`%%` is a
    /// percent sign).
    pub fn parse(text: &str, absent: Absent) -> Result<Self, FormatError> {
        Ok(Self { ops: parse::parse(text)?.into(), absent })
    }

    /// The value of a format without operators, which needs no rendering.
    #[must_use]
    pub fn constant(&self) -> Option<&[u8]> {
        match &*self.ops {
            [] => Some(&[]),
            [Op::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text for `record` to `out`.
    pub fn render(&self, record: &AccessRecord<'_>, out: &mut Vec<u8>) {
        for op in &*self.ops {
            if !op.render(record, out) && self.absent == Absent::Dash {
                out.push(b'-');
            }
        }
    }
}
