//! The running proxy: gives its sockets to an heir that asks on a Unix socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::wire::{Channel, Message};
use super::{PATIENCE, Request, same_user};

/// Only this user may ask; the other end is looked at besides.
const MODE: u32 = 0o600;
/// One heir is usual; two are a mistake. One that finds no place asks again.
const BACKLOG: i32 = 64;

/// The socket at its path, or still beside it.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// Where it is until it takes its place.
    beside: Option<PathBuf>,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
}

impl Door {
    /// Listens beside `path`, so that nothing is left to fail when [`Self::take_place`] is called.
    ///
    /// # Errors
    /// I/O, or the path is something else than a socket.
    pub fn beside(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        if std::fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there and is no socket"));
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        crate::config::source::disk::remove_if_there(&beside)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&beside)?)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(MODE))?;
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = UnixListener::from_std(StdListener::from(socket))?;
        Ok(Self { listener, path: path.to_owned(), beside: Some(beside), file: None })
    }

    /// Takes the place of the socket at the path, if there is one: at every moment somebody listens there.
    ///
    /// # Errors
    /// I/O.
    pub fn take_place(&mut self) -> io::Result<()> {
        if let Some(beside) = self.beside.take() {
            std::fs::rename(&beside, &self.path).inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
            self.file = file_at(&self.path);
        }
        Ok(())
    }

    /// Answers heirs until one of them has taken over and put its own socket in the place, or until this is dropped.
    pub async fn serve(mut self, requests: mpsc::Sender<Request>) {
        let (mut heirs, taken) = (JoinSet::new(), watch::Sender::new(false));
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let channel = stream.into_std().and_then(|stream| Channel::over(stream.into()));
                        heirs.spawn(heir(channel, requests.clone(), taken.subscribe()));
                    }
                    Err(error) => {
                        tracing::warn!(socket = %self.path.display(), %error, "cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = heirs.join_next() => match ended {
                    Ok(Ok(Some(successor))) => {
                        self.file = None;
                        taken.send_replace(true);
                        while heirs.join_next().await.is_some() {}
                        // Until the heir has put its own in the place, somebody listens: who comes is not answered, and asks again.
                        successor.closed().await;
                        return;
                    }
                    Ok(Ok(None)) | Err(_) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "a hot restart was given up; this process serves on"),
                },
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Gone in this moment is gone as well.
        if let Some(beside) = &self.beside {
            let _ = std::fs::remove_file(beside);
        }
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Some: this one has taken over.
async fn heir(
    channel: io::Result<Channel>,
    requests: mpsc::Sender<Request>,
    mut taken: watch::Receiver<bool>,
) -> io::Result<Option<Channel>> {
    let channel = channel?;
    let pid = same_user(&channel)?;
    let gone = || io::Error::other("this process ends");
    let (reply, sockets) = oneshot::channel();
    requests.send(Request::Sockets(reply)).await.map_err(|_| gone())?;
    // By this the process knows that there is an heir.
    let (sockets, _known) = sockets.await.map_err(|_| gone())?;
    tracing::info!(pid, sockets = sockets.len(), "another process takes the sockets");
    channel.send(&Message::Hello { pid: std::process::id(), serving: true }, None).await?;
    for held in &sockets {
        channel.send(&Message::Socket(held.place.clone()), Some(held.socket.as_fd())).await?;
    }
    // What is closed meanwhile is to be closed.
    drop(sockets);
    channel.send(&Message::End, None).await?;
    let mut kept = Vec::new();
    loop {
        let said = tokio::select! {
            said = channel.receive() => said?,
            _ = async { taken.wait_for(|taken| *taken).await.is_ok() } => {
                channel.send(&Message::Refused, None).await?;
                // It may be about to take over: what it says is read, so that it reads this.
                let _ = tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = channel.receive().await {} }).await;
                return Ok(None);
            }
        };
        match said {
            None => {
                tracing::warn!(pid, "the other process ended before it took over; this one serves on");
                return Ok(None);
            }
            Some((Message::Keep(socket), _)) => kept.push(socket),
            Some((Message::TakeOver, _)) => break,
            Some(_) => {}
        }
    }
    let (done, answer) = oneshot::channel();
    requests.send(Request::TakeOver(kept, done)).await.map_err(|_| gone())?;
    let first = answer.await.unwrap_or(false);
    let answer = if first { Message::Done { shared: false } } else { Message::Refused };
    let said = channel.send(&answer, None).await;
    // An heir that died in this moment: there is no way back.
    if let Err(error) = said {
        tracing::error!(pid, %error, "the other process took over and is gone");
    }
    Ok(first.then_some(channel))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::super::heir::{Heir, Taken};
    use super::super::{Held, Keeper, Place, SocketId};
    use super::*;

    fn open(path: &Path) -> io::Result<Door> {
        let mut door = Door::beside(path)?;
        door.take_place()?;
        Ok(door)
    }

    fn listening(name: &str) -> Held {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        Held { place: Place::of(name, socket.local_addr().unwrap()), socket }
    }

    async fn claim(path: &Path) -> Option<Heir> {
        let (ask, _never) = mpsc::channel(1);
        Heir::claim(&Keeper::Process(path.to_owned()), ask).await.unwrap()
    }

    /// Answers as a proxy with these sockets does; the sockets that the first heir kept.
    async fn proxy(sockets: Vec<Held>, mut requests: mpsc::Receiver<Request>) -> Vec<SocketId> {
        let mut first = None;
        while let Some(request) = requests.recv().await {
            match request {
                Request::Sockets(reply) => {
                    let copies = sockets.iter().map(|held| held.copy().unwrap()).collect();
                    reply.send((copies, Arc::default())).unwrap();
                }
                Request::TakeOver(kept, done) => {
                    done.send(first.is_none()).unwrap();
                    first.get_or_insert(kept);
                }
                Request::Late | Request::Alone | Request::Orphaned => unreachable!(),
            }
        }
        first.unwrap_or_default()
    }

    #[tokio::test]
    async fn an_heir_takes_what_it_wants_and_the_first_one_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        assert!(claim(&path).await.is_none(), "nobody is there");
        let (a, b) = (listening("a"), listening("b"));
        let (id_a, id_b, at_b) = (a.id(), b.id(), b.place.address);
        let (ask, requests) = mpsc::channel(4);
        let second = Held { place: a.place.clone(), socket: a.socket.try_clone().unwrap() };
        let served = tokio::spawn(open(&path).unwrap().serve(ask));
        let proxy = tokio::spawn(proxy(vec![a, second, b], requests));

        let mut heir = claim(&path).await.unwrap();
        let mut late = claim(&path).await.unwrap();
        let (ask, mut hears) = mpsc::channel(1);
        let never = Heir::claim(&Keeper::Process(path.clone()), ask).await.unwrap().unwrap();
        assert!(heir.succeeds() && !heir.is_stuck());
        assert_eq!(heir.take(&Place::of("c", "127.0.0.1:0".parse().unwrap())).len(), 0, "another's port");
        let any_port = Place::of("a", "127.0.0.1:0".parse().unwrap());
        assert_eq!(heir.take(&any_port).len(), 2, "one of each worker");
        assert_eq!(heir.take(&any_port).len(), 0);
        assert_eq!(late.take(&Place::of("renamed", at_b)).len(), 1, "an address is whose it is now");
        let (taken, link) = heir.take_over(&[id_a], &[], mpsc::channel(1).0).await.unwrap();
        assert!(matches!(taken, Taken::Over) && link.is_some_and(|link| !link.is_supervised()));
        assert!(matches!(hears.recv().await, Some(Request::Late)), "whoever does not even try is told");
        drop(never);
        let (taken, _) = late.take_over(&[id_b], &[], mpsc::channel(1).0).await.unwrap();
        assert!(matches!(taken, Taken::Refused), "{taken:?}");
        served.await.unwrap();
        assert_eq!(proxy.await.unwrap(), [id_a]);
        assert!(path.exists(), "it is the heir's to replace");
        assert!(claim(&path).await.is_none());
    }

    /// The old process is done, and the new one has not put its own socket in the place yet.
    #[tokio::test]
    async fn nobody_finds_the_place_empty_while_it_changes_hands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        let (ask, requests) = mpsc::channel(4);
        let old = tokio::spawn(open(&path).unwrap().serve(ask));
        let _old_proxy = tokio::spawn(proxy(vec![listening("old")], requests));
        let heir = claim(&path).await.unwrap();
        let mut next_door = Door::beside(&path).unwrap();
        let (taken, link) = heir.take_over(&[], &[], mpsc::channel(1).0).await.unwrap();
        assert!(matches!(taken, Taken::Over));
        // The next one asks now.
        let asks = path.clone();
        let next = tokio::spawn(async move { claim(&asks).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        next_door.take_place().unwrap();
        drop(link);
        let (ask, requests) = mpsc::channel(4);
        let new = tokio::spawn(next_door.serve(ask));
        let _new_proxy = tokio::spawn(proxy(vec![listening("new")], requests));
        let mut next = next.await.unwrap().expect("somebody is there");
        assert_eq!(next.take(&Place::of("new", "127.0.0.1:0".parse().unwrap())).len(), 1);
        old.await.unwrap();
        new.abort();
    }

    #[tokio::test]
    async fn an_heir_that_dies_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        let (ask, requests) = mpsc::channel(4);
        let served = tokio::spawn(open(&path).unwrap().serve(ask));
        let proxy = tokio::spawn(proxy(vec![listening("a")], requests));
        drop(claim(&path).await.unwrap());
        assert!(claim(&path).await.is_some(), "it is asked again");
        served.abort();
        assert!(proxy.await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_successor_replaces_the_file_and_what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        let old = open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let new = open(&path).unwrap();
        drop(old);
        assert!(path.exists(), "the file is the new one's");
        drop(new);
        assert!(!path.exists(), "who leaves takes the file along");
        std::fs::write(&path, "mine").unwrap();
        assert!(open(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_says_nothing_is_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        // The kernel takes connections for it, and nobody serves them.
        let _door = open(&path).unwrap();
        let began = tokio::time::Instant::now();
        let heir = claim(&path).await.unwrap();
        assert!(heir.is_stuck() && heir.succeeds());
        // It is not stopped.
        assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_is_busy_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restart.sock");
        let door = open(&path).unwrap();
        let (ask, requests) = mpsc::channel(4);
        let served = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            door.serve(ask).await;
        });
        let _proxy = tokio::spawn(proxy(vec![listening("a")], requests));
        let heir = claim(&path).await.unwrap();
        assert!(!heir.is_stuck());
        served.abort();
    }
}
