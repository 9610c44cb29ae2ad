//! The new process: takes sockets, and takes over when it is ready.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::link::{Answer, Link};
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
            let socket = match connect(path) {
                Ok(Some(socket)) => socket,
                Ok(None) => return Ok(None),
                // Too many ask at once.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
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

    /// Looks whether there is a way to take over, before this process accepts anything.
    ///
    /// # Errors
    /// The other process neither answers nor can be ended.
    pub async fn prepare(&self) -> io::Result<()> {
        match &self.keeper {
            Partner::Stuck(stuck) if stuck.pid.is_none() && !stuck.answers().await => {
                if stuck.channel.is_closed() { Ok(()) } else { Err(foreign()) }
            }
            _ => Ok(()),
        }
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
        if link.is_supervised() {
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
        return Err(foreign());
    };
    match kill_process(pid, Signal::KILL) {
        Ok(()) => Ok(Taken::Ended),
        Err(rustix::io::Errno::SRCH) => Ok(Taken::Over),
        Err(error) => Err(error.into()),
    }
}

fn foreign() -> io::Error {
    io::Error::other("the process that does not answer is in another PID namespace")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;

    /// A keeper that gives nothing, and then says and does what `then` does.
    async fn heir_of(then: impl AsyncFnOnce(&Channel)) -> (Heir, Channel) {
        let (keeper, theirs) = Channel::pair().unwrap();
        let pid = getpid().as_raw_nonzero().get().cast_unsigned();
        keeper.send(&Message::Hello { pid, serving: true }, None).await.unwrap();
        keeper.send(&Message::End, None).await.unwrap();
        let heir = Heir::ask(theirs, false, mpsc::channel(4).0).await.unwrap().unwrap();
        then(&keeper).await;
        (heir, keeper)
    }

    fn id() -> SocketId {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        SocketId::of(socket.local_addr().unwrap(), &socket)
    }

    async fn take_over(heir: Heir) -> Taken {
        heir.take_over(&[id(), id()], &[], mpsc::channel(4).0).await.unwrap().0
    }

    /// Whether the word was heard before the question, or comes while the question cannot be sent any more.
    #[tokio::test]
    async fn who_was_refused_knows_it_whenever_it_asks() {
        for _ in 0..50 {
            let (heir, keeper) =
                heir_of(async |keeper| keeper.send(&Message::Refused, None).await.unwrap()).await;
            drop(keeper);
            let taken = take_over(heir).await;
            assert!(matches!(taken, Taken::Refused), "{taken:?}");
            let (heir, keeper) = heir_of(async |keeper| {
                keeper.send(&Message::Refused, None).await.unwrap();
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let taken = take_over(heir).await;
            assert!(matches!(taken, Taken::Refused), "{taken:?}");
            drop(keeper);
        }
        // The question was sent and never read.
        let (heir, keeper) = heir_of(async |_| {}).await;
        let asks = tokio::spawn(take_over(heir));
        keeper.readable().await.unwrap();
        keeper.send(&Message::Refused, None).await.unwrap();
        drop(keeper);
        let taken = asks.await.unwrap();
        assert!(matches!(taken, Taken::Refused), "{taken:?}");
        let (heir, keeper) = heir_of(async |_| {}).await;
        drop(keeper);
        assert!(matches!(take_over(heir).await, Taken::Over), "one that died cannot refuse");
    }

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
