use proptest::prelude::*;

use super::*;
use crate::config::spec::EscapedSlashes;

const LIMITS: ResponseLimits = ResponseLimits { max_bytes: 60 * 1024, max_headers: 100 };

fn rules() -> RequestRules {
    RequestRules {
        max_bytes: 60 * 1024,
        max_headers: 100,
        path: PathRules { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Reject },
        underscores: Underscores::Allow,
        http1: Http1Spec::default(),
        scheme: Scheme::HTTP,
    }
}

fn request(text: &str) -> Result<ParsedRequest, Reason> {
    let mut buf = BytesMut::from(text.as_bytes());
    parse_request(&mut buf, &rules()).map(|p| p.expect("complete"))
}

fn response(text: &str) -> Result<ParsedResponse, Reason> {
    parse_response(&mut BytesMut::from(text.as_bytes()), &Method::GET, LIMITS).map(|p| p.expect("complete"))
}

#[test]
fn an_answer_has_as_many_headers_as_the_cluster_says() {
    let said = |headers: usize| {
        let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(headers));
        response(&text).err()
    };
    assert_eq!((said(100), said(101)), (None, Some(Reason::UpstreamHeadersTooLarge)));
}

#[test]
fn a_plain_request() {
    let p = request("GET /a?b HTTP/1.1\r\nHost: x:80\r\nX-Custom: 1\r\nAccept: */*\r\n\r\n").unwrap();
    assert_eq!(p.head.path.as_str(), "/a?b");
    assert_eq!(p.head.authority.as_ref().unwrap().as_str(), "x:80");
    assert_eq!(p.head.headers["x-custom"], "1");
    assert!(p.keep_alive && p.framing == Framing::Empty);
    let mut cursor = 0;
    assert_eq!(p.head.case.find(b"x-custom", &mut cursor), Some(&b"X-Custom"[..]));
}

