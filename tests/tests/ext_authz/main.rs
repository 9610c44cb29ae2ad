//! An external service is asked about requests, over gRPC and over HTTP: what it is told, what it may change, and what happens
//! when it does not answer.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod settings;

use remora_tests::authorizer::{Authorizer, Reply, allow, deny, header};
use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::client::http2::request;
use remora_tests::config::{Listener, cluster_http2, direct, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_xds::pb::envoy::config::core::v3::QueryParameter;
use remora_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction::{
    AddIfAbsent, AppendIfExistsOrAdd as Append, OverwriteIfExists, OverwriteIfExistsOrAdd as Overwrite,
};
use remora_xds::pb::envoy::service::auth::v3::OkHttpResponse;
use serde_json::{Value, json};

const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.";

/// The filter, with `patch` over it, before the router.
fn filters(patch: Value) -> Value {
    let mut authz = json!({
        "@type": format!("{TYPE}ExtAuthz"),
        "transport_api_version": "V3",
        "stat_prefix": "edge",
    });
    merge(&mut authz, patch);
    json!({ "http_filters": [
        { "name": "authz", "typed_config": authz },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] })
}

/// Asks cluster `auth` over gRPC, with a limit that no test that wants an answer reaches.
fn grpc(patch: Value) -> Value {
    let mut all = json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "auth" }, "timeout": "20s" } });
    merge(&mut all, patch);
    filters(all)
}

/// Asks cluster `auth` over HTTP.
fn http(patch: Value) -> Value {
    let mut service =
        json!({ "server_uri": { "uri": "http://auth.example", "cluster": "auth", "timeout": "20s" } });
    merge(&mut service, patch);
    filters(json!({ "http_service": service }))
}

fn per_route(route: Value, setting: Value) -> Value {
    let mut route = route;
    let mut typed = json!({ "@type": format!("{TYPE}ExtAuthzPerRoute") });
    merge(&mut typed, setting);
    merge(&mut route, json!({ "typed_per_filter_config": { "authz": typed } }));
    route
}

fn proxy(manager: Value, origin: &Http1Upstream) -> Builder {
    let listener = Listener::http("ingress").manager(manager).route(to_cluster("/", "origin"));
    Proxy::builder().listener(listener).upstream("origin", origin)
}

async fn origin() -> Http1Upstream {
    Http1Upstream::answering(Answer::ok("in")).await
}

async fn ask(client: &mut Http1Client, lines: &str) -> Response {
    client.send(format!("{lines}\r\n\r\n")).await;
    client.response().await.unwrap()
}

async fn get(client: &mut Http1Client) -> Response {
    ask(client, "GET / HTTP/1.1\r\nHost: a.example").await
}

/// A sample of `remora_policy_decisions_total`.
async fn decisions(proxy: &Proxy, decision: &str) -> Option<String> {
    let text = proxy.admin("GET", "/stats/prometheus").await.unwrap().text();
    let labels = format!("stat_prefix=\"edge\",policy=\"authz\",decision=\"{decision}\"}} ");
    let mut lines = text.lines().filter(|line| line.starts_with("remora_policy_decisions_total"));
    lines.find_map(|line| line.split_once(&labels).map(|(_, count)| count.to_owned()))
}

