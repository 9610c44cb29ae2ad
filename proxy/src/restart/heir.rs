//! The new process: takes sockets, and takes over when it is ready.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::{Channel, Message, Received};
use super::{Held, Keeper, PATIENCE, Place, Request, SocketId, same_user};

/// A keeper that says nothing, and is not stopped, has so much to do, and gets this long.
const BUSY: Duration = Duration::from_secs(10);
/// How often a keeper is asked that goes away instead of answering, and the time between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// What the keeper gave.
#[derive(Debug)]
pub struct Heir {
    sockets: Vec<Held>,
    /// A process serves now.
    succeeds: bool,
    keeper: Partner,
}

/// Who it was.
#[derive(Debug)]
enum Partner {
    /// It answers.
    Awake(Link),
    /// It does not.
    Stuck(Stuck),
}

/// A keeper that does not answer.
#[derive(Debug)]
struct Stuck {
    channel: Channel,
    /// Its process, if it is known.
    pid: Option<i32>,
    /// Until then it may be busy.
    busy_until: Instant,
}

/// How taking over ended.
#[derive(Debug)]
pub enum Taken {
    /// The predecessor accepts no more, or there was none.
    Over,
    /// The predecessor does not answer. It shares its sockets with this process, and finds the message when it wakes up.
    Unanswered,
    /// The predecessor never answered and was ended, by SIGKILL.
    Ended,
    /// Another process was faster.
    Refused,
}

