//! One canonical path, used for routing, authorisation and forwarding alike (RFC 3986 §6.2.2, Envoy
//! `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action`).
//!
//! A path that two parties could read differently (`%2F`, `%5C`, `\`, `%00`, a dot segment with parameters such as
//! `/..;/`) is refused, because an authorisation rule and the application might each be one of the two.

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;

use crate::config::spec::EscapedSlashes;
use crate::error::Reason;

/// How a listener treats paths.
#[derive(Debug, Clone, Copy)]
pub struct PathRules {
    /// Resolve dot segments, decode unreserved characters.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What happens to `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What became of a path.
#[derive(Debug)]
pub enum Canonical {
    /// Use this.
    Path(PathAndQuery),
    /// Redirect (307) the client to this: UNESCAPE_AND_REDIRECT.
    Redirect(PathAndQuery),
}

/// Brings an origin-form target into canonical form.
///
/// # Errors
/// [`Reason::BadPath`] when it is not a path, or one that could be read in two ways.
pub fn canonicalize(target: Bytes, rules: PathRules) -> Result<Canonical, Reason> {
    let (path_end, plain) = scan(&target)?;
    if plain || !(rules.normalize || rules.merge_slashes) {
        return PathAndQuery::from_maybe_shared(target).map(Canonical::Path).map_err(|_| Reason::BadPath);
    }
    let (path, query) = target.split_at(path_end);
    let (unescaped, changed_slashes) = decode(path, rules)?;
    let mut out = BytesMut::with_capacity(target.len());
    if rules.normalize {
        remove_dot_segments(&unescaped, rules.merge_slashes, &mut out)?;
    } else {
        merge_slashes(&unescaped, &mut out);
    }
    out.put_slice(query);
    let path = PathAndQuery::from_maybe_shared(out.freeze()).map_err(|_| Reason::BadPath)?;
    let redirect = changed_slashes && rules.escaped_slashes == EscapedSlashes::Redirect;
    Ok(if redirect { Canonical::Redirect(path) } else { Canonical::Path(path) })
}

/// Whether one look shows that [`canonicalize`] leaves `target` as it is. `false` (for `/.well-known`, or a `%`) says nothing.
#[must_use]
pub fn is_canonical(target: &[u8]) -> bool {
    matches!(scan(target), Ok((_, true)))
}

/// One pass over the bytes: where the path ends, and whether there is nothing to do (the common case).
fn scan(target: &[u8]) -> Result<(usize, bool), Reason> {
    if target.first() != Some(&b'/') {
        return Err(Reason::BadPath);
    }
    let mut plain = true;
    let mut end = target.len();
    let mut previous = 0;
    for (i, &b) in target.iter().enumerate() {
        match b {
            0..=0x20 | 0x7f.. | b'#' => return Err(Reason::BadPath),
            b'?' => {
                end = i;
                break;
            }
            b'\\' => return Err(Reason::BadPath),
            b'%' => plain = false,
            b'/' | b'.' if previous == b'/' => plain = false,
            _ => {}
        }
        previous = b;
    }
    if target[end..].iter().any(|b| matches!(b, 0..=0x20 | 0x7f.. | b'#')) {
        return Err(Reason::BadPath);
    }
    Ok((end, plain))
}

/// Decodes percent-encoded unreserved characters, upper-cases the hex of the others, refuses what is ambiguous.
fn decode(path: &[u8], rules: PathRules) -> Result<(Vec<u8>, bool), Reason> {
    let mut out = Vec::with_capacity(path.len());
    let mut slashes = false;
    let mut rest = path.iter();
    while let Some(&b) = rest.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let (Some(&high), Some(&low)) = (rest.next(), rest.next()) else { return Err(Reason::BadPath) };
        let (Some(h), Some(l)) = (hex(high), hex(low)) else { return Err(Reason::BadPath) };
        match h << 4 | l {
            0 => return Err(Reason::BadPath),
            b'/' | b'\\' if rules.escaped_slashes == EscapedSlashes::Reject => return Err(Reason::BadPath),
            b'/' | b'\\' if rules.escaped_slashes != EscapedSlashes::Keep => {
                out.push(b'/');
                slashes = true;
            }
            // KEEP_UNCHANGED: to the letter.
            b'/' | b'\\' => out.extend_from_slice(&[b'%', high, low]),
            c if rules.normalize && (c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~')) => {
                out.push(c)
            }
            _ => out.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
        }
    }
    Ok((out, slashes))
}

const fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

/// RFC 3986 §5.2.4. `/..` above the root is refused rather than clamped, as Envoy does.
fn remove_dot_segments(path: &[u8], merge: bool, out: &mut BytesMut) -> Result<(), Reason> {
    let mut segments: Vec<&[u8]> = Vec::with_capacity(16);
    let mut trailing = false;
    for segment in path[1..].split(|b| *b == b'/') {
        trailing = false;
        match segment {
            b"." => trailing = true,
            b".." => {
                segments.pop().ok_or(Reason::BadPath)?;
                trailing = true;
            }
            // Servers that strip `;parameters` would see a dot segment here.
            [b'.', b';', ..] | [b'.', b'.', b';', ..] => return Err(Reason::BadPath),
            b"" if merge => trailing = true,
            other => segments.push(other),
        }
    }
    for segment in &segments {
        out.put_u8(b'/');
        out.put_slice(segment);
    }
    if trailing || segments.is_empty() {
        out.put_u8(b'/');
    }
    Ok(())
}

fn merge_slashes(path: &[u8], out: &mut BytesMut) {
    for &b in path {
        if b != b'/' || out.last() != Some(&b'/') {
            out.put_u8(b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: PathRules =
        PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Reject };

    fn canonical(path: &str) -> Result<String, Reason> {
        canonicalize(Bytes::copy_from_slice(path.as_bytes()), RULES).map(|c| match c {
            Canonical::Path(p) | Canonical::Redirect(p) => p.as_str().to_owned(),
        })
    }

    #[test]
    fn every_spelling_of_admin_is_admin() {
        for path in
            ["/admin", "//admin", "/x/../admin", "/%61dmin", "/x/%2e%2e/admin", "/./admin", "/x/.%2E/admin"]
        {
            assert_eq!(canonical(path).unwrap(), "/admin", "{path}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for path in [
            "/x%2f..%2fadmin",
            "/x/..;/admin",
            "/.;/admin",
            "/x\\..\\admin",
            "/a%5cb",
            "/a%00",
            "/a#b",
            "/a?b#c",
            "/..",
            "/%zz",
            "/%4",
            "a",
            "",
            "*",
            "/a b",
            "/\u{e4}",
        ] {
            assert_eq!(canonical(path).unwrap_err(), Reason::BadPath, "{path}");
        }
    }

    #[test]
    fn the_query_and_trailing_slash_stay() {
        for (path, want) in [
            ("/a/b/?x=//..%2f", "/a/b/?x=//..%2f"),
            ("/a//b/./?q", "/a/b/?q"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/%c3%a4", "/%C3%A4"),
            ("/", "/"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/.well-known/x", "/.well-known/x"),
        ] {
            assert_eq!(canonical(path).unwrap(), want, "{path}");
        }
    }

    #[test]
    fn escaped_slashes_may_redirect() {
        let rules = PathRules { escaped_slashes: EscapedSlashes::Redirect, ..RULES };
        let Canonical::Redirect(p) = canonicalize(Bytes::from_static(b"/a%2Fb"), rules).unwrap() else {
            panic!()
        };
        assert_eq!(p.as_str(), "/a/b");
    }

    proptest! {
        #[test]
        fn canonical_is_stable(path in "/([a-c./;?]|%(2[eEfF]|5[cC]|61|25|00|[cC]3)|%[0-9a-fA-F]{0,2}){0,16}") {
            if let Ok(once) = canonical(&path) {
                // Decoding must not uncover another layer: %252e stays encoded.
                prop_assert_eq!(canonical(&once), Ok(once.clone()));
                let path = once.split('?').next().unwrap();
                prop_assert!(!path.contains("//") && !path.ends_with("/..") && !path.ends_with("/."));
                prop_assert!(!path.contains("/../") && !path.contains("/./"));
                // Nothing is left that the next hop could decode to a separator or an end.
                let lower = path.to_ascii_lowercase();
                prop_assert!(!["%2f", "%5c", "%00", "%2e", "/..;", "/.;"].iter().any(|bad| lower.contains(bad)));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = canonicalize(Bytes::from(bytes), RULES);
        }
    }
}
