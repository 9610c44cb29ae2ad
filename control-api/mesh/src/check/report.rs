//! What was found in documents.

use std::fmt;
use std::sync::Arc;

use remora_xds::diag::{At, ConfigError, Position, SourceMap};

use crate::name::Name;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The document cannot be used as it is.
    Error,
    /// It can, and something in it does nothing.
    Warning,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The text is no document, or a field is not what it must be.
    Syntax,
    /// A value makes no sense.
    Invalid,
    /// Something that exists elsewhere, or will, and is not supported.
    Unsupported,
    /// The document refers to something that is not there, or that it may not refer to. It may come later.
    Reference,
    /// Two documents say something about the same thing, and only one can hold.
    Conflict,
    /// No request gets to a rule: others before it match all of them.
    UnreachableRule,
    /// A route does nothing on a port.
    IgnoredRoute,
    /// An endpoint cannot be called.
    UnreachableEndpoint,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 8] = [
        Self::Syntax,
        Self::Invalid,
        Self::Unsupported,
        Self::Reference,
        Self::Conflict,
        Self::UnreachableRule,
        Self::IgnoredRoute,
        Self::UnreachableEndpoint,
    ];

    /// Its id, for tools.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Reference => "reference",
            Self::Conflict => "conflict",
            Self::UnreachableRule => "unreachable-rule",
            Self::IgnoredRoute => "ignored-route",
            Self::UnreachableEndpoint => "unreachable-endpoint",
        }
    }

    /// What it is about, for people.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Syntax => "The text is no document, or a field is not what it must be",
            Self::Invalid => "A value makes no sense",
            Self::Unsupported => "Not supported",
            Self::Reference => "What is referred to is not there, or may not be referred to",
            Self::Conflict => "Two documents say something about the same thing",
            Self::UnreachableRule => "Rules before this one match all of its requests",
            Self::IgnoredRoute => "A route does nothing on a port",
            Self::UnreachableEndpoint => "An endpoint cannot be called",
        }
    }
}

/// Another place that has to do with a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Related {
    /// File.
    pub source: Arc<str>,
    /// Line and column.
    pub position: Option<Position>,
    /// What is there.
    pub message: String,
}

/// What a reference lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// There is no such Service.
    Service(Name),
    /// This Service has no such port.
    Port(Name),
    /// No ReferenceGrant lets the document refer to this Service.
    Grant(Name),
}

/// Something found in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which kind of thing.
    pub rule: Rule,
    /// Where, what, and what to do.
    pub error: ConfigError,
    /// The other place, when there are two.
    pub related: Option<Related>,
    /// What is missing, of a reference to a Service.
    pub lacks: Option<Lack>,
}

impl Finding {
    /// A mistake.
    #[must_use]
    pub const fn mistake(rule: Rule, error: ConfigError) -> Self {
        Self { severity: Severity::Error, rule, error, related: None, lacks: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        self.error.fmt(f)?;
        if let Some(related) = &self.related {
            write!(f, "; {}", related.source)?;
            if let Some(at) = related.position {
                write!(f, ":{}:{}", at.line, at.column)?;
            }
            write!(f, ": {}", related.message)?;
        }
        Ok(())
    }
}

/// What was found so far in one document.
pub(super) struct Report {
    source: Arc<str>,
    map: SourceMap,
    list: Vec<Finding>,
}

impl Report {
    pub(super) fn new(source: &Arc<str>, map: &SourceMap) -> Self {
        Self { source: Arc::clone(source), map: map.clone(), list: Vec::new() }
    }

    /// Adds a value that makes no sense. The answer lets the caller add a fix.
    pub(super) fn report(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut ConfigError {
        self.add(Rule::Invalid, at, message.into())
    }

    /// Adds something that is not supported.
    pub(super) fn unsupported(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut ConfigError {
        self.add(Rule::Unsupported, at, message.into())
    }

    /// Adds a reference to something that is not there.
    pub(super) fn missing(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut ConfigError {
        self.add(Rule::Reference, at, message.into())
    }

    /// Adds a reference to a Service that is not as the document has it, or may not be referred to.
    pub(super) fn lacking(
        &mut self,
        at: &At<'_>,
        lack: Lack,
        message: impl Into<String>,
    ) -> &mut ConfigError {
        let next = self.list.len();
        self.add(Rule::Reference, at, message.into());
        self.list[next].lacks = Some(lack);
        &mut self.list[next].error
    }

    /// Adds something that another document has said already, there.
    pub(super) fn conflict(
        &mut self,
        at: &At<'_>,
        message: impl Into<String>,
        other: Related,
    ) -> &mut ConfigError {
        let next = self.list.len();
        self.add(Rule::Conflict, at, message.into());
        self.list[next].related = Some(other);
        &mut self.list[next].error
    }

    /// Adds a list that is longer than the Gateway API allows.
    pub(super) fn at_most(&mut self, most: usize, length: usize, at: &At<'_>) {
        if length > most {
            self.report(at, format!("has {length} entries, and may have {most}"));
        }
    }

    fn add(&mut self, rule: Rule, at: &At<'_>, message: String) -> &mut ConfigError {
        let path = at.to_string();
        let position = self.map.position(&path);
        let error = ConfigError { source: Arc::clone(&self.source), position, path, message, fix: None };
        let next = self.list.len();
        self.list.push(Finding::mistake(rule, error));
        &mut self.list[next].error
    }

    /// In the order of the text.
    pub(super) fn into_list(mut self) -> Vec<Finding> {
        self.list.sort_by_key(|f| f.error.position.map_or((u32::MAX, 0), |p| (p.line, p.column)));
        self.list
    }
}
