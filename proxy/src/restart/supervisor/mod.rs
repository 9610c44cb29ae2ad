//! `--supervise`: a small process that starts the proxy, keeps copies of its listening sockets, and has a new one take over when it is told to.
//!
//! It is made to be process 1 of a container: it passes signals on, reaps every child, also those that others left behind, and ends when
//! the proxy has. A proxy that dies is started anew; its sockets were never closed, so who connects meanwhile waits.

mod child;

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::child::{Child, Program, Said, Stage};
use super::wire::Message;
use super::{Held, SocketId};

/// A child that has not ended so long after its drain time is stuck.
const GRACE: Duration = Duration::from_secs(5);
/// A proxy that served for so long was good.
const GOOD: Duration = Duration::from_secs(10);
/// The argument that a person gives, and the one that the child gets in its place.
const SUPERVISE: &str = "--supervise";
const SUPERVISED: &str = "--supervised";

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// SIGTERM, SIGINT.
    End,
    /// SIGHUP, SIGUSR2.
    Restart,
    /// SIGUSR1, for the proxy.
    ReopenLogs,
    /// SIGCHLD.
    Reap,
}

#[derive(Debug)]
struct Supervisor {
    program: Program,
    /// How long a proxy may drain.
    drain: Duration,
    /// The sockets of the proxy that serves, or served last.
    store: Vec<Held>,
    /// Sockets that it closes while a child starts that was given them, and may keep them.
    closing: Vec<Held>,
    children: Vec<Child>,
    /// Whether a proxy ever served.
    served: bool,
    ending: bool,
    /// How often a proxy ended badly since one was good.
    failures: u32,
    restart_at: Option<Instant>,
    said: mpsc::Sender<Said>,
}

/// Runs this program without `--supervise` as a child until it has ended. `drain` is its drain time. Gives the exit status.
///
/// # Errors
/// The system refuses a signal handler, or the first child.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, drain: Duration) -> io::Result<u8> {
    let (said, mut says) = mpsc::channel(64);
    let program = program(arguments)?;
    let mut supervisor = Supervisor { drain, ..idle(program, said) };
    let mut asked = Signals::install()?;
    supervisor.start()?;
    loop {
        let alarm = supervisor.alarm();
        let ended = tokio::select! {
            what = asked.next() => supervisor.obey(what),
            Some((pid, message, with)) = says.recv() => {
                supervisor.hear(pid, message, with.map(TcpListener::from));
                None
            }
            () = crate::clock::at(alarm) => {
                supervisor.ring(Instant::now());
                None
            }
        };
        if let Some(status) = ended {
            return Ok(status);
        }
    }
}

/// One that has started nothing yet.
fn idle(program: Program, said: mpsc::Sender<Said>) -> Supervisor {
    Supervisor {
        program,
        drain: Duration::ZERO,
        store: Vec::new(),
        closing: Vec::new(),
        children: Vec::new(),
        served: false,
        ending: false,
        failures: 0,
        restart_at: None,
        said,
    }
}

/// This program, as a child.
fn program(arguments: impl IntoIterator<Item = OsString>) -> io::Result<Program> {
    let mut arguments = arguments.into_iter();
    let path = arguments.next().ok_or_else(|| io::Error::other("this program does not know its own name"))?;
    let instead = |argument| if argument == SUPERVISE { OsString::from(SUPERVISED) } else { argument };
    Ok(Program { path, arguments: arguments.map(instead).collect() })
}

impl Supervisor {
    fn start(&mut self) -> io::Result<()> {
        self.restart_at = None;
        let child = Child::start(&self.program, &self.store, self.serving().is_some(), self.said.clone())?;
        tracing::info!(pid = child.pid.as_raw_pid(), sockets = self.store.len(), "proxy started");
        self.children.push(child);
        Ok(())
    }

    fn serving(&self) -> Option<usize> {
        self.children.iter().position(|child| matches!(child.stage, Stage::Serving(_)))
    }

    fn is_starting(&self) -> bool {
        self.children.iter().any(|child| child.stage == Stage::Starting)
    }

    /// When [`Self::ring`] is to be called.
    fn alarm(&self) -> Option<Instant> {
        self.children.iter().filter_map(|child| child.deadline).chain(self.restart_at).min()
    }

    /// Some: the exit status, because nothing is left to wait for.
    fn obey(&mut self, asked: Asked) -> Option<u8> {
        match asked {
            Asked::Reap => return self.reap(),
            Asked::ReopenLogs => self.children.iter().for_each(|child| child.signal(Signal::USR1)),
            Asked::Restart if self.ending => {}
            Asked::Restart => self.restart(),
            Asked::End => {
                self.ending = true;
                self.restart_at = None;
                // The proxy must have the last descriptors: what it closes is to be closed.
                self.store.clear();
                self.closing.clear();
                let deadline = Instant::now() + self.drain + GRACE;
                for child in &mut self.children {
                    child.signal(Signal::TERM);
                    child.deadline = Some(child.deadline.map_or(deadline, |old| old.min(deadline)));
                }
                return self.children.is_empty().then_some(0);
            }
        }
        None
    }

