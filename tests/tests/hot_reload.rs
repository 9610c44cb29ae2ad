//! Config changes while requests are in flight: none fails, no connection closes, new requests see the newest routes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use remora_tests::client::http2::{Http2Client, Outcome, get};
use remora_tests::config::{
    Listener, cluster, cluster_http2, direct, merge, no_breakers, rds_file, rds_response, route_config,
    to_cluster,
};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer as Answer1, Http1Upstream};
use remora_tests::upstream::http2::{Answer, Http2Upstream};
use remora_tests::wait::{eventually, eventually_async, within};
use serde_json::json;
use tokio::sync::Notify;

/// The table of one version: `/version` answers its number, everything else goes to the origin.
fn table(version: u32) -> String {
    let routes = vec![direct("/version", 200, &version.to_string()), to_cluster("/", "origin")];
    rds_response(&version.to_string(), route_config("routes", routes))
}

/// Replaces a file the way careful tools do: written beside it, then renamed over it.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

struct Routes {
    folder: tempfile::TempDir,
}

impl Routes {
    fn new() -> Self {
        let routes = Self { folder: tempfile::tempdir().unwrap() };
        replace(&routes.path(), &table(0));
        routes
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("rds.json")
    }

    fn publish(&self, version: u32) {
        replace(&self.path(), &table(version));
    }

    fn listener(&self) -> Listener {
        Listener::http("ingress").manager(rds_file("routes", &self.path(), None))
    }
}

/// The version that a new request sees.
async fn version(client: &mut remora_tests::client::http1::Http1Client) -> u32 {
    let response = client.get("/version").await.unwrap();
    assert_eq!(response.status, 200);
    response.text().parse().unwrap()
}

/// A hundred changes under 10,000 requests in flight (fewer where the file limit is lower).
#[tokio::test]
async fn a_hundred_changes_under_ten_thousand_requests_lose_nothing() {
    const CONNECTIONS: usize = 100;
    const STREAMS: usize = 100;
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let upstream = held_upstream(permits.clone()).await;
    let routes = Routes::new();
    let mut origin = cluster_http2("origin", &[upstream.address]);
    merge(&mut origin, no_breakers());
    let proxy = Proxy::builder().listener(routes.listener()).cluster(origin).start().await;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = proxy.http2().await;
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            open.push(client.open(&get("/held"), true).await);
        }
        connections.push((client, open));
    }
    eventually("all requests at the upstream", || upstream.seen() == CONNECTIONS * STREAMS).await;

    let mut prober = proxy.http1().await;
    for n in 1..=100 {
        routes.publish(n);
        eventually_async(&format!("version {n}"), async || version(&mut prober).await == n).await;
    }

    permits.add_permits(CONNECTIONS * STREAMS);
    for (client, streams) in &mut connections {
        for stream in streams {
            match client.outcome(*stream).await {
                Outcome::Answer(answer) => assert_eq!((answer.status, answer.text().as_str()), (200, "kept")),
                other => panic!("lost: {other:?}"),
            }
        }
        assert!(client.goaways().is_empty(), "no connection is asked to leave");
        assert!(client.ping().await, "and none was closed");
        // The same old connection sees the newest routes.
        assert_eq!(client.get("/version").await.answer().text(), "100");
    }
}

/// An HTTP/2 origin that holds its answers until the test lets them go. It keeps no records: there are too many.
struct Held {
    address: std::net::SocketAddr,
    count: Arc<std::sync::atomic::AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Held {
    fn seen(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn held_upstream(permits: Arc<tokio::sync::Semaphore>) -> Held {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = count.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (counter, permits) = (counter.clone(), permits.clone());
            tokio::spawn(async move {
                let mut server = h2::server::Builder::new()
                    .max_concurrent_streams(100_000)
                    .handshake::<_, bytes::Bytes>(stream)
                    .await
                    .unwrap();
                while let Some(Ok((_request, mut respond))) = server.accept().await {
                    let (counter, permits) = (counter.clone(), permits.clone());
                    tokio::spawn(async move {
                        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        permits.acquire().await.unwrap().forget();
                        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                        send.send_data(bytes::Bytes::from_static(b"kept"), true).unwrap();
                    });
                }
            });
        }
    });
    Held { address, count, task }
}

