use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use prost::Message as _;
use remora_xds::pb::envoy::config::core::v3 as core;
use remora_xds::pb::envoy::service::auth::v3::check_response::HttpResponse;
use remora_xds::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use remora_xds::pb::google::protobuf::BoolValue;
use remora_xds::pb::google::rpc::Status;

use super::answer::{Action, Answer, Changes, Denial, HeaderChange, Invalid};
use super::*;
use crate::http::head::{HeaderCase, ResponseHead};
use crate::route::text::Place;

fn head(method: Method, path: &'static str, headers: &[(&'static str, &[u8])]) -> RequestHead {
    let fields = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap()));
    let mut map = HeaderMap::new();
    fields.for_each(|(name, value)| {
        map.append(name, value);
    });
    RequestHead {
        method,
        scheme: http::uri::Scheme::HTTPS,
        authority: Some(http::uri::Authority::from_static("a.example")),
        path: http::uri::PathAndQuery::from_static(path),
        version: Version::HTTP_2,
        headers: map,
        case: HeaderCase::default(),
    }
}

fn question(head: &RequestHead) -> Question<'_> {
    let peer: SocketAddr = "[::ffff:10.0.0.1]:99".parse().unwrap();
    let connection = ConnectionView {
        destination: "10.0.0.2:80".parse().unwrap(),
        direct_remote: peer.ip(),
        remote: peer.ip(),
        secure: true,
        server_name: "",
        peer: None,
    };
    Question {
        head,
        connection,
        peer,
        own: Some("spiffe://mesh/ns/a/sa/b"),
        server_name: Some("sni.example"),
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
        body: None,
        length: None,
        context: None,
        claims: &[],
    }
}

fn names(list: &[&str]) -> Box<[StringMatch]> {
    list.iter().map(|name| StringMatch::text(Place::Exact, name, false)).collect()
}

#[test]
fn what_the_service_is_told_is_chosen() {
    let head =
        head(Method::GET, "/p?q", &[("cookie", b"a=1"), ("cookie", b"b=2"), ("x-a", b"\xff"), ("x-b", b"1")]);
    let mut asked = question(&head);
    let piece = Piece { bytes: Bytes::from_static(b"a\xffb"), partial: true };
    (asked.body, asked.length) = (Some(&piece), Some(9));
    let told = Told { disallowed: names(&["x-b"]), tls_session: true, ..Told::default() };
    let all = grpc::attributes(&asked, &told, None);
    let peer = |peer: &Option<remora_xds::pb::envoy::service::auth::v3::attribute_context::Peer>| {
        let peer = peer.clone().unwrap();
        match peer.address.unwrap().address {
            Some(core::address::Address::SocketAddress(socket)) => (socket.address, peer.principal),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(peer(&all.source), ("10.0.0.1".to_owned(), String::new()));
    assert_eq!(peer(&all.destination), ("10.0.0.2".to_owned(), "spiffe://mesh/ns/a/sa/b".to_owned()));
    assert_eq!(all.tls_session.unwrap().sni, "sni.example");
    let request = all.request.unwrap();
    assert_eq!((request.time.unwrap().seconds, request.time.unwrap().nanos), (1, 500_000_000));
    let http = request.http.unwrap();
    assert_eq!((http.headers["cookie"].as_str(), http.headers["x-a"].as_str()), ("a=1; b=2", "!"));
    assert_eq!(
        (http.headers[":authority"].as_str(), http.headers[":scheme"].as_str()),
        ("a.example", "https")
    );
    assert!(!http.headers.contains_key("x-b"));
    assert_eq!(
        (http.body.as_str(), http.size, http.headers[PARTIAL_BODY.as_str()].as_str()),
        ("a!b", 9, "true")
    );

    let told = Told { allowed: Some(names(&["x-b", ":path"])), ..Told::default() };
    let buffer = Buffer { limit: 3, partial: true, as_bytes: true };
    let http = grpc::attributes(&asked, &told, Some(buffer)).request.unwrap().http.unwrap();
    assert_eq!(http.headers.len(), 3, "{:?}", http.headers);
    assert_eq!((http.body.as_str(), &http.raw_body[..]), ("", &b"a\xffb"[..]));
}

fn framed(message: &CheckResponse) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes[..]].concat()
}

fn denied(code: i32, response: Option<HttpResponse>) -> CheckResponse {
    let status = Some(Status { code, ..Default::default() });
    CheckResponse { status, http_response: response, ..Default::default() }
}

