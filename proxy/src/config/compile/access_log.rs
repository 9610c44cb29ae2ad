//! Access logs: `envoy.config.accesslog.v3.AccessLog` with the file and stream loggers.

use std::sync::Arc;

use prost::Name;
use remora_xds::diag::At;
use remora_xds::pb::envoy::config::accesslog::v3 as pb;
use remora_xds::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use remora_xds::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use remora_xds::pb::envoy::config::core::v3::substitution_format_string::Format as PbFormat;
use remora_xds::pb::envoy::config::core::v3::{DataSource, SubstitutionFormatString};
use remora_xds::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use remora_xds::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use remora_xds::pb::google::protobuf::{Any, Struct};
use remora_xds::wire::Wire;

use super::Scope;
use super::common::{data_source, fraction, header_match};
use crate::telemetry::access_log::{AccessLog, Compare, Filter, LogFormat, Sink};
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::format::{Absent, Format, JsonFormat};

/// How deep and/or filters may be nested.
const MAX_DEPTH: usize = 16;
/// Longest format string, bytes.
const MAX_FORMAT: usize = 64 << 10;

/// Compiles the list `access_log` that stands at `at`. Logs with a mistake are left out; the mistakes are reported.
pub fn compile_access_logs(
    logs: &[pb::AccessLog],
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Vec<Arc<AccessLog>> {
    let compile = |(i, log)| compile(log, &at.index(i), scope).map(Arc::new);
    logs.iter().enumerate().filter_map(compile).collect()
}

fn compile(log: &pb::AccessLog, at: &At<'_>, scope: &mut Scope<'_>) -> Option<AccessLog> {
    let filter = log.filter.as_ref().map(|filter| compile_filter(filter, &at.field("filter"), 0, scope));
    let at = at.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = &log.config_type else {
        scope
            .errors
            .report(&at, "is required")
            .fix("name a logger, such as envoy.extensions.access_loggers.file.v3.FileAccessLog");
        return None;
    };
    let (sink, format) = compile_logger(any, &at, scope)?;
    // A filter with a mistake must not turn into no filter.
    Some(AccessLog { format, filter: filter.map(|f| f.ok_or(())).transpose().ok()?, sink })
}

fn compile_logger(any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<(Sink, LogFormat)> {
    if is::<FileAccessLog>(any) {
        let file: FileAccessLog = decode(any, at, scope)?;
        if file.path.is_empty() {
            scope.errors.report(&at.field("path"), "must not be empty");
            return None;
        }
        return Some((Sink::path(&file.path), file_format(file.access_log_format.as_ref(), at, scope)?));
    }
    let (sink, format) = if is::<StdoutAccessLog>(any) {
        let log: StdoutAccessLog = decode(any, at, scope)?;
        (Sink::Stdout, log.access_log_format.map(|stdout_access_log::AccessLogFormat::LogFormat(f)| f))
    } else if is::<StderrAccessLog>(any) {
        let log: StderrAccessLog = decode(any, at, scope)?;
        (Sink::Stderr, log.access_log_format.map(|stderr_access_log::AccessLogFormat::LogFormat(f)| f))
    } else {
        let message = format!("access logger `{}` is not supported", any.type_url);
        scope.errors.report(at, message).fix("use FileAccessLog, StdoutAccessLog or StderrAccessLog");
        return None;
    };
    let format = match format {
        Some(format) => substitution(&format, &at.field("log_format"), scope)?,
        None => default_format(at, scope)?,
    };
    Some((sink, format))
}

fn is<T: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(T::full_name().as_str())
}

fn decode<T: Wire>(any: &Any, at: &At<'_>, scope: &mut Scope<'_>) -> Option<T> {
    T::from_bytes(&any.value).map_err(|error| _ = scope.errors.report(at, error.to_string())).ok()
}

fn default_format(at: &At<'_>, scope: &mut Scope<'_>) -> Option<LogFormat> {
    LogFormat::envoy_default().map_err(|error| _ = scope.errors.report(at, error.to_string())).ok()
}

#[expect(deprecated, reason = "Envoy still takes `format`; many configurations have it")]
fn file_format(
    format: Option<&file_access_log::AccessLogFormat>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<LogFormat> {
    use file_access_log::AccessLogFormat;
    match format {
        None => default_format(at, scope),
        Some(AccessLogFormat::LogFormat(format)) => substitution(format, &at.field("log_format"), scope),
        Some(AccessLogFormat::Format(format)) if format.is_empty() => default_format(at, scope),
        Some(AccessLogFormat::Format(format)) => text(format, Absent::Dash, &at.field("format"), scope),
        Some(AccessLogFormat::TypedJsonFormat(format)) => {
            json(format, Absent::Dash, &at.field("typed_json_format"), scope)
        }
        Some(AccessLogFormat::JsonFormat(_)) => {
            let error = scope.errors.report(&at.field("json_format"), "is deprecated and not supported");
            error.fix("write it under log_format.json_format, where numbers are numbers");
            None
        }
    }
}

#[expect(deprecated, reason = "Envoy still takes `text_format`; many configurations have it")]
fn substitution(format: &SubstitutionFormatString, at: &At<'_>, scope: &mut Scope<'_>) -> Option<LogFormat> {
    let before = scope.errors.len();
    if !format.formatters.is_empty() {
        scope.errors.report(&at.field("formatters"), "formatter extensions are not supported");
    }
    if !format.content_type.is_empty() {
        scope.errors.report(&at.field("content_type"), "has no effect in an access log").fix("remove it");
    }
    let absent = if format.omit_empty_values { Absent::Omit } else { Absent::Dash };
    let compiled = match &format.format {
        None => {
            scope.errors.report(at, "needs text_format_source or json_format");
            None
        }
        Some(PbFormat::TextFormat(format)) => text(format, absent, &at.field("text_format"), scope),
        Some(PbFormat::JsonFormat(format)) => json(format, absent, &at.field("json_format"), scope),
        Some(PbFormat::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            text(&inline(source, &at, scope)?, absent, &at, scope)
        }
    };
    compiled.filter(|_| scope.errors.len() == before)
}

fn inline(source: &DataSource, at: &At<'_>, scope: &mut Scope<'_>) -> Option<String> {
    let bytes = data_source(source, MAX_FORMAT, at, scope)?;
    let text = String::from_utf8(bytes.into());
    text.map_err(|_| _ = scope.errors.report(at, "is not UTF-8")).ok()
}

fn text(format: &str, absent: Absent, at: &At<'_>, scope: &mut Scope<'_>) -> Option<LogFormat> {
    if format.is_empty() {
        scope.errors.report(at, "must not be empty");
        return None;
    }
    let format =
        Format::parse(format, absent).map_err(|error| _ = scope.errors.report(at, error.to_string()));
    format.ok().map(LogFormat::Text)
}

fn json(format: &Struct, absent: Absent, at: &At<'_>, scope: &mut Scope<'_>) -> Option<LogFormat> {
    let format = JsonFormat::compile(format, absent);
    let format = format.map_err(|(path, error)| _ = scope.errors.report(&at.field(&path), error.to_string()));
    format.ok().map(LogFormat::Json)
}

fn compile_filter(
    filter: &pb::AccessLogFilter,
    at: &At<'_>,
    depth: usize,
    scope: &mut Scope<'_>,
) -> Option<Filter> {
    let refuse = |scope: &mut Scope<'_>, field: &str, message: &str| {
        scope.errors.report(&at.field(field), message);
        None
    };
    match &filter.filter_specifier {
        None => {
            scope.errors.report(at, "names no filter");
            None
        }
        Some(FilterSpecifier::StatusCodeFilter(f)) => {
            comparison(f.comparison.as_ref(), &at.field("status_code_filter"), scope)
                .map(|(compare, value)| Filter::Status(compare, value))
        }
        Some(FilterSpecifier::DurationFilter(f)) => {
            comparison(f.comparison.as_ref(), &at.field("duration_filter"), scope)
                .map(|(compare, value)| Filter::Duration(compare, value))
        }
        Some(FilterSpecifier::AndFilter(f)) => {
            list(&f.filters, &at.field("and_filter"), depth, scope).map(Filter::And)
        }
        Some(FilterSpecifier::OrFilter(f)) => {
            list(&f.filters, &at.field("or_filter"), depth, scope).map(Filter::Or)
        }
        Some(FilterSpecifier::HeaderFilter(f)) => {
            let at = at.field("header_filter");
            let at = at.field("header");
            match &f.header {
                Some(matcher) => header_match(matcher, &at, scope).map(Filter::Header),
                None => {
                    scope.errors.report(&at, "is required");
                    None
                }
            }
        }
        Some(FilterSpecifier::ResponseFlagFilter(f)) => {
            flags(&f.flags, &at.field("response_flag_filter"), scope)
        }
        Some(FilterSpecifier::GrpcStatusFilter(f)) => grpc(f, &at.field("grpc_status_filter"), scope),
        Some(FilterSpecifier::RuntimeFilter(f)) => sample(f, &at.field("runtime_filter"), scope),
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => {
            refuse(scope, "not_health_check_filter", "is not supported: use a header_filter on :path")
        }
        Some(FilterSpecifier::TraceableFilter(_)) => refuse(scope, "traceable_filter", "is not supported"),
        Some(FilterSpecifier::ExtensionFilter(_)) => refuse(scope, "extension_filter", "is not supported"),
        Some(FilterSpecifier::MetadataFilter(_)) => refuse(scope, "metadata_filter", "is not supported"),
        Some(FilterSpecifier::LogTypeFilter(_)) => refuse(scope, "log_type_filter", "is not supported"),
    }
}

fn list(
    filters: &[pb::AccessLogFilter],
    at: &At<'_>,
    depth: usize,
    scope: &mut Scope<'_>,
) -> Option<Vec<Filter>> {
    let at = at.field("filters");
    if depth >= MAX_DEPTH {
        scope.errors.report(&at, format!("nested more than {MAX_DEPTH} deep"));
        return None;
    }
    if filters.len() < 2 {
        scope.errors.report(&at, "needs at least two filters");
        return None;
    }
    // All of them first, so that every mistake is reported.
    let compiled: Vec<Option<Filter>> =
        filters.iter().enumerate().map(|(i, f)| compile_filter(f, &at.index(i), depth + 1, scope)).collect();
    compiled.into_iter().collect()
}

fn comparison(
    comparison: Option<&pb::ComparisonFilter>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Option<(Compare, u32)> {
    let at = at.field("comparison");
    let Some(comparison) = comparison else {
        scope.errors.report(&at, "is required");
        return None;
    };
    let compare = match pb::comparison_filter::Op::try_from(comparison.op) {
        Ok(pb::comparison_filter::Op::Eq) => Compare::Eq,
        Ok(pb::comparison_filter::Op::Ge) => Compare::Ge,
        Ok(pb::comparison_filter::Op::Le) => Compare::Le,
        Ok(pb::comparison_filter::Op::Ne) => Compare::Ne,
        Err(_) => {
            scope.errors.report(&at.field("op"), "is not one of EQ, GE, LE, NE");
            return None;
        }
    };
    let Some(value) = &comparison.value else {
        scope.errors.report(&at.field("value"), "is required");
        return None;
    };
    // There is no runtime layer that could override it, so the default is the value.
    Some((compare, value.default_value))
}

fn flags(names: &[String], at: &At<'_>, scope: &mut Scope<'_>) -> Option<Filter> {
    let at = at.field("flags");
    let mut all = ResponseFlags::NONE;
    for (i, name) in names.iter().enumerate() {
        let Some(flag) = ResponseFlags::parse(name) else {
            scope.errors.report(&at.index(i), format!("`{name}` is not a response flag"));
            return None;
        };
        all = all.with(flag);
    }
    Some(Filter::Flags(all))
}

fn grpc(filter: &pb::GrpcStatusFilter, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Filter> {
    let statuses = at.field("statuses");
    let mut codes = 0;
    for (i, status) in filter.statuses.iter().enumerate() {
        let code = u32::try_from(*status).ok().filter(|code| *code <= 16);
        let Some(code) = code else {
            scope.errors.report(&statuses.index(i), "is not a gRPC status");
            return None;
        };
        codes |= 1 << code;
    }
    Some(Filter::GrpcStatus { codes, exclude: filter.exclude })
}

fn sample(filter: &pb::RuntimeFilter, at: &At<'_>, scope: &mut Scope<'_>) -> Option<Filter> {
    // The key of a runtime layer that does not exist, and how to draw: we always draw independently.
    let pb::RuntimeFilter { runtime_key: _, percent_sampled, use_independent_randomness: _ } = filter;
    let at = at.field("percent_sampled");
    let Some(percent) = percent_sampled else {
        scope.errors.report(&at, "is required: there is no runtime layer that could give it");
        return None;
    };
    fraction(percent, &at, scope).map(Filter::Sample)
}

#[cfg(test)]
mod tests;
