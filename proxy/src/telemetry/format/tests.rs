use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use proptest::prelude::*;
use remora_xds::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

use super::*;
use crate::error::Reason;
use crate::http::head::{HeaderCase, RequestHead, ResponseHead};
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::record::{AccessRecord, Downstream, Timings, Upstream};

/// 2016-04-15T20:17:00.310Z, the time of the example in Envoy's documentation.
const START: Duration = Duration::new(1_460_751_420, 310_456_789);

fn request() -> RequestHead {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static("nsq2http"));
    headers.insert("x-forwarded-for", HeaderValue::from_static("10.0.35.28"));
    headers.insert("x-request-id", HeaderValue::from_static("cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2"));
    headers.insert("x-quoted", HeaderValue::from_bytes(b"a\"b\\c\tt\xff").unwrap());
    headers.insert("x-empty", HeaderValue::from_static(""));
    RequestHead {
        method: Method::POST,
        scheme: http::uri::Scheme::HTTP,
        authority: Some("locations".parse().unwrap()),
        path: "/api/v1/locations?q=1".parse().unwrap(),
        version: Version::HTTP_2,
        headers,
        case: HeaderCase::default(),
    }
}

fn response() -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::NO_CONTENT);
    head.headers.insert("x-envoy-upstream-service-time", HeaderValue::from_static("100"));
    head
}

fn record<'a>(request: &'a RequestHead, response: &'a ResponseHead) -> AccessRecord<'a> {
    let millis = |n| Some(Duration::from_millis(n));
    AccessRecord {
        start: Some(UNIX_EPOCH + START),
        request: Some(request),
        response: Some(response),
        status: Some(response.status),
        bytes_received: 154,
        timings: Timings {
            total: millis(226),
            request_received: millis(5),
            request_sent: millis(6),
            response_started: millis(200),
        },
        route_name: Some("default"),
        attempts: 2,
        downstream: Downstream {
            connection_id: Some(7),
            remote: Some("10.0.35.28:0".parse().unwrap()),
            direct_remote: Some("[::1]:4242".parse().unwrap()),
            local: Some("10.0.0.9:8080".parse().unwrap()),
            server_name: Some("locations.svc"),
            peer_uri_san: Some("spiffe://td/ns/a/sa/b"),
            tls_version: Some("TLSv1.3"),
            tls_cipher: Some("TLS_AES_128_GCM_SHA256"),
            filter_chain: Some("in/0"),
            ..Downstream::default()
        },
        upstream: Upstream {
            remote: Some("10.0.2.1:80".parse().unwrap()),
            local: Some("10.0.2.9:33000".parse().unwrap()),
            cluster: Some("locations"),
            protocol: Some(Version::HTTP_11),
            ..Upstream::default()
        },
        ..AccessRecord::default()
    }
}

