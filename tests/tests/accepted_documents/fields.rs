//! Documents by chance: some of the fields, each with one of its values.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind, WORDS};

/// A field with its value.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    place: &'static str,
    value: Value,
}

impl Drawn {
    /// Sets it. A place whose parents are not there stays empty.
    pub(crate) fn put(&self, spec: &mut Value) {
        if self.place == "@provider" {
            spec["action"] = json!("Custom");
            spec["provider"] = self.value.clone();
            return;
        }
        let mut at = spec;
        for step in self.place.split('.') {
            at = match step.parse::<usize>() {
                Ok(number) => {
                    let Some(list) = at.as_array_mut() else { return };
                    if number == list.len() {
                        list.push(Value::Null);
                    }
                    let Some(next) = list.get_mut(number) else { return };
                    next
                }
                Err(_) if at.is_object() || at.is_null() => &mut at[step],
                Err(_) => return,
            };
        }
        *at = self.value.clone();
    }
}

/// JSON with a choice for each of its words.
fn chosen(template: &str, choices: &[Index]) -> Value {
    let mut text = template.to_owned();
    let mut choices = choices.iter().cycle();
    for (word, values) in WORDS {
        while text.contains(word) {
            let value = choices.next().map_or("", |choice| *choice.get(values));
            text = text.replacen(word, value, 1);
        }
    }
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn field(kind: &'static Kind) -> impl Strategy<Value = Drawn> {
    (prop::sample::select(kind.fields), prop::collection::vec(any::<Index>(), 6))
        .prop_map(|((place, template), choices)| Drawn { place, value: chosen(template, &choices) })
}

/// Documents of some of the kinds, each with some of the fields.
pub(crate) fn drawn() -> impl Strategy<Value = Vec<(&'static Kind, Vec<Drawn>)>> {
    let some = |kind: &'static Kind| {
        prop::option::of(prop::collection::vec(field(kind), 0..8))
            .prop_map(move |fields| Some((kind, fields?)))
    };
    KINDS.map(some).prop_map(|drawn| drawn.into_iter().flatten().collect())
}
