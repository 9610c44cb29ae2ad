//! The last good answer as what stands in while a circuit breaker is open.

use std::sync::Arc;

use remora_tests::client::http1::{Http1Client, Response};
use remora_tests::config::{Listener, cluster, merge, to_cluster};
use remora_tests::proxy::{Builder, Proxy};
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Forwarded, Http1Upstream};
use remora_tests::wait::eventually_async;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::breakers::{guarded, proxy, replace};
use crate::{Moody, circuits, get};

/// A fallback to the last good answer, and what else it says.
fn last_good(said: Value, more: Value) -> Value {
    let mut fallback = json!({ "last_good": said });
    merge(&mut fallback, more);
    json!({ "fallback": fallback, "wait_duration_in_open_state": "60s" })
}

/// A cluster of `origin` with this circuit breaker.
fn kept(origin: &Http1Upstream, settings: Value) -> Value {
    let mut cluster = cluster("origin", &[origin.address()]);
    merge(&mut cluster, json!({ "metadata": { "filter_metadata": { "remora.circuit_breaker": settings } } }));
    cluster
}

async fn set(proxy: &Proxy, state: &str) {
    let page = format!("/circuit_breakers?name=cluster/origin&state={state}");
    assert_eq!(proxy.admin("POST", &page).await.unwrap().status, 200);
}

/// Sends a request line with these fields.
async fn ask(client: &mut Http1Client, line: &str, fields: &str) -> Response {
    client.send(format!("{line} HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n")).await;
    client.response_to(line.split(' ').next().unwrap()).await.unwrap()
}

fn refused(answer: &Response) -> bool {
    answer.status == 503 && answer.reason() == Some("circuit_open")
}

#[tokio::test]
async fn get_and_head_have_the_last_good_answer_and_others_are_refused() {
    let origin = Moody::named("origin").await;
    let log = json!({ "access_log": [{ "name": "log", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        "log_format": { "text_format_source": {
            "inline_string": "LOG %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS%\n",
        } },
    } }] });
    let listener = Listener::http("ingress").manager(log).route(to_cluster("/", "origin"));
    let cluster = guarded(&origin, last_good(json!({}), json!({})));
    let proxy = Proxy::builder().listener(listener).cluster(cluster).start().await;
    assert_eq!(get(&proxy, "/a?b").await.text(), "origin");
    origin.answers(503);
    for _ in 0..3 {
        assert_eq!(get(&proxy, "/other").await.status, 503);
    }
    assert_eq!(circuits(&proxy).await[0]["state"], "OPEN");
    let asked = origin.asked();
    let again = get(&proxy, "/a?b").await;
    assert_eq!((again.status, again.text().as_str(), again.reason()), (200, "origin", Some("circuit_open")));
    assert!(again.fields.get("age").unwrap().parse::<u64>().unwrap() < 60, "{:?}", again.fields);
    assert_eq!(again.fields.get("x-envoy-upstream-service-time"), None, "it took no time there");
    let mut client = proxy.http1().await;
    let head = ask(&mut client, "HEAD /a?b", "").await;
    assert_eq!((head.status, head.fields.get("content-length"), head.text().as_str()), (200, Some("6"), ""));
    assert!(refused(&ask(&mut client, "POST /a?b", "Content-Length: 0\r\n").await));
    assert!(
        refused(&ask(&mut client, "GET /a?b", "Content-Length: 1\r\n\r\nx").await),
        "a body is no part of the key"
    );
    let mut other = proxy.http1().await;
    for path in ["/a", "/a?c", "/other"] {
        assert!(refused(&ask(&mut other, &format!("GET {path}"), "").await), "{path}");
    }
    other.send("GET /a?b HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert!(refused(&other.response().await.unwrap()), "another host");
    assert_eq!(origin.asked(), asked, "asked although it is open");
    assert_eq!(
        proxy.count("remora_circuit_breaker_last_good_answers_total{name=\"cluster/origin\"}").await,
        2
    );
    assert_eq!(circuits(&proxy).await[0]["last_good_answers"], 2);
    eventually_async("it is in the access log", async || {
        let log = proxy.stderr();
        ["LOG GET /a?b 200 UO", "LOG HEAD /a?b 200 UO", "LOG POST /a?b 503 UO"]
            .iter()
            .all(|line| log.contains(line))
    })
    .await;
}

