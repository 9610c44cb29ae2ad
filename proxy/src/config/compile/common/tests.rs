use super::*;
use crate::config::names::Names;
use proptest::prelude::*;
use remora_xds::diag::{Errors, SourceMap};

fn errors_of(f: impl FnOnce(&At<'_>, &mut Scope<'_>)) -> Vec<String> {
    let (mut errors, mut names) = (Errors::new("t", SourceMap::default()), Names::default());
    f(&At::root().field("f"), &mut Scope { errors: &mut errors, names: &mut names });
    errors.into_list().iter().map(|e| format!("{}: {}", e.path, e.message)).collect()
}

#[test]
fn templates() {
    let dynamic = |t: &str| parse_template(t).unwrap() == ValueTemplate::Dynamic(t.into());
    let fixed = |t: &str, v: &str| parse_template(t).unwrap() == ValueTemplate::Static(v.parse().unwrap());
    assert!(fixed("plain", "plain") && fixed("", "") && fixed("100%%", "100%"));
    assert!(dynamic("%REQ(x-a?x-b):10%") && dynamic("a%PROTOCOL%b%%c"));
    assert!(dynamic("%START_TIME(%Y/%m/%dT%H:%M:%S%z)%"));
    for bad in ["100%", "%REQ(x", "%NOPE%", "%REQ(x):%", "%REQ(x):99999%", "%req(x)%", "a\nb", "% %"] {
        assert!(parse_template(bad).is_err(), "{bad}");
    }
}

#[test]
fn durations() {
    let d = |seconds, nanos| protobuf::Duration { seconds, nanos };
    for (value, zero_ok, want) in [
        (d(1, 5), true, true),
        (d(-1, 0), false, false),
        (d(0, -1), false, false),
        (d(0, 1_000_000_000), false, false),
    ] {
        let errors = errors_of(|at, scope| {
            assert_eq!(duration(Some(&value), at, scope).is_some(), want);
        });
        assert_eq!(errors.is_empty(), zero_ok, "{errors:?}");
    }
    let errors = errors_of(|at, scope| assert_eq!(positive_duration(Some(&d(0, 0)), at, scope), None));
    assert_eq!(errors, ["f: must be more than zero"]);
}

#[test]
fn matchers_report_where_they_are_wrong() {
    let matcher = |p| matcher_pb::StringMatcher { ignore_case: true, match_pattern: p };
    let pattern = |r: &str| matcher_pb::RegexMatcher { regex: r.into(), engine_type: None };
    let errors = errors_of(|at, scope| {
        string_match(&matcher(None), at, scope);
        string_match(&matcher(Some(MatchPattern::Prefix(String::new()))), at, scope);
        string_match(&matcher(Some(MatchPattern::SafeRegex(pattern("(")))), at, scope);
        header_match(&pb::HeaderMatcher { name: "a b".into(), ..Default::default() }, at, scope);
        runtime_fraction(&core::RuntimeFractionalPercent::default(), at, scope);
        fraction(&FractionalPercent { numerator: 1, denominator: 9 }, at, scope);
    });
    let want = [
        "f: needs exact, prefix, suffix, contains or safe_regex",
        "f.prefix: must not be empty",
        "f.ignore_case: has no effect on safe_regex",
        "f.safe_regex.regex: bad regular expression: unclosed group",
        "f.name: \"a b\" is not a header name",
        "f.default_value: is required",
        "f.denominator: 9 is not a value of this enumeration",
    ];
    assert_eq!(errors, want);
}

#[test]
fn data_sources_are_read_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("body");
    std::fs::write(&path, "hello").unwrap();
    let source = |s| core::DataSource { watched_directory: None, specifier: Some(s) };
    let file = |p: &std::path::Path| source(Specifier::Filename(p.to_str().unwrap().into()));
    let read = |s: core::DataSource, most| {
        let mut out = None;
        let errors = errors_of(|at, scope| out = data_source(&s, most, at, scope));
        out.ok_or(errors)
    };
    assert_eq!(read(file(&path), 5).unwrap(), "hello");
    assert_eq!(read(source(Specifier::InlineString("x".into())), 5).unwrap(), "x");
    assert_eq!(read(source(Specifier::InlineBytes(vec![0])), 5).unwrap()[..], [0]);
    assert_eq!(read(file(&path), 4).unwrap_err(), ["f.filename: is 5 bytes long, the limit is 4"]);
    assert_eq!(
        read(source(Specifier::InlineString("12345".into())), 4).unwrap_err(),
        ["f.inline_string: is 5 bytes long, the limit is 4"]
    );
    assert!(read(file(dir.path()), 4).unwrap_err()[0].contains("not a regular file"));
    assert!(read(file(&dir.path().join("none")), 4).unwrap_err()[0].contains("cannot read"));
}

proptest! {
    #[test]
    fn any_text_is_a_template_or_an_error(text in ".{0,30}", syntax in "[%():A-Z0-9]{0,12}") {
        let _ = parse_template(&text);
        let _ = parse_template(&syntax);
    }
}
