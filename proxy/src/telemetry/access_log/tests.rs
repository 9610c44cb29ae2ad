use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::time::Instant;

use super::*;
use crate::error::Reason;
use crate::http::head::{HeaderCase, RequestHead};
use crate::route::matcher::{Fraction, HeaderKey, HeaderMatch, HeaderRule};
use crate::route::text::{Place, StringMatch};
use crate::telemetry::flags::ResponseFlags;
use crate::telemetry::format::{Absent, Format};
use crate::telemetry::record::{AccessRecord, Timings};

const SOON: Duration = Duration::from_secs(20);

fn log(format: &str, sink: Sink) -> AccessLog {
    let format = LogFormat::Text(Format::parse(format, Absent::Dash).unwrap());
    AccessLog { format, filter: None, sink }
}

fn worker(writer: &LogWriter) -> WorkerLogs {
    writer.worker(fastrand::Rng::with_seed(1))
}

#[test]
fn the_default_format_compiles() {
    assert!(LogFormat::envoy_default().is_ok());
}

#[test]
fn lines_reach_the_file_in_order_and_rotation_opens_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = log("%BYTES_SENT%\n", Sink::path(path.to_str().unwrap()));
    let writer = LogWriter::start().unwrap();
    let logs = worker(&writer);
    for bytes_sent in 0..3 {
        logs.log(&log, &AccessRecord { bytes_sent, ..AccessRecord::default() }, Instant::now());
    }
    logs.flush_all();
    assert!(writer.control().flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n2\n");

    let old = dir.path().join("access.log.1");
    std::fs::rename(&path, &old).unwrap();
    writer.control().reopen();
    assert!(writer.control().flush(SOON));
    logs.log(&log, &AccessRecord { bytes_sent: 9, ..AccessRecord::default() }, Instant::now());
    drop(logs);
    writer.shutdown(SOON);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "9\n");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "0\n1\n2\n");
}

#[test]
fn a_reader_that_stopped_blocks_nobody_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let mut reader = std::fs::File::options().read(true).custom_flags(nonblock).open(&pipe).unwrap();

    let line = format!("{}\n", "x".repeat(999));
    let stuck = log(&line, Sink::path(pipe.to_str().unwrap()));
    let fine = log("ok\n", Sink::path(file.to_str().unwrap()));
    let writer = LogWriter::start().unwrap();
    let control = writer.control();
    let logs = worker(&writer);
    let record = AccessRecord::default();
    // 4 MB: more than the pipe (64 KiB) and the backlog of the sink (1 MiB) hold.
    for i in 0..4_000 {
        logs.log(&stuck, &record, Instant::now());
        if i % 60 == 0 {
            assert!(control.flush(SOON));
        }
    }
    logs.log(&fine, &record, Instant::now());
    logs.flush_all();
    assert!(control.flush(SOON));
    assert!(control.dropped() > 2_000, "{} dropped", control.dropped());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ok\n", "another sink goes on");

    // The reader wakes up: what waited arrives, as whole lines, and nothing is unaccounted for.
    let mut got = Vec::new();
    let mut piece = [0; 1 << 16];
    while control.written() + control.dropped() < 4_001 {
        match reader.read(&mut piece) {
            Ok(n) => got.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => assert!(control.flush(SOON)),
            Err(error) => panic!("{error}"),
        }
    }
    while let Ok(n) = reader.read(&mut piece) {
        if n == 0 {
            break;
        }
        got.extend_from_slice(&piece[..n]);
    }
    assert_eq!(got.len() as u64, 1_000 * (control.written() - 1));
    assert!(got.chunks(1_000).all(|l| l == line.as_bytes()));
    writer.shutdown(SOON);
}

#[test]
fn a_file_that_cannot_be_written_is_counted() {
    let writer = LogWriter::start().unwrap();
    let logs = worker(&writer);
    let record = AccessRecord::default();
    logs.log(&log("x\n", Sink::path("/nonexistent/dir/log")), &record, Instant::now());
    logs.log(&log("x\n", Sink::path("/dev/full")), &record, Instant::now());
    logs.flush_all();
    assert!(writer.control().flush(SOON));
    assert_eq!((writer.control().dropped(), writer.control().written()), (2, 0));
    writer.shutdown(SOON);
}