/// A token that was verified here does not go on: the request looks like everybody's.
#[tokio::test]
async fn what_was_answered_to_a_token_is_not_kept() {
    let origin = particular().await;
    let keys =
        r#"{"keys":[{"kty":"oct","kid":"one","alg":"HS256","k":"dGVzdCBzZWNyZXQsIGluIG5vIHdheSBzZWNyZXQ"}]}"#;
    // Issuer `test`, until 2100.
    let token = "eyJhbGciOiAiSFMyNTYiLCAia2lkIjogIm9uZSJ9.eyJpc3MiOiAidGVzdCIsICJleHAiOiA0MTAyNDQ0ODAwfQ.a-PLEr4uR7IIfu-vMnd2Do-0XfVEAQNfKdsYYGzc9WU";
    let filters = json!({ "http_filters": [
        { "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "test": { "issuer": "test", "local_jwks": { "inline_string": keys } } },
            "rules": [{ "match": { "prefix": "/me" }, "requires": { "provider_name": "test" } }],
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] });
    let listener = Listener::http("ingress").manager(filters).route(to_cluster("/", "origin"));
    let cluster = kept(&origin, last_good(json!({}), json!({})));
    let proxy = Proxy::builder().listener(listener).cluster(cluster).start().await;
    let mut client = proxy.http1().await;
    let token = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(ask(&mut client, "GET /me", &token).await.text(), "body");
    assert!(!origin.requests()[0].fields().has("authorization"));
    assert_eq!(ask(&mut client, "GET /all", "").await.text(), "body");
    set(&proxy, "FORCED_OPEN").await;
    assert!(refused(&ask(&mut client, "GET /me", &token).await));
    assert_eq!(ask(&mut client, "GET /all", "").await.text(), "body");
}

#[tokio::test]
async fn http2_has_it_too() {
    let origin = Moody::named("origin").await;
    let proxy = proxy(vec![guarded(&origin, last_good(json!({}), json!({})))]).start().await;
    let mut client = proxy.http2().await;
    assert_eq!(client.get("/").await.answer().text(), "origin");
    set(&proxy, "FORCED_OPEN").await;
    let again = client.get("/").await.answer();
    assert_eq!((again.text().as_str(), again.reason()), ("origin", Some("circuit_open")));
}

/// An origin whose answers say how they may be kept: by path.
async fn particular() -> Http1Upstream {
    let with =
        |field: &str| Answer::raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{field}\r\n\r\nbody"));
    Http1Upstream::scripted(move |request: &Forwarded, _| match request.target() {
        "/no-store" => with("Cache-Control: no-store"),
        "/private" => with("Cache-Control: private"),
        "/set-cookie" => with("Set-Cookie: a=b"),
        "/public" => with("Cache-Control: public"),
        "/old" => with("Age: 100"),
        "/too-old" => with("Age: 301"),
        "/vary" => {
            let language = request.fields().get("accept-language").unwrap_or("-").to_owned();
            let head = "HTTP/1.1 200 OK\r\nVary: Accept-Language\r\n";
            Answer::raw(format!("{head}Content-Length: {}\r\n\r\n{language}", language.len()))
        }
        "/chunked" => Answer::chunked(&["bo", "dy"], &[]),
        "/trailers" => Answer::chunked(&["bo", "dy"], &[("x-sum", "1")]),
        "/cut" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo").close(),
        "/long" => Answer::ok(&"x".repeat(1001)),
        "/longest" => Answer::ok(&"x".repeat(1000)),
        "/long-chunked" => Answer::chunked(&[&"x".repeat(600), &"x".repeat(600)], &[]),
        _ => Answer::ok("body"),
    })
    .await
}

#[tokio::test]
async fn only_what_a_shared_cache_may_keep_is_kept() {
    let origin = particular().await;
    let settings = last_good(json!({ "max_body_bytes": 1000 }), json!({}));
    let proxy = proxy(vec![kept(&origin, settings)]).start().await;
    let paths = [
        ("/no-store", false),
        ("/private", false),
        ("/set-cookie", false),
        ("/too-old", false),
        ("/trailers", false),
        ("/cut", false),
        ("/long", false),
        ("/long-chunked", false),
        ("/plain", true),
        ("/public", true),
        ("/old", true),
        ("/chunked", true),
        ("/longest", true),
    ];
    for (path, _) in paths {
        let answer = proxy.http1().await.get(path).await;
        assert_eq!(answer.map_or(0, |answer| answer.status), if path == "/cut" { 0 } else { 200 }, "{path}");
    }
    let mut client = proxy.http1().await;
    let user = "Authorization: Bearer x\r\n";
    assert_eq!(ask(&mut client, "GET /user", user).await.status, 200);
    set(&proxy, "FORCED_OPEN").await;
    for (path, is_kept) in paths {
        let answer = get(&proxy, path).await;
        assert_eq!(
            (answer.status, refused(&answer)),
            if is_kept { (200, false) } else { (503, true) },
            "{path}"
        );
        assert!(!is_kept || ["body".into(), "x".repeat(1000)].contains(&answer.text()), "{path}");
    }
    let age: u64 = get(&proxy, "/old").await.fields.get("age").unwrap().parse().unwrap();
    assert!((100..160).contains(&age), "{age}");
    for fields in ["", user] {
        assert!(refused(&ask(&mut client, "GET /user", fields).await), "{fields}");
    }
    assert!(refused(&ask(&mut client, "GET /plain", user).await), "it does not say that it is for everybody");
    assert_eq!(ask(&mut client, "GET /public", user).await.status, 200);
    assert!(refused(&ask(&mut client, "GET /plain", "Cache-Control: no-cache\r\n").await));
}

#[tokio::test]
async fn answers_that_differ_by_a_header_are_given_to_who_sends_it() {
    let origin = particular().await;
    let proxy = proxy(vec![kept(&origin, last_good(json!({}), json!({})))]).start().await;
    let mut client = proxy.http1().await;
    let mut in_language = async |language: &str| {
        let answer = ask(&mut client, "GET /vary", &format!("Accept-Language: {language}\r\n")).await;
        (answer.status, answer.text())
    };
    for language in ["de", "fr"] {
        assert_eq!(in_language(language).await, (200, language.to_owned()));
    }
    set(&proxy, "FORCED_OPEN").await;
    for language in ["de", "fr"] {
        assert_eq!(in_language(language).await, (200, language.to_owned()));
    }
    assert_eq!(in_language("es").await.0, 503);
}

#[tokio::test]
async fn what_changes_a_thing_or_finds_it_gone_makes_it_forgotten() {
    let origin = Http1Upstream::scripted(|request, n| match request.target() {
        "/gone" if n > 2 => Answer::status(404, "Not Found", ""),
        _ => Answer::ok("body"),
    })
    .await;
    let proxy = proxy(vec![kept(&origin, last_good(json!({}), json!({})))]).start().await;
    let mut client = proxy.http1().await;
    for line in ["GET /changed", "GET /gone", "GET /stays", "GET /gone"] {
        ask(&mut client, line, "").await;
    }
    ask(&mut client, "PUT /changed", "Content-Length: 0\r\n").await;
    set(&proxy, "FORCED_OPEN").await;
    assert!(refused(&ask(&mut client, "GET /changed", "").await));
    assert!(refused(&ask(&mut client, "GET /gone", "").await));
    assert_eq!(ask(&mut client, "GET /stays", "").await.status, 200);
}

/// What it was copied from is not so any more, however the change overtook it.
#[tokio::test]
async fn what_is_on_its_way_while_it_is_changed_is_not_kept() {
    let (go, permit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (late_body, late_head) = (Arc::clone(&go), Arc::clone(&permit));
    let origin = Http1Upstream::scripted(move |request, _| match (request.method(), request.target()) {
        ("GET", "/body") => {
            Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo").until(&late_body).send("dy")
        }
        ("GET", "/head") => {
            Answer::nothing().until(&late_head).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        }
        _ => Answer::ok("body"),
    })
    .await;
    let proxy = proxy(vec![kept(&origin, last_good(json!({}), json!({})))]).start().await;
    let mut client = proxy.http1().await;
    for (n, (path, go)) in [("/body", &go), ("/head", &permit)].into_iter().enumerate() {
        let mut reader = proxy.http1().await;
        reader.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        origin.request(2 * n).await;
        ask(&mut client, &format!("PUT {path}"), "Content-Length: 0\r\n").await;
        go.notify_one();
        assert_eq!(reader.response().await.unwrap().text(), "body");
    }
    ask(&mut client, "GET /other", "").await;
    set(&proxy, "FORCED_OPEN").await;
    for path in ["/body", "/head"] {
        assert!(refused(&ask(&mut client, &format!("GET {path}"), "").await), "{path}");
    }
    assert_eq!(ask(&mut client, "GET /other", "").await.status, 200);
}

/// Neither by whether the route of the change keeps answers, nor by its cluster.
#[tokio::test]
async fn what_is_changed_over_another_route_is_forgotten() {
    let origin = particular().await;
    let settings = last_good(json!({}), json!({}));
    let metadata = json!({ "filter_metadata": { "remora.circuit_breaker": settings } });
    let mut reads = to_cluster("/", "origin");
    let method = json!({ "headers": [{ "name": ":method", "string_match": { "exact": "GET" } }] });
    merge(&mut reads, json!({ "name": "one", "metadata": metadata, "match": method }));
    let listener = Listener::http("ingress")
        .route(reads)
        .route(to_cluster("/same", "origin"))
        .route(to_cluster("/", "writers"));
    let clusters = [cluster("origin", &[origin.address()]), cluster("writers", &[origin.address()])];
    let proxy =
        clusters.into_iter().fold(Proxy::builder().listener(listener), Builder::cluster).start().await;
    let mut client = proxy.http1().await;
    for line in ["GET /same", "GET /other", "GET /stays"] {
        assert_eq!(ask(&mut client, line, "").await.status, 200);
    }
    for path in ["/same", "/other"] {
        ask(&mut client, &format!("DELETE {path}"), "").await;
    }
    let page = "/circuit_breakers?name=route/routes/all/one&state=FORCED_OPEN";
    assert_eq!(proxy.admin("POST", page).await.unwrap().status, 200);
    for path in ["/same", "/other"] {
        assert!(refused(&ask(&mut client, &format!("GET {path}"), "").await), "{path}");
    }
    assert_eq!(ask(&mut client, "GET /stays", "").await.status, 200);
}

#[tokio::test]
async fn where_there_is_none_the_other_fallback_answers() {
    let (origin, other) = (Moody::named("origin").await, Moody::named("other").await);
    let elsewhere = last_good(json!({}), json!({ "cluster": "other" }));
    let clusters = vec![guarded(&origin, elsewhere), cluster("other", &[other.upstream.address()])];
    let both = proxy(clusters).start().await;
    get(&both, "/kept").await;
    set(&both, "FORCED_OPEN").await;
    assert_eq!(
        (get(&both, "/kept").await.text(), get(&both, "/new").await.text()),
        ("origin".into(), "other".into())
    );
    assert_eq!(get(&both, "/new").await.text(), "other");
    let fixed = last_good(json!({}), json!({ "answer": { "status": 203, "body": "[]" } }));
    let fixed = proxy(vec![guarded(&origin, fixed)]).start().await;
    get(&fixed, "/kept").await;
    set(&fixed, "FORCED_OPEN").await;
    assert_eq!((get(&fixed, "/kept").await.text(), get(&fixed, "/new").await.status), ("origin".into(), 203));
}

#[tokio::test]
async fn a_route_has_its_own_and_its_rules_for_headers_hold() {
    let origin = particular().await;
    let mut route = to_cluster("/", "origin");
    let settings = last_good(json!({}), json!({}));
    merge(
        &mut route,
        json!({
            "name": "one", "response_headers_to_add": [{ "header": { "key": "x-route", "value": "one" } }],
            "metadata": { "filter_metadata": { "remora.circuit_breaker": settings } },
        }),
    );
    let listener = Listener::http("ingress").route(route);
    let proxy = Proxy::builder().listener(listener).upstream("origin", &origin).start().await;
    get(&proxy, "/").await;
    let page = "/circuit_breakers?name=route/routes/all/one&state=FORCED_OPEN";
    assert_eq!(proxy.admin("POST", page).await.unwrap().status, 200);
    let again = get(&proxy, "/").await;
    assert_eq!((again.status, again.fields.all("x-route")), (200, vec!["one"]));
}

fn from_file(file: &std::path::Path) -> Builder {
    let source =
        json!({ "resource_api_version": "V3", "path_config_source": { "path": file.to_str().unwrap() } });
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    Proxy::builder().listener(listener).dynamic(json!({ "cds_config": source }))
}

#[tokio::test]
async fn an_edit_of_its_bounds_drops_what_is_kept_and_no_other() {
    let origin = Moody::named("origin").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cds.json");
    let settings = |said: Value, timeout: &str| {
        let mut cluster = guarded(&origin, last_good(said, json!({})));
        merge(&mut cluster, json!({ "connect_timeout": timeout }));
        cluster["metadata"]["filter_metadata"]["remora.circuit_breaker"]["slow_call_duration_threshold"] =
            json!(timeout);
        cluster
    };
    replace(&file, &[settings(json!({}), "1s")]);
    let proxy = from_file(&file).start().await;
    let edit = async |cluster: Value| {
        let applied = proxy.count("remora_config_version").await;
        replace(&file, &[cluster]);
        eventually_async("the edit is applied", async || {
            proxy.count("remora_config_version").await > applied
        })
        .await;
    };
    get(&proxy, "/").await;
    set(&proxy, "FORCED_OPEN").await;
    edit(settings(json!({}), "2s")).await;
    assert_eq!(get(&proxy, "/").await.status, 200, "another setting");
    edit(settings(json!({ "max_bytes": 200_000 }), "2s")).await;
    assert!(refused(&get(&proxy, "/").await));
}

#[tokio::test]
async fn mistakes_are_refused_with_their_path() {
    let origin = Moody::named("origin").await;
    for (fallback, said) in [
        (json!({}), "fallback: must have last_good, one of answer and cluster, or both"),
        (json!({ "answer": {}, "cluster": "x" }), "must have last_good, one of answer and cluster, or both"),
        (json!({ "last_good": { "max_size": 1 } }), "fallback.last_good.max_size: is not a field"),
        (json!({ "last_good": { "max_age": "0s" } }), "fallback.last_good.max_age: must be a duration"),
        (
            json!({ "last_good": { "max_bytes": 139_263 } }),
            "fallback.last_good.max_bytes: must be at least 139264",
        ),
        (json!({ "last_good": true }), "fallback.last_good: must be an object"),
    ] {
        let (status, found) = proxy(vec![guarded(&origin, json!({ "fallback": fallback }))]).refuse().await;
        assert!(!status.success() && found.contains(said), "{said} in {found}");
    }
}
