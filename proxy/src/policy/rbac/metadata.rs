//! What a verdict leaves for the filters behind: Envoy's dynamic metadata of `envoy.filters.http.rbac`.

use super::Verdict;

/// Which of the rules of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `rules`.
    Enforced,
    /// `shadow_rules`.
    Shadow,
}

/// What can be asked about a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The policy that matched.
    Policy,
    /// `allowed` or `denied`.
    Result,
}

/// Ends of keys; before them stands `rules_stat_prefix` or `shadow_rules_stat_prefix`.
const KEYS: [(&str, Engine, Field); 4] = [
    ("shadow_effective_policy_id", Engine::Shadow, Field::Policy),
    ("shadow_engine_result", Engine::Shadow, Field::Result),
    ("enforced_effective_policy_id", Engine::Enforced, Field::Policy),
    ("enforced_engine_result", Engine::Enforced, Field::Result),
];

impl Engine {
    /// Whether some filter could leave something under `key`.
    #[must_use]
    pub fn has(key: &str) -> bool {
        KEYS.iter().any(|(end, ..)| key.ends_with(end))
    }
}

impl Verdict<'_> {
    /// What `key` asks about this verdict; None when it asks about another one.
    #[must_use]
    pub fn field(&self, engine: Engine, key: &str) -> Option<Field> {
        let end = key.strip_prefix(&**self.stat_prefix)?;
        KEYS.iter().find(|(name, of, _)| *name == end && *of == engine).map(|(.., field)| *field)
    }

    /// The value of a field; no policy need have matched.
    #[must_use]
    pub fn value(&self, field: Field) -> Option<&str> {
        match field {
            Field::Policy => self.policy.map(|name| &**name),
            Field::Result => Some(if self.allowed { "allowed" } else { "denied" }),
        }
    }
}