/// A ConfigMap volume: the file is a link into `..data`, which is itself a link that is swapped.
async fn configmap(watch_the_folder: bool) {
    let folder = tempfile::tempdir().unwrap();
    let publish = |version: u32| {
        let data = format!("..{version}");
        std::fs::create_dir(folder.path().join(&data)).unwrap();
        std::fs::write(folder.path().join(&data).join("rds.json"), table(version)).unwrap();
        let fresh = folder.path().join("..data_tmp");
        std::os::unix::fs::symlink(&data, &fresh).unwrap();
        std::fs::rename(&fresh, folder.path().join("..data")).unwrap();
    };
    publish(0);
    let path = folder.path().join("rds.json");
    std::os::unix::fs::symlink("..data/rds.json", &path).unwrap();
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let watched = watch_the_folder.then(|| folder.path());
    let proxy = Proxy::builder()
        .listener(Listener::http("ingress").manager(rds_file("routes", &path, watched)))
        .upstream("origin", &upstream)
        .start()
        .await;
    let mut client = proxy.http1().await;
    assert_eq!(version(&mut client).await, 0);
    for n in 1..=10 {
        publish(n);
        eventually_async(&format!("version {n}"), async || version(&mut client).await == n).await;
        std::fs::remove_dir_all(folder.path().join(format!("..{}", n - 1))).unwrap();
    }
}

/// Envoy sees this only when `watched_directory` names the folder.
#[tokio::test]
async fn a_configmap_swap_is_seen() {
    configmap(false).await;
}

#[tokio::test]
async fn a_configmap_swap_in_the_watched_directory_is_seen() {
    configmap(true).await;
}

#[tokio::test]
async fn a_bad_file_is_refused_and_the_last_good_one_serves_on() {
    let routes = Routes::new();
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let proxy = Proxy::builder().listener(routes.listener()).upstream("origin", &upstream).start().await;
    let mut client = proxy.http1().await;
    routes.publish(1);
    eventually_async("version 1", async || version(&mut client).await == 1).await;
    let mut bad_regex = route_config("routes", vec![direct("/version", 200, "bad")]);
    bad_regex["virtual_hosts"][0]["routes"][0]["match"] = json!({ "safe_regex": { "regex": "(" } });
    let bad = [
        "{ this is no JSON",
        "",
        "[]",
        &rds_response("2", json!({ "name": "routes", "virtual_host": [] })),
        &rds_response("3", bad_regex),
        &rds_response("4", json!({ "name": "routes", "virtual_hosts": [{ "name": "", "domains": [] }] })),
    ];
    for (n, text) in bad.iter().enumerate() {
        replace(&routes.path(), text);
        // The good version that follows shows that the bad one was looked at, and did no harm.
        assert_eq!(version(&mut client).await, if n == 0 { 1 } else { 9 + u32::try_from(n).unwrap() });
        assert_eq!(client.get("/").await.unwrap().text(), "hello");
        let next = 10 + u32::try_from(n).unwrap();
        routes.publish(next);
        eventually_async(&format!("version {next} after bad file {n}"), async || {
            version(&mut client).await == next
        })
        .await;
    }
}

#[tokio::test]
async fn a_missing_file_is_no_empty_file() {
    let routes = Routes::new();
    let upstream = Http1Upstream::answering(Answer1::ok("hello")).await;
    let proxy = Proxy::builder().listener(routes.listener()).upstream("origin", &upstream).start().await;
    let mut client = proxy.http1().await;
    std::fs::remove_file(routes.path()).unwrap();
    assert_eq!(version(&mut client).await, 0);
    routes.publish(1);
    eventually_async("version 1", async || version(&mut client).await == 1).await;
}

