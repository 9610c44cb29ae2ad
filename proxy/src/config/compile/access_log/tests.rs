use prost::Message;
use remora_xds::diag::{Errors, SourceMap};
use remora_xds::pb::envoy::config::core::v3::{RuntimeUInt32, data_source::Specifier};
use remora_xds::pb::envoy::config::route::v3::HeaderMatcher;
use remora_xds::pb::envoy::r#type::v3::FractionalPercent;
use remora_xds::pb::google::protobuf::{Value, value::Kind};

use super::*;
use crate::config::names::Names;
use crate::telemetry::record::AccessRecord;

fn any<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

fn logger(any: Any) -> pb::AccessLog {
    pb::AccessLog { name: String::new(), filter: None, config_type: Some(ConfigType::TypedConfig(any)) }
}

fn file(path: &str, format: Option<PbFormat>) -> pb::AccessLog {
    let format = format.map(|format| {
        let format = SubstitutionFormatString { format: Some(format), ..SubstitutionFormatString::default() };
        file_access_log::AccessLogFormat::LogFormat(format)
    });
    logger(any(&FileAccessLog { path: path.to_owned(), access_log_format: format }))
}

fn inline_string(text: &str) -> PbFormat {
    let specifier = Some(Specifier::InlineString(text.to_owned()));
    PbFormat::TextFormatSource(DataSource { watched_directory: None, specifier })
}

fn run(logs: &[pb::AccessLog]) -> (Vec<Arc<AccessLog>>, Vec<String>) {
    let mut errors = Errors::new("t", SourceMap::default());
    let mut names = Names::default();
    let mut scope = Scope { errors: &mut errors, names: &mut names };
    let root = At::root();
    let compiled = compile_access_logs(logs, &root.field("access_log"), &mut scope);
    (compiled, errors.into_list().iter().map(ToString::to_string).collect())
}

