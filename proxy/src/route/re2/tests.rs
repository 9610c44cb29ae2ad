use super::*;
use proptest::prelude::*;

#[track_caller]
fn check(pattern: &str, yes: &[&str], no: &[&str]) {
    let p = Pattern::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    for text in yes {
        assert!(p.is_match(text.as_bytes()), "{pattern} should match {text}");
    }
    for text in no {
        assert!(!p.is_match(text.as_bytes()), "{pattern} should not match {text}");
    }
}

#[test]
fn the_whole_text_must_match() {
    check("/a|/b", &["/a", "/b"], &["/ab", "x/a", "/a/b", "/a\n"]);
    check("/v[0-9]+/.*", &["/v1/", "/v22/x"], &["/v/", "/v1", "x/v1/"]);
    check("(?i)/A", &["/a", "/A"], &["/aa"]);
}

#[test]
fn re2_meaning_of_what_the_engine_reads_differently() {
    check(r"\d+", &["19"], &["\u{663}", ""]);
    check(r"[\d\w]+", &["a_9"], &["\u{e9}"]);
    check(r"[^\d]", &["a", "\u{663}"], &["1"]);
    check(r"[\D]", &["a"], &["1"]);
    check("/{id}", &["/{id}"], &["/id"]);
    check("/a{2}", &["/aa"], &["/a"]);
    check("a{,2}", &["a{,2}"], &["aa"]);
    check("[[]", &["["], &["]"]);
    check("[]a]", &["]", "a"], &["["]);
    check("[^]a]", &["b"], &["]", "a"]);
    check("[a&&b]+", &["a&b"], &["c"]);
    check("[+--]", &["+", ",", "-"], &["."]);
    check("[a-]", &["a", "-"], &["b"]);
    check("[--/]", &["-", ".", "/"], &[","]);
    check("[a~~b]", &["~"], &["c"]);
    check("[[:alpha:][:digit:]]", &["a", "1"], &["-"]);
    check(r"\<a\>", &["<a>"], &["a"]);
    check(r"\/a\-b", &["/a-b"], &[]);
    check(r"\Qa.b\E.", &["a.bx"], &["axbx"]);
    check(r"\x41\x{42}\103\07", &["ABC\u{7}"], &[]);
    check(r"(?P<n>a)(?<m>b)", &["ab"], &[]);
    check(r"a\bb|a\b b", &["a b"], &["ab"]);
}

#[test]
fn what_re2_refuses_is_refused_in_one_line() {
    for bad in [
        "(", "[a", "a)", "a)|(b", r"\1", r"(a)\1", "(?=a)", "(?<=a)", "(?!a)", "(?x)a", r"\", "a{1001}",
        "*a", r"\q", r"\Z", r"\xZZ", r"\p", "(?i", "(?P=n)",
    ] {
        let error = Pattern::new(bad).expect_err(bad);
        assert!(!error.is_empty() && !error.contains('\n'), "{bad}: {error}");
    }
    assert!(Pattern::new("(?:(?:a{1000}){1000}){1000}").expect_err("big").contains("bytes"));
}

#[test]
fn substitution_replaces_every_match_and_knows_groups() {
    let sub = |p: &str, r: &str, t: &str| Substitution::new(p, r).unwrap().replace_all(t).into_owned();
    assert_eq!(
        sub("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api"),
        "/v1/api/instance/foo"
    );
    assert_eq!(sub("one", "two", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/two/zzz");
    assert_eq!(sub("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/one/zzz");
    assert_eq!(sub("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb"), "/aaa/yyy/bbb");
    assert_eq!(sub("b", r"<\0\\>", "abc"), r"a<b\>c");
    assert!(matches!(Substitution::new("x", "y").unwrap().replace_all("abc"), Cow::Borrowed("abc")));
    assert!(Substitution::new("a", r"\1").unwrap_err().contains("group \\1"));
    assert!(Substitution::new("a", r"\n").is_err());
}

proptest! {
    #[test]
    fn no_pattern_and_no_text_panics(pattern in ".{0,24}", syntax in r"[\[\]\\(){}^$.*+?|,:dwsDWSbQExpPa0-9-]{0,20}", text in proptest::collection::vec(any::<u8>(), 0..32)) {
        for p in [pattern, syntax] {
            if let Ok(p) = Pattern::new(&p) {
                let _ = p.is_match(&text);
            }
            if let Ok(s) = Substitution::new(&p, r"\0x") {
                let _ = s.replace_all(&String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn an_escaped_text_matches_itself_only(text in "[ -~]{1,24}", other in "[ -~]{1,24}") {
        let quoted: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c.to_string() } else { format!("\\{c}") }).collect();
        let p = Pattern::new(&quoted).unwrap();
        prop_assert!(p.is_match(text.as_bytes()));
        prop_assert_eq!(p.is_match(other.as_bytes()), other == text);
    }
}
