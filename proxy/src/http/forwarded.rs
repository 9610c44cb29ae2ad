//! What a peer claims about how its client called: `Forwarded` (RFC 7239), and the headers that say parts of it without a standard. At
//! an edge only trusted proxies may say so: programs believe these headers, and `Forwarded` more than `x-forwarded-for`.

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::headers::join_lines;

/// Each has one value, the client's side of the first proxy.
static CLAIMS: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-ssl"),
];

/// Keeps what `hops` trusted proxies in front of an edge wrote: of `Forwarded` the last `hops` elements, and nothing of what cannot be
/// read, because where its elements end is anybody's guess. Without trusted proxies everything goes.
pub fn keep_trusted(headers: &mut HeaderMap, hops: usize) {
    if hops == 0 {
        for name in CLAIMS.iter().chain([&FORWARDED]) {
            headers.remove(name);
        }
        return;
    }
    if !headers.contains_key(FORWARDED) {
        return;
    }
    join_lines(headers, &FORWARDED);
    let list = headers.get(FORWARDED).map(HeaderValue::as_bytes).unwrap_or_default();
    match last(list, hops).and_then(|kept| HeaderValue::from_bytes(kept).ok()) {
        Some(kept) => drop(headers.insert(FORWARDED, kept)),
        None => drop(headers.remove(FORWARDED)),
    }
}

/// The last `count` elements of a list (RFC 7239 section 4); all of them when there are fewer. None: there is none, or it is no such
/// list.
fn last(list: &[u8], count: usize) -> Option<&[u8]> {
    let mut starts: SmallVec<[usize; 8]> = SmallVec::new();
    let mut rest = list.trim_ascii();
    while !rest.is_empty() {
        // Empty elements mean nothing (RFC 9110 section 5.6.1).
        if let Some(next) = rest.strip_prefix(b",") {
            rest = next.trim_ascii_start();
            continue;
        }
        starts.push(rest.len());
        rest = element(rest)?;
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
    let start = *starts.get(starts.len().saturating_sub(count))?;
    let list = list.trim_ascii();
    Some(&list[list.len() - start..])
}

/// Of the names of an element; there are four (RFC 7239 section 5), and whoever extends them does so with few.
const MOST_NAMES: usize = 16;

/// Reads `name=value;name=value`: what is behind it. A name that is there twice makes an element that can be read in two ways.
fn element(mut rest: &[u8]) -> Option<&[u8]> {
    let mut names: SmallVec<[&[u8]; 4]> = SmallVec::new();
    loop {
        let (name, behind) = token(rest)?;
        if names.len() == MOST_NAMES || names.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            return None;
        }
        names.push(name);
        rest = value(behind.strip_prefix(b"=")?)?.trim_ascii_start();
        let Some(next) = rest.strip_prefix(b";") else { return Some(rest) };
        rest = next.trim_ascii_start();
        if rest.is_empty() || rest.starts_with(b",") {
            return Some(rest);
        }
    }
}

/// Reads a token (RFC 9110 section 5.6.2).
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_inner = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let length = text.iter().take_while(|b| is_inner(b)).count();
    (length > 0).then(|| text.split_at(length))
}

/// Reads a token or a quoted string (RFC 9110 section 5.6.4): what is behind it.
fn value(text: &[u8]) -> Option<&[u8]> {
    let Some(mut rest) = text.strip_prefix(b"\"") else { return token(text).map(|(_, behind)| behind) };
    loop {
        rest = match rest {
            [b'"', behind @ ..] => return Some(behind),
            [b'\\', _, behind @ ..] | [_, behind @ ..] => behind,
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(lines: &[&str], hops: usize) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED, HeaderValue::from_str(line).unwrap());
        }
        keep_trusted(&mut headers, hops);
        let mut left = headers.get_all(FORWARDED).iter();
        let value = left.next().map(|value| value.to_str().unwrap().to_owned());
        assert!(left.next().is_none(), "one line");
        value
    }

    #[test]
    fn the_last_elements_are_those_of_trusted_hops() {
        let two = "for=192.0.2.60;proto=http, for=\"[2001:db8::1]:47\" ; by=203.0.113.43";
        assert_eq!(kept(&[two], 0), None);
        assert_eq!(kept(&[two], 1).unwrap(), "for=\"[2001:db8::1]:47\" ; by=203.0.113.43");
        assert_eq!(kept(&[two], 2).unwrap(), two);
        assert_eq!(kept(&[two], 3).unwrap(), two);
        assert_eq!(kept(&["for=a", "for=b,for=c"], 2).unwrap(), "for=b,for=c");
        assert_eq!(kept(&["for=a, ,for=b;,"], 1).unwrap(), "for=b;,");
        assert_eq!(kept(&[r#"for="a, for=b", for="\", for=c""#], 1).unwrap(), r#"for="\", for=c""#);
        assert_eq!(kept(&["", " , "], 1), None);
    }

    #[test]
    fn the_names_of_an_element_are_bounded() {
        let of = |names: usize| (0..names).map(|n| format!("n{n}=1")).collect::<Vec<_>>().join(";");
        assert_eq!(kept(&[&of(MOST_NAMES)], 1), Some(of(MOST_NAMES)));
        assert_eq!(kept(&[&of(MOST_NAMES + 1)], 1), None);
    }

    #[test]
    fn nothing_is_kept_of_what_cannot_be_read() {
        for evil in [
            "for=\"a",
            "for=\"a\\",
            "for=a b",
            "for",
            "for=",
            "=a",
            "for = a",
            "for=[::1]",
            "for=a;for=b",
            "for=a;FOR=b",
            "for=\"a\"b",
            "for=\u{e4}",
            ";",
            "127.0.0.1",
        ] {
            for lines in [&[evil][..], &[evil, "for=198.51.100.1"], &["for=198.51.100.1", evil]] {
                let mut headers = HeaderMap::new();
                for line in lines {
                    headers.append(FORWARDED, HeaderValue::from_bytes(line.as_bytes()).unwrap());
                }
                keep_trusted(&mut headers, 1);
                assert!(!headers.contains_key(FORWARDED), "{lines:?}: {headers:?}");
            }
        }
        // A quote that one hop opens swallows nothing of the next one's.
        assert_eq!(kept(&["for=\"a, for=198.51.100.1"], 1), None);
    }

    #[test]
    fn without_trusted_hops_no_claim_passes() {
        let mut headers = HeaderMap::new();
        for name in CLAIMS.iter().chain([&FORWARDED]) {
            headers.append(name, HeaderValue::from_static("x"));
            headers.append(name, HeaderValue::from_static("y"));
        }
        let mut trusted = headers.clone();
        keep_trusted(&mut trusted, 1);
        assert!(CLAIMS.iter().all(|name| trusted.contains_key(name)), "{trusted:?}");
        keep_trusted(&mut headers, 0);
        assert!(headers.is_empty(), "{headers:?}");
    }

    proptest::proptest! {
        /// Whatever a client writes: what a trusted hop appends is kept alone, or nothing is.
        #[test]
        fn no_client_gets_past_the_element_of_a_trusted_hop(claim in "[ -~]{0,40}", quoted in "[a-z\"\\\\;,= ]{0,12}") {
            for claim in [claim, quoted] {
                let own = "for=198.51.100.1;proto=https";
                for lines in [vec![format!("{claim}, {own}")], vec![claim, own.to_owned()]] {
                    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
                    let left = kept(&lines, 1);
                    proptest::prop_assert!(left.as_deref().is_none_or(|left| left == own), "{lines:?}: {left:?}");
                }
            }
        }
    }
}
