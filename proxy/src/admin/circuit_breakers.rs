//! `/circuit_breakers`: the circuit breakers with their state and window, and the operator's word.

use http::StatusCode;
use serde_json::{Value, json};

use super::Admin;
use super::pages::Answer;
use super::query::Query;
use super::source::CircuitStatus;

/// GET shows them; POST with `name` and `state` sets one.
pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let (name, state) = (query.take("name"), query.take("state"));
    query.finish()?;
    if let Some(state) = state {
        let name = name.ok_or_else(|| Answer::bad_request("`state` needs `name`"))?;
        let found = admin.source.set_circuit(&name, &state).map_err(Answer::bad_request)?;
        if !found {
            return Err(Answer::error(StatusCode::NOT_FOUND, "there is no circuit breaker of this name"));
        }
        return Ok(list(admin, Some(&name)));
    }
    Ok(list(admin, name.as_deref()))
}

fn list(admin: &Admin, name: Option<&str>) -> Answer {
    let circuits = admin.source.circuits();
    let shown: Vec<Value> =
        circuits.iter().filter(|circuit| name.is_none_or(|name| circuit.name == name)).map(json_of).collect();
    Answer::json(&json!({ "circuit_breakers": shown }))
}

fn json_of(circuit: &CircuitStatus) -> Value {
    let view = &circuit.view;
    let [succeeded, failed, slow] = view.calls;
    json!({
        "name": circuit.name,
        "state": view.state,
        "failure_rate": view.rates.map_or(-1.0, |(failed, _)| failed),
        "slow_call_rate": view.rates.map_or(-1.0, |(_, slow)| slow),
        "buffered_calls": view.totals.calls,
        "failed_calls": view.totals.failed,
        "slow_calls": view.totals.slow,
        "not_permitted_calls": view.refused,
        "last_good_answers": view.last_good,
        "calls": {"successful": succeeded, "failed": failed, "slow": slow},
    })
}
