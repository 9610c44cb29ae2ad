//! The public operations of [`Schema`].

use std::sync::Arc;

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, Value};

use crate::any;
use crate::check::Checker;
use crate::diag::{At, ConfigError, Errors, Failed, SourceMap};
use crate::glance::Seen;
use crate::json::Writer;
use crate::pb::google::protobuf::Any;
use crate::schema::Schema;
use crate::transcode::{Transcoded, Transcoder};
use crate::wire::Wire;
use crate::{yaml, yaml_out};

/// A message that came from a text.
#[derive(Debug, Clone)]
pub struct Parsed<M> {
    /// The message: every set field is supported, and the rules of the API hold.
    pub message: M,
    /// Where its fields stand in the text. A field inside of an Any has the path of the Any and its own name:
    /// `filter_chains[0].filters[0].typed_config.stat_prefix`.
    pub map: SourceMap,
}

impl Schema {
    /// Reads an `M` from YAML or JSON and checks it. `source` is the file name, for the errors.
    ///
    /// # Errors
    /// Every mistake in the text, in the order of the text; or the first mistake when it is no YAML.
    pub fn parse<M: Wire>(&self, text: &str, source: &str) -> Result<Parsed<M>, Vec<ConfigError>> {
        let source: Arc<str> = source.into();
        let node = yaml::parse(text).map_err(|errors| {
            let located = |e: yaml::YamlError| ConfigError {
                source: Arc::clone(&source),
                position: Some(e.at),
                path: e.path,
                message: e.message,
                fix: None,
            };
            errors.into_iter().map(located).collect::<Vec<_>>()
        })?;
        let mut errors = Errors::new(Arc::clone(&source), SourceMap::default());
        let name = M::full_name();
        let Some(desc) = self.message(&name) else {
            let (said, fix) = self.why_not(&name);
            errors.report(&At::root(), said).fix = fix;
            return Err(errors.into_list());
        };
        let mut failed = Failed::default();
        let Transcoded { message, detached } =
            Transcoder::new(self, &mut errors, &mut failed).root(&desc, &node);
        drop(node);
        Checker::new(self, &mut errors, &failed).message(&message, &At::root(), true);
        if errors.is_empty() {
            let mut bytes = message.encode_to_vec();
            bytes.extend(detached);
            drop(message);
            match M::from_bytes(&bytes) {
                Ok(message) => return Ok(Parsed { message, map: errors.map() }),
                // Only a nesting deeper than the decoder allows comes here.
                Err(e) => errors.report(&At::root(), format!("no valid {name}: {e}")),
            };
        }
        Err(errors.into_list())
    }

    /// Checks a resource that came as protobuf bytes (cheaply, when nothing is wrong: [`Self::is_plainly_right`]), as [`Self::parse`] checks a text. `source` is the name of the resource
    /// or stream, for the errors; their paths start at the message that `any` holds.
    ///
    /// # Errors
    /// Every mistake.
    pub fn check_any(&self, any: &Any, source: &str) -> Result<(), Vec<ConfigError>> {
        self.check_next(any, source, &mut Seen::default())
    }

    /// [`Self::check_any`] of one of many resources that are much alike: the first one has an empty `seen`.
    ///
    /// # Errors
    /// Every mistake.
    pub fn check_next<'b>(
        &self,
        any: &'b Any,
        source: &str,
        seen: &mut Seen<'b>,
    ) -> Result<(), Vec<ConfigError>> {
        if self.is_plainly_right(any, seen) {
            return Ok(());
        }
        self.check_fully(any, source)
    }

    /// [`Self::check_any`] of what is not plainly right.
    pub(crate) fn check_fully(&self, any: &Any, source: &str) -> Result<(), Vec<ConfigError>> {
        let mut errors = Errors::new(source, SourceMap::default());
        // Of all Anys the pool has this one: the resources of a response, if nothing else, are Anys.
        if let Some(desc) = self.message("google.protobuf.Any") {
            let mut message = DynamicMessage::new(desc);
            message.set_field_by_name("type_url", Value::String(any.type_url.clone()));
            message.set_field_by_name("value", Value::Bytes(any.value.clone().into()));
            Checker::new(self, &mut errors, &Failed::default()).any(&message, &At::root(), true);
        } else {
            errors.report(&At::root(), "the schema has no google.protobuf.Any");
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.into_list()) }
    }

    /// Checks a message that was made in this program: [`Self::check_any`] of it.
    ///
    /// # Errors
    /// Every mistake.
    pub fn check<M: Message + Name>(&self, message: &M, source: &str) -> Result<(), Vec<ConfigError>> {
        self.check_any(&any::pack(message), source)
    }

    /// `message` as JSON with the field names of the proto files, Anys expanded, default values left out. A type or a field
    /// outside the supported API is base64 or missing.
    #[must_use]
    pub fn to_json<M: Message + Name>(&self, message: &M) -> serde_json::Value {
        Writer { schema: self, redact: false }.bytes(&M::full_name(), &message.encode_to_vec())
    }

    /// The message in `any` as JSON, with its `@type`, as [`Self::to_json`] writes it.
    #[must_use]
    pub fn any_to_json(&self, any: &Any) -> serde_json::Value {
        Writer { schema: self, redact: false }.any(&any.type_url, &any.value, 0)
    }

    /// [`Self::any_to_json`] for the eyes of others: private keys and other secrets are `[redacted]`.
    #[must_use]
    pub fn any_to_redacted_json(&self, any: &Any) -> serde_json::Value {
        Writer { schema: self, redact: true }.any(&any.type_url, &any.value, 0)
    }

    /// `message` as YAML that [`Self::parse`] and Envoy read again.
    #[must_use]
    pub fn to_yaml<M: Message + Name>(&self, message: &M) -> String {
        yaml_out::write(&self.to_json(message))
    }

    /// The message in `any` as YAML, with its `@type`.
    #[must_use]
    pub fn any_to_yaml(&self, any: &Any) -> String {
        yaml_out::write(&self.any_to_json(any))
    }
}
