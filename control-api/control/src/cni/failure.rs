//! Errors as the CNI specification has them.

use serde_json::{Value, json};

/// What a runtime does depends on it. Up to 99 they are the specification's, from 100 on ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// The version of the configuration is none of ours, or has no such command.
    Version = 1,
    /// A field of the configuration is not known.
    Field = 2,
    /// A variable is missing or wrong.
    Environment = 4,
    /// Standard input cannot be read.
    Io = 5,
    /// Standard input is no configuration.
    Decode = 6,
    /// The configuration makes no sense.
    Config = 7,
    /// What is needed is not there now: the runtime tries again.
    Later = 11,
    /// The pod's annotation is not what the injector writes.
    Annotation = 100,
    /// The rules cannot be made, or are not there.
    Rules = 101,
}

/// An error for a container runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg} ({details})")]
pub(super) struct Failure {
    pub(super) code: Code,
    /// What is wrong, short.
    pub(super) msg: String,
    /// Why, or what to do.
    pub(super) details: String,
}

impl Failure {
    pub(super) fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// What is printed. `version` is that of the configuration.
    pub(super) fn json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.msg, "details": self.details})
    }
}
