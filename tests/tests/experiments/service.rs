//! Services of an experiment, in the test's own process: two that work and have a capacity, and one that asks another.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use remora_tests::client::http1::Http1Client;
use remora_tests::http1::{Head, take_head};
use remora_tests::ledger::receipt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// The header by which a sidecar says that retries below it were used up. A gateway passes it on as it passes the status.
const EXHAUSTED: &str = "x-remora-retries-exhausted";

/// A service of workers with a queue. Like most programs it does not notice that a caller has gone until it has the answer.
#[derive(Debug)]
pub(crate) struct Service {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    work: Arc<Work>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Work {
    workers: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    time: Duration,
    arrivals: Mutex<Vec<Instant>>,
}

impl Service {
    /// `workers` that need `time` for each request, and a queue of `queue` requests; what does not fit is 503.
    pub(crate) async fn start(workers: usize, time: Duration, queue: usize) -> Self {
        let work = Arc::new(Work {
            workers: Semaphore::new(workers),
            waiting: AtomicUsize::new(0),
            queue,
            time,
            arrivals: Mutex::default(),
        });
        let (address, task) = listen(Answer::Work(Arc::clone(&work))).await;
        Self { address, work, task }
    }

    /// Takes `workers` away as soon as they have finished what they do.
    pub(crate) async fn shrink(&self, workers: u32) {
        self.work.workers.acquire_many(workers).await.unwrap().forget();
    }

    /// Gives workers back.
    pub(crate) fn grow(&self, workers: u32) {
        self.work.workers.add_permits(workers as usize);
    }

    /// When requests came.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.work.arrivals.lock().unwrap().clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Work {
    async fn serve(&self, head: &Head) -> String {
        self.arrivals.lock().unwrap().push(Instant::now());
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return text(503, "", "full");
        }
        let worker = self.workers.acquire().await.unwrap();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        tokio::time::sleep(self.time).await;
        drop(worker);
        text(200, "", &receipt(head.word(0), head.word(1)))
    }
}

/// A service of workers with a queue, whose capacity is exact: a worker is free again when its work was to be done by plan, however late the
/// machine was to say so. Like [`Service`] it works on what nobody waits for any more.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Plan {
    /// When each worker is free.
    free: Vec<Instant>,
    time: Duration,
    longest_wait: Duration,
    taken: u32,
}

impl Planned {
    /// `workers` that need `time` for a request, give or take a fifth of it; whoever would wait longer than `longest_wait` for one is answered 503.
    pub(crate) async fn start(workers: usize, time: Duration, longest_wait: Duration) -> Self {
        let plan = Plan { free: vec![Instant::now(); workers], time, longest_wait, taken: 0 };
        let (address, task) = listen(Answer::Planned(Mutex::new(plan))).await;
        Self { address, task }
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plan {
    /// When a request that comes now is done; None when the queue is full.
    fn take(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let worker = self.free.iter_mut().min()?;
        let begin = now.max(*worker);
        if begin - now > self.longest_wait {
            return None;
        }
        self.taken += 1;
        // Multiples of the golden ratio, less the integers: as even as can be, and in no order.
        let share = (f64::from(self.taken) * 0.618_033_988_749_895).fract();
        *worker = begin + self.time.mul_f64(0.4f64.mul_add(share, 0.8));
        Some(*worker)
    }
}

/// A service that asks the one behind `next`, and answers what that one answers: with the mark that retries below were in vain, or
/// without, as programs do that know nothing of it.
#[derive(Debug)]
pub(crate) struct Middle {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Middle {
    /// Starts one.
    pub(crate) async fn start(next: SocketAddr, marks: bool) -> Self {
        let (address, task) = listen(Answer::Ask { next, marks, idle: Mutex::default() }).await;
        Self { address, task }
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask((next, marks): (SocketAddr, bool), head: &Head, idle: &Mutex<Vec<Http1Client>>) -> String {
    let kept = idle.lock().unwrap().pop();
    let client = match kept {
        Some(client) => Ok(client),
        None => Http1Client::try_connect(next).await,
    };
    let Ok(mut client) = client else { return text(503, "", "no sidecar") };
    match client.get(head.word(1)).await {
        Err(_) => text(503, "", "no answer"),
        Ok(response) => {
            if response.keeps_alive() {
                idle.lock().unwrap().push(client);
            }
            let exhausted = response.fields.get(EXHAUSTED).filter(|_| marks);
            let fields = exhausted.map(|value| format!("{EXHAUSTED}: {value}\r\n")).unwrap_or_default();
            text(response.status, &fields, &response.text())
        }
    }
}

fn text(status: u16, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} -\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// How a service answers.
enum Answer {
    Work(Arc<Work>),
    Planned(Mutex<Plan>),
    Ask { next: SocketAddr, marks: bool, idle: Mutex<Vec<Http1Client>> },
}

/// Answers GETs on a free port.
async fn listen(answer: Answer) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, Arc::clone(&answer)));
            while connections.try_join_next().is_some() {}
        }
    });
    (address, task)
}

async fn serve(mut stream: TcpStream, answer: Arc<Answer>) {
    let _ = stream.set_nodelay(true);
    let mut input = BytesMut::new();
    loop {
        let head = loop {
            match take_head(&mut input) {
                Ok(Some(head)) => break head,
                Ok(None) if matches!(stream.read_buf(&mut input).await, Ok(1..)) => {}
                _ => return,
            }
        };
        let text = match &*answer {
            Answer::Work(work) => work.serve(&head).await,
            Answer::Planned(plan) => {
                let done = plan.lock().unwrap().take();
                match done {
                    None => text(503, "", "full"),
                    Some(done) => {
                        tokio::time::sleep_until(done).await;
                        text(200, "", &receipt(head.word(0), head.word(1)))
                    }
                }
            }
            Answer::Ask { next, marks, idle } => ask((*next, *marks), &head, idle).await,
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
