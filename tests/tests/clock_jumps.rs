//! I6 of docs/reference/identity-faults.md: the wall clock jumps while the proxy runs. Certificates and tokens are judged by it,
//! everything else by a clock that does not jump. libfaketime moves the clock of the one process; without it the test is skipped,
//! and says so.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::CertificateParams;
use remora_tests::certs::{Authority, ClientTls};
use remora_tests::client::http1::Http1Client;
use remora_tests::config::{Listener, cluster, to_cluster};
use remora_tests::proxy::Proxy;
use remora_tests::tokens::Issuer;
use remora_tests::traffic::Load;
use remora_tests::upstream::Upstream as _;
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use remora_tests::wait::eventually_async;
use rustls::client::Resumption;
use serde_json::{Value, json};
use tokio::sync::Notify;

const SERVER: &str = "a.example";
const CLIENT: &str = "spiffe://mesh.test/ns/shop/sa/web";
const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// libfaketime, where Debian's package `libfaketime` has it.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file())
}

/// The clock of one process, as seconds before or after the real one.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn jump(&self, seconds: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        // As a whole: the process reads it whenever it wants to know the time.
        std::fs::rename(&next, &self.file).unwrap();
    }
}

fn filters(keys: &str) -> Value {
    json!({ "http_filters": [
        { "name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "test": { "issuer": "test", "local_jwks": { "inline_string": keys } } },
            "rules": [{ "match": { "prefix": "/token" }, "requires": { "provider_name": "test" } }],
        } },
        { "name": "envoy.filters.http.router",
          "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } },
    ] })
}

struct Rig {
    proxy: Proxy,
    clock: Clock,
    authority: Authority,
    issuer: Issuer,
    /// Lets the request to `/slow` end.
    slow: Arc<Notify>,
    now: i64,
    _origin: Http1Upstream,
}

impl Rig {
    async fn start(library: &Path) -> Self {
        let slow = Arc::new(Notify::new());
        let permit = Arc::clone(&slow);
        let origin = Http1Upstream::scripted(move |seen, _| match seen.target() {
            "/slow" => {
                Answer::nothing().until(&permit).send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
            }
            _ => Answer::ok("origin"),
        })
        .await;
        let (authority, issuer) = (Authority::new(), Issuer::new());
        let timed = |mut route: Value| {
            route["route"]["timeout"] = "60s".into();
            route
        };
        let plain = Listener::http("ingress").manager(filters(&issuer.key_set()));
        let mutual = Listener::http("mutual").mutual_tls(&authority.issue(&[SERVER]), &authority, CLIENT);
        let builder = Proxy::builder();
        let clock = Clock { file: builder.folder().join("clock") };
        clock.jump(0);
        let proxy = builder
            .listener(plain.route(timed(to_cluster("/", "origin"))))
            .listener(mutual.route(timed(to_cluster("/", "origin"))))
            .cluster(cluster("origin", &[origin.address()]))
            .environment("LD_PRELOAD", library.to_str().unwrap())
            .environment("FAKETIME_TIMESTAMP_FILE", clock.file.to_str().unwrap())
            .environment("FAKETIME_NO_CACHE", "1")
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .start()
            .await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { proxy, clock, authority, issuer, slow, now: now.try_into().unwrap(), _origin: origin }
    }

    /// A client with a certificate that is good from `from` to `to`, seconds from now.
    fn client(&self, from: i64, to: i64) -> ClientTls {
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs((self.now + seconds).try_into().unwrap());
        let bounds = |params: &mut CertificateParams| {
            params.not_before = at(from).into();
            params.not_after = at(to).into();
        };
        let named = self.authority.issue_with(&[CLIENT], bounds);
        let mut tls = self.authority.client(SERVER, &["http/1.1"], Some(&named));
        // A session that is resumed shows no certificate.
        Arc::make_mut(&mut tls.config).resumption = Resumption::disabled();
        tls
    }