    /// Starts a process that is to take over.
    fn restart(&mut self) {
        let deadline = Instant::now() + GRACE;
        for child in self.children.iter_mut().filter(|child| child.stage == Stage::Starting) {
            tracing::warn!(pid = child.pid.as_raw_pid(), "it is not ready yet, and another one is wanted");
            child.signal(Signal::TERM);
            (child.stage, child.deadline) = (Stage::Leaving, Some(deadline));
        }
        if let Err(error) = self.start() {
            let program = self.program.path.display();
            tracing::error!(%program, %error, "no new process; what runs goes on");
            self.retry();
        }
    }

    /// Starts one later, unless one is there.
    fn retry(&mut self) {
        if self.serving().is_none() && !self.is_starting() && !self.ending {
            self.restart_at = Some(Instant::now() + pause(self.failures));
            self.failures += 1;
        }
    }

    fn ring(&mut self, now: Instant) {
        for child in self.children.iter_mut().filter(|child| child.deadline.is_some_and(|at| at <= now)) {
            tracing::warn!(pid = child.pid.as_raw_pid(), "it did not end in time: SIGKILL");
            child.signal(Signal::KILL);
            child.deadline = None;
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart();
        }
    }

    /// What a child says.
    fn hear(&mut self, from: Pid, message: Message, socket: Option<TcpListener>) {
        let Some(at) = self.children.iter().position(|child| child.pid == from) else { return };
        let child = &mut self.children[at];
        let serves = matches!(child.stage, Stage::Serving(_));
        match (message, socket) {
            (Message::Socket(place), Some(socket)) => {
                let held = Held { place, socket };
                match child.stage {
                    Stage::Starting => child.opened.push(held),
                    Stage::Serving(_) if !self.ending => self.store.push(held),
                    _ => {}
                }
            }
            (Message::Keep(socket), _) => child.kept.push(socket),
            (Message::Forget(socket), _) => {
                let shared = if serves { self.forget(socket) } else { self.has(socket) };
                self.children[at].tell(vec![Message::Done { shared }]);
            }
            (Message::TakeOver, _) if self.ending || child.stage != Stage::Starting => {
                child.tell(vec![Message::Refused]);
            }
            (Message::TakeOver, _) => self.hand_over(at),
            _ => {}
        }
    }

    /// The proxy that serves closes a socket. Whether a child that starts has it, too: then who waits in its queue waits for that one.
    fn forget(&mut self, socket: SocketId) -> bool {
        let shared = self.is_starting() && !self.ending;
        let closed = self.store.extract_if(.., |held| held.id().is(&socket));
        if shared {
            self.closing.extend(closed)
        } else {
            closed.for_each(drop)
        }
        shared
    }

    /// Whether the proxy that serves has a socket. One that leaves may not have heard yet that it shares it.
    fn has(&self, socket: SocketId) -> bool {
        self.store.iter().any(|held| held.id().is(&socket))
    }

    /// The child at `heir` serves from now on.
    fn hand_over(&mut self, heir: usize) {
        let now = Instant::now();
        let old = self.serving();
        let kept = std::mem::take(&mut self.children[heir].kept);
        let opened = std::mem::take(&mut self.children[heir].opened);
        // The old process closes what nobody keeps: it must have the last descriptor.
        self.store.append(&mut self.closing);
        self.store.retain(|held| held.id().is_in(&kept));
        self.store.extend(opened);
        self.children[heir].stage = Stage::Serving(now);
        self.served = true;
        if let Some(old) = old {
            let old = &mut self.children[old];
            (old.stage, old.deadline) = (Stage::Leaving, Some(now + self.drain + GRACE));
            let kept = kept.into_iter().map(Message::Keep);
            old.tell(kept.chain([Message::TakeOver]).collect());
        }
        self.children[heir].tell(vec![Message::Done { shared: false }]);
        tracing::info!(
            pid = self.children[heir].pid.as_raw_pid(),
            sockets = self.store.len(),
            "proxy serves"
        );
    }

    /// Every child that has ended, also those that we never started.
    fn reap(&mut self) -> Option<u8> {
        let mut status = 0;
        while let Ok(Some((pid, ended))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(at) = self.children.iter().position(|child| child.pid == pid) else { continue };
            let child = self.children.swap_remove(at);
            if !self.is_starting() {
                self.closing.clear();
            }
            if matches!(child.stage, Stage::Serving(_)) {
                for heir in self.children.iter().filter(|other| other.stage == Stage::Starting) {
                    heir.tell(vec![Message::Alone]);
                }
            }
            if let Some(last) = self.ended(&child, ended, Instant::now()) {
                status = last;
            }
        }
        (self.ending && self.children.is_empty()).then_some(status)
    }

