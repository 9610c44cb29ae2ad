//! Too much of something: U11, D7, D8.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use remora_tests::client::http1::Http1Client;
use remora_tests::config::cluster;
use remora_tests::ledger::{Offer, executed, origin};
use remora_tests::proxy::Proxy;
use remora_tests::upstream::Upstream as _;
use remora_tests::wait::{eventually, eventually_async, reached, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{before, in_front_of, ms};

const MIB: u64 = 1 << 20;

/// Reads 125 kB/s (1 Mbit/s) until `fast`, then all of it; answers with the number of bytes.
async fn slow_reader(listener: TcpListener, mut fast: watch::Receiver<bool>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut buffer, mut bytes, mut body, mut length) = (vec![0; 64 << 10], 0_u64, None::<u64>, 0);
    while body.is_none_or(|body| body < length) {
        let most = if *fast.borrow() { buffer.len() } else { 1250 };
        let read = stream.read(&mut buffer[..most]).await.unwrap();
        assert_ne!(read, 0, "the upload was cut off after {bytes} bytes");
        bytes += read as u64;
        match &mut body {
            Some(body) => *body += read as u64,
            None => {
                let text = remora_tests::http1::latin1(&buffer[..read]);
                let end = text.find("\r\n\r\n").expect("the head comes at once") + 4;
                let field = text
                    .lines()
                    .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                length = field.unwrap().parse().unwrap();
                body = Some((read - end) as u64);
            }
        }
        if !*fast.borrow() {
            let _ = tokio::time::timeout(ms(10), fast.changed()).await;
        }
    }
    let text = bytes.to_string();
    stream
        .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
        .await
        .unwrap();
}

/// 100 MiB to an origin that reads 1 Mbit/s: the client has to wait, and the proxy keeps next to nothing.
#[tokio::test]
async fn u11_a_slow_reader_slows_the_client_and_fills_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (speed, fast) = watch::channel(false);
    let reader = tokio::spawn(slow_reader(listener, fast));
    let proxy = before(&[address]).await;
    let rss = proxy.rss();
    let mut client = proxy.http1().await;
    let (total, sent) = (100 * MIB, Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&sent);
    let upload = tokio::spawn(async move {
        client
            .send(format!("POST /upload HTTP/1.1\r\nHost: a.example\r\nContent-Length: {total}\r\n\r\n"))
            .await;
        let piece = vec![b'x'; 64 << 10];
        while counted.load(Ordering::Relaxed) < total {
            client.try_send(&piece).await.unwrap();
            counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        client.response().await.unwrap()
    });
    let (mut last, mut still) = (0, Instant::now());
    eventually("the client has to wait", || {
        let now = sent.load(Ordering::Relaxed);
        if now != last {
            (last, still) = (now, Instant::now());
        }
        now > 0 && still.elapsed() > ms(600)
    })
    .await;
    let grown = proxy.rss().saturating_sub(rss);
    println!("U11: stopped after {} KiB, memory grew by {} KiB", last >> 10, grown >> 10);
    assert!(last < 20 * MIB, "{last} bytes are under way");
    assert!(grown < 5 * MIB, "memory grew by {grown} bytes");
    speed.send_replace(true);
    let response = within("the rest of the upload", upload).await.unwrap();
    assert_eq!(response.status, 200);
    assert!(response.text().parse::<u64>().unwrap() > total);
    assert!(proxy.rss().saturating_sub(rss) < 5 * MIB);
    reader.await.unwrap();
}

/// Many idle connections, some active ones. As many as the limit on files of most machines allows; the rest is multiplication.
#[tokio::test]
async fn d7_idle_connections_are_cheap() {
    // The clients are in this process: more of them than the usual 1,024 files.
    remora_proxy::limits::raise_open_files();
    let well = origin(ms(0)).await;
    let proxy = before(&[well.address()]).await;
    let address = proxy.address("ingress");
    Offer::gets(address, 200).during(ms(300)).await.nothing_lost("D7 before");
    let (rss, count) = (proxy.rss(), 2000);
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = Http1Client::connect(address).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        idle.push(client);
    }
    let ledger = Offer::both(address, 200).during(ms(1000)).await.with(executed(&well));
    ledger.nothing_lost("D7");
    let each = proxy.rss().saturating_sub(rss) / count as u64;
    println!("D7: {each} bytes for each of {count} idle connections");
    // 25 kB is what a release promises; without optimisation the futures are larger.
    assert!(each < 45_000, "{each} bytes for each idle connection");
    for client in idle.iter_mut().step_by(97) {
        assert_eq!(client.get("/").await.unwrap().status, 200, "an idle connection is as good as new");
    }
}

/// No file is left for clients: nothing spins, who is there is served, the admin page has files of its own, and it is over as soon as there
/// are files again.
#[tokio::test]
async fn d8_without_files_nothing_spins_and_who_is_there_is_served() {
    let well = origin(ms(0)).await;
    let proxy: Proxy =
        in_front_of(cluster("origin", &[well.address()]), &json!({})).open_files(160).start().await;
    let address = proxy.address("ingress");
    let mut good = Vec::new();
    for _ in 0..5 {
        let mut client = Http1Client::connect(address).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        good.push(client);
    }
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(within("connect", TcpStream::connect(address)).await.unwrap());
    }
    eventually("the files for clients are taken", || proxy.open_files() >= 140).await;
    let (before, start) = (proxy.cpu_ticks(), Instant::now());
    while start.elapsed() < ms(1000) {
        for client in &mut good {
            assert_eq!(client.get("/").await.unwrap().status, 200, "who was there first is served");
        }
        let page = within("the admin page", proxy.admin("GET", "/ready")).await.unwrap();
        assert_eq!(page.status, 200);
        tokio::time::sleep(ms(50)).await;
    }
    let (used, files) = (proxy.cpu_ticks() - before, proxy.open_files());
    assert!(files < 150, "{files} of 160 files are taken");
    assert!(used < 20, "{used} ticks of CPU in 100: it spins");
    drop(held);
    let recovery = reached("service", ms(3000), async || match Http1Client::try_connect(address).await {
        Ok(mut client) => client.get("/").await.is_ok_and(|r| r.status == 200),
        Err(_) => false,
    })
    .await;
    println!("D8: {used} ticks of CPU in 100, recovered after {recovery:.1?}");
    assert!(recovery < ms(1500), "{recovery:?}");
    eventually_async("the held connections are gone", async || {
        proxy.count("remora_downstream_connections{listener=\"ingress\"}").await <= 6
    })
    .await;
}
