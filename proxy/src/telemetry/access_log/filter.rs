//! Which requests are logged (`envoy.config.accesslog.v3.AccessLogFilter`).

use crate::route::matcher::{Fraction, HeaderMatch};
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::record::AccessRecord;

/// A compiled filter.
#[derive(Debug, Clone)]
pub enum Filter {
    /// `status_code_filter`; a request without status has 0.
    Status(Compare, u32),
    /// `duration_filter`, milliseconds.
    Duration(Compare, u32),
    /// `and_filter`.
    And(Vec<Self>),
    /// `or_filter`.
    Or(Vec<Self>),
    /// `header_filter`: a request header.
    Header(HeaderMatch),
    /// `response_flag_filter`; the empty set stands for any flag.
    Flags(ResponseFlags),
    /// `grpc_status_filter`: bit n is code n; `exclude` turns it round.
    GrpcStatus {
        /// Codes of the list.
        codes: u32,
        /// Log the other codes.
        exclude: bool,
    },
    /// `runtime_filter`: this part of the requests, at random.
    Sample(Fraction),
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `EQ`.
    Eq,
    /// `GE`.
    Ge,
    /// `LE`.
    Le,
    /// `NE`.
    Ne,
}

impl Filter {
    /// Whether `record` is logged.
    pub fn matches(&self, record: &AccessRecord<'_>, rng: &mut fastrand::Rng) -> bool {
        match self {
            Self::Status(compare, value) => compare.holds(u64::from(record.status_code()), *value),
            Self::Duration(compare, value) => record
                .timings
                .total
                .is_some_and(|d| compare.holds(u64::try_from(d.as_millis()).unwrap_or(u64::MAX), *value)),
            Self::And(all) => all.iter().all(|f| f.matches(record, rng)),
            Self::Or(any) => any.iter().any(|f| f.matches(record, rng)),
            Self::Header(header) => record.request.is_some_and(|r| header.is_match(r)),
            Self::Flags(ResponseFlags::NONE) => !record.all_flags().is_empty(),
            Self::Flags(flags) => record.all_flags().intersects(*flags),
            Self::GrpcStatus { codes, exclude } => {
                // Envoy maps the HTTP status when a request is not gRPC; Unknown (2) is what remains.
                let code = record.grpc_status().and_then(|c| u32::try_from(c).ok()).unwrap_or(2);
                (code < 32 && codes & (1 << code) != 0) != *exclude
            }
            Self::Sample(fraction) => fraction.contains(rng.u64(..)),
        }
    }
}

impl Compare {
    fn holds(self, left: u64, right: u32) -> bool {
        let right = u64::from(right);
        match self {
            Self::Eq => left == right,
            Self::Ge => left >= right,
            Self::Le => left <= right,
            Self::Ne => left != right,
        }
    }
}