#[test]
fn ambiguous_framing_is_refused() {
    for (headers, reason) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", Reason::AmbiguousLength),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", Reason::AmbiguousLength),
        ("Content-Length: 3\r\nContent-Length: 3", Reason::BadContentLength),
        ("Content-Length: 3, 3", Reason::BadContentLength),
        ("Content-Length: +3", Reason::BadContentLength),
        ("Content-Length: 0x3", Reason::BadContentLength),
        ("Content-Length: -1", Reason::BadContentLength),
        ("Content-Length:", Reason::BadContentLength),
        ("Content-Length: 18446744073709551619", Reason::BadContentLength),
        ("Transfer-Encoding: gzip, chunked", Reason::UnsupportedTransferEncoding),
        ("Transfer-Encoding: chunked, chunked", Reason::BadTransferEncoding),
        ("Transfer-Encoding: chunked\t\r\nContent-Length: 3", Reason::AmbiguousLength),
        ("Transfer-Encoding: \x0bchunked", Reason::BadHeader),
        ("Transfer-Encoding : chunked", Reason::BadHeader),
        ("Transfer-Encoding:", Reason::BadTransferEncoding),
    ] {
        let got = request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n"));
        assert_eq!(got.err(), Some(reason), "{headers}");
    }
    let http10 = request("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(http10.err(), Some(Reason::BadTransferEncoding));
    let twice = request(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(twice.unwrap().framing, Framing::Chunked);
}

#[test]
fn targets() {
    for (line, want) in [
        ("GET http://b/x HTTP/1.1", Ok(("/x", "b"))),
        ("GET HTTP://b?q HTTP/1.1", Ok(("/?q", "b"))),
        ("OPTIONS * HTTP/1.1", Ok(("*", "a"))),
        ("CONNECT c:443 HTTP/1.1", Ok(("/", "c:443"))),
        ("GET * HTTP/1.1", Err(Reason::BadPath)),
        ("GET a:80 HTTP/1.1", Err(Reason::BadPath)),
        ("GET /x#/admin HTTP/1.1", Err(Reason::BadPath)),
        ("TRACE / HTTP/1.1", Err(Reason::MethodNotAllowed)),
        ("GET / HTTP/1.2", Err(Reason::UnsupportedVersion)),
        ("GET / HTTP/2.0", Err(Reason::UnsupportedVersion)),
        ("CONNECT http://c:443/ HTTP/1.1", Err(Reason::BadHost)),
        ("CONNECT /c HTTP/1.1", Err(Reason::BadHost)),
        ("CONNECT u@c:443 HTTP/1.1", Err(Reason::BadHost)),
        ("GET http://u@b/x HTTP/1.1", Err(Reason::BadHost)),
        ("GET http:///x HTTP/1.1", Err(Reason::BadHost)),
        ("GET ftp://b/x HTTP/1.1", Err(Reason::BadPath)),
    ] {
        let got = request(&format!("{line}\r\nHost: a\r\n\r\n"));
        let got = got.map(|p| (p.head.path.to_string(), p.head.authority.unwrap().to_string()));
        assert_eq!(got, want.map(|(p, a)| (p.to_owned(), a.to_owned())), "{line}");
    }
    for (headers, want) in [
        ("Content-Length: 0", None),
        ("Content-Length: 1", Some(Reason::BadContentLength)),
        ("Transfer-Encoding: chunked", Some(Reason::UnsupportedTransferEncoding)),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", Some(Reason::AmbiguousLength)),
    ] {
        let got = request(&format!("CONNECT c:443 HTTP/1.1\r\nHost: c:443\r\n{headers}\r\n\r\n"));
        assert_eq!(got.err(), want, "{headers}");
    }
}

#[test]
fn hosts_and_lines() {
    for (text, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", Reason::MissingHost),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Reason::BadHost),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Reason::BadHost),
        ("GET / HTTP/1.1\nHost: a\n\n", Reason::BareLineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\n\r\n", Reason::BareLineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", Reason::BadHeader),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n", Reason::BadHeader),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", Reason::BadHeader),
    ] {
        assert_eq!(request(text).err(), Some(reason), "{text:?}");
    }
    assert!(request("GET / HTTP/1.0\r\n\r\n").unwrap().head.authority.is_none());
    assert!(!request("GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap().keep_alive);
}

#[test]
fn hop_by_hop_headers_are_taken_out_and_no_others() {
    let p = request(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, Upgrade, X-Forwarded-For, host\r\nX-Hop: 1\r\nKeep-Alive: 3\r\n\
         Proxy-Connection: x\r\nTE: gzip, trailers\r\nUpgrade: websocket\r\nX-Forwarded-For: 1.2.3.4\r\nHTTP2-Settings: x\r\n\r\n",
    )
    .unwrap();
    let mut names: Vec<_> = p.head.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["te", "x-forwarded-for"]);
    assert_eq!(p.head.headers["te"], "trailers");
    assert_eq!(p.upgrade.unwrap(), "websocket");
}

#[test]
fn limits() {
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(70_000));
    assert_eq!(request(&big).err(), Some(Reason::HeadersTooLarge));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(300));
    assert_eq!(request(&many).err(), Some(Reason::HeadersTooLarge));
    let mut endless = BytesMut::from(format!("GET /{}", "x".repeat(70_000)).as_bytes());
    assert_eq!(parse_request(&mut endless, &rules()).err(), Some(Reason::HeadersTooLarge));
}

#[test]
fn responses() {
    let p = response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\n").unwrap();
    assert!(p.keep_alive && p.framing == Framing::Length(5) && p.head.phrase.is_none());
    assert_eq!(response("HTTP/1.1 200 Fine\r\n\r\n").unwrap().framing, Framing::UntilClose);
    assert_eq!(
        response("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n").unwrap().framing,
        Framing::Empty
    );
    let p = response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    assert!(p.repeated_chunked && p.framing == Framing::Chunked);
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "SMTP ready\r\n\r\n",
    ] {
        assert_eq!(response(bad).err(), Some(Reason::UpstreamProtocol), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_request(&mut BytesMut::from(&bytes[..]), &rules());
        let _ = parse_response(&mut BytesMut::from(&bytes[..]), &Method::GET, LIMITS);
    }

    #[test]
    fn a_head_is_read_the_same_however_it_is_cut(cut in 0usize..80) {
        let text = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-A: b\r\nCookie: c=d; e=f\r\n\r\nabc";
        let mut buf = BytesMut::from(&text[..cut.min(text.len())]);
        if let Some(p) = parse_request(&mut buf, &rules()).unwrap() {
            prop_assert_eq!(p.framing, Framing::Length(3));
        } else {
            buf.extend_from_slice(&text[cut..]);
            prop_assert_eq!(parse_request(&mut buf, &rules()).unwrap().unwrap().framing, Framing::Length(3));
        }
    }
}
