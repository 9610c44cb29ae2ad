//! The difference of two JSON values as a JSON Patch (RFC 6902): add, remove and replace.

use serde_json::{Value, json};

/// Operations that make `new` of `old`, in their order.
#[must_use]
pub fn diff(old: &Value, new: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    values(old, new, "", &mut operations);
    operations
}

fn values(old: &Value, new: &Value, path: &str, out: &mut Vec<Value>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let path = format!("{path}/{}", escaped(key));
                match new.get(key) {
                    Some(new) => values(value, new, &path, out),
                    None => out.push(json!({"op": "remove", "path": path})),
                }
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                out.push(json!({"op": "add", "path": format!("{path}/{}", escaped(key)), "value": value}));
            }
        }
        (Value::Array(old), Value::Array(new)) if follows(old, new) => {
            let mut rest = old.iter().peekable();
            for (i, value) in new.iter().enumerate() {
                let path = format!("{path}/{i}");
                match rest.next_if(|old| same(old, value)) {
                    Some(old) => values(old, value, &path, out),
                    None => out.push(json!({"op": "add", "path": path, "value": value})),
                }
            }
        }
        _ => out.push(json!({"op": "replace", "path": path, "value": new})),
    }
}

/// Whether everything of `old` is in `new`, in its order.
fn follows(old: &[Value], new: &[Value]) -> bool {
    let mut rest = old.iter().peekable();
    for value in new {
        rest.next_if(|old| same(old, value));
    }
    rest.peek().is_none()
}

/// Whether two items of lists are the same thing: by their name, as Kubernetes tells containers and volumes apart.
fn same(old: &Value, new: &Value) -> bool {
    match (&old["name"], &new["name"]) {
        (Value::String(old), Value::String(new)) => old == new,
        _ => old == new,
    }
}

/// RFC 6901.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