    /// What follows from the end of a child. Some: the supervisor's own status, should this have been the last.
    fn ended(&mut self, child: &Child, status: WaitStatus, now: Instant) -> Option<u8> {
        let (pid, code) = (child.pid.as_raw_pid(), exit_code(status));
        match child.stage {
            Stage::Leaving => tracing::info!(pid, code, "the old proxy ended"),
            Stage::Starting if self.ending => return Some(code),
            Stage::Starting if self.serving().is_some() => {
                tracing::error!(pid, code, "the new proxy ended before it was ready; the old one serves on");
            }
            // It never worked: who started us is to see that.
            Stage::Starting if !self.served => self.ending = true,
            Stage::Starting => {
                tracing::error!(pid, code, "the proxy ended before it was ready");
                self.retry();
            }
            Stage::Serving(_) if self.ending || self.is_starting() => {
                tracing::info!(pid, code, "the proxy ended");
            }
            // Somebody asked it to.
            Stage::Serving(_) if code == 0 => self.ending = true,
            Stage::Serving(since) => {
                if now.duration_since(since) >= GOOD {
                    self.failures = 0;
                }
                tracing::error!(pid, code, "the proxy died; another one is started");
                self.retry();
            }
        }
        Some(code)
    }
}

/// How long to wait before the next try: not at all the first time, then 100 ms, doubled up to 10 s.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => Duration::from_millis(100 << (n - 1).min(7)).min(Duration::from_secs(10)),
    }
}

/// As a shell gives it.
fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    u8::try_from(code.unwrap_or(1)).unwrap_or(1)
}

struct Signals([(tokio::signal::unix::Signal, Asked); 6]);

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self([
            (signal(SignalKind::terminate())?, Asked::End),
            (signal(SignalKind::interrupt())?, Asked::End),
            (signal(SignalKind::hangup())?, Asked::Restart),
            (signal(SignalKind::user_defined2())?, Asked::Restart),
            (signal(SignalKind::user_defined1())?, Asked::ReopenLogs),
            (signal(SignalKind::child())?, Asked::Reap),
        ]))
    }

    async fn next(&mut self) -> Asked {
        std::future::poll_fn(|cx| {
            let mut all = self.0.iter_mut();
            let ready = all.find_map(|(signal, asked)| signal.poll_recv(cx).is_ready().then_some(*asked));
            ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A successor has taken over, and the old proxy closes its sockets before it has heard of that.
    #[test]
    fn a_proxy_that_leaves_is_told_what_its_successor_has() {
        let (said, _says) = mpsc::channel(1);
        let program = Program { path: OsString::new(), arguments: Vec::new() };
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = Held { place: super::super::Place::of("a", socket.local_addr().unwrap()), socket };
        let (kept, other) = (held.id(), TcpListener::bind("127.0.0.1:0").unwrap());
        let other = SocketId::of(other.local_addr().unwrap(), &other);
        let (old, mut told) = Child::silent(1, Stage::Serving(Instant::now()));
        let (new, _new_told) = Child::silent(2, Stage::Starting);
        let mut supervisor =
            Supervisor { store: vec![held], children: vec![old, new], ..idle(program, said) };
        let (old, new) = (supervisor.children[0].pid, supervisor.children[1].pid);
        supervisor.hear(new, Message::Keep(kept), None);
        supervisor.hear(new, Message::TakeOver, None);
        assert!(matches!(&told.try_recv().unwrap()[..], [Message::Keep(_), Message::TakeOver]));
        for (socket, expected) in [(kept, true), (other, false)] {
            supervisor.hear(old, Message::Forget(socket), None);
            let answers = told.try_recv().unwrap();
            assert!(matches!(&answers[..], [Message::Done { shared }] if *shared == expected), "{answers:?}");
        }
        assert_eq!(supervisor.store.len(), 1, "it is the successor's");
    }

    #[test]
    fn the_child_knows_that_it_is_one() {
        let given = ["/bin/remora", "proxy", "-c", "x.yaml", "--supervise"].map(OsString::from);
        let program = program(given).unwrap();
        assert_eq!(program.path, "/bin/remora");
        assert_eq!(program.arguments, ["proxy", "-c", "x.yaml", "--supervised"]);
    }

    #[test]
    fn the_first_crash_is_answered_at_once() {
        let pauses: Vec<u64> = [0, 1, 2, 3, 7, 8, 100].map(|n| pause(n).as_millis() as u64).into();
        assert_eq!(pauses, [0, 100, 200, 400, 6400, 10_000, 10_000]);
    }
}
