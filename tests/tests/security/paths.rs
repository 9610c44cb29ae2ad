//! Paths: one canonical form for policy, routing and forwarding. What could be read in two ways is refused.

use remora_tests::client::http1::Http1Client;
use remora_tests::client::http2::{Http2Client, Outcome};
use remora_tests::config::to_cluster;
use remora_tests::hpack;
use remora_tests::proxy::Proxy;
use remora_tests::upstream::http1::{Answer, Http1Upstream};

use crate::{any, judged, rbac, under};

/// Spellings of `/admin` (CVE-2019-9901, CVE-2021-29492, CVE-2021-31920, CVE-2026-73511, CVE-2026-73551, CVE-2026-73553).
const ADMIN: [&str; 20] = [
    "/admin",
    "/admin/",
    "/admin?x",
    "/admin;v=1",
    "//admin",
    "/./admin",
    "/x/../admin",
    "/x//../admin",
    "/%61dmin",
    "/%2e/admin",
    "/x/%2e%2e/admin",
    "/x/.%2E/admin",
    "/x%2f..%2fadmin",
    "/%2fadmin",
    "/x/%5c../admin",
    "/x\\..\\admin",
    "/x/..;/admin",
    "/x/..;a=b/admin",
    "/.;/admin",
    "/x/%2e%2e;/admin",
];

/// Paths that are cut, or that end early, for some reader (CVE-2019-9900 and the fragment's class).
const CUT: [&str; 5] = ["/x#/admin", "/admin#", "/x?q#/admin", "/admin%00", "/x%00/../admin"];

/// Two listeners: `deny` refuses `/admin`, `allow` lets in `/public` alone; both send `/admin` elsewhere.
async fn rig() -> (Http1Upstream, Proxy) {
    let origin = Http1Upstream::answering(Answer::ok("hello")).await;
    let listen = |name, action, prefix| {
        judged(name, rbac(action, under(prefix), any()))
            .route(to_cluster("/admin", "admin"))
            .route(to_cluster("/", "origin"))
    };
    let proxy = Proxy::builder()
        .listener(listen("ingress", "DENY", "/admin"))
        .listener(listen("allow", "ALLOW", "/public"))
        .upstream("origin", &origin)
        .upstream("admin", &origin)
        .start()
        .await;
    (origin, proxy)
}

/// Status and reason of a path that is sent as it is, by HTTP/1 or HTTP/2; None: the stream or connection was ended instead.
async fn ask(proxy: &Proxy, listener: &str, path: &str, http2: bool) -> Option<(u16, Option<String>)> {
    let address = proxy.address(listener);
    if !http2 {
        let answer = Http1Client::connect(address).await.get(path).await.unwrap();
        return Some((answer.status, answer.reason().map(Into::into)));
    }
    let mut client = Http2Client::connect(address).await;
    match client.get(path).await {
        Outcome::Answer(answer) => Some((answer.status, answer.reason().map(Into::into))),
        Outcome::Reset(..) | Outcome::ConnectionEnded(_) => None,
    }
}

/// No spelling of a path that a rule denies comes through, and no spelling lends the path that a rule allows.
#[tokio::test]
async fn every_spelling_of_a_denied_path_is_denied() {
    let (origin, proxy) = rig().await;
    for http2 in [false, true] {
        for path in ADMIN {
            let (status, reason) = ask(&proxy, "ingress", path, http2).await.unwrap();
            match reason.as_deref() {
                Some("rbac_denied") => assert_eq!(status, 403),
                Some("bad_path") => assert_eq!(status, 400),
                other => panic!("{path}: {status} {other:?}"),
            }
            let inside = format!("/public{path}");
            let above = format!("/public/..{path}");
            for path in [&above, &inside] {
                let before = origin.requests().len();
                let (status, reason) = ask(&proxy, "allow", path, http2).await.unwrap();
                match origin.requests().get(before) {
                    // What was let in is under /public for whoever reads it.
                    Some(seen) => {
                        let seen = seen.target();
                        assert!(seen.starts_with("/public/") && !seen.contains(".."), "{path}: {seen}");
                        assert!(
                            status == 200 && !seen.contains("%2") && !seen.contains("%5"),
                            "{path}: {seen}"
                        );
                    }
                    None => assert!(reason.is_some_and(|r| r == "rbac_denied" || r == "bad_path"), "{path}"),
                }
            }
        }
    }
    assert!(origin.requests().iter().all(|seen| seen.target().starts_with("/public/")));
}

/// What a rule sees, what a route sees and what the origin gets is one text.
#[tokio::test]
async fn the_path_that_is_authorised_is_the_path_that_is_routed_and_forwarded() {
    let (origin, proxy) = rig().await;
    for (sent, seen) in [
        ("/public/a", "/public/a"),
        ("/x/../public/./a", "/public/a"),
        ("//public//%61", "/public/a"),
        ("/%70ublic/a;v=1?next=/../admin%2f", "/public/a;v=1?next=/../admin%2f"),
        ("/public/%c3%a4%252e", "/public/%C3%A4%252e"),
    ] {
        for http2 in [false, true] {
            let before = origin.requests().len();
            assert_eq!(ask(&proxy, "allow", sent, http2).await, Some((200, None)), "{sent}");
            assert_eq!(origin.requests()[before].target(), seen, "{sent}");
        }
    }
}

/// A fragment or an encoded NUL ends a path for one reader and not for the other.
#[tokio::test]
async fn a_fragment_or_a_nul_cuts_no_path() {
    let (origin, proxy) = rig().await;
    for path in CUT {
        let refused = Some((400, Some("bad_path".to_owned())));
        assert_eq!(ask(&proxy, "ingress", path, false).await, refused, "{path}");
        let before = origin.requests().len();
        // On HTTP/2 the codec may cut the fragment off: then it is gone for the rule, too.
        if let Some((200, _)) = ask(&proxy, "ingress", path, true).await {
            assert_eq!(origin.requests()[before].target(), path.split('#').next().unwrap());
            assert!(path.starts_with("/x") && path.contains('#'), "{path}");
        }
    }
    let before = origin.requests().len();
    for raw in [&b"/admin\0"[..], b"/x\0/../admin", b"/\0"] {
        let mut client = proxy.http1().await;
        client.send([b"GET ", raw, b" HTTP/1.1\r\nHost: a.example\r\n\r\n"].concat()).await;
        assert_eq!(client.response().await.unwrap().status, 400, "{}", raw.escape_ascii());
        let mut client = proxy.http2().await;
        let fields = [
            (&b":method"[..], &b"GET"[..]),
            (b":scheme", b"http"),
            (b":authority", b"a.example"),
            (b":path", raw),
        ];
        let stream = client.open_block(&hpack::encode_bytes(&fields), true).await;
        if let Outcome::Answer(answer) = client.outcome(stream).await {
            assert_eq!(answer.status, 400, "{}", raw.escape_ascii());
        }
    }
    assert_eq!(origin.requests().len(), before);
}
