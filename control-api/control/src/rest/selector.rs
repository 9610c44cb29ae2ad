//! `labelSelector` and `fieldSelector`, the part of them that kubectl's `-l` and single names need.

use crate::document::Record;

/// Which documents of a list.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    name: String,
    /// None: any.
    value: Option<String>,
    equal: bool,
}

impl Selector {
    /// Reads both. `Err` says what is not understood.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let labels = terms(labels.unwrap_or_default())?;
        let fields = terms(fields.unwrap_or_default())?;
        if let Some(other) =
            fields.iter().find(|t| !matches!(&*t.name, "metadata.name" | "metadata.namespace"))
        {
            return Err(format!("fieldSelector: {:?} cannot be selected by", other.name));
        }
        Ok(Self { labels, fields })
    }

    pub(super) fn matches(&self, record: &Record) -> bool {
        // Most lists are of everything.
        let labels = (!self.labels.is_empty()).then(|| record.metadata().remove("labels")).flatten();
        let label = |name: &str| labels.as_ref()?.get(name)?.as_str();
        let field = |name: &str| match name {
            "metadata.name" => Some(&*record.key.name),
            _ => Some(&*record.key.namespace),
        };
        self.labels.iter().all(|term| term.holds(label(&term.name)))
            && self.fields.iter().all(|term| term.holds(field(&term.name)))
    }
}

impl Term {
    fn holds(&self, found: Option<&str>) -> bool {
        match &self.value {
            Some(value) => (found == Some(value)) == self.equal,
            None => found.is_some() == self.equal,
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, String> {
    let one = |part: &str| {
        let term = |name: &str, value: Option<&str>, equal| Term {
            name: name.trim().to_owned(),
            value: value.map(|v| v.trim().to_owned()),
            equal,
        };
        if part.contains(['(', ' ']) {
            return Err(format!("{part:?} is not supported in a selector; write name=value or name!=value"));
        }
        Ok(if let Some((name, value)) = part.split_once("!=") {
            term(name, Some(value), false)
        } else if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            term(name, Some(value), true)
        } else if let Some(name) = part.strip_prefix('!') {
            term(name, None, false)
        } else {
            term(part, None, true)
        })
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Entry, Key};

    #[test]
    fn labels_and_names_select() {
        let value = r#"{"metadata":{"labels":{"app":"shop","tier":"web"}}}"#;
        let entry =
            Entry { key: Key::new("Service", "ns", "a"), value: value.into(), revision: 1, lease: None };
        let record = Record::of(&entry).unwrap();
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=shop", "", true),
            ("app==shop,tier=web", "", true),
            ("app=shop,tier=db", "", false),
            ("app!=shop", "", false),
            ("none!=x", "", true),
            ("app", "", true),
            ("!app", "", false),
            ("!none", "metadata.name=a", true),
            ("", "metadata.name=b", false),
            ("", "metadata.namespace!=ns", false),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields)).unwrap();
            assert_eq!(selector.matches(&record), expected, "{labels} {fields}");
        }
        assert!(Selector::parse(Some("app in (a,b)"), None).is_err());
        assert!(Selector::parse(None, Some("spec.x=1")).is_err());
    }
}