    /// Whether such a client gets an answer, on a connection of its own.
    async fn enters(&self, tls: &ClientTls) -> bool {
        let connected = Http1Client::connect_tls(self.proxy.address("mutual"), tls).await;
        match connected {
            Ok(mut client) => client.get("/").await.is_ok_and(|answer| answer.status == 200),
            Err(_) => false,
        }
    }

    /// Why a token that is good from `from` to `to`, seconds from now, is refused; None when it is not.
    async fn refusal(&self, from: i64, to: i64) -> Option<String> {
        let claims = json!({ "iss": "test", "nbf": self.now + from, "exp": self.now + to });
        let token = self.issuer.token(&claims);
        let mut client = self.proxy.http1().await;
        let head = format!("GET /token HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer {token}\r\n\r\n");
        client.send(head).await;
        client.response().await.unwrap().reason().map(str::to_owned)
    }
}

#[tokio::test]
async fn i6_a_jump_of_the_clock_loses_only_what_has_truly_ended() {
    let Some(library) = library() else {
        println!("SKIPPED: there is no libfaketime on this machine (Debian: apt-get install libfaketime)");
        return;
    };
    let rig = Rig::start(&library).await;
    // Good for half an hour before and after now, and good for ever.
    let (brief, lasting) = (rig.client(-HOUR / 2, HOUR / 2), rig.client(-YEAR, 20 * YEAR));
    let ingress = rig.proxy.address("ingress");
    let kept = Load::on(ingress).start().await;
    let handshakes = Load::on(rig.proxy.address("mutual")).tls(&lasting).reconnect().start().await;
    let mut idle = rig.proxy.http1().await;
    assert_eq!(idle.get("/").await.unwrap().status, 200);
    let mut open = Http1Client::connect_tls(rig.proxy.address("mutual"), &brief).await.unwrap();
    assert_eq!(open.get("/").await.unwrap().status, 200);
    let mut slow = rig.proxy.http1().await;
    slow.send("GET /slow HTTP/1.1\r\nHost: a.example\r\n\r\n").await;

    for (jump, token, certificate) in [
        (HOUR, Some("jwt_expired"), Some("tls_certificate_expired")),
        (0, None, None),
        (-HOUR, Some("jwt_not_yet_valid"), Some("tls_certificate_not_yet_valid")),
        (10 * YEAR, Some("jwt_expired"), Some("tls_certificate_expired")),
        (-HOUR, Some("jwt_not_yet_valid"), Some("tls_certificate_not_yet_valid")),
        (0, None, None),
    ] {
        rig.clock.jump(jump);
        eventually_async("the token's verdict", async || {
            rig.refusal(-HOUR / 2, HOUR / 2).await.as_deref() == token
        })
        .await;
        assert_eq!(rig.refusal(-YEAR, 20 * YEAR).await, None, "{jump}");
        match certificate {
            None => assert!(rig.enters(&brief).await, "{jump}"),
            Some(reason) => {
                let series = format!("remora_downstream_rejected_total{{reason=\"{reason}\"}}");
                let before = rig.proxy.count(&series).await;
                assert!(!rig.enters(&brief).await, "{jump}");
                rig.proxy.counts(&series, before + 1).await;
            }
        }
        assert!(rig.enters(&lasting).await, "{jump}");
        kept.flows(20).await;
        handshakes.flows(5).await;
        assert_eq!(open.get("/").await.unwrap().status, 200, "what is open goes on, {jump}");
    }
    rig.slow.notify_one();
    assert_eq!(slow.response().await.unwrap().text(), "slow", "no time limit has seen the jumps");
    assert_eq!(idle.get("/").await.unwrap().status, 200, "nor has an idle limit");
    let (kept, handshakes) = (kept.lost_nothing().await, handshakes.lost_nothing().await);
    println!(
        "I6: six jumps, {kept} requests on one connection, {handshakes} on connections of their own, none lost"
    );
}