#[test]
fn bytes_that_are_no_answer_are_none() {
    let good = framed(&denied(0, None));
    assert!(matches!(grpc::answer(&good, 9), Ok(Answer::Allowed(changes)) if *changes == Changes::default()));
    let compressed = [&[1], &good[1..]].concat();
    let two = [&good[..], &good[..]].concat();
    let cut = &good[..good.len() - 1];
    let garbage = [0, 0, 0, 0, 2, 0xff, 0xff];
    for bytes in [&b""[..], &b"\0\0"[..], &compressed, &two, cut, &garbage] {
        assert!(matches!(grpc::answer(bytes, 9), Err(Invalid::Malformed)), "{bytes:?}");
    }
}

#[test]
fn a_refusal_is_one_whatever_it_says() {
    let response = DeniedHttpResponse { body: "0123456789".into(), ..Default::default() };
    let read = |response| match grpc::answer(&framed(&denied(7, response)), 4) {
        Ok(Answer::Denied(denial)) => *denial,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(None), Denial::default());
    assert_eq!(read(Some(HttpResponse::DeniedResponse(response.clone()))).body, "0123");
    // An answer that contradicts itself does not allow.
    assert_eq!(read(Some(HttpResponse::OkResponse(OkHttpResponse::default()))), Denial::default());
    let failed = grpc::answer(&framed(&denied(13, Some(HttpResponse::ErrorResponse(response)))), 4);
    assert!(matches!(failed, Ok(Answer::Failed(denial)) if denial.body == "0123"));
    for status in [0, 100, 101, 199, 600, 1000] {
        assert_eq!(Denial::new(status, vec![], Bytes::new(), 4).status, None, "{status}");
    }
    assert_eq!(Denial::new(204, vec![], Bytes::from_static(b"x"), 4).body, "");
}

#[test]
fn every_way_to_change_a_header() {
    let option = |name: &str, append: Option<bool>, action: i32| {
        let header = core::HeaderValue { key: name.into(), value: " new ".into(), ..Default::default() };
        #[expect(deprecated, reason = "services still say append")]
        let option = core::HeaderValueOption {
            header: Some(header),
            append: append.map(|value| BoolValue { value }),
            append_action: action,
            keep_empty_value: false,
        };
        option
    };
    let changed = |append, action, request: bool| {
        let list = vec![option("x-there", append, action), option("x-absent", append, action)];
        let (headers, response) = if request { (list, vec![]) } else { (vec![], list) };
        let ok = OkHttpResponse { headers, response_headers_to_add: response, ..Default::default() };
        let ok = HttpResponse::OkResponse(ok);
        let Ok(Answer::Allowed(changes)) = grpc::answer(&framed(&denied(0, Some(ok))), 9) else { panic!() };
        let mut map = head(Method::GET, "/", &[("x-there", b"1"), ("x-there", b"2")]).headers;
        changes.apply(&mut map);
        changes.response.iter().for_each(|change| change.apply(&mut map));
        let text = |name: &str| {
            let all = map.get_all(name).iter().map(|v| v.to_str().unwrap());
            all.collect::<Vec<_>>().join("|")
        };
        format!("{} {}", text("x-there"), text("x-absent"))
    };
    for (action, of_the_answer) in ["1|2|new new", "1|2 new", "new new", "new "].into_iter().enumerate() {
        let action = i32::try_from(action).unwrap();
        assert_eq!(changed(None, action, false), of_the_answer);
        assert_eq!(changed(None, action, true), "new new");
    }
    assert_eq!(changed(Some(true), 0, true), "1,2,new ");
    assert_eq!(changed(Some(true), 0, false), "1|2|new new");
    assert_eq!(changed(Some(false), 0, true), "new new");
    assert_eq!(changed(Some(false), 0, false), "new new");
    let response_headers_to_add = vec![option("x", None, 9)];
    let bad = HttpResponse::OkResponse(OkHttpResponse { response_headers_to_add, ..Default::default() });
    assert!(matches!(grpc::answer(&framed(&denied(0, Some(bad))), 9), Err(Invalid::Forbidden)));
}

