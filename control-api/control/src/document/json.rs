//! A YAML tree as JSON, as Kubernetes keeps it.

use remora_xds::yaml::{Node, Resolved, Scalar, Value as Yaml};
use serde_json::{Map, Value};

/// `node` as JSON. A plain scalar is a number or a bool only if JSON writes it the same way: `1.10` as a version and `yes` as a
/// name stay what they look like.
fn json(node: &Node<'_>) -> Value {
    match &node.value {
        Yaml::Scalar(text) => scalar(text),
        Yaml::Seq(list) => list.iter().map(json).collect(),
        Yaml::Map(entries) => {
            let pairs = entries.iter().map(|entry| (entry.key.to_string(), json(&entry.node)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

/// Maps whose values are texts, also those that look like something else.
const TEXTS: [[&str; 2]; 3] = [["metadata", "labels"], ["metadata", "annotations"], ["spec", "selector"]];

/// A document as JSON: a label `version: 1` is the text `1`.
pub(super) fn document(node: &Node<'_>) -> Value {
    let mut document = json(node);
    for [part, field] in TEXTS {
        let map = child(node, part).and_then(|node| child(node, field));
        let Some(Node { value: Yaml::Map(entries), .. }) = map else { continue };
        for entry in entries.iter() {
            if let Yaml::Scalar(scalar) = &entry.node.value
                && !matches!(scalar.resolve(), Resolved::Null)
            {
                document[part][field][&*entry.key] = scalar.text.as_ref().into();
            }
        }
    }
    document
}

fn child<'n, 'a>(node: &'n Node<'a>, name: &str) -> Option<&'n Node<'a>> {
    let Yaml::Map(entries) = &node.value else { return None };
    { entries.iter() }.find(|entry| &*entry.key == name).map(|entry| &entry.node)
}

fn scalar(scalar: &Scalar<'_>) -> Value {
    let meant = match scalar.resolve() {
        Resolved::Null => return Value::Null,
        // Whole numbers are numbers in any notation.
        Resolved::Int(number) => match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => return number.into(),
            (_, Ok(number)) => return number.into(),
            _ => Value::Null,
        },
        Resolved::Bool(value) => value.into(),
        Resolved::Float(number) => number.into(),
        Resolved::Str(text) => return text.into(),
    };
    let same = meant.to_string().as_str() == &*scalar.text;
    if same { meant } else { scalar.text.as_ref().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_keep_what_they_look_like() {
        let text = "{a: 1, b: 0x10, c: 1.10, d: 1.5, e: yes, f: true, g: '1', h: null, i: [x, {j: ~}], k: 99999999999999999999}";
        let node = remora_xds::yaml::parse(text).unwrap();
        let expected = json!({"a": 1, "b": 16, "c": "1.10", "d": 1.5, "e": "yes", "f": true, "g": "1", "h": null,
            "i": ["x", {"j": null}], "k": "99999999999999999999"});
        assert_eq!(json(&node), expected);
    }
}