#[tokio::test]
async fn a_request_keeps_the_routes_that_it_began_with() {
    let permit = Arc::new(Notify::new());
    let old = Http2Upstream::answering(Answer::status(200).until(&permit).data("old")).await;
    let new = Http2Upstream::answering(Answer::ok("new")).await;
    let routes = Routes::new();
    let to = |name: &str, version: &str| {
        let list = vec![direct("/version", 200, version), to_cluster("/", name)];
        rds_response(version, route_config("routes", list))
    };
    replace(&routes.path(), &to("old", "0"));
    let proxy = Proxy::builder()
        .listener(routes.listener())
        .upstream("old", &old)
        .upstream("new", &new)
        .start()
        .await;
    let mut client: Http2Client = proxy.http2().await;
    let before = client.open(&get("/"), true).await;
    old.request(0).await;
    replace(&routes.path(), &to("new", "1"));
    let mut prober = proxy.http1().await;
    eventually_async("version 1", async || version(&mut prober).await == 1).await;
    assert_eq!(client.get("/").await.answer().text(), "new");
    permit.notify_one();
    assert_eq!(client.outcome(before).await.answer().text(), "old");
}

#[tokio::test]
async fn an_upgraded_connection_survives_a_change() {
    let routes = Routes::new();
    let switched =
        Answer1::raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .early()
            .echo();
    let upstream = Http1Upstream::answering(switched).await;
    let proxy = Proxy::builder()
        .listener(routes.listener().upgrade("websocket"))
        .upstream("origin", &upstream)
        .start()
        .await;
    let mut client = proxy.http1().await;
    client
        .send("GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(client.head("GET").await.unwrap().0.status, 101);
    let mut prober = proxy.http1().await;
    for n in 1..=5 {
        routes.publish(n);
        eventually_async(&format!("version {n}"), async || version(&mut prober).await == n).await;
        client.send("still here").await;
        assert_eq!(client.raw(10).await.unwrap(), b"still here");
    }
}

/// Clusters and listeners by file as well: a listener that changes closes no connection of its clients.
#[tokio::test]
async fn listeners_and_clusters_by_file_change_without_closing_connections() {
    let folder = tempfile::tempdir().unwrap();
    let first = Http1Upstream::answering(Answer1::ok("first")).await;
    let second = Http1Upstream::answering(Answer1::ok("second")).await;
    let (lds, cds) = (folder.path().join("lds.json"), folder.path().join("cds.json"));
    let publish = |n: u32, endpoint: &Http1Upstream| {
        let mut origin = cluster("origin", &[endpoint.address()]);
        origin["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
        replace(&cds, &json!({ "version_info": n.to_string(), "resources": [origin] }).to_string());
        let mut listener: serde_json::Value = Listener::http("ingress")
            .route(direct("/version", 200, &n.to_string()))
            .route(to_cluster("/", "origin"))
            .into();
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        replace(&lds, &json!({ "version_info": n.to_string(), "resources": [listener] }).to_string());
    };
    publish(0, &first);
    let source = |path: &Path| json!({ "resource_api_version": "V3", "path_config_source": { "path": path.to_str().unwrap() } });
    let proxy = Proxy::builder()
        .dynamic(json!({ "lds_config": source(&lds), "cds_config": source(&cds) }))
        .start()
        .await;
    let mut old = proxy.http1().await;
    assert_eq!((version(&mut old).await, old.get("/").await.unwrap().text().as_str()), (0, "first"));
    publish(1, &second);
    eventually_async("version 1 on the port of before", async || {
        let mut fresh = proxy.http1().await;
        version(&mut fresh).await == 1 && fresh.get("/").await.unwrap().text() == "second"
    })
    .await;
    within("the old connection", async {
        assert_eq!(
            old.get("/").await.unwrap().text(),
            "second",
            "the old connection lives, and sees the new cluster"
        );
    })
    .await;
}

/// An endpoint goes while it has HTTP/2 streams: these finish, and what comes next goes elsewhere.
#[tokio::test]
async fn streams_of_an_endpoint_that_goes_finish() {
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let first = held_upstream(permits.clone()).await;
    let second = Http2Upstream::answering(Answer::ok("second")).await;
    let folder = tempfile::tempdir().unwrap();
    let cds = folder.path().join("cds.json");
    let publish = |endpoint: std::net::SocketAddr| {
        let mut origin = cluster_http2("origin", &[endpoint]);
        origin["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
        replace(&cds, &json!({ "resources": [origin] }).to_string());
    };
    publish(first.address);
    let source =
        json!({ "resource_api_version": "V3", "path_config_source": { "path": cds.to_str().unwrap() } });
    let listener = Listener::http("ingress").route(to_cluster("/", "origin"));
    let proxy = Proxy::builder().listener(listener).dynamic(json!({ "cds_config": source })).start().await;
    let mut old = proxy.http2().await;
    let stream = old.open(&get("/held"), true).await;
    eventually("the request at the upstream", || first.seen() == 1).await;

    publish(second.address());
    let address = second.address().to_string();
    eventually_async("the new endpoint", async || {
        proxy.admin("GET", "/clusters").await.unwrap().text().contains(&address)
    })
    .await;
    assert_eq!(proxy.http2().await.get("/").await.answer().text(), "second");
    permits.add_permits(1);
    assert_eq!(old.outcome(stream).await.answer().text(), "kept");
}

/// A connection says nothing while its listener is changed and the cluster of before removed. `kept`: it was used before.
async fn a_quiet_connection_follows_a_change(listener: impl Fn(&str) -> serde_json::Value, kept: bool) {
    let first = Http1Upstream::answering(Answer1::ok("first")).await;
    let second = Http1Upstream::answering(Answer1::ok("second")).await;
    let folder = tempfile::tempdir().unwrap();
    let (lds, cds) = (folder.path().join("lds.json"), folder.path().join("cds.json"));
    let publish = |name: &str, endpoint: &Http1Upstream| {
        let mut origin = cluster(name, &[endpoint.address()]);
        origin["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
        replace(&cds, &json!({ "resources": [origin] }).to_string());
        let mut listener = listener(name);
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        replace(&lds, &json!({ "resources": [listener] }).to_string());
    };
    publish("first", &first);
    let source = |path: &Path| json!({ "resource_api_version": "V3", "path_config_source": { "path": path.to_str().unwrap() } });
    let dynamic = json!({ "lds_config": source(&lds), "cds_config": source(&cds) });
    let proxy = Proxy::builder().dynamic(dynamic).start().await;
    let mut client = proxy.http1().await;
    if kept {
        assert_eq!(client.get("/").await.unwrap().text(), "first");
    }
    let page = async |path: &str| proxy.admin("GET", path).await.unwrap().text();
    eventually_async("the connection", async || {
        page("/stats/prometheus").await.contains("remora_downstream_connections{listener=\"ingress\"} 1")
    })
    .await;
    publish("second", &second);
    eventually_async("the old cluster to go", async || {
        let clusters = page("/clusters").await;
        clusters.contains("second::") && !clusters.contains("first::")
    })
    .await;
    assert_eq!(client.get("/").await.unwrap().text(), "second");
}

#[tokio::test]
async fn a_connection_that_has_said_nothing_yet_follows_a_change() {
    let listener = |cluster: &str| {
        let mut listener = Listener::tcp("ingress", cluster);
        // Its first bytes are waited for.
        listener["listener_filters"] = json!([{ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        }}]);
        listener
    };
    a_quiet_connection_follows_a_change(listener, false).await;
}

#[tokio::test]
async fn a_connection_between_requests_follows_a_change() {
    let listener = |cluster: &str| Listener::http("ingress").route(to_cluster("/", cluster)).into();
    a_quiet_connection_follows_a_change(listener, true).await;
}