fn error(log: pb::AccessLog) -> String {
    let (compiled, errors) = run(&[log]);
    assert!(compiled.is_empty(), "a log with a mistake is left out");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

fn filtered(filter: FilterSpecifier) -> pb::AccessLog {
    let filter = Some(pb::AccessLogFilter { filter_specifier: Some(filter) });
    pb::AccessLog { filter, ..file("/dev/stdout", None) }
}

fn status(op: i32, value: u32) -> FilterSpecifier {
    let value = Some(RuntimeUInt32 { default_value: value, runtime_key: "k".to_owned() });
    FilterSpecifier::StatusCodeFilter(pb::StatusCodeFilter {
        comparison: Some(pb::ComparisonFilter { op, value }),
    })
}

fn render(log: &AccessLog) -> String {
    let mut out = Vec::new();
    log.format.render(&AccessRecord::default(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn file_stdout_and_stderr_with_their_formats() {
    let typed = Value { kind: Some(Kind::StringValue("%BYTES_SENT%".to_owned())) };
    let fields = [("n".to_owned(), typed)].into_iter().collect();
    let (logs, errors) = run(&[
        file("/var/log/a.log", Some(inline_string("%RESPONSE_CODE%\n"))),
        file("/dev/stdout", Some(PbFormat::JsonFormat(Struct { fields }))),
        logger(any(&StdoutAccessLog { access_log_format: None })),
        logger(any(&StderrAccessLog { access_log_format: None })),
    ]);
    assert_eq!(errors, Vec::<String>::new());
    let sinks: Vec<String> = logs.iter().map(|l| l.sink.to_string()).collect();
    assert_eq!(sinks, ["/var/log/a.log", "stdout", "stdout", "stderr"]);
    assert_eq!(render(&logs[0]), "0\n");
    assert_eq!(render(&logs[1]), "{\"n\":0}\n");
    assert_eq!(render(&logs[2]), "[-] \"- - -\" 0 - 0 0 - - \"-\" \"-\" \"-\" \"-\" \"-\"\n");
    assert_eq!(render(&logs[3]), render(&logs[2]));
}

#[test]
fn mistakes_have_their_path() {
    assert_eq!(
        error(file("/x", Some(inline_string("%NOPE%")))),
        "t: access_log[0].typed_config.log_format.text_format_source: %NOPE%: unknown operator"
    );
    let inner = Value { kind: Some(Kind::StringValue("%NOPE%".to_owned())) };
    let fields = [("a".to_owned(), inner)].into_iter().collect();
    assert_eq!(
        error(file("/x", Some(PbFormat::JsonFormat(Struct { fields })))),
        "t: access_log[0].typed_config.log_format.json_format.a: %NOPE%: unknown operator"
    );
    assert!(error(file("", None)).starts_with("t: access_log[0].typed_config.path: must not be empty"));
    let other = Any { type_url: "type.googleapis.com/x.Y".to_owned(), value: Vec::new() };
    assert!(error(logger(other)).contains("access logger `type.googleapis.com/x.Y` is not supported"));
    let broken = Any { value: vec![0xff], ..any(&FileAccessLog::default()) };
    assert!(error(logger(broken)).starts_with("t: access_log[0].typed_config: "));
    let none = pb::AccessLog { config_type: None, ..file("/x", None) };
    assert!(error(none).starts_with("t: access_log[0].typed_config: is required"));
}

#[test]
fn fields_without_effect_are_refused() {
    let format = SubstitutionFormatString {
        content_type: "text/html".to_owned(),
        format: Some(inline_string("x")),
        ..SubstitutionFormatString::default()
    };
    let format = Some(stdout_access_log::AccessLogFormat::LogFormat(format));
    let message = error(logger(any(&StdoutAccessLog { access_log_format: format })));
    assert_eq!(
        message,
        "t: access_log[0].typed_config.log_format.content_type: has no effect in an access log (remove it)"
    );
}

#[test]
fn filters_are_compiled_and_checked() {
    let and = pb::AndFilter {
        filters: vec![
            pb::AccessLogFilter { filter_specifier: Some(status(1, 500)) },
            pb::AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(pb::ResponseFlagFilter {
                    flags: vec!["UH".to_owned()],
                })),
            },
        ],
    };
    let half = FractionalPercent { numerator: 50, denominator: 0 };
    let runtime = pb::RuntimeFilter { percent_sampled: Some(half), ..pb::RuntimeFilter::default() };
    let (logs, errors) =
        run(&[filtered(FilterSpecifier::AndFilter(and)), filtered(FilterSpecifier::RuntimeFilter(runtime))]);
    assert_eq!(errors, Vec::<String>::new());
    assert!(matches!(&logs[0].filter, Some(Filter::And(all)) if all.len() == 2));
    assert!(matches!(&logs[1].filter, Some(Filter::Sample(half)) if half.contains(49) && !half.contains(50)));

    assert_eq!(
        error(filtered(status(9, 1))),
        "t: access_log[0].filter.status_code_filter.comparison.op: is not one of EQ, GE, LE, NE"
    );
    let unknown = pb::ResponseFlagFilter { flags: vec!["XX".to_owned()] };
    assert_eq!(
        error(filtered(FilterSpecifier::ResponseFlagFilter(unknown))),
        "t: access_log[0].filter.response_flag_filter.flags[0]: `XX` is not a response flag"
    );
    assert_eq!(
        error(filtered(FilterSpecifier::TraceableFilter(pb::TraceableFilter {}))),
        "t: access_log[0].filter.traceable_filter: is not supported"
    );
    let (_, errors) = run(&[filtered(FilterSpecifier::OrFilter(pb::OrFilter { filters: Vec::new() }))]);
    assert_eq!(errors, ["t: access_log[0].filter.or_filter.filters: needs at least two filters"]);
}

#[test]
fn nesting_is_bounded() {
    let mut filter = status(1, 500);
    for _ in 0..100 {
        let two = vec![
            pb::AccessLogFilter { filter_specifier: Some(filter) },
            pb::AccessLogFilter { filter_specifier: Some(status(1, 500)) },
        ];
        filter = FilterSpecifier::OrFilter(pb::OrFilter { filters: two });
    }
    let (logs, errors) = run(&[filtered(filter)]);
    assert!(logs.is_empty());
    assert!(errors[0].ends_with("nested more than 16 deep"), "{errors:?}");
}

#[test]
fn header_matchers_are_compiled() {
    let matcher = |name: &str| {
        let header = HeaderMatcher { name: name.to_owned(), ..HeaderMatcher::default() };
        filtered(FilterSpecifier::HeaderFilter(pb::HeaderFilter { header: Some(header) }))
    };
    let (logs, errors) = run(&[matcher("X-A")]);
    assert_eq!(errors, Vec::<String>::new());
    assert!(matches!(&logs[0].filter, Some(Filter::Header(_))));
    assert!(error(matcher("a b")).starts_with("t: access_log[0].filter.header_filter.header.name: "));
    let none = filtered(FilterSpecifier::HeaderFilter(pb::HeaderFilter { header: None }));
    assert!(error(none).ends_with("header_filter.header: is required"));
}
