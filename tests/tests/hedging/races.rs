//! What becomes of a try that lost, and of what it said.

use super::*;

use remora_tests::wait::eventually_async;

/// The late try of [`hedging`] waits for `go`; the one beside it gets `hedge`.
async fn race(
    first: &str,
    go: &Arc<Notify>,
    hedge: impl Fn() -> Answer + Send + Sync + 'static,
) -> Http1Upstream {
    let (first, permit) = (first.to_owned(), Arc::clone(go));
    Http1Upstream::scripted(move |_, n| match n {
        0 => Answer::nothing().until(&permit).send(&first),
        1 => hedge(),
        _ => Answer::ok("third"),
    })
    .await
}

/// Waits until the proxy has forgotten all tries at `origin` but one.
async fn one_is_left(proxy: &Proxy) {
    eventually_async("one try is left", async || {
        let page = proxy.admin("GET", "/clusters").await.unwrap().text();
        let of_origin = page.lines().filter(|line| line.starts_with("origin::"));
        let active = of_origin.filter_map(|line| line.split_once("::rq_active::")?.1.parse::<u64>().ok());
        active.sum::<u64>() == 1
    })
    .await;
}

const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";

/// The second one failed, and there was no time to try again: the first is not tried again for that.
#[tokio::test]
async fn a_try_that_was_followed_gets_no_other_successor() {
    let go = Arc::new(Notify::new());
    let hedge = || Answer::raw(format!("{BAD}Retry-After: 100\r\n\r\nhedge"));
    let upstream = race(&format!("{BAD}\r\nfirst"), &go, hedge).await;
    let proxy = proxy(hedging(json!({})), origin(&upstream)).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(1).await;
    one_is_left(&proxy).await;
    go.notify_one();
    let answer = client.response().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (503, "first"));
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn interim_answers_of_a_try_that_lost_do_not_reach_the_client() {
    let go = Arc::new(Notify::new());
    let hedge = || Answer::raw(format!("{HINTS}{BAD}\r\nhedge"));
    let upstream = race(&ok("first"), &go, hedge).await;
    let proxy = proxy(hedging(json!({ "retry_policy": { "num_retries": 1 } })), origin(&upstream)).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    upstream.request(1).await;
    one_is_left(&proxy).await;
    go.notify_one();
    let answer = client.response().await.unwrap();
    assert_eq!((answer.text().as_str(), answer.informational.len()), ("first", 0));
}

#[tokio::test]
async fn interim_answers_of_the_try_that_won_come_before_its_answer() {
    let go = Arc::new(Notify::new());
    let hedge = || Answer::raw(format!("{HINTS}{HINTS}{}", ok("hedge")));
    let upstream = race(&ok("first"), &go, hedge).await;
    let proxy = proxy(hedging(json!({})), origin(&upstream)).await;
    let answer = proxy.http1().await.get("/").await.unwrap();
    assert_eq!((answer.text().as_str(), answer.informational.len()), ("hedge", 2));
}

#[tokio::test]
async fn interim_answers_of_the_only_try_pass_at_once() {
    let go = Arc::new(Notify::new());
    let permit = Arc::clone(&go);
    let upstream =
        Http1Upstream::scripted(move |_, _| Answer::raw(HINTS).until(&permit).send(ok("own"))).await;
    let proxy =
        proxy(hedging(json!({ "retry_policy": { "per_try_timeout": "10s" } })), origin(&upstream)).await;
    let mut client = proxy.http1().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.any_head().await.unwrap().word(1), "103");
    go.notify_one();
    assert_eq!(client.response().await.unwrap().text(), "own");
}
