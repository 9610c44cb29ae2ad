//! Why connections are refused, in a closed set that metrics count.

use crate::tls::error::TlsFailure;

macro_rules! refusals {
    ($(#[doc = $doc:literal] $name:ident = $id:literal;)+) => {
        /// Why a connection was refused before any request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal {
            $(#[doc = $doc] $name,)+
            /// The TLS handshake failed.
            Tls(TlsFailure),
        }

        impl Refusal {
            const PLAIN: &'static [Self] = &[$(Self::$name,)+];

            /// Value of the label `reason`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $id,)+ Self::Tls(failure) => failure.id() }
            }

            /// One sentence for a person.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => $doc.trim_ascii(),)+ Self::Tls(failure) => failure.explain() }
            }
        }
    };
}

refusals! {
    /// The limit of connections is reached.
    ConnectionLimit = "connection_limit";
    /// The proxy is shedding load.
    Overloaded = "overloaded";
    /// The proxy is draining.
    Draining = "draining";
    /// No filter chain of the listener matches the connection.
    NoFilterChain = "no_filter_chain";
    /// The first bytes that the listener needs did not arrive in time.
    DetectTimeout = "detect_timeout";
    /// The TLS handshake did not end in time.
    TlsTimeout = "tls_timeout";
    /// Policy refuses this peer.
    Unauthorized = "unauthorized";
    /// The original destination is unknown, or it is this proxy: a loop.
    NoOriginalDestination = "no_original_destination";
}

impl Refusal {
    pub(super) const COUNT: usize = Self::PLAIN.len() + TlsFailure::ALL.len();

    /// Every reason.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::PLAIN.iter().copied().chain(TlsFailure::ALL.iter().copied().map(Self::Tls))
    }

    /// Its place among the cells.
    pub(super) fn cell(self) -> usize {
        match self {
            Self::Tls(failure) => Self::PLAIN.len() + failure as usize,
            // Every other one is in the list.
            plain => Self::PLAIN.iter().position(|other| *other == plain).unwrap_or_default(),
        }
    }
}
