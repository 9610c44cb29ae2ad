//! What the file may ask for besides: HTTP instead of gRPC, the body, the route chosen again, a part of the requests.

use super::*;

#[tokio::test]
async fn over_http_a_status_decides_and_the_file_says_which_headers_count() {
    let auth = Http1Upstream::scripted(|asked, _| {
        let denied =
            "HTTP/1.1 302 Found\r\nLocation: /login\r\nX-Why: none\r\nContent-Length: 200000\r\n\r\n";
        match asked.fields().get("authorization") {
            Some("Bearer good") => {
                Answer::raw("HTTP/1.1 200 OK\r\nX-User: ann\r\nX-Other: o\r\nContent-Length: 0\r\n\r\n")
            }
            Some("Bearer broken") => Answer::status(500, "Oops", ""),
            _ => Answer::raw(denied).send("x".repeat(200_000)),
        }
    })
    .await;
    let origin = origin().await;
    let manager = http(json!({ "path_prefix": "/check", "authorization_response": {
        "allowed_upstream_headers": { "patterns": [{ "exact": "x-user" }] },
        "allowed_client_headers": { "patterns": [{ "prefix": "x-w" }] },
    } }));
    let proxy = proxy(manager, &origin).upstream("auth", &auth).start().await;
    let mut client = proxy.http1().await;
    let mut with = async |token: &str| {
        ask(
            &mut client,
            &format!("GET /p?q HTTP/1.1\r\nHost: a\r\nX-User: me\r\nAuthorization: Bearer {token}"),
        )
        .await
    };
    assert_eq!(with("good").await.text(), "in");
    let refused = with("bad").await;
    assert_eq!((refused.status, refused.fields.get("location")), (302, Some("/login")));
    assert_eq!((refused.fields.get("x-why"), refused.body.len()), (Some("none"), 64 * 1024));
    assert_eq!(with("broken").await.reason(), Some("ext_authz_error"));
    let seen = origin.only_request();
    assert_eq!((seen.fields().all("x-user"), seen.fields().has("x-other")), (vec!["ann"], false));
    let asked = auth.request(0).await;
    assert_eq!((asked.target(), asked.fields().get("host")), ("/check/p?q", Some("a")));
    assert!(!asked.fields().has("x-user"), "only what is allowed is told");
}

#[tokio::test]
async fn the_body_is_shown_and_goes_on_whole() {
    let auth = Authorizer::answering(allow(OkHttpResponse::default())).await;
    let origin = Http1Upstream::answering(Answer::ok("in")).await;
    let shown = |settings: Value| grpc(json!({ "with_request_body": settings }));
    let cut = proxy(shown(json!({ "max_request_bytes": 5, "allow_partial_message": true })), &origin)
        .upstream("auth", &auth)
        .start()
        .await;
    let mut client = cut.http1().await;
    let long = "x".repeat(100_000);
    for body in ["abc", "abcde", &long] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        client.send(head).await;
        assert_eq!(client.response().await.unwrap().text(), "in");
    }
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert_eq!(client.any_head().await.unwrap().word(1), "100");
    client.send("ok").await;
    assert_eq!(client.response().await.unwrap().status, 200);
    let bodies: Vec<usize> = origin.requests().iter().map(|seen| seen.body.len()).collect();
    assert_eq!(bodies, [3, 5, 100_000, 2]);
    let asked = auth.asked();
    let told = asked
        .iter()
        .map(|a| (a.http().body.as_str(), a.http().headers["x-envoy-auth-partial-body"].as_str()));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [("abc", "false"), ("abcde", "false"), ("xxxxx", "true"), ("ok", "false")]
    );

    let whole =
        proxy(shown(json!({ "max_request_bytes": 5 })), &origin).upstream("auth", &auth).start().await;
    let mut client = whole.http1().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabcdef").await;
    let refused = client.response().await.unwrap();
    assert_eq!((refused.status, refused.reason()), (413, Some("request_body_too_large")));
    assert_eq!(auth.asked().len(), 4);
}

