use super::*;
use proptest::prelude::*;

fn show(node: &Node<'_>) -> String {
    match &node.value {
        Value::Scalar(s) => match s.resolve() {
            Resolved::Str(s) => format!("{s:?}"),
            other => format!("{other:?}"),
        },
        Value::Seq(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(", ")),
        Value::Map(map) => {
            let parts: Vec<_> = map.iter().map(|e| format!("{}: {}", e.key, show(&e.node))).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

fn read(text: &str) -> String {
    match parse(text) {
        Ok(node) => show(&node),
        Err(errors) => errors
            .iter()
            .map(|e| format!("{}:{} {}: {}", e.at.line, e.at.column, e.path, e.message))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

#[test]
fn scalars_mean_what_yaml_and_envoy_say() {
    for (text, expected) in [
        ("", "Null"),
        ("# only a comment\n", "Null"),
        ("~", "Null"),
        ("yes", "Bool(true)"),
        ("'yes'", "\"yes\""),
        ("0x1F", "Int(31)"),
        ("0o17", "Int(15)"),
        ("-7", "Int(-7)"),
        ("1e3", "Float(1000.0)"),
        ("1.5s", "\"1.5s\""),
        ("inf", "\"inf\""),
        ("!!str 5", "\"5\""),
        ("0x", "\"0x\""),
        ("0x-1", "\"0x-1\""),
        ("1.2.3", "\"1.2.3\""),
        ("-", "[Null]"),
        (r#""\ud83d\ude00\/""#, "\"😀/\""),
    ] {
        assert_eq!(read(text), expected, "{text:?}");
    }
}

#[test]
fn json_is_read_like_yaml() {
    assert_eq!(
        read("{\"a\":[1,\t\"b\",null,{}],\n\t\"c\":true}"),
        "{a: [Int(1), \"b\", Null, {}], c: Bool(true)}"
    );
}

#[test]
fn anchors_aliases_and_merge_keys_are_expanded() {
    let text = "!ignore x: &a {p: 1, q: 2}\ny: *a\nz: {<<: *a, p: 3}\nw: {<<: [*a, {r: 4}]}\n";
    let a = "p: Int(1), q: Int(2)";
    assert_eq!(read(text), format!("{{y: {{{a}}}, z: {{p: Int(3), q: Int(2)}}, w: {{{a}, r: Int(4)}}}}"));
}

#[test]
fn mistakes_have_a_place() {
    assert_eq!(
        read("a:\n  - b: 1\n    b: 2\n    c: !foo 3\n"),
        "3:5 a[0].b: this key occurs twice\n4:13 a[0].c: the tag !foo has no meaning here"
    );
    assert_eq!(read("a: 1\n---\nb: 2\n"), "3:1 : a second document (`---`); a file holds one");
    assert_eq!(read("---\na: 1\n---\n"), "{a: Int(1)}");
    assert_eq!(read("? [1]\n: 2\n"), "1:3 : a key must be a plain word or a quoted text");
    assert!(read("a: [1").starts_with("1:"), "{}", read("a: [1"));
    assert!(read("a: *b").contains("1:4"), "{}", read("a: *b"));
    assert!(read("&a [*a]").contains("alias inside"), "{}", read("&a [*a]"));
}

#[test]
fn bombs_do_not_go_off() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let alias = format!("*a{}, ", i - 1).repeat(10);
        text.push_str(&format!("a{i}: &a{i} [{}]\n", alias.trim_end_matches(", ")));
    }
    assert!(read(&text).contains("aliases counted"), "{}", read(&text));
    let mut text = String::from("a0: &a0 x\n");
    for i in 1..=MAX_DEPTH {
        text.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert!(read(&text).contains("nested deeper"), "{}", read(&text));
    assert!(parse(&"[".repeat(100_000)).is_err());
    let long = format!("a: &a \"{}\\n\"\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(20_000));
    assert!(read(&long).contains("aliases counted"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn text_of_yaml_tokens_is_read_or_refused(
        parts in prop::collection::vec(prop::sample::select(vec![
            "a", "b: ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "? ", "|\n", ">-\n", "'", "\"",
            "!!str ", "!x ", "---\n", "...\n", "#", "\t", "%YAML 1.2\n", "5", "null", "@type", "\u{feff}", "\r\n",
        ]), 0..40)
    ) {
        let _ = parse(&parts.concat());
    }
}
