//! Operators -> bytes.

use std::io::Write as _;

use super::fields::{Field, Text};
use super::{GrpcStyle, HeaderRef, Op, Place};
use crate::telemetry::record::AccessRecord;

impl Op {
    /// Appends the value to `out`. False, with `out` unchanged, when there is none.
    pub(super) fn render(&self, record: &AccessRecord<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Literal(text) => out.extend_from_slice(text),
            Self::Constant { value, max } => push(out, value.as_bytes(), *max),
            Self::StartTime(format) => match record.start {
                Some(start) => format.render(start, out),
                None => return false,
            },
            Self::Grpc(style) => match record.grpc_status() {
                Some(code) => grpc(*style, code, out),
                None => return false,
            },
            Self::Header { place, main, alternative, max } => {
                let value = main.get(*place, record);
                let value = value.or_else(|| alternative.as_ref().and_then(|a| a.get(*place, record)));
                match value {
                    Some(value) => push(out, value, *max),
                    None => return false,
                }
            }
            Self::Field { field, max } => return render_field(*field, *max, record, out),
        }
        true
    }
}

fn render_field(field: Field, max: usize, record: &AccessRecord<'_>, out: &mut Vec<u8>) -> bool {
    if field.is_number() {
        let Some(number) = field.number(record) else { return false };
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        return true;
    }
    let Some(text) = field.text(record) else { return false };
    let start = out.len();
    // Writing to a Vec cannot fail.
    let _infallible = match text {
        Text::Str(text) => {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        Text::Address(address) => write!(out, "{address}"),
        Text::Ip(address) => write!(out, "{}", address.ip()),
        Text::FlagsShort => {
            record.all_flags().write_short(out);
            Ok(())
        }
        Text::FlagsLong => {
            record.all_flags().write_long(out);
            Ok(())
        }
    };
    out.truncate(start.saturating_add(max));
    true
}

fn push(out: &mut Vec<u8>, value: &[u8], max: usize) {
    out.extend_from_slice(&value[..value.len().min(max)]);
}

impl HeaderRef {
    /// The first value of the header; None when it is missing or empty.
    fn get<'a>(&self, place: Place, r: &AccessRecord<'a>) -> Option<&'a [u8]> {
        let value = match self {
            Self::Method => r.request?.method.as_str().as_bytes(),
            Self::Path => r.request?.path.as_str().as_bytes(),
            Self::Authority => r.request?.authority.as_ref()?.as_str().as_bytes(),
            Self::Scheme => r.request?.scheme.as_str().as_bytes(),
            Self::Status => r.response?.status.as_str().as_bytes(),
            Self::Named(name) => {
                let headers = match place {
                    Place::Request => r.request_headers.or_else(|| r.request.map(|h| &h.headers))?,
                    Place::Response => r.response_headers.or_else(|| r.response.map(|h| &h.headers))?,
                    Place::Trailer => r.trailers?,
                };
                headers.get(name)?.as_bytes()
            }
        };
        (!value.is_empty()).then_some(value)
    }
}

/// Names of the gRPC status codes, by number.
const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc(style: GrpcStyle, code: i64, out: &mut Vec<u8>) {
    let names = usize::try_from(code).ok().and_then(|i| GRPC_NAMES.get(i));
    match (style, names) {
        (GrpcStyle::Camel, Some(names)) => out.extend_from_slice(names.0.as_bytes()),
        (GrpcStyle::Snake, Some(names)) => out.extend_from_slice(names.1.as_bytes()),
        // A code that nobody defined is written as its number.
        (GrpcStyle::Number, _) | (_, None) => {
            out.extend_from_slice(itoa::Buffer::new().format(code).as_bytes())
        }
    }
}