#[tokio::test]
async fn a_cleared_route_is_chosen_again() {
    let user = OkHttpResponse { headers: vec![header("x-user", b"admin", Overwrite)], ..Default::default() };
    let (auth, origin) = (Authorizer::answering(allow(user)).await, origin().await);
    let mut admin = direct("/", 200, "for the admin");
    merge(
        &mut admin,
        json!({ "match": { "headers": [{ "name": "x-user", "string_match": { "exact": "admin" } }] } }),
    );
    for (clear, text) in [(false, "in"), (true, "for the admin")] {
        let listener = Listener::http("ingress").manager(grpc(json!({ "clear_route_cache": clear })));
        let proxy = Proxy::builder()
            .listener(listener.route(admin.clone()).route(to_cluster("/", "origin")))
            .upstream("origin", &origin)
            .upstream("auth", &auth)
            .start()
            .await;
        assert_eq!(get(&mut proxy.http1().await).await.text(), text);
    }
}

/// Istio's `CUSTOM`: shadow rules choose, and leave the name of the one that matched. That is no dry run, and not logged as one.
#[tokio::test]
async fn shadow_rules_choose_what_is_asked_about() {
    let (auth, origin) = (Authorizer::answering(deny(401, vec![], "no")).await, origin().await);
    let mut manager = grpc(json!({ "filter_enabled_metadata": {
        "filter": "envoy.filters.http.rbac",
        "path": [{ "key": "ask_shadow_effective_policy_id" }],
        "value": { "string_match": { "prefix": "shop/" } },
    } }));
    let policy = |path: &str| json!({ "permissions": [{ "url_path": { "path": { "prefix": path } } }], "principals": [{ "any": true }] });
    let shadow = |prefix: &str, name: &str, path: &str| {
        json!({ "name": "rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "shadow_rules": { "action": "DENY", "policies": { name: policy(path) } },
            "shadow_rules_stat_prefix": prefix,
        } })
    };
    let filters = manager["http_filters"].as_array_mut().unwrap();
    filters.insert(0, shadow("ask_", "shop/ask", "/private"));
    filters.insert(1, shadow("dry_", "shop/dry", "/private/dry"));
    let log = json!({ "access_log": [{ "name": "log", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        "log_format": { "text_format_source": { "inline_string": "LOG %REQ(:PATH)% %REMORA_SHADOW%\n" } },
    } }] });
    merge(&mut manager, log);
    let proxy = proxy(manager, &origin).upstream("auth", &auth).start().await;
    let mut client = proxy.http1().await;
    let mut status =
        async |path: &str| ask(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: a")).await.status;
    assert_eq!(status("/open").await, 200);
    assert!(auth.asked().is_empty());
    assert_eq!(status("/private").await, 401);
    assert_eq!(status("/private/dry").await, 401);
    assert_eq!((auth.asked().len(), origin.requests().len()), (2, 1));
    for line in
        ["LOG /open -", "LOG /private -", "LOG /private/dry rbac_access_denied_matched_policy[shop/dry]"]
    {
        remora_tests::wait::eventually(line, || proxy.stderr().contains(&format!("{line}\n"))).await;
    }
    assert_eq!(decisions(&proxy, "disabled").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn some_requests_are_not_asked_about() {
    let (auth, origin) = (Authorizer::answering(deny(401, vec![], "no")).await, origin().await);
    let none = json!({ "filter_enabled": { "default_value": { "numerator": 0, "denominator": "HUNDRED" } } });
    let strict = json!({ "deny_at_disable": { "default_value": true, "runtime_key": "x" } });
    let proxy = proxy(grpc(none.clone()), &origin).upstream("auth", &auth).start().await;
    assert_eq!(get(&mut proxy.http1().await).await.text(), "in");
    assert_eq!(decisions(&proxy, "disabled").await.as_deref(), Some("1"));
    let mut closed = none;
    merge(&mut closed, strict);
    let proxy = self::proxy(grpc(closed), &origin).upstream("auth", &auth).start().await;
    assert_eq!(get(&mut proxy.http1().await).await.reason(), Some("ext_authz_error"));
    assert!(auth.asked().is_empty());
}
