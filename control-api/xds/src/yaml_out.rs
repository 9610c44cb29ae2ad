//! JSON -> YAML text for people: block style, quotes only where they are needed, texts of several lines as blocks.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::yaml::{Resolved, resolve};

/// Writes `value` as a YAML document.
#[must_use]
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(&mut out, map, 0, false),
        Value::Array(list) if !list.is_empty() => array(&mut out, list, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

/// `inline`: the cursor stands behind a `- `.
fn object(out: &mut String, map: &Map<String, Value>, indent: usize, inline: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !inline {
            pad(out, indent);
        }
        text(out, key);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                object(out, inner, indent + 2, false);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                array(out, inner, indent);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn array(out: &mut String, list: &[Value], indent: usize) {
    for value in list {
        pad(out, indent);
        out.push_str("- ");
        match value {
            Value::Object(inner) if !inner.is_empty() => object(out, inner, indent + 2, true),
            Value::Array(inner) if !inner.is_empty() => {
                out.truncate(out.len() - 1);
                out.push('\n');
                array(out, inner, indent + 2);
            }
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(s) if is_block(s) => block(out, s, indent),
        Value::String(s) => text(out, s),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Whether a text can stand as a literal block: several lines, none of them with blanks that a block would lose.
fn is_block(s: &str) -> bool {
    let body = s.strip_suffix('\n').unwrap_or(s);
    body.contains('\n')
        && !body.ends_with('\n')
        && s.chars().all(|c| c == '\n' || is_printable(c))
        && !body.starts_with([' ', '\n'])
        && body.lines().all(|line| !line.ends_with(' ') && line != "---" && line != "...")
}

fn block(out: &mut String, s: &str, indent: usize) {
    out.push_str(if s.ends_with('\n') { "|" } else { "|-" });
    for line in s.strip_suffix('\n').unwrap_or(s).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
        && !matches!(c, '\u{2028}' | '\u{2029}')
}

fn text(out: &mut String, s: &str) {
    if is_plain(s) {
        out.push_str(s);
        return;
    }
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if is_printable(c) => out.push(c),
            c => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
}

/// Whether a text is the same without quotes, for every reader of YAML.
fn is_plain(s: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '$' | '(' | '^');
    let inner = |c: char| c.is_ascii_alphanumeric() || "/_.$()^+-*=;:@%~|<>?!& ".contains(c);
    s.starts_with(first)
        && s.chars().all(inner)
        && !s.contains(": ")
        && !s.ends_with([' ', ':'])
        && !matches!(s, "..." | "=")
        && matches!(resolve(s), Resolved::Str(_))
        && !is_number_elsewhere(s)
}

/// Whether YAML 1.1 reads a number of base 60, 2 or 8, a number with underscores, or a date.
fn is_number_elsewhere(s: &str) -> bool {
    let digits = s.bytes().all(|b| b.is_ascii_hexdigit() || b"_:.-+xXoO".contains(&b));
    let dotted = s.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    s.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
        && !dotted
        && (s.starts_with('0') || s.contains(['_', ':', '-', '+']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_text_is_what_a_person_would_write() {
        let value = json!({
            "node": {"id": "a b", "count": 5},
            "list": [{"name": "x", "ports": [1, 2]}, [1], {}, [], "on", "1:30", "", null, true, "- x", "a: b", "a:", "10.0.0.1", "5xx", "1_0", "0b1"],
            "@type": "type.googleapis.com/x.Y",
            "pem": "-----BEGIN\nabc\n",
            "odd": "a \"b\"\n",
        });
        let expected = "node:\n  id: a b\n  count: 5\nlist:\n- name: x\n  ports:\n  - 1\n  - 2\n-\n  - 1\n- {}\n- []\n- \"on\"\n- \
                        \"1:30\"\n- \"\"\n- null\n- true\n- \"- x\"\n- \"a: b\"\n- \"a:\"\n- 10.0.0.1\n- 5xx\n- \"1_0\"\n- \"0b1\"\n\"@type\": \
                        type.googleapis.com/x.Y\npem: |\n  -----BEGIN\n  abc\nodd: \"a \\\"b\\\"\\n\"\n";
        assert_eq!(write(&value), expected);
    }

    fn back(node: &crate::yaml::Node<'_>) -> Value {
        use crate::yaml::Value as Y;
        match &node.value {
            Y::Scalar(s) => match s.resolve() {
                Resolved::Null => Value::Null,
                Resolved::Bool(v) => Value::Bool(v),
                Resolved::Int(v) => json!(i64::try_from(v).unwrap()),
                Resolved::Float(v) => json!(v),
                Resolved::Str(v) => json!(v),
            },
            Y::Seq(list) => list.iter().map(back).collect(),
            Y::Map(map) => {
                map.iter().map(|e| (e.key.to_string(), back(&e.node))).collect::<Map<_, _>>().into()
            }
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            "\\PC{0,12}",
            "[a-z0-9 :#,.~!&*|>%@'\"\\-\\[\\]{}\n\t]{0,16}",
            any::<String>(),
            prop::sample::select(vec![
                "yes", "No", "null", "~", "0x1f", "1e3", ".inf", "<<", "=", "a\nb\n", "a\n\nb", "---\na"
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            word.clone().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in tree()) {
            let text = write(&value);
            let node = crate::yaml::parse(&text);
            prop_assert!(node.is_ok(), "{text}\n{node:?}");
            prop_assert_eq!(back(&node.unwrap()), value, "{}", text);
        }
    }
}
