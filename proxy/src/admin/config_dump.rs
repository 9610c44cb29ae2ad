//! `/config_dump`.

use regex::Regex;
use serde_json::{Value, json};

use super::Admin;
use super::pages::Answer;
use super::query::Query;

/// `?resource=` gives the entries of one list of the dump, such as `dynamic_active_clusters`; `?name_regex=` keeps
/// those whose name matches as a whole.
pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let resource = query.take("resource");
    let names = match query.take("name_regex") {
        None => None,
        Some(pattern) => Some(whole(&pattern)?),
    };
    query.finish()?;
    let mut configs = admin.source.config_dump();
    if let Some(resource) = resource {
        let mut found = false;
        let mut entries = Vec::new();
        for section in configs {
            if let Value::Object(mut section) = section
                && let Some(list) = section.remove(&resource)
            {
                found = true;
                match list {
                    Value::Array(list) => entries.extend(list),
                    one => entries.push(one),
                }
            }
        }
        if !found {
            return Err(Answer::error(
                http::StatusCode::NOT_FOUND,
                &format!("{resource} not found in config dump"),
            ));
        }
        configs = entries;
        if let Some(names) = &names {
            configs.retain(|entry| matches(entry, names));
        }
    } else if let Some(names) = &names {
        for list in
            configs.iter_mut().filter_map(Value::as_object_mut).flat_map(|section| section.values_mut())
        {
            if let Value::Array(list) = list {
                list.retain(|entry| matches(entry, names));
            }
        }
    }
    Ok(Answer::json(&json!({ "configs": configs })))
}

fn whole(pattern: &str) -> Result<Regex, Answer> {
    let compiled = Regex::new(pattern).and_then(|_| Regex::new(&format!("\\A(?:{pattern})\\z")));
    compiled.map_err(|error| Answer::bad_request(&format!("name_regex: {error}")))
}

/// Whether an entry's `name`, or that of the resource inside it, matches.
fn matches(entry: &Value, names: &Regex) -> bool {
    let Some(fields) = entry.as_object() else { return false };
    let own = fields.get("name").into_iter();
    let inner = fields
        .values()
        .filter_map(Value::as_object)
        .flat_map(|resource| resource.get("name").into_iter().chain(resource.get("cluster_name")));
    own.chain(inner).filter_map(Value::as_str).any(|name| names.is_match(name))
}
