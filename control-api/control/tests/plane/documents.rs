//! Documents over REST.

use http::{Method, StatusCode};
use serde_json::json;

use crate::support::{ROUTE, ROUTES, Rig, SERVICE, SERVICES};

const YAML: &str = "application/yaml";

#[tokio::test]
async fn a_document_lives_as_in_the_kubernetes_api() {
    let rig = Rig::start().await;
    let (status, created) = rig.send(Method::POST, SERVICES, YAML, SERVICE).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let metadata = &created["metadata"];
    assert_eq!((&metadata["generation"], &metadata["namespace"]), (&json!(1), &json!("default")));
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string(), "{metadata}");
    let (status, again) = rig.send(Method::POST, SERVICES, YAML, SERVICE).await;
    assert_eq!((status, &again["reason"]), (StatusCode::CONFLICT, &json!("AlreadyExists")));

    // What was got may be put again: it changes nothing.
    let one = format!("{SERVICES}/shop");
    let (_, got) = rig.get(&one).await;
    assert_eq!(got["status"]["conditions"][0]["type"], "Accepted");
    let (status, same) = rig.send(Method::PUT, &one, "application/json", &got.to_string()).await;
    assert_eq!((status, &same["metadata"]), (StatusCode::OK, &got["metadata"]));

    // A change counts, and whoever still has the version before it is told of both.
    let mut changed = got.clone();
    changed["spec"]["ports"][0]["port"] = json!(9090);
    let (status, new) = rig.send(Method::PUT, &one, "application/json", &changed.to_string()).await;
    assert_eq!((status, &new["metadata"]["generation"]), (StatusCode::OK, &json!(2)));
    assert_eq!(new["metadata"]["uid"], got["metadata"]["uid"]);
    let (status, conflict) = rig.send(Method::PUT, &one, "application/json", &changed.to_string()).await;
    assert_eq!((status, &conflict["reason"]), (StatusCode::CONFLICT, &json!("Conflict")));
    let message = conflict["message"].as_str().unwrap();
    for version in [&got["metadata"]["resourceVersion"], &new["metadata"]["resourceVersion"]] {
        assert!(message.contains(version.as_str().unwrap()), "{message}");
    }

    let (_, list) = rig.get("/api/v1/services").await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("ServiceList"), 1));
    let (_, none) = rig.get("/api/v1/services?labelSelector=app%3Dx").await;
    assert_eq!(none["items"], json!([]));

    let (status, deleted) = rig.send(Method::DELETE, &one, "", "").await;
    assert_eq!((status, &deleted["status"]), (StatusCode::OK, &json!("Success")));
    let (status, gone) = rig.get(&one).await;
    assert_eq!(
        (status, &gone["kind"], &gone["code"]),
        (StatusCode::NOT_FOUND, &json!("Status"), &json!(404))
    );
    assert_eq!(rig.send(Method::PUT, &one, YAML, SERVICE).await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.send(Method::DELETE, &one, "", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn patches_are_whole_documents_or_merges() {
    let rig = Rig::start().await;
    let one = format!("{SERVICES}/shop");
    let (status, _) = rig.send(Method::PATCH, &one, "application/apply-patch+yaml", SERVICE).await;
    assert_eq!(status, StatusCode::CREATED);
    let patch = r#"{"metadata":{"labels":{"tier":"web"}}}"#;
    let (status, patched) = rig.send(Method::PATCH, &one, "application/merge-patch+json", patch).await;
    assert_eq!(
        (status, &patched["metadata"]["labels"]["tier"]),
        (StatusCode::OK, &json!("web")),
        "{patched}"
    );
    assert_eq!(patched["spec"]["ports"][0]["port"], 8080);
    assert_eq!(patched["metadata"]["generation"], 1, "the spec is the same");
    let (status, _) = rig.send(Method::PATCH, &one, "application/strategic-merge-patch+json", patch).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    // --force-conflicts is about owners of fields, and breaks no other document.
    rig.apply(ROUTE, "").await;
    let moved = SERVICE.replace("8080", "9090");
    let forced = format!("{one}?fieldManager=kubectl&force=true");
    let (status, answer) = rig.send(Method::PATCH, &forced, "application/apply-patch+yaml", &moved).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
}

#[tokio::test]
async fn a_document_is_removed_if_it_is_the_one_that_is_meant() {
    let rig = Rig::start().await;
    rig.apply(SERVICE, "").await;
    let one = format!("{SERVICES}/shop");
    let (_, got) = rig.get(&one).await;
    let delete = async |preconditions: serde_json::Value| {
        let body = json!({"kind": "DeleteOptions", "preconditions": preconditions}).to_string();
        rig.send(Method::DELETE, &one, "application/json", &body).await.0
    };
    assert_eq!(delete(json!({"uid": "somebody else's"})).await, StatusCode::CONFLICT);
    assert_eq!(delete(json!({"resourceVersion": "1000"})).await, StatusCode::CONFLICT);
    assert_eq!(delete(json!({"uid": got["metadata"]["uid"]})).await, StatusCode::OK);
    assert_eq!(delete(json!({"uid": got["metadata"]["uid"]})).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_mistake_is_named_and_nothing_is_written() {
    let rig = Rig::start().await;
    let wrong = ROUTE
        .replace("name: shop, port: 8080", "name: shopp, port: 8080")
        .replace("kind: Service, name: shop", "name: nobody");
    let (status, answer) = rig.apply(&format!("{SERVICE}---\n{wrong}"), "").await;
    assert_eq!((status, &answer["reason"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid")));
    let mistakes = answer["details"]["mistakes"].as_array().unwrap();
    let of = |field: &str| mistakes.iter().find(|m| m["field"].as_str().unwrap().starts_with(field)).unwrap();
    let backend = of("spec.rules[0].backendRefs[0]");
    assert_eq!((&backend["file"], &backend["line"]), (&json!("mesh.yaml"), &json!(12)), "{backend}");
    assert!(backend["suggestion"].as_str().unwrap().contains("shop"), "{backend}");
    assert_eq!(of("spec.parentRefs[0]")["document"], "HTTPRoute default/shop");
    assert_eq!(answer["details"]["causes"].as_array().unwrap().len(), mistakes.len());
    assert_eq!(rig.get("/api/v1/services").await.1["items"], json!([]), "all or none");

    for (body, status) in [("a: [", 422), ("", 400), ("- 1", 422), (ROUTE, 400)] {
        let (got, answer) = rig.send(Method::POST, SERVICES, YAML, body).await;
        assert_eq!((got.as_u16(), &answer["kind"]), (status, &json!("Status")), "{body}: {answer}");
    }
    let large = format!("# {}\n", "x".repeat(17 << 20));
    let (status, answer) = rig.send(Method::POST, SERVICES, YAML, &large).await;
    assert_eq!((status, &answer["reason"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("RequestEntityTooLarge")));
}

#[tokio::test]
async fn a_change_that_breaks_others_needs_them_or_force() {
    let rig = Rig::start().await;
    let (status, answer) = rig.apply(&format!("{ROUTE}---\n{SERVICE}"), "").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let verbs: Vec<_> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["kind"].clone(), r["result"].clone()))
        .collect();
    assert_eq!(verbs, [(json!("HTTPRoute"), json!("created")), (json!("Service"), json!("created"))]);

    let one = format!("{SERVICES}/shop");
    let (status, answer) = rig.send(Method::DELETE, &one, "", "").await;
    assert_eq!((status, &answer["reason"]), (StatusCode::CONFLICT, &json!("Conflict")));
    assert!(answer["message"].as_str().unwrap().contains("HTTPRoute default/shop"), "{answer}");
    let moved = SERVICE.replace("port: 8080", "port: 9090");
    assert_eq!(rig.apply(&moved, "").await.0, StatusCode::CONFLICT);
    let both = format!("{moved}---\n{}", ROUTE.replace("8080", "9090"));
    assert_eq!(rig.apply(&both, "").await.0, StatusCode::OK);

    // Forced: the route that leads nowhere says so.
    assert_eq!(rig.send(Method::DELETE, &format!("{one}?force=true"), "", "").await.0, StatusCode::OK);
    rig.until("the route is not accepted", async || {
        let (_, route) = rig.get(&format!("{ROUTES}/shop/status")).await;
        let accepted = &route["status"]["conditions"][0];
        accepted["status"] == "False" && accepted["message"].as_str().unwrap().contains("shop")
    })
    .await;
    // And it may be removed all the same.
    let body = json!({"files": [{"name": "mesh.yaml", "text": ROUTE}]}).to_string();
    let (status, answer) = rig.send(Method::POST, "/remora/v1/delete", "application/json", &body).await;
    assert_eq!((status, &answer["results"][0]["result"]), (StatusCode::OK, &json!("deleted")), "{answer}");
}

#[tokio::test]
async fn a_dry_run_tells_and_does_not_write() {
    let rig = Rig::start().await;
    let (status, answer) = rig.apply(SERVICE, "?dryRun=All").await;
    assert_eq!((status, &answer["results"][0]["result"]), (StatusCode::OK, &json!("created")));
    assert!(answer["results"][0]["diff"].as_str().unwrap().contains("+  name: shop"), "{answer}");
    assert_eq!(rig.get(&format!("{SERVICES}/shop")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.apply(SERVICE, "?dryRun=Some").await.0, StatusCode::BAD_REQUEST);
    rig.apply(SERVICE, "").await;
    let (_, answer) = rig.apply(SERVICE, "").await;
    assert_eq!(
        (&answer["results"][0]["result"], &answer["results"][0]["diff"]),
        (&json!("unchanged"), &json!(""))
    );
}

#[tokio::test]
async fn a_watch_tells_what_happens_from_a_list_on() {
    let rig = Rig::start().await;
    rig.apply(SERVICE, "").await;
    let (_, list) = rig.get(SERVICES).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = rig.watch(&format!("{SERVICES}?watch=1")).await;
    let mut later = rig.watch(&format!("{SERVICES}?watch=true&resourceVersion={from}")).await;
    let mut short = rig.watch(&format!("{SERVICES}?watch=1&timeoutSeconds=1&resourceVersion={from}")).await;
    assert_eq!(all.next().await.unwrap().0, "ADDED");
    rig.apply(&SERVICE.replace("8080", "9090"), "").await;
    rig.apply(ROUTE.replace("8080", "9090").as_str(), "").await;
    rig.send(Method::DELETE, &format!("{SERVICES}/shop?force=true"), "", "").await;
    for watch in [&mut all, &mut later, &mut short] {
        let (what, service) = watch.next().await.unwrap();
        assert_eq!((what.as_str(), &service["spec"]["ports"][0]["port"]), ("MODIFIED", &json!(9090)));
        assert_eq!(watch.next().await.unwrap().0, "DELETED", "routes are no services");
    }
    assert!(short.next().await.is_none(), "its time is over");
    let mut future = rig.watch(&format!("{SERVICES}?watch=1&resourceVersion=999999")).await;
    let (what, status) = future.next().await.unwrap();
    assert_eq!((what.as_str(), &status["code"]), ("ERROR", &json!(410)));
}

#[tokio::test]
async fn changes_are_in_the_audit_log() {
    let rig = Rig::start().await;
    rig.apply(SERVICE, "").await;
    rig.apply(SERVICE, "").await;
    rig.send(Method::DELETE, &format!("{SERVICES}/shop"), "", "").await;
    let log = std::fs::read_to_string(rig.folder.path().join("audit.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verbs: Vec<_> = lines.iter().map(|line| line["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["created", "deleted"]);
    assert!(lines.iter().all(|line| line["actor"] == "ada@test" && line["name"] == "shop"), "{log}");
}

#[tokio::test]
async fn every_route_of_the_openapi_document_is_there() {
    let rig = Rig::start().await;
    rig.apply(SERVICE, "").await;
    let (_, document) = rig.get("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 15, "{}", paths.len());
    for (path, operations) in paths {
        let real = path
            .replace("{group}/{version}", "gateway.networking.k8s.io/v1")
            .replace("{namespace}", "default")
            .replace("{plural}", if path.starts_with("/apis") { "httproutes" } else { "services" })
            .replace("{name}", "nobody");
        for method in operations.as_object().unwrap().keys() {
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            let (status, answer) = rig.send(method.clone(), &real, "application/json", "").await;
            let missing = status == StatusCode::METHOD_NOT_ALLOWED
                || answer["message"].as_str().is_some_and(|text| text.contains("there is nothing at"));
            assert!(!missing, "{method} {real}: {answer}");
        }
    }
    for (path, code) in [("/nowhere", 404), ("/apis/apps/v1", 404)] {
        let (status, answer) = rig.get(path).await;
        assert_eq!((status.as_u16(), &answer["kind"]), (code, &json!("Status")), "{path}");
    }
    assert_eq!(rig.send(Method::POST, "/healthz", "", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    let (status, answer) = rig.get("/status?evil").await;
    assert_eq!(
        (status, &answer["reason"]),
        (StatusCode::FORBIDDEN, &json!("Forbidden")),
        "a page of somebody else"
    );
    let (_, metrics) = rig.get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("remora_control_documents{kind=\"Service\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_document_that_comes_by_rest_does_not_say_where_it_comes_from() {
    let rig = Rig::start().await;
    for origin in ["kubernetes", "folder"] {
        let annotated = format!("{{name: shop, annotations: {{remora.dev/origin: {origin}}}}}");
        let text = SERVICE.replace("{name: shop}", &annotated);
        for (status, answer) in
            [rig.apply(&text, "").await, rig.send(Method::POST, SERVICES, YAML, &text).await]
        {
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains("metadata.annotations.remora.dev/origin: "), "{message}");
        }
    }
    assert_eq!(rig.get(&format!("{SERVICES}/shop")).await.0, StatusCode::NOT_FOUND);
}
