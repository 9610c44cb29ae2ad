//! Host and `:authority` (RFC 9110 §7.2, RFC 9113 §8.3.1): exactly one, and exactly a host with an optional port.

use bytes::Bytes;
use http::uri::Authority;

use crate::error::Reason;

/// Parses `host[:port]`: a registered name of letters, digits, `-`, `.`, `_`, `~`, an IPv4 address, or an IPv6
/// address in brackets. No user information, no list, no empty host.
///
/// # Errors
/// [`Reason::BadHost`].
pub fn parse(value: Bytes) -> Result<Authority, Reason> {
    if !is_valid(&value) {
        return Err(Reason::BadHost);
    }
    Authority::from_maybe_shared(value).map_err(|_| Reason::BadHost)
}

/// [`parse`] for a value that is an [`Authority`] already.
///
/// # Errors
/// [`Reason::BadHost`].
pub fn check(value: &[u8]) -> Result<(), Reason> {
    if is_valid(value) { Ok(()) } else { Err(Reason::BadHost) }
}

fn is_valid(value: &[u8]) -> bool {
    let (host_ok, port) = match value {
        [b'[', rest @ ..] => match memchr::memchr(b']', rest) {
            Some(end) => {
                let inside = std::str::from_utf8(&rest[..end]).ok();
                (inside.is_some_and(|s| s.parse::<std::net::Ipv6Addr>().is_ok()), &rest[end + 1..])
            }
            None => return false,
        },
        _ => {
            let end = memchr::memchr(b':', value).unwrap_or(value.len());
            (end > 0 && value[..end].iter().all(|b| is_name_byte(*b)), &value[end..])
        }
    };
    host_ok && is_port(port)
}

const fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// Nothing, or `:` and a number up to 65535.
fn is_port(port: &[u8]) -> bool {
    match port {
        [] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0')) <= 65_535
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "a.example:80", "[::1]", "[fe80::1]:8080", "10.0.0.1:1", "a_b", "xn--e1a", "a:0"] {
            assert!(is_valid(good.as_bytes()), "{good}");
            assert!(parse(Bytes::from_static(good.as_bytes())).is_ok(), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a/..", "u@a", "a:xyz", "a,b", "a:", "a:70000", "[::1", "[x]", "a:1:2", "a%41",
            "\u{e4}",
        ] {
            assert!(parse(Bytes::copy_from_slice(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
