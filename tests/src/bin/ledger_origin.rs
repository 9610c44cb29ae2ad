//! An HTTP/1 origin as a process: `ledger-origin ADDRESS LOG MICROSECONDS`. It prints its address, writes every request that it
//! has read to its end into LOG before it works on it, and answers after that time.
//!
//! On SIGTERM it leaves as a program should: for a moment it still accepts, and asks every client to close; then it stops listening,
//! and ends when nobody is left.
#![allow(clippy::unwrap_used, reason = "a program of the tests")]

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use remora_tests::http1::{BodyReader, latin1, take_head};
use remora_tests::ledger::receipt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long it accepts after SIGTERM, and how long a connection may then be idle.
const GRACE: Duration = Duration::from_millis(300);

struct App {
    log: File,
    work: Duration,
    leaving: watch::Receiver<bool>,
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().unwrap().parse().unwrap();
    let log = File::options().create(true).append(true).open(arguments.next().unwrap())?;
    let work = Duration::from_micros(arguments.next().unwrap().parse().unwrap());
    let (leave, leaving) = watch::channel(false);
    let app = App { log, work, leaving };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?
        .block_on(run(address, app, leave))
}

async fn run(address: SocketAddr, app: App, leave: watch::Sender<bool>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(1024)?;
    println!("{}", listener.local_addr()?);
    let app = Rc::new(app);
    let mut connections = JoinSet::new();
    let mut last = None;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn_local(serve(accepted?.0, Rc::clone(&app)));
            }
            _ = terminate.recv() => {
                leave.send_replace(true);
                last = Some(tokio::time::Instant::now() + GRACE);
            }
            () = until(last) => break,
        }
    }
    // Closing resets what the kernel has accepted and nobody has taken.
    let listener = listener.into_std()?;
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(true)?;
        connections.spawn_local(serve(TcpStream::from_std(stream)?, Rc::clone(&app)));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// One connection. Whatever goes wrong on it ends it, and is its peer's to notice.
async fn serve(mut stream: TcpStream, app: Rc<App>) {
    let _ = stream.set_nodelay(true);
    let mut input = BytesMut::new();
    let mut leaving = app.leaving.clone();
    loop {
        let head = loop {
            match take_head(&mut input) {
                Ok(Some(head)) => break head,
                Ok(None) => {}
                Err(_) => return,
            }
            let idle = async {
                let _ = leaving.wait_for(|leaving| *leaving).await;
                tokio::time::sleep(GRACE * 2).await;
            };
            tokio::select! {
                read = stream.read_buf(&mut input) => if !matches!(read, Ok(1..)) { return },
                () = idle => return,
            }
        };
        let Ok(mut body) = BodyReader::request(&head.fields) else { return };
        while !matches!(body.read(&mut input), Ok(true)) {
            match timeout(Duration::from_secs(10), stream.read_buf(&mut input)).await {
                Ok(Ok(1..)) => {}
                _ => return,
            }
        }
        let line = format!("{} {} {}\n", head.word(0), head.word(1), latin1(&body.body));
        (&app.log).write_all(line.as_bytes()).unwrap();
        if !app.work.is_zero() {
            tokio::time::sleep(app.work).await;
        }
        let text = receipt(head.word(0), head.word(1));
        let close = *app.leaving.borrow();
        let connection = if close { "Connection: close\r\n" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: {}\r\n\r\n{text}", text.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || close {
            let _ = stream.shutdown().await;
            return;
        }
    }
}
