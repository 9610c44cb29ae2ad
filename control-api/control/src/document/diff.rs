//! What a change changes, for people.

use serde_json::{Map, Value};
use similar::TextDiff;

/// Lines around a change.
const CONTEXT: usize = 3;

/// A document without what a server adds, as YAML.
#[must_use]
pub fn normal(body: &Value) -> String {
    let Value::Object(body) = body else { return String::new() };
    let mut body: Map<String, Value> = body.clone();
    body.remove("status");
    if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
        for field in
            ["uid", "generation", "creationTimestamp", "resourceVersion", "managedFields", "selfLink"]
        {
            metadata.remove(field);
        }
    }
    remora_xds::write_yaml(&Value::Object(body))
}

/// A unified diff between two documents, either of which may be missing. Empty: they say the same.
#[must_use]
pub fn diff(old: Option<&Value>, new: Option<&Value>, name: &str) -> String {
    let text = |side: Option<&Value>| side.map(normal).unwrap_or_default();
    let (before, after) = (text(old), text(new));
    if before == after {
        return String::new();
    }
    let label = |side: Option<&Value>, prefix: &str| {
        if side.is_some() { format!("{prefix}/{name}") } else { "/dev/null".to_owned() }
    };
    TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(CONTEXT)
        .header(&label(old, "live"), &label(new, "new"))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_diff_shows_what_a_person_wrote_and_nothing_else() {
        let document = |weight: u32, version: &str| json!({"kind": "X", "metadata": {"name": "a", "resourceVersion": version, "uid": version}, "spec": {"weight": weight}});
        assert_eq!(diff(Some(&document(1, "1")), Some(&document(1, "2")), "a"), "");
        let text = diff(Some(&document(1, "1")), Some(&document(2, "2")), "X/default/a");
        assert_eq!(
            text,
            "--- live/X/default/a\n+++ new/X/default/a\n@@ -2,4 +2,4 @@\n metadata:\n   name: a\n spec:\n-  weight: 1\n+  weight: 2\n"
        );
        assert!(diff(None, Some(&document(1, "1")), "a").starts_with("--- /dev/null\n+++ new/a\n"));
    }
}