impl Heir {
    /// Asks `keeper` for sockets. None when nobody is there. What the keeper says later goes to `requests`.
    ///
    /// # Errors
    /// The keeper is another user's, or is none.
    pub async fn claim(keeper: &Keeper, requests: mpsc::Sender<Request>) -> io::Result<Option<Self>> {
        let path = match keeper {
            Keeper::Process(path) => path,
            Keeper::Supervisor => {
                return Self::ask(io::stdin().as_fd().try_clone_to_owned()?, true, requests).await;
            }
        };
        for _ in 0..TRIES {
            let Some(socket) = connect(path)? else { return Ok(None) };
            if let Some(heir) = Self::ask(socket, false, requests.clone()).await? {
                return Ok(Some(heir));
            }
            // It ended in this moment, or gives way to its heir, who is there now.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// None: it is gone.
    async fn ask(
        socket: OwnedFd,
        supervised: bool,
        requests: mpsc::Sender<Request>,
    ) -> io::Result<Option<Self>> {
        let channel = Channel::over(socket)?;
        let pid = same_user(&channel)?;
        let mut sockets = Vec::new();
        let mut succeeds = true;
        let busy_until = Instant::now() + BUSY;
        loop {
            let Some(said) = patiently(&channel, pid, busy_until).await else {
                if supervised {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody says anything on it"));
                }
                tracing::warn!(
                    pid,
                    "the running proxy does not answer: this process opens sockets of its own"
                );
                let keeper = Partner::Stuck(Stuck { channel, pid, busy_until });
                return Ok(Some(Self { sockets: Vec::new(), succeeds, keeper }));
            };
            match said? {
                None => return Ok(None),
                Some((Message::Hello { serving, .. }, _)) => succeeds = serving,
                Some((Message::Socket(place), Some(socket))) => {
                    sockets.push(Held { place, socket: TcpListener::from(socket) });
                }
                Some((Message::End, _)) => break,
                Some(_) => {}
            }
        }
        tracing::info!(sockets = sockets.len(), succeeds, "sockets received from the keeper");
        Ok(Some(Self {
            sockets,
            succeeds,
            keeper: Partner::Awake(Link::start(channel, supervised, requests)),
        }))
    }

    /// Whether another process serves until this one takes over.
    #[must_use]
    pub const fn succeeds(&self) -> bool {
        self.succeeds
    }

    /// The other process is gone.
    pub const fn is_alone(&mut self) {
        self.succeeds = false;
    }

    /// Whether the other process is there and does not answer.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        matches!(self.keeper, Partner::Stuck(..))
    }

    /// The sockets of a listener at an address; with port 0 those that it has at any port. All of them are to be accepted on.
    pub fn take(&mut self, wanted: &Place) -> Vec<TcpListener> {
        let fits = |held: &Held| {
            held.place.address == wanted.address
                || wanted.address.port() == 0
                    && held.place.listener == wanted.listener
                    && held.place.address.ip() == wanted.address.ip()
        };
        let Some(address) = self.sockets.iter().find(|held| fits(held)).map(|held| held.place.address) else {
            return Vec::new();
        };
        self.sockets.extract_if(.., |held| held.place.address == address).map(|held| held.socket).collect()
    }

    /// Takes over: this process accepts on `kept`, and has opened `opened` besides, which a supervisor is given copies of. The link is that to
    /// the keeper; it waits with its end until a proxy drops it. `requests` as in [`Self::claim`].
    ///
    /// # Errors
    /// The process that does not answer cannot be ended either.
    pub async fn take_over(
        self,
        kept: &[SocketId],
        opened: &[Held],
        requests: mpsc::Sender<Request>,
    ) -> io::Result<(Taken, Option<Link>)> {
        // Its owner, who closes what is not kept, must have the last descriptor.
        drop(self.sockets);
        let link = match self.keeper {
            Partner::Awake(link) => link,
            Partner::Stuck(stuck) => {
                // It was only slow: it is told to close what it has, since this process has sockets of its own.
                if stuck.answers().await {
                    Link::start(stuck.channel, false, requests)
                } else {
                    return end(&stuck.channel, stuck.pid).map(|taken| (taken, None));
                }
            }
        };
        for socket in kept {
            link.say(Message::Keep(*socket)).await;
        }
        if link.supervised {
            for held in opened {
                link.give(held).await;
            }
        }
        let taken = match timeout(PATIENCE, link.ask(Message::TakeOver)).await {
            Ok(Some(Answer::Done { .. }) | None) => Taken::Over,
            Ok(Some(Answer::Refused)) => Taken::Refused,
            Err(_) => Taken::Unanswered,
        };
        Ok((taken, Some(link)))
    }
}

impl Stuck {
    /// Whether it has something to say now, or soon because it was only busy.
    async fn answers(&self) -> bool {
        while !self.channel.is_readable() {
            let now = Instant::now();
            if now >= self.busy_until || is_stopped(self.pid) || self.channel.is_closed() {
                return false;
            }
            let next = self.busy_until.min(now + PATIENCE);
            // Whatever it says is received later.
            let _ = timeout_at(next, self.channel.readable()).await;
        }
        true
    }
}

/// What a keeper says. None: it is stopped, or has said nothing until `busy_until`.
async fn patiently(
    channel: &Channel,
    pid: Option<i32>,
    busy_until: Instant,
) -> Option<io::Result<Option<Received>>> {
    loop {
        if let Ok(said) = timeout(PATIENCE, channel.receive()).await {
            return Some(said);
        }
        if Instant::now() >= busy_until || is_stopped(pid) {
            return None;
        }
        tracing::warn!(pid, "the keeper of the sockets is slow to answer");
    }
}

/// Whether a process is stopped (SIGSTOP, a debugger), as far as it can be known: proc_pid_stat(5).
fn is_stopped(pid: Option<i32>) -> bool {
    let stat = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    // The name before may have parentheses, too.
    let state = stat.as_deref().and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    matches!(state, Some('T' | 't'))
}

/// None: nobody listens there.
fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends a process that never answered. It has the channel open still, so the number is its own and nobody else's.
fn end(channel: &Channel, pid: Option<i32>) -> io::Result<Taken> {
    if channel.is_closed() {
        return Ok(Taken::Over);
    }
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return Err(io::Error::other("the process that does not answer is in another PID namespace"));
    };
    match kill_process(pid, Signal::KILL) {
        Ok(()) => Ok(Taken::Ended),
        Err(rustix::io::Errno::SRCH) => Ok(Taken::Over),
        Err(error) => Err(error.into()),
    }
}

/// What is said to a keeper.
#[derive(Debug)]
struct Saying {
    message: Message,
    with: Option<OwnedFd>,
    /// Wants the answer.
    answer: Option<oneshot::Sender<Answer>>,
}

/// What a keeper answers.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Done { shared: bool },
    Refused,
}