fn text(format: &str, record: &AccessRecord<'_>) -> String {
    let format = Format::parse(format, Absent::Dash).unwrap();
    let mut out = Vec::new();
    format.render(record, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn the_default_format_is_envoys() {
    let (request, response) = (request(), response());
    assert_eq!(
        text(DEFAULT_FORMAT, &record(&request, &response)),
        "[2016-04-15T20:17:00.310Z] \"POST /api/v1/locations?q=1 HTTP/2\" 204 - 154 0 226 100 \"10.0.35.28\" \
         \"nsq2http\" \"cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2\" \"locations\" \"10.0.2.1:80\"\n"
    );
}

#[test]
fn every_operator_renders_its_value() {
    let (request, response) = (request(), response());
    let record = record(&request, &response);
    for (format, expected) in [
        ("%REQ(:method)% %REQ(Host)% %REQ(:SCHEME)% %RESP(:status)%", "POST locations http 204"),
        ("%REQ(USER-AGENT):3%|%REQ(NO?USER-AGENT):4%|%REQ(X-EMPTY?X-NO)%", "nsq|nsq2|-"),
        ("%TRAILER(grpc-status)% %RESP(NONE)%", "- -"),
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%", "204 via_upstream"),
        ("%DURATION% %REQUEST_DURATION% %REQUEST_TX_DURATION%", "226 5 6"),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "200 26"),
        (
            "%UPSTREAM_CLUSTER% %UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS%",
            "locations 10.0.2.1:80 10.0.2.9:33000",
        ),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "10.0.2.1 80"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "- 2"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.35.28:0 10.0.35.28"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "[::1]:4242"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "::1"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "10.0.0.9:8080 8080"),
        ("%REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN%", "locations.svc spiffe://td/ns/a/sa/b"),
        ("%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER%", "TLSv1.3 TLS_AES_128_GCM_SHA256"),
        ("%ROUTE_NAME% %FILTER_CHAIN_NAME% %CONNECTION_ID%", "default in/0 7"),
        ("%STREAM_ID% %UPSTREAM_PROTOCOL%", "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2 HTTP/1.1"),
        ("%GRPC_STATUS% %REMORA_REASON% %REMORA_PARTY%", "- - -"),
        ("%RESPONSE_HEADERS_BYTES% %RESPONSE_TRAILERS_BYTES%", "42 0"),
        ("100%% %PROTOCOL%%%", "100% HTTP/2%"),
        ("%UPSTREAM_CLUSTER:4%", "loca"),
    ] {
        assert_eq!(text(format, &record), expected, "{format}");
    }
}

#[test]
fn start_time_takes_strftime() {
    let record = AccessRecord { start: Some(UNIX_EPOCH + START), ..AccessRecord::default() };
    for (format, expected) in [
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%", "2016/04/15T20:17:00+0000 1460751420"),
        ("%START_TIME(%s.%3f)%", "1460751420.310"),
        ("%START_TIME(%s.%6f %f)%", "1460751420.310456 310456789"),
        ("%START_TIME(%a %A %b %B %e %j %y %I %p %u %w)%", "Fri Friday Apr April 15 106 16 08 PM 5 5"),
        ("%START_TIME(%F %T %D %R%%)%", "2016-04-15 20:17:00 04/15/16 20:17%"),
        ("%START_TIME(at %E6S)%", "at 00.310456"),
    ] {
        assert_eq!(text(format, &record), expected, "{format}");
    }
    assert_eq!(text("%START_TIME%", &AccessRecord::default()), "-");
}

#[test]
fn days_of_the_calendar() {
    for (epoch, expected) in [
        (0, "1970-01-01 001 Thu"),
        (951_782_400, "2000-02-29 060 Tue"),
        (951_868_800, "2000-03-01 061 Wed"),
        (1_709_164_800, "2024-02-29 060 Thu"),
        (1_735_603_200, "2024-12-31 366 Tue"),
        (4_107_542_400, "2100-03-01 060 Mon"),
    ] {
        let start = Some(UNIX_EPOCH + Duration::from_secs(epoch));
        let record = AccessRecord { start, ..AccessRecord::default() };
        assert_eq!(text("%START_TIME(%F %j %a)%", &record), expected);
    }
}

#[test]
fn a_reason_gives_flag_details_id_and_party() {
    let record = AccessRecord {
        reason: Some(Reason::ConnectFailure),
        flags: ResponseFlags::RETRY_LIMIT,
        ..AccessRecord::default()
    };
    assert_eq!(
        text(
            "%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %REMORA_REASON% %REMORA_PARTY% %RESPONSE_CODE%",
            &record
        ),
        "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded upstream_connect_failure upstream 0"
    );
}

#[test]
fn grpc_status_is_read_from_trailers_then_headers_then_the_http_status() {
    let mut request = request();
    request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
    let mut response = response();
    let all = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%";
    response.status = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(text(all, &record(&request, &response)), "Unavailable UNAVAILABLE 14");
    response.headers.insert("grpc-status", HeaderValue::from_static("99"));
    assert_eq!(text(all, &record(&request, &response)), "99 99 99");
    let trailers: HeaderMap =
        [(HeaderName::from_static("grpc-status"), HeaderValue::from_static("4"))].into_iter().collect();
    let with = AccessRecord { trailers: Some(&trailers), ..record(&request, &response) };
    assert_eq!(text(all, &with), "DeadlineExceeded DEADLINE_EXCEEDED 4");
}

#[test]
fn wrong_formats_are_refused_with_the_operator() {
    for (format, expected) in [
        ("a %NOPE% b", "%NOPE%: unknown operator"),
        ("%VIRTUAL_CLUSTER_NAME%", "%VIRTUAL_CLUSTER_NAME%: is not supported"),
        ("%FILTER_STATE(x:PLAIN)%", "%FILTER_STATE(x:PLAIN)%: is not supported"),
        ("%PROTOCOL(x)%", "%PROTOCOL(x)%: takes no argument"),
        ("%DURATION:3%", "%DURATION:3%: takes no length"),
        ("%REQ%", "%REQ%: needs a header name, such as %REQ(USER-AGENT)%"),
        ("%START_TIME(%Q)%", "%START_TIME(%Q)%: %Q is not a time specifier that is supported"),
        ("%GRPC_STATUS(x)%", "%GRPC_STATUS(x)%: the argument is one of CAMEL_STRING, SNAKE_STRING, NUMBER"),
    ] {
        assert_eq!(Format::parse(format, Absent::Dash).unwrap_err().to_string(), expected);
    }
    for broken in
        ["%", "100% sure", "%REQ(x%", "%protocol%", "%PROTOCOL", "%REQ(x):%", "%REQ(:nope)%", "%RESP(:path)%"]
    {
        assert!(Format::parse(broken, Absent::Dash).is_err(), "{broken}");
    }
}

#[test]
fn a_header_value_leaves_out_what_is_absent() {
    let request = request();
    let partial = AccessRecord {
        request: Some(&request),
        downstream: Downstream { remote: Some("10.1.2.3:5".parse().unwrap()), ..Downstream::default() },
        ..AccessRecord::default()
    };
    let format = Format::parse("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%RESP(x)%", Absent::Omit).unwrap();
    let mut out = Vec::new();
    format.render(&partial, &mut out);
    assert_eq!(out, b"10.1.2.3");
    assert_eq!(format.constant(), None);
    // While headers are being changed, they are read where they are.
    let changed: HeaderMap = [(header::USER_AGENT, HeaderValue::from_static("new"))].into_iter().collect();
    let partial = AccessRecord { request_headers: Some(&changed), ..partial };
    assert_eq!(text("%REQ(user-agent)% %REQ(x-request-id)% %REQ(:method)%", &partial), "new - POST");
    assert_eq!(Format::parse("50%%", Absent::Omit).unwrap().constant(), Some(&b"50%"[..]));
    assert_eq!(Format::parse("", Absent::Omit).unwrap().constant(), Some(&b""[..]));
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn object(fields: Vec<(&str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
}

fn json(format: &Struct, absent: Absent, record: &AccessRecord<'_>) -> String {
    let mut out = Vec::new();
    JsonFormat::compile(format, absent).unwrap().render(record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_keeps_types_sorts_keys_and_escapes() {
    let (request, response) = (request(), response());
    let nested = object(vec![("absent", string("%RESP(x)%")), ("gone", string("%ROUTE_NAME%:%RESP(y)%"))]);
    let list = ListValue { values: vec![string("%BYTES_RECEIVED%"), string("x")] };
    let format = object(vec![
        ("status", string("%RESPONSE_CODE%")),
        ("method", string("%REQ(:METHOD)%")),
        ("mixed", string("%DURATION%.0")),
        ("quoted", string("%REQ(X-QUOTED)%")),
        ("flags", string("%RESPONSE_FLAGS%")),
        ("nested", Value { kind: Some(Kind::StructValue(nested)) }),
        ("list", Value { kind: Some(Kind::ListValue(list)) }),
        ("n", Value { kind: Some(Kind::NumberValue(2.0)) }),
        ("b\"", Value { kind: Some(Kind::BoolValue(true)) }),
        ("z", Value { kind: None }),
    ]);
    assert_eq!(
        json(&format, Absent::Dash, &record(&request, &response)),
        concat!(
            r#"{"b\"":true,"flags":"-","list":[154,"x"],"method":"POST","mixed":"226.0","n":2,"#,
            r#""nested":{"absent":null,"gone":"default:-"},"quoted":"a\"b\\c\tt"#,
            "\u{fffd}",
            r#"","status":204,"z":null}"#,
            "\n"
        )
    );
}

#[test]
fn json_leaves_out_empty_values_when_asked() {
    let inner = object(vec![("x", string("%RESP(x)%"))]);
    let format = object(vec![
        ("a", string("%RESP(x)%")),
        ("b", Value { kind: Some(Kind::StructValue(inner)) }),
        ("c", string("%DURATION%")),
    ]);
    assert_eq!(json(&format, Absent::Omit, &AccessRecord::default()), "{}\n");
    assert_eq!(
        json(&format, Absent::Dash, &AccessRecord::default()),
        "{\"a\":null,\"b\":{\"x\":null},\"c\":null}\n"
    );
}

#[test]
fn a_json_error_has_its_path() {
    let inner = object(vec![("x", string("%NOPE%"))]);
    let list = ListValue { values: vec![Value { kind: Some(Kind::StructValue(inner)) }] };
    let format = object(vec![("a", Value { kind: Some(Kind::ListValue(list)) })]);
    let (path, error) = JsonFormat::compile(&format, Absent::Dash).unwrap_err();
    assert_eq!((path.as_str(), error.to_string().as_str()), ("a[0].x", "%NOPE%: unknown operator"));
}

#[test]
fn every_supported_operator_compiles_and_renders_from_an_empty_record() {
    for name in SUPPORTED {
        let argument = if matches!(*name, "REQ" | "RESP" | "TRAILER") { "(x)" } else { "" };
        let rendered = text(&format!("%{name}{argument}%"), &AccessRecord::default());
        assert!(!rendered.is_empty(), "{name}");
    }
}

proptest! {
    #[test]
    fn no_format_panics(format in "[ -~%]{0,40}|(%[A-Z_]{0,12}(\\([%a-zA-Z:?]{0,8}\\))?(:[0-9]{0,30})?%?){0,4}|\\PC{0,20}") {
        let (request, response) = (request(), response());
        for absent in [Absent::Dash, Absent::Omit] {
            if let Ok(format) = Format::parse(&format, absent) {
                format.render(&record(&request, &response), &mut Vec::new());
                format.render(&AccessRecord::default(), &mut Vec::new());
            }
        }
    }

    #[test]
    fn a_literal_renders_as_itself(literal in "\\PC{0,40}") {
        let format = Format::parse(&literal.replace('%', "%%"), Absent::Dash).unwrap();
        prop_assert_eq!(format.constant(), Some(literal.as_bytes()));
    }

    #[test]
    fn json_is_always_json(value in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut request = request();
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            request.headers.insert("x-any", value);
        }
        let response = response();
        let format = object(vec![("v", string("%REQ(X-ANY)%")), ("t", string("<%REQ(X-ANY):7%>"))]);
        let line = json(&format, Absent::Dash, &record(&request, &response));
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        prop_assert!(parsed.is_object());
    }
}
