//! Floods of HTTP/2 frames on one connection: ended or worked off in bounded memory, with bounded work for upstreams,
//! and without harm to other clients.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use remora_tests::client::http1::Http1Client;
use remora_tests::flood::{End, FLOODS, Flood, HELD};
use remora_tests::proxy::{Proxy, guarded};
use remora_tests::upstream::http1::{Answer, Http1Upstream};
use tokio::time::Instant;

/// What one connection may cost in memory.
const MEMORY: u64 = 5 << 20;
/// Concurrent streams that the listener of these tests allows.
const STREAMS: u32 = 100;
/// Requests that may reach the upstream from one flooding connection: the streams allowed at once, and those that a
/// sane client may reset before it counts as a flood.
const WORK: usize = 1500;

async fn pair() -> (Http1Upstream, Proxy) {
    let upstream = Http1Upstream::scripted(|request, _| match request.target() {
        HELD => Answer::nothing().early().hang(),
        _ => Answer::ok("hello"),
    })
    .await;
    let listener = guarded("ingress")
        .manager(serde_json::json!({ "http2_protocol_options": { "max_concurrent_streams": STREAMS } }));
    let proxy = Proxy::builder().listener(listener).upstream("origin", &upstream).start().await;
    (upstream, proxy)
}

async fn flood(name: &str) {
    let flood: &Flood = FLOODS.iter().find(|f| f.name == name).unwrap();
    let (upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    assert_eq!(client.get("/").await.answer().status, 200);
    let before = proxy.rss();
    let peak = AtomicU64::new(before);
    let end = tokio::select! {
        end = flood.pour(&mut client) => end,
        () = watch_memory(&proxy, &peak) => unreachable!("watches for ever"),
    };
    let grown = peak.load(Ordering::Relaxed).max(proxy.rss()).saturating_sub(before);
    assert!(grown < MEMORY, "{name}: memory grew by {grown} bytes ({end:?})");
    if flood.must_close {
        assert!(matches!(end, End::Closed(_)), "{name}: {end:?}");
    }
    let work = upstream.requests().len();
    assert!(work < WORK, "{name}: {work} requests reached the upstream ({end:?})");
    drop(client);
    assert_eq!(proxy.http1().await.get("/").await.unwrap().status, 200, "{name}: the next client is served");
}

async fn watch_memory(proxy: &Proxy, peak: &AtomicU64) {
    loop {
        peak.fetch_max(proxy.rss(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

macro_rules! floods {
    ($($name:ident)+) => {
        $(#[tokio::test] async fn $name() { flood(stringify!($name)).await; })+

        #[test]
        fn every_flood_has_a_test() {
            let tests = [$(stringify!($name)),+];
            assert!(FLOODS.iter().all(|f| tests.contains(&f.name)) && tests.len() == FLOODS.len());
        }
    };
}

floods! {
    rapid_reset continuation_32_mb empty_continuation ping ping_unread settings settings_unread empty_data
    one_byte_data priority window_update unknown_frames reset_by_window_update_of_zero reset_by_window_overflow
    reset_by_priority_length reset_by_self_dependency reset_by_headers_after_end reset_by_data_after_end header_bomb
    open_streams
}

/// A thousand resets, slowly: a browser that navigates away often is no attacker.
#[tokio::test]
async fn a_client_that_cancels_now_and_then_is_not_punished() {
    let (_upstream, proxy) = pair().await;
    let mut client = proxy.http2().await;
    for _ in 0..100 {
        let stream = client.open(&remora_tests::client::http2::get(HELD), true).await;
        client.send(remora_tests::frame::Frame::reset(stream, 8)).await;
        assert_eq!(client.get("/").await.answer().status, 200);
    }
}

// ---- other clients do not notice

/// p99 of a steady client's requests over `time`.
async fn p99(proxy: &Proxy, time: Duration) -> Duration {
    let mut client = Http1Client::connect(proxy.address("ingress")).await;
    let mut samples = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let start = Instant::now();
        assert_eq!(client.get("/").await.unwrap().status, 200);
        samples.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    samples.sort();
    samples[samples.len() * 99 / 100]
}

/// Floods `address` from a thread of its own: one connection, for `limit`, or until the proxy ends it. Returns for how
/// long it was flooded.
fn flooder(
    address: std::net::SocketAddr,
    flood: Flood,
    limit: Duration,
) -> std::thread::JoinHandle<Duration> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let bytes = (flood.bytes)();
            let mut client = remora_tests::client::http2::Http2Client::connect(address).await;
            let start = Instant::now();
            let pour = async {
                while client.pour(&bytes, flood.reading, Duration::from_millis(100)).await == bytes.len() {}
            };
            let _still_open = tokio::time::timeout(limit, pour).await;
            start.elapsed()
        })
    })
}

/// Accepts and discards: the flooder's own cost on this machine, without a proxy in it.
async fn sink() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _gone = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    });
    (address, task)
}

/// p99 over [`WINDOW`] while `target` is flooded for `limit`, and for how long it was.
async fn during(
    target: std::net::SocketAddr,
    flood: Flood,
    limit: Duration,
    proxy: &Proxy,
) -> (Duration, Duration) {
    let thread = flooder(target, flood, limit);
    let result = p99(proxy, WINDOW).await;
    let flooded = tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
    (result, flooded)
}

/// How long latency is measured.
const WINDOW: Duration = Duration::from_secs(2);

/// The gate: the p99 of a well-behaved client moves by less than 20 %. On a machine of two shared cores the flooding
/// client itself costs latency, so the reference is the larger of the idle p99 and the p99 while the same flood goes
/// for the same time into a sink; one millisecond, the time slice of a busy core, is no movement; and a flood that misses the gate is
/// measured up to three times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures latency: run alone, `cargo test --release -p remora-tests --test floods -- --ignored --nocapture`"]
async fn well_behaved_clients_do_not_notice_floods() {
    let mut missed = Vec::new();
    for flood in FLOODS {
        let mut passed = false;
        for _ in 0..3 {
            passed |= is_not_noticed(flood).await;
            if passed {
                break;
            }
        }
        if !passed {
            missed.push(flood.name);
        }
    }
    assert!(missed.is_empty(), "p99 moved by more than 20 %: {missed:?}");
}

async fn is_not_noticed(flood: &Flood) -> bool {
    let (_upstream, proxy) = pair().await;
    p99(&proxy, Duration::from_millis(300)).await;
    let idle = p99(&proxy, WINDOW).await;
    let (loaded, flooded) = during(proxy.address("ingress"), *flood, WINDOW, &proxy).await;
    let (address, sink) = sink().await;
    let (control, _) = during(address, *flood, flooded, &proxy).await;
    sink.abort();
    let allowed = control.max(idle).mul_f64(1.2) + Duration::from_millis(1);
    let verdict = if loaded <= allowed { "ok" } else { "MISSED" };
    println!(
        "{:32} flooded for {flooded:>8.1?}; p99 idle {idle:>8.1?}, sink {control:>8.1?}, proxy {loaded:>8.1?}  {verdict}",
        flood.name
    );
    loaded <= allowed
}