#[tokio::test]
async fn the_service_is_told_of_the_request_and_its_changes_are_made() {
    let ok = OkHttpResponse {
        headers: vec![
            header("x-user", b"ann", Overwrite),
            header("x-list", b"b", Append),
            header("x-there", b"no", AddIfAbsent),
            header("x-nowhere", b"no", OverwriteIfExists),
            header("x-latin", b"caf\xe9", Overwrite),
        ],
        headers_to_remove: ["x-secret", "host", ":path", "not a name"].map(Into::into).to_vec(),
        response_headers_to_add: vec![
            header("set-cookie", b"a=1", Append),
            header("set-cookie", b"b=2", Append),
        ],
        query_parameters_to_set: vec![QueryParameter { key: "b".into(), value: "new".into() }],
        query_parameters_to_remove: vec!["a".into()],
        ..Default::default()
    };
    let (auth, origin) = (Authorizer::answering(allow(ok)).await, origin().await);
    let service = json!({ "grpc_service": { "initial_metadata": [{ "key": "x-key", "value": "open" }] } });
    let proxy = proxy(grpc(service), &origin).upstream("auth", &auth).start().await;
    let mut client = proxy.http1().await;
    let answer = ask(
        &mut client,
        "GET /p/x?a=1&b=2&c=3 HTTP/1.1\r\nHost: a.example\r\nX-User: forged\r\nX-List: a\r\nX-There: yes\r\n\
         X-Secret: s\r\nX-Two: 1\r\nX-Two: 2\r\nX-Bytes: \u{e9}",
    )
    .await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "in"));
    assert_eq!(answer.fields.all("set-cookie"), ["a=1", "b=2"]);
    let seen = origin.only_request();
    assert_eq!(seen.target(), "/p/x?b=new&c=3");
    assert_eq!(seen.fields().all("x-user"), ["ann"]);
    assert_eq!(seen.fields().all("x-list"), ["b"], "what is said replaces what is there");
    assert_eq!((seen.fields().get("x-there"), seen.fields().get("x-nowhere")), (Some("no"), Some("no")));
    assert_eq!(seen.fields().get("x-latin"), Some("caf\u{e9}"));
    assert_eq!(seen.fields().get("host"), Some("a.example"));
    assert!(!seen.fields().has("x-secret"));
    let asked = &auth.asked()[0];
    let http = asked.http();
    assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/p/x?a=1&b=2&c=3"));
    assert_eq!(
        (http.host.as_str(), http.scheme.as_str(), http.protocol.as_str()),
        ("a.example", "http", "HTTP/1.1")
    );
    assert_eq!(http.headers["x-user"], "forged");
    assert_eq!(http.headers["x-two"], "1,2");
    assert_eq!(http.headers[":path"], http.path);
    // Two bytes of UTF-8.
    assert_eq!(http.headers["x-bytes"], "\u{e9}");
    assert_eq!(http.id, http.headers["x-request-id"]);
    assert_eq!(asked.metadata.get("x-key").unwrap(), "open");
    assert!(asked.attributes.source.is_some() && asked.attributes.request.as_ref().unwrap().time.is_some());
    assert_eq!(decisions(&proxy, "allowed").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_refusal_has_the_words_of_the_service() {
    let headers = vec![
        header("content-type", b"application/json", Overwrite),
        header("set-cookie", b"a=1", Append),
        header("set-cookie", b"b=2", Append),
        header("content-length", b"1", Overwrite),
        header("bad name", b"1", Overwrite),
    ];
    let (auth, origin) = (Authorizer::answering(deny(401, headers, "{\"no\":1}")).await, origin().await);
    let proxy = proxy(grpc(json!({})), &origin).upstream("auth", &auth).start().await;
    let mut client = proxy.http1().await;
    for _ in 0..2 {
        let refused = get(&mut client).await;
        assert_eq!((refused.status, refused.reason()), (401, Some("ext_authz_denied")));
        assert_eq!(refused.text(), "{\"no\":1}");
        assert_eq!(refused.fields.get("content-type"), Some("application/json"));
        assert_eq!(refused.fields.all("set-cookie"), ["a=1", "b=2"]);
    }
    let mut client = proxy.http2().await;
    let fields = request("POST", "/s/M");
    let fields: Vec<_> =
        fields.into_iter().chain([("content-type", "application/grpc"), ("te", "trailers")]).collect();
    let id = client.open(&fields, true).await;
    let refused = client.outcome(id).await.answer();
    assert_eq!(refused.fields.get("grpc-status"), Some("16"), "a gRPC client gets its own kind of answer");
    assert_eq!(refused.fields.get("grpc-message"), Some("{\"no\":1}"));
    assert!(origin.requests().is_empty());
    assert_eq!(decisions(&proxy, "denied").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn whatever_is_no_answer_denies() {
    let origin = origin().await;
    let change = |name: &str, value: &[u8]| {
        allow(OkHttpResponse { headers: vec![header(name, value, Overwrite)], ..Default::default() })
    };
    let query = |key: &str, value: &str| {
        let pair = QueryParameter { key: key.into(), value: value.into() };
        allow(OkHttpResponse { query_parameters_to_set: vec![pair], ..Default::default() })
    };
    let many =
        allow(OkHttpResponse { headers: vec![header("x-a", b"1", Append); 1000], ..Default::default() });
    let replies = [
        (Reply::Fail(tonic::Status::internal("broken")), "grpc_status"),
        (change(":path", b"/admin"), "forbidden_change"),
        (change("host", b"b.example"), "forbidden_change"),
        (change("content-length", b"0"), "forbidden_change"),
        (change("transfer-encoding", b"chunked"), "forbidden_change"),
        (change("x-split", b"a\r\nb: c"), "forbidden_change"),
        (query("a", "1&b=2"), "forbidden_change"),
        (query("a", "1 HTTP/1.1"), "forbidden_change"),
        (many, "too_many_changes"),
        (deny(401, vec![], &"x".repeat(1 << 20)), "answer_too_large"),
    ];
    for (reply, why) in replies {
        let auth = Authorizer::answering(reply).await;
        let log = json!({ "access_log": [{ "name": "log", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
            "log_format": { "text_format_source": { "inline_string": "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n" } },
        } }] });
        let mut manager = grpc(json!({ "status_on_error": { "code": "ServiceUnavailable" } }));
        merge(&mut manager, log);
        let proxy = proxy(manager, &origin).upstream("auth", &auth).start().await;
        let refused = get(&mut proxy.http1().await).await;
        assert_eq!((refused.status, refused.reason()), (503, Some("ext_authz_error")), "{why}");
        let line = format!("UAEX ext_authz_error{{{why}}}");
        remora_tests::wait::eventually(&line, || proxy.stderr().contains(&line)).await;
        assert_eq!(decisions(&proxy, "error").await.as_deref(), Some("1"));
    }
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn a_service_that_is_slow_or_down_opens_the_door_only_where_that_is_written() {
    let (slow, origin) = (Authorizer::answering(Reply::Hang).await, origin().await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = json!({ "grpc_service": { "timeout": "0.05s" } });
    let open = json!({ "failure_mode_allow": true, "failure_mode_allow_header_add": true });
    let clusters = [
        cluster_http2("auth", &[remora_tests::upstream::Upstream::address(&slow)]),
        cluster_http2("auth", &[gone]),
    ];
    for (i, cluster) in clusters.into_iter().enumerate() {
        let strict = proxy(grpc(service.clone()), &origin).cluster(cluster.clone()).start().await;
        let refused = get(&mut strict.http1().await).await;
        assert_eq!((refused.status, refused.reason()), (403, Some("ext_authz_error")), "{i}");
        assert_eq!(origin.requests().len(), i);

        let mut lenient = service.clone();
        merge(&mut lenient, open.clone());
        let lenient = proxy(grpc(lenient), &origin).cluster(cluster).start().await;
        assert_eq!(get(&mut lenient.http1().await).await.text(), "in");
        let seen = origin.request(i).await;
        assert_eq!(seen.fields().get("x-envoy-auth-failure-mode-allowed"), Some("true"));
        assert_eq!(decisions(&lenient, "failure_mode_allowed").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn routes_switch_it_off_and_say_more() {
    let (auth, origin) = (Authorizer::answering(deny(403, vec![], "no")).await, origin().await);
    let context = |key: &str, value: &str| {
        json!({ "@type": format!("{TYPE}ExtAuthzPerRoute"),
                "check_settings": { "context_extensions": { key: value } } })
    };
    let mut manager = grpc(json!({}));
    let above = json!({ "typed_per_filter_config": { "authz": context("table", "all") } });
    merge(&mut manager, json!({ "route_config": above }));
    let listener = Listener::http("ingress")
        .manager(manager)
        .route(per_route(to_cluster("/free", "origin"), json!({ "disabled": true })))
        .route(per_route(to_cluster("/told", "origin"), context("route", "told")))
        .route(direct("/direct", 200, "direct"));
    let proxy =
        Proxy::builder().listener(listener).upstream("origin", &origin).upstream("auth", &auth).start().await;
    let mut client = proxy.http1().await;
    let mut status =
        async |path: &str| ask(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: a")).await.status;
    assert_eq!(status("/free").await, 200);
    assert_eq!(auth.asked().len(), 0);
    assert_eq!(status("/told").await, 403);
    let told = auth.asked()[0].attributes.context_extensions.clone();
    assert_eq!((told["route"].as_str(), told["table"].as_str()), ("told", "all"));
    assert_eq!(status("/direct").await, 403, "what the proxy answers itself is asked about, too");
    assert_eq!(auth.asked()[1].attributes.context_extensions.len(), 1);
    assert_eq!(status("/nowhere").await, 404, "without a route there is nothing to ask about");
    assert_eq!(auth.asked().len(), 2);
}

#[tokio::test]
async fn a_request_that_is_tried_again_was_asked_about_once() {
    let auth = Authorizer::answering(allow(OkHttpResponse::default())).await;
    let origin = Http1Upstream::scripted(|_, n| {
        if n < 2 { Answer::status(503, "Unavailable", "") } else { Answer::ok("in") }
    })
    .await;
    let mut route = to_cluster("/", "origin");
    let backoff = json!({ "base_interval": "0.001s" });
    merge(
        &mut route,
        json!({ "route": { "retry_policy": {
        "retry_on": "5xx", "num_retries": 3, "retry_back_off": backoff } } }),
    );
    let proxy = Proxy::builder()
        .listener(Listener::http("ingress").manager(grpc(json!({}))).route(route))
        .upstream("origin", &origin)
        .upstream("auth", &auth)
        .start()
        .await;
    assert_eq!(get(&mut proxy.http1().await).await.text(), "in");
    assert_eq!((origin.requests().len(), auth.asked().len()), (3, 1));
}

#[tokio::test]
async fn bytes_that_are_no_text_and_requests_without_a_path() {
    let (auth, origin) = (Authorizer::answering(deny(403, vec![], "no")).await, origin().await);
    let mut manager = grpc(json!({}));
    merge(&mut manager, json!({ "upgrade_configs": [{ "upgrade_type": "CONNECT" }] }));
    let tunnel = json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "origin",
        "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] } });
    let listener = |manager: Value| {
        Listener::http("ingress").manager(manager).route(tunnel.clone()).route(to_cluster("/", "origin"))
    };
    let start = async |manager: Value| {
        let builder = Proxy::builder().listener(listener(manager)).upstream("origin", &origin);
        builder.upstream("auth", &auth).start().await
    };
    let proxy = start(manager).await;
    let mut client = proxy.http1().await;
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Bytes: a\xff\xe9b\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 403);
    assert_eq!(auth.asked()[0].http().headers["x-bytes"], "a!!b");
    client.send("CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n").await;
    assert_eq!(client.response_to("CONNECT").await.unwrap().status, 403);
    let asked = auth.asked();
    let connect = asked[1].http();
    assert_eq!(
        (connect.method.as_str(), connect.path.as_str(), connect.host.as_str()),
        ("CONNECT", "", "b.example:443")
    );
    assert!(!connect.headers.contains_key(":path"));

    // The same bytes, untouched.
    let raw = start(grpc(json!({ "encode_raw_headers": true }))).await;
    let mut client = raw.http1().await;
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Bytes: a\xff\xe9b\r\n\r\n").await;
    assert_eq!(client.response().await.unwrap().status, 403);
    let asked = auth.asked();
    let headers = &asked[2].http().header_map.as_ref().unwrap().headers;
    assert!(headers.iter().any(|h| h.key == "x-bytes" && h.raw_value == b"a\xff\xe9b"));

    // Over HTTP nobody can be asked about a CONNECT, and that opens no door.
    let mut manager = http(json!({}));
    manager["http_filters"][0]["typed_config"]["failure_mode_allow"] = true.into();
    merge(&mut manager, json!({ "upgrade_configs": [{ "upgrade_type": "CONNECT" }] }));
    let web = start(manager).await;
    let mut client = web.http1().await;
    client.send("CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n").await;
    let refused = client.response_to("CONNECT").await.unwrap();
    assert_eq!((refused.status, refused.reason()), (403, Some("ext_authz_denied")));
    assert!(origin.requests().is_empty());
}
