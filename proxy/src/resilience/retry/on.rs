//! Retry conditions.

use std::fmt;

macro_rules! conditions {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal, $text:literal;)+) => {
        /// A set of retry conditions (`retry_on`).
        #[derive(Clone, Copy, PartialEq, Eq, Default)]
        pub struct RetryOn(u32);

        impl RetryOn {
            $($(#[doc = $doc])+ pub const $name: Self = Self(1 << $bit);)+

            pub(super) const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)+];
        }
    };
}

conditions! {
    /// `5xx`: a 5xx answer, or none at all.
    SERVER_ERROR = 0, "5xx";
    /// `gateway-error`: 502, 503 or 504, or no answer at all.
    GATEWAY_ERROR = 1, "gateway-error";
    /// `connect-failure`: no connection.
    CONNECT_FAILURE = 2, "connect-failure";
    /// `retriable-4xx`: 409.
    RETRIABLE_4XX = 3, "retriable-4xx";
    /// `refused-stream`: the upstream refused the stream unprocessed.
    REFUSED_STREAM = 4, "refused-stream";
    /// `retriable-status-codes`.
    STATUS_CODES = 5, "retriable-status-codes";
    /// `retriable-headers`.
    HEADERS = 6, "retriable-headers";
    /// `reset`: no answer at all.
    RESET = 7, "reset";
    /// `reset-before-request`: no answer, and nothing of the request had left.
    RESET_BEFORE_REQUEST = 8, "reset-before-request";
    /// `envoy-ratelimited`: also an answer with x-envoy-ratelimited.
    RATE_LIMITED = 9, "envoy-ratelimited";
    /// `cancelled`: gRPC status 1, in the headers of the answer or in the trailers of one without a body.
    GRPC_CANCELLED = 10, "cancelled";
    /// `deadline-exceeded`: gRPC status 4.
    GRPC_DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    /// `resource-exhausted`: gRPC status 8.
    GRPC_RESOURCE_EXHAUSTED = 12, "resource-exhausted";
    /// `internal`: gRPC status 13.
    GRPC_INTERNAL = 13, "internal";
    /// `unavailable`: gRPC status 14.
    GRPC_UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    /// The condition called `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == name).map(|(on, _)| *on)
    }

    /// All names, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|(_, text)| *text)
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have a condition in common.
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no condition is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The conditions on a gRPC status.
    pub const GRPC: Self = Self::GRPC_CANCELLED
        .union(Self::GRPC_DEADLINE_EXCEEDED)
        .union(Self::GRPC_RESOURCE_EXHAUSTED)
        .union(Self::GRPC_INTERNAL)
        .union(Self::GRPC_UNAVAILABLE);

    /// The condition on gRPC status `status`; none on those that are never retried.
    pub(super) const fn grpc(status: u8) -> Self {
        match status {
            1 => Self::GRPC_CANCELLED,
            4 => Self::GRPC_DEADLINE_EXCEEDED,
            8 => Self::GRPC_RESOURCE_EXHAUSTED,
            13 => Self::GRPC_INTERNAL,
            14 => Self::GRPC_UNAVAILABLE,
            _ => Self(0),
        }
    }
}

impl fmt::Debug for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::ALL.iter().filter(|(on, _)| self.any(*on)).map(|(_, text)| *text).collect();
        write!(f, "[{}]", names.join(","))
    }
}
