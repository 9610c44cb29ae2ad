//! `/stats`.

use prometheus::proto::{Metric, MetricFamily, MetricType};
use regex::Regex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Admin;
use super::pages::{Answer, one_line, prometheus};
use super::query::Query;

/// `?format=text|json|prometheus`, `?filter=<regex>` on names with labels, `?usedonly` leaves out zeros.
pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let format = query.take("format");
    let used_only = query.take_switch("usedonly");
    let filter = query.take("filter");
    query.finish()?;
    let filter = filter.map(|f| Regex::new(&f)).transpose();
    let filter = filter.map_err(|error| Answer::bad_request(&format!("filter: {error}")))?;
    if format.as_deref() == Some("prometheus") {
        if used_only || filter.is_some() {
            return Err(Answer::bad_request("format=prometheus takes no filter"));
        }
        return prometheus(admin);
    }
    let families = admin.registry.gather(Instant::now());
    let lines = families.iter().flat_map(|f| f.get_metric().iter().flat_map(|m| values(f, m)));
    let lines = lines
        .filter(|(_, value)| !used_only || *value != 0.0)
        .filter(|(name, _)| filter.as_ref().is_none_or(|f| f.is_match(name)));
    match format.as_deref() {
        None | Some("text") => {
            let text: String = lines.map(|(name, value)| format!("{}: {value}\n", one_line(&name))).collect();
            Ok(Answer::text(text))
        }
        Some("json") => {
            let stats: Vec<Value> =
                lines.map(|(name, value)| json!({"name": name, "value": value})).collect();
            Ok(Answer::json(&json!({ "stats": stats })))
        }
        Some(_) => Err(Answer::bad_request("format is one of text, json, prometheus")),
    }
}

/// One line, or a count and a sum for a histogram.
fn values(family: &MetricFamily, metric: &Metric) -> Vec<(String, f64)> {
    let labels: Vec<String> =
        metric.get_label().iter().map(|pair| format!("{}=\"{}\"", pair.name(), pair.value())).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let named = |suffix: &str| format!("{}{suffix}{labels}", family.name());
    match family.get_field_type() {
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            vec![
                (named("_count"), histogram.get_sample_count() as f64),
                (named("_sum"), histogram.get_sample_sum()),
            ]
        }
        MetricType::COUNTER => vec![(named(""), metric.get_counter().get_value())],
        _ => vec![(named(""), metric.get_gauge().get_value())],
    }
}
