//! Envoy's response flags (`%RESPONSE_FLAGS%`), as a set.

use crate::error::Reason;

/// Short and long name of every flag, in Envoy's order (`CoreResponseFlag`): the order in which a set is written.
const NAMES: [(&str, &str); 30] = [
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
];

/// The flag of each [`Reason`], by its position in [`Reason::ALL`].
const BY_REASON: [u32; Reason::ALL.len()] = {
    let mut table = [0; Reason::ALL.len()];
    let mut i = 0;
    while i < table.len() {
        let flag = Reason::ALL[i].flag();
        if !flag.is_empty() {
            table[i] = 1 << position(flag);
        }
        i += 1;
    }
    table
};

/// Position of a short name; an unknown one does not compile.
const fn position(name: &str) -> usize {
    let mut i = 0;
    while i < NAMES.len() {
        if same(NAMES[i].0.as_bytes(), name.as_bytes()) {
            return i;
        }
        i += 1;
    }
    panic!("not one of Envoy's response flags")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// A set of response flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// No flag: `-`.
    pub const NONE: Self = Self(0);
    /// `URX`: retries or connect attempts are used up.
    pub const RETRY_LIMIT: Self = Self(1 << position("URX"));
    /// `UO`: a circuit breaker or retry budget was in the way.
    pub const OVERFLOW: Self = Self(1 << position("UO"));
    /// `DI`: fault injection delayed the request.
    pub const DELAY_INJECTED: Self = Self(1 << position("DI"));
    /// `FI`: fault injection aborted the request.
    pub const FAULT_INJECTED: Self = Self(1 << position("FI"));
    /// `RL`: the local or global rate limit refused the request.
    pub const RATE_LIMITED: Self = Self(1 << position("RL"));
    /// `UAEX`: the external authorisation refused the request.
    pub const EXTERNAL_AUTHZ: Self = Self(1 << position("UAEX"));
    /// `DR`: the client reset the stream.
    pub const DOWNSTREAM_RESET: Self = Self(1 << position("DR"));

    /// The flag of `reason`; empty where Envoy has none.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        Self(BY_REASON[reason as usize])
    }

    /// The flag with the short name `name`, such as `UH`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().position(|(short, _)| *short == name).map(|i| Self(1 << i))
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets share a flag.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Short names (`UF,URX`), or `-` for the empty set.
    pub fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |names| names.0);
    }

    /// Long names (`UpstreamConnectionFailure,UpstreamRetryLimitExceeded`), or `-` for the empty set.
    pub fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |names| names.1);
    }

    fn write(self, out: &mut Vec<u8>, pick: fn(&(&'static str, &'static str)) -> &'static str) {
        if self.0 == 0 {
            out.push(b'-');
            return;
        }
        let start = out.len();
        for (i, names) in NAMES.iter().enumerate() {
            if self.0 & (1 << i) != 0 {
                if out.len() > start {
                    out.push(b',');
                }
                out.extend_from_slice(pick(names).as_bytes());
            }
        }
    }
}

impl std::fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = Vec::new();
        self.write_short(&mut out);
        f.write_str(&String::from_utf8_lossy(&out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_flag_of_its_row() {
        for reason in Reason::ALL {
            let shown = ResponseFlags::of(*reason).to_string();
            let expected = if reason.flag().is_empty() { "-" } else { reason.flag() };
            assert_eq!(shown, expected, "{reason}");
        }
    }

    #[test]
    fn sets_are_written_in_envoys_order() {
        let both = ResponseFlags::RETRY_LIMIT.with(ResponseFlags::of(Reason::ConnectFailure));
        assert_eq!(both.to_string(), "UF,URX");
        let mut long = Vec::new();
        both.write_long(&mut long);
        assert_eq!(long, b"UpstreamConnectionFailure,UpstreamRetryLimitExceeded");
    }
}