#[tokio::test(start_paused = true)]
async fn a_line_is_handed_over_after_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = log("x\n", Sink::path(path.to_str().unwrap()));
    let writer = LogWriter::start().unwrap();
    let logs = worker(&writer);
    let start = Instant::now();
    tokio::select! {
        () = logs.run_flusher() => {}
        () = async {
            logs.log(&log, &AccessRecord::default(), start);
            tokio::time::sleep(Duration::from_millis(999)).await;
            assert!(writer.control().flush(SOON));
            assert!(!path.exists());
            tokio::time::sleep(Duration::from_millis(2)).await;
        } => {}
    }
    assert!(writer.control().flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
    writer.shutdown(SOON);
}

#[test]
fn a_large_buffer_is_handed_over_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = log(&"y".repeat(40 << 10), Sink::path(path.to_str().unwrap()));
    let writer = LogWriter::start().unwrap();
    let logs = worker(&writer);
    logs.log(&log, &AccessRecord::default(), Instant::now());
    logs.log(&log, &AccessRecord::default(), Instant::now());
    assert!(writer.control().flush(SOON));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 80 << 10);
    writer.shutdown(SOON);
}

fn request() -> RequestHead {
    let mut headers = HeaderMap::new();
    headers.append("x-a", HeaderValue::from_static("One"));
    headers.append("x-a", HeaderValue::from_static("two"));
    RequestHead {
        method: Method::GET,
        scheme: http::uri::Scheme::HTTP,
        authority: Some("h".parse().unwrap()),
        path: "/p".parse().unwrap(),
        version: Version::HTTP_11,
        headers,
        case: HeaderCase::default(),
    }
}

fn header(name: &str, rule: HeaderRule) -> HeaderMatch {
    HeaderMatch { key: HeaderKey::parse(name).unwrap(), rule, invert: false, missing_is_empty: false }
}

fn exact(text: &str) -> HeaderRule {
    HeaderRule::Text(StringMatch::text(Place::Exact, text, false))
}

#[test]
fn filters_choose() {
    let request = request();
    let record = AccessRecord {
        request: Some(&request),
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        reason: Some(Reason::NoHealthyUpstream),
        timings: Timings { total: Some(Duration::from_millis(50)), ..Timings::default() },
        ..AccessRecord::default()
    };
    let yes =
        |filter: Filter| assert!(filter.matches(&record, &mut fastrand::Rng::with_seed(7)), "{filter:?}");
    let no =
        |filter: Filter| assert!(!filter.matches(&record, &mut fastrand::Rng::with_seed(7)), "{filter:?}");
    yes(Filter::Status(Compare::Ge, 500));
    no(Filter::Status(Compare::Eq, 500));
    yes(Filter::Duration(Compare::Le, 50));
    no(Filter::Duration(Compare::Ne, 50));
    yes(Filter::Flags(ResponseFlags::NONE));
    yes(Filter::Flags(ResponseFlags::parse("UH").unwrap()));
    no(Filter::Flags(ResponseFlags::parse("UF").unwrap()));
    yes(Filter::And(vec![Filter::Status(Compare::Ge, 500), Filter::Flags(ResponseFlags::NONE)]));
    no(Filter::And(vec![Filter::Status(Compare::Ge, 500), Filter::Status(Compare::Le, 500)]));
    yes(Filter::Or(vec![Filter::Status(Compare::Eq, 1), Filter::Duration(Compare::Ge, 50)]));
    yes(Filter::Sample(Fraction { numerator: 100, denominator: 100 }));
    no(Filter::Sample(Fraction { numerator: 0, denominator: 100 }));
    yes(Filter::GrpcStatus { codes: 1, exclude: true });
    yes(Filter::Header(header("X-A", HeaderRule::Present(true))));
    yes(Filter::Header(header("x-a", exact("One,two"))));
    no(Filter::Header(header(":method", exact("POST"))));
    no(Filter::Header(HeaderMatch { invert: true, ..header("x-none", exact("")) }));
}

#[test]
fn a_filtered_record_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let errors = AccessLog {
        filter: Some(Filter::Status(Compare::Ge, 500)),
        ..log("%RESPONSE_CODE%\n", Sink::path(path.to_str().unwrap()))
    };
    let logs = [Arc::new(errors)];
    let writer = LogWriter::start().unwrap();
    let buffers = worker(&writer);
    for status in [StatusCode::OK, StatusCode::BAD_GATEWAY] {
        buffers.log_all(
            &logs,
            &AccessRecord { status: Some(status), ..AccessRecord::default() },
            Instant::now(),
        );
    }
    drop(buffers);
    writer.shutdown(SOON);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "502\n");
}
