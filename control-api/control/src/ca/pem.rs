//! PEM (RFC 7468), the little of it that an authority writes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A block of `label`.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// A certificate.
pub(super) fn certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}
