//! `/logging`: levels of the proxy's own log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use super::Admin;
use super::pages::Answer;
use super::query::Query;

/// Most modules that have a level of their own.
const MAX_TARGETS: usize = 64;

/// Reads and changes log levels.
pub trait LevelControl: Send + Sync {
    /// The level of everything (name empty), then of single modules.
    fn levels(&self) -> Vec<(String, LevelFilter)>;

    /// Sets the level of one module, or of everything, which takes away the levels of single modules.
    ///
    /// # Errors
    /// A sentence for a person: a name that is none, too many modules, no logger.
    fn set(&self, target: Option<&str>, level: LevelFilter) -> Result<(), String>;
}

/// Levels that a tracing subscriber follows.
#[derive(Debug)]
pub struct Levels<S> {
    handle: reload::Handle<EnvFilter, S>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    all: LevelFilter,
    targets: BTreeMap<String, LevelFilter>,
}

impl State {
    fn filter(&self) -> EnvFilter {
        let mut directives = self.all.to_string();
        for (target, level) in &self.targets {
            // Writing to a String cannot fail.
            let _infallible = write!(directives, ",{target}={level}");
        }
        EnvFilter::new(directives)
    }
}

impl<S> Levels<S> {
    /// A filter layer for a subscriber, and its control. `directives`: `info`, or `warn,upstream=debug`.
    ///
    /// # Errors
    /// A directive that is none.
    pub fn new(directives: &str) -> Result<(reload::Layer<EnvFilter, S>, Arc<Self>), String> {
        let mut state = State { all: LevelFilter::INFO, targets: BTreeMap::new() };
        for directive in directives.split(',').map(str::trim).filter(|d| !d.is_empty()) {
            match directive.split_once('=') {
                None => state.all = level(directive)?,
                Some((name, value)) => {
                    state.targets.insert(target(name)?, level(value)?);
                }
            }
        }
        let (layer, handle) = reload::Layer::new(state.filter());
        Ok((layer, Arc::new(Self { handle, state: Mutex::new(state) })))
    }
}

impl<S: Send + Sync> LevelControl for Levels<S> {
    fn levels(&self) -> Vec<(String, LevelFilter)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let targets = state.targets.iter().map(|(name, level)| (name.clone(), *level));
        std::iter::once((String::new(), state.all)).chain(targets).collect()
    }

    fn set(&self, name: Option<&str>, level: LevelFilter) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = state.clone();
        match name {
            None => {
                next.all = level;
                next.targets.clear();
            }
            Some(name) => {
                next.targets.insert(target(name)?, level);
                if next.targets.len() > MAX_TARGETS {
                    return Err(format!("more than {MAX_TARGETS} modules have a level of their own"));
                }
            }
        }
        self.handle.reload(next.filter()).map_err(|error| error.to_string())?;
        *state = next;
        Ok(())
    }
}

/// A level by tracing's or Envoy's name.
fn level(name: &str) -> Result<LevelFilter, String> {
    match name.to_ascii_lowercase().as_str() {
        "trace" => Ok(LevelFilter::TRACE),
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "error" | "err" | "critical" => Ok(LevelFilter::ERROR),
        "off" => Ok(LevelFilter::OFF),
        _ => Err(format!("`{name}` is not one of trace, debug, info, warn, error, off")),
    }
}

/// The tracing target of a module: `upstream` is short for `remora_proxy::upstream`.
fn target(name: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
    if name.is_empty() || name.len() > 128 || !name.chars().all(valid) {
        return Err("a module name has only letters, digits, `_` and `::`".to_owned());
    }
    let own =
        ["access_log", "admin", "config", "drain", "http", "listener", "readiness", "route", "signal", "tls"];
    let more = ["balance", "policy", "resilience", "tcp", "telemetry", "upstream", "inbound", "outbound"];
    let first = name.split("::").next().unwrap_or(name);
    let is_own = own.contains(&first) || more.contains(&first);
    Ok(if is_own { format!("remora_proxy::{name}") } else { name.to_owned() })
}

pub(super) fn answer(admin: &Admin, mut query: Query) -> Result<Answer, Answer> {
    let Some(levels) = &admin.levels else {
        let message = "log levels cannot be changed in this process";
        return Err(Answer::error(http::StatusCode::NOT_IMPLEMENTED, message));
    };
    let mut wanted = Vec::new();
    for (name, value) in query.take_all() {
        match name.as_str() {
            "level" => wanted.push((None, value)),
            // Envoy's form for several: paths=upstream:debug,tls:info.
            "paths" => {
                for path in value.split(',') {
                    let (name, value) = path.rsplit_once(':').unwrap_or((path, ""));
                    wanted.push((Some(name.to_owned()), value.to_owned()));
                }
            }
            _ => wanted.push((Some(name), value)),
        }
    }
    let bad = |message: String| Answer::bad_request(&message);
    // All checked before the first is set.
    let parsed: Result<Vec<_>, String> =
        wanted.into_iter().map(|(name, value)| level(&value).map(|level| (name, level))).collect();
    for (name, level) in parsed.map_err(bad)? {
        levels.set(name.as_deref(), level).map_err(bad)?;
    }
    let mut out = String::from("active loggers:\n");
    for (name, level) in levels.levels() {
        let name = if name.is_empty() { "all" } else { &name };
        let _infallible = writeln!(out, "  {name}: {level}");
    }
    Ok(Answer::text(out))
}