/// A conversation with a keeper. It goes on for as long as somebody has it.
#[derive(Debug)]
pub struct Link {
    say: mpsc::Sender<Saying>,
    supervised: bool,
}

impl Link {
    fn start(channel: Channel, supervised: bool, requests: mpsc::Sender<Request>) -> Self {
        let (say, says) = mpsc::channel(64);
        tokio::spawn(talk(channel, supervised, says, requests));
        Self { say, supervised }
    }

    async fn say(&self, message: Message) {
        // A keeper that is gone hears nothing.
        let _ = self.say.send(Saying { message, with: None, answer: None }).await;
    }

    /// Whether the keeper is a supervisor.
    #[must_use]
    pub const fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// The answer; None when the keeper is gone.
    async fn ask(&self, message: Message) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        let _ = self.say.send(Saying { message, with: None, answer: Some(answer) }).await;
        answered.await.ok()
    }

    /// Gives the keeper a copy of a socket.
    pub async fn give(&self, held: &Held) {
        match held.socket.as_fd().try_clone_to_owned() {
            Ok(socket) => {
                let message = Message::Socket(held.place.clone());
                let _ = self.say.send(Saying { message, with: Some(socket), answer: None }).await;
            }
            Err(error) => {
                tracing::warn!(address = %held.place.address, %error, "the supervisor gets no copy")
            }
        }
    }

    /// Has the keeper close its copy of a socket. Afterwards that of this process is the last; true: it is not, because an heir that starts
    /// has one.
    pub async fn forget(&self, socket: SocketId) -> bool {
        match timeout(PATIENCE, self.ask(Message::Forget(socket))).await {
            Ok(answer) => matches!(answer, Some(Answer::Done { shared: true })),
            Err(_) => {
                tracing::warn!(?socket, "the supervisor does not answer");
                false
            }
        }
    }
}

async fn talk(
    channel: Channel,
    supervised: bool,
    mut says: mpsc::Receiver<Saying>,
    requests: mpsc::Sender<Request>,
) {
    let mut unanswered: VecDeque<oneshot::Sender<Answer>> = VecDeque::new();
    let mut kept = Vec::new();
    loop {
        let said = tokio::select! {
            saying = says.recv() => {
                let Some(Saying { message, with, answer }) = saying else { return };
                unanswered.extend(answer);
                if channel.send(&message, with.as_ref().map(AsFd::as_fd)).await.is_err() {
                    break;
                }
                continue;
            }
            said = channel.receive() => said,
        };
        match said {
            Ok(Some((Message::Done { shared }, _))) => {
                answer(unanswered.pop_front(), Answer::Done { shared })
            }
            Ok(Some((Message::Refused, _))) if unanswered.is_empty() => {
                // A process that is about to end is asked nothing.
                let _ = requests.send(Request::Late).await;
            }
            Ok(Some((Message::Refused, _))) => answer(unanswered.pop_front(), Answer::Refused),
            Ok(Some((Message::Keep(socket), _))) => kept.push(socket),
            Ok(Some((Message::TakeOver, _))) => {
                let (done, _nobody_waits) = oneshot::channel();
                // A process that is about to end is asked nothing.
                let _ = requests.send(Request::TakeOver(std::mem::take(&mut kept), done)).await;
            }
            Ok(Some((Message::Alone, _))) => drop(requests.send(Request::Alone).await),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the keeper of the sockets cannot be understood");
                break;
            }
        }
    }
    drop(unanswered);
    let gone = if supervised { Request::Orphaned } else { Request::Alone };
    let _ = requests.send(gone).await;
}

fn answer(asked: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(asked) = asked {
        // Who asked may have lost patience.
        let _ = asked.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_is_stopped_is_told_from_one_that_is_busy() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let tell = |signal| kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        assert!(!is_stopped(Some(pid)) && !is_stopped(None));
        for (signal, expected) in [(Signal::STOP, true), (Signal::CONT, false)] {
            tell(signal);
            while is_stopped(Some(pid)) != expected {
                tokio::task::yield_now().await;
            }
        }
        tell(Signal::KILL);
        child.wait().unwrap();
        assert!(!is_stopped(Some(pid)));
    }
}
