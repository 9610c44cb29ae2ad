//! Canonical paths: what came out once comes out again unchanged, and nothing is left in it that two readers could read differently.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use remora_proxy::config::spec::EscapedSlashes;
use remora_proxy::http::path::{Canonical, PathRules, canonicalize, is_canonical};

const SLASHES: [EscapedSlashes; 3] =
    [EscapedSlashes::Reject, EscapedSlashes::Unescape, EscapedSlashes::Redirect];

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, target)) = bytes.split_first() else { return };
    let escaped_slashes = SLASHES[usize::from(*choice) % SLASHES.len()];
    let rules = PathRules { normalize: true, merge_slashes: true, escaped_slashes };
    let Ok(canonical) = canonicalize(Bytes::copy_from_slice(target), rules) else { return };
    let (Canonical::Path(first) | Canonical::Redirect(first)) = canonical;
    let path = first.path();
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'), "{path}");
    for segment in path.split('/') {
        let plain = segment.split(';').next().unwrap_or_default();
        assert!(plain != "." && plain != "..", "{path}");
    }
    let lower = path.to_ascii_lowercase();
    for ambiguous in ["%2f", "%5c", "%00", "%2e"] {
        assert!(!lower.contains(ambiguous), "{path}");
    }
    let again = Bytes::copy_from_slice(first.as_str().as_bytes());
    let Ok(Canonical::Path(again)) = canonicalize(again, rules) else {
        panic!("{first} is refused the second time")
    };
    assert_eq!(first, again);
    assert!(!is_canonical(target) || first.as_str().as_bytes() == target, "{first}");
});