#[test]
fn query_parameters_keep_their_places() {
    let changed = |path: &'static str, set: &[(&str, &str)], remove: &[&str]| {
        let set_query = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let remove_query = remove.iter().map(|name| (*name).to_owned()).collect();
        let changes = Changes { set_query, remove_query, ..Changes::default() }.check()?;
        Ok(changes.path(&http::uri::PathAndQuery::from_static(path))?.map(|path| path.to_string()))
    };
    let path = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(changed("/p?a=1", &[], &[]), Ok(None));
    assert_eq!(changed("/p?a=1&b=2&a=3", &[("a", "9")], &[]), path("/p?a=9&b=2"));
    assert_eq!(changed("/p?a=1&b&a=3", &[("c", "")], &["a"]), path("/p?b&c="));
    assert_eq!(changed("/p?a=1", &[], &["a"]), path("/p"));
    assert_eq!(changed("/p", &[("a", "%20")], &[]), path("/p?a=%20"));
    for (key, value) in [("", "1"), ("a=b", "1"), ("a", "1&b"), ("a", "#"), ("a", " "), ("a", "\u{e9}")] {
        assert_eq!(changed("/p", &[(key, value)], &[]), Err(Invalid::Forbidden), "{key}={value}");
    }
    let long = "x".repeat(usize::from(u16::MAX));
    assert_eq!(changed("/p", &[("a", &long)], &[]), Err(Invalid::PathTooLong));
}

#[test]
fn what_belongs_to_a_hop_or_frames_a_message_stays() {
    for name in
        ["host", "Content-Length", "transfer-encoding", "connection", "upgrade", "te", ":path", "a b", ""]
    {
        let change = HeaderChange::new(name.as_bytes(), b"x", Action::Overwrite);
        assert_eq!(change, Err(Invalid::Forbidden), "{name}");
    }
    for value in [&b"a\r\nb"[..], b"a\0", b"a\nb"] {
        assert_eq!(HeaderChange::new(b"x", value, Action::Add), Err(Invalid::Forbidden));
    }
}

fn web() -> WebService {
    WebService {
        path_prefix: "/auth".into(),
        headers_to_add: Box::default(),
        upstream: names(&["x-user", "content-length"]),
        upstream_append: names(&["x-role"]),
        client: Box::default(),
        client_on_success: names(&["x-seen"]),
    }
}

#[test]
fn over_http_the_question_is_the_head_of_the_request() {
    let told = Told { allowed: Some(names(&["x-a", "te"])), ..Told::default() };
    let fields: &[(&str, &[u8])] =
        &[("authorization", b"b"), ("x-a", b"\xff"), ("x-b", b"1"), ("te", b"trailers")];
    let asked = head(Method::PUT, "/p?q", fields);
    let check = web::head(&web(), Duration::from_secs(2), &question(&asked), &told).unwrap();
    assert_eq!((check.method.as_str(), check.path.as_str()), ("PUT", "/auth/p?q"));
    assert_eq!(check.authority, asked.authority);
    let mut sent: Vec<_> = check.headers.keys().map(HeaderName::as_str).collect();
    sent.sort_unstable();
    assert_eq!(
        sent,
        ["authorization", "content-length", "x-a", "x-envoy-expected-rq-timeout-ms", "x-envoy-internal"]
    );
    assert!(
        web::head(&web(), Duration::from_secs(2), &question(&head(Method::CONNECT, "/", &[])), &told)
            .is_none()
    );
}

#[test]
fn over_http_the_answer_is_a_status_and_the_headers_that_the_file_names() {
    let mut answer = ResponseHead::new(StatusCode::OK);
    for (name, value) in [
        ("x-user", "a"),
        ("x-user", "b"),
        ("x-role", "r"),
        ("x-seen", "s"),
        ("x-other", "o"),
        ("content-length", "0"),
        ("x-envoy-auth-headers-to-remove", "x-gone, host"),
    ] {
        answer.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let read = |head: &ResponseHead| web::answer(&web(), head, Bytes::from_static(b"body"), 2);
    let Ok(Answer::Allowed(changes)) = read(&answer) else { panic!() };
    let mut map = head(Method::GET, "/", &[("x-user", b"me"), ("x-role", b"q"), ("x-gone", b"1")]).headers;
    changes.apply(&mut map);
    assert_eq!(map.get_all("x-user").iter().collect::<Vec<_>>(), ["b"]);
    assert_eq!(map.get_all("x-role").iter().collect::<Vec<_>>(), ["q", "r"]);
    assert_eq!(map.len(), 3);
    assert_eq!(changes.response.len(), 1);

    answer.status = StatusCode::FOUND;
    let Ok(Answer::Denied(denial)) = read(&answer) else { panic!() };
    assert_eq!((denial.status, &denial.body[..]), (Some(StatusCode::FOUND), &b"bo"[..]));
    assert_eq!(denial.headers.len(), 6, "{denial:?}");
    answer.status = StatusCode::BAD_GATEWAY;
    assert!(matches!(read(&answer), Err(Invalid::HttpStatus)));
}
