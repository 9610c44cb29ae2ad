//! What two processes say to each other: JSON, one message a packet, with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// No message is longer: names of listeners come from the configuration, and are cut.
const MAX_MESSAGE: usize = 8 << 10;
/// A name of a listener is only for matching ports that are not fixed, and for people.
const MAX_NAME: usize = 1 << 10;

/// One thing that is said. What is not known is [`Message::Unknown`], and ignored: the other end may be another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// The keeper is there.
    Hello {
        /// Its process, for people.
        pid: u32,
        /// Whether a process serves until the heir takes over.
        serving: bool,
    },
    /// A listening socket; its descriptor comes with it.
    Socket(Place),
    /// That was all of it.
    End,
    /// The process that served is gone before the heir took over.
    Alone,
    /// The heir accepts on this socket.
    Keep(SocketId),
    /// The heir serves.
    TakeOver,
    /// The proxy closes this socket.
    Forget(SocketId),
    /// The answer to [`Message::TakeOver`] and [`Message::Forget`].
    Done {
        /// The socket that is closed was given to an heir that starts.
        #[serde(default)]
        shared: bool,
    },
    /// The other answer to [`Message::TakeOver`], or said before that: there was another heir.
    Refused,
    /// Something that only newer versions say.
    #[serde(other)]
    Unknown,
}

/// Which socket is meant, in any process that has it. Several may be at one address: one for each worker, and new ones beside those
/// that are about to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketId {
    address: SocketAddr,
    /// `SO_COOKIE` (socket(7)). None: another version of this program means every socket at the address.
    #[serde(default)]
    cookie: Option<u64>,
}

impl SocketId {
    /// That of a socket at `address`.
    #[must_use]
    pub fn of(address: SocketAddr, socket: &TcpListener) -> Self {
        // Every Linux that we run on has it (4.12).
        Self { address, cookie: rustix::net::sockopt::socket_cookie(socket).ok() }
    }

    /// Where it is bound.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether both mean the same socket.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self.cookie, other.cookie) {
            (Some(one), Some(other)) => one == other,
            _ => self.address == other.address,
        }
    }

    /// Whether it is among `all`.
    #[must_use]
    pub fn is_in(&self, all: &[Self]) -> bool {
        all.iter().any(|other| self.is(other))
    }
}

/// Whose a listening socket is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Name of the listener; empty for the admin port.
    pub listener: String,
    /// Where it is bound.
    pub address: SocketAddr,
}

impl Place {
    /// A socket of a listener.
    #[must_use]
    pub fn of(listener: &str, address: SocketAddr) -> Self {
        let end = (0..=MAX_NAME.min(listener.len())).rev().find(|at| listener.is_char_boundary(*at));
        Self { listener: listener[..end.unwrap_or(0)].to_owned(), address }
    }

    /// The socket of the admin port.
    #[must_use]
    pub const fn admin(address: SocketAddr) -> Self {
        Self { listener: String::new(), address }
    }
}

/// A message, and the descriptor that came with it.
pub(super) type Received = (Message, Option<OwnedFd>);

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    /// Over a connected socket whose packets stay packets (SOCK_SEQPACKET).
    ///
    /// # Errors
    /// It is no such socket.
    pub(super) fn over(socket: OwnedFd) -> io::Result<Self> {
        let kind = rustix::net::sockopt::socket_type(&socket)?;
        let domain = rustix::net::sockopt::socket_domain(&socket)?;
        if kind != SocketType::SEQPACKET || domain != AddressFamily::UNIX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix socket of packets"));
        }
        let stream = StdStream::from(socket);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream).map(Self)
    }

    /// Two ends.
    ///
    /// # Errors
    /// The system has no more.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::over(ours)?, theirs))
    }

    /// User and process at the other end.
    ///
    /// # Errors
    /// The system does not say.
    pub(super) fn peer(&self) -> io::Result<(u32, Option<i32>)> {
        self.0.peer_cred().map(|peer| (peer.uid(), peer.pid()))
    }

    /// Whether the other end is gone, as far as it is known without waiting.
    pub(super) fn is_closed(&self) -> bool {
        self.peek().map_or_else(|error| error != rustix::io::Errno::AGAIN, |read| read == 0)
    }

    /// Whether something was said that was not received yet.
    pub(super) fn is_readable(&self) -> bool {
        self.peek().is_ok_and(|read| read > 0)
    }

    /// Waits until there is something to receive, or the other end is gone.
    ///
    /// # Errors
    /// The socket is broken.
    pub(super) async fn readable(&self) -> io::Result<()> {
        let look = || self.peek().map(drop).map_err(io::Error::from);
        self.0.async_io(Interest::READABLE, look).await
    }

    /// Waits until the other end is gone, whatever it says before.
    pub(super) async fn closed(&self) {
        while let Ok(Some(_)) = self.receive().await {}
    }

    fn peek(&self) -> rustix::io::Result<usize> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(self.0.as_fd(), &mut byte, flags).map(|(_, read)| read)
    }

    /// Says something, once there is room for it.
    ///
    /// # Errors
    /// The other end is gone.
    pub(super) async fn send(&self, message: &Message, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let one = with.map(|with| [with]);
        self.0
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if let Some(with) = &one {
                    control.push(SendAncillaryMessage::ScmRights(with));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::sendmsg(self.0.as_fd(), &[IoSlice::new(&text)], &mut control, flags)?)
            })
            .await
            .map(drop)
    }

    /// What is said next; None when the other end is gone. Nothing is lost when this is dropped, or when the other end went without reading all.
    ///
    /// # Errors
    /// It is not one of our messages.
    pub(super) async fn receive(&self) -> io::Result<Option<Received>> {
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        let mut received = self.0.async_io(Interest::READABLE, || receive(self.0.as_fd())).await;
        if received.as_ref().is_err_and(is_reset) {
            // That is told once, and first: what it had said before is still there.
            received = self.0.async_io(Interest::READABLE, || receive(self.0.as_fd())).await;
        }
        match received {
            Err(error) if is_reset(&error) => Ok(None),
            other => other,
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut text = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    let with = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    if got.bytes == 0 {
        return Ok(None);
    }
    // A descriptor that found no room is lost: the process may open no more files.
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message or its descriptor was cut off"));
    }
    Ok(Some((serde_json::from_slice(&text[..got.bytes])?, with)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::over(theirs).unwrap())
    }

    #[tokio::test]
    async fn a_socket_arrives_as_the_same_socket() {
        let (ours, theirs) = ends();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::of("ingress", listener.local_addr().unwrap());
        ours.send(&Message::Hello { pid: 7, serving: true }, None).await.unwrap();
        ours.send(&Message::Socket(place.clone()), Some(listener.as_fd())).await.unwrap();
        drop(listener);
        let client =
            std::net::TcpStream::connect(place.address).expect("the descriptor on its way keeps it open");
        let (hello, none) = theirs.receive().await.unwrap().unwrap();
        assert_eq!((hello, none.is_none()), (Message::Hello { pid: 7, serving: true }, true));
        let (said, with) = theirs.receive().await.unwrap().unwrap();
        assert_eq!(said, Message::Socket(place));
        let listener = TcpListener::from(with.unwrap());
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        drop(ours);
        assert!(theirs.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_a_newer_version_says_is_ignored_and_nonsense_is_not() {
        let (ours, theirs) = ends();
        for text in [r#"{"say":"wave","hand":2}"#, r#"{"say":"end","more":true}"#, "end"] {
            rustix::net::send(ours.0.as_fd(), text.as_bytes(), SendFlags::empty()).unwrap();
        }
        assert_eq!(theirs.receive().await.unwrap().unwrap().0, Message::Unknown);
        assert_eq!(theirs.receive().await.unwrap().unwrap().0, Message::End);
        assert!(theirs.receive().await.is_err());
    }

    #[test]
    fn sockets_at_one_address_are_told_apart_in_every_process() {
        let socket = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket
        };
        let bind = |socket: socket2::Socket, address: SocketAddr| {
            socket.bind(&address.into()).unwrap();
            socket.listen(1).unwrap();
            TcpListener::from(socket)
        };
        let one = bind(socket(), "127.0.0.1:0".parse().unwrap());
        let address = one.local_addr().unwrap();
        let other = bind(socket(), address);
        let [one_id, copy, other] =
            [&one, &one.try_clone().unwrap(), &other].map(|socket| SocketId::of(address, socket));
        assert!(one_id.is(&copy) && !one_id.is(&other));
        let old: Message = serde_json::from_str(r#"{"say":"keep","address":"127.0.0.1:80"}"#).unwrap();
        let Message::Keep(old) = old else { panic!("{old:?}") };
        assert!(!old.is(&one_id) && SocketId { address: old.address, ..one_id }.is(&old));
        let text = serde_json::to_string(&Message::Keep(old)).unwrap();
        assert_eq!(text, r#"{"say":"keep","address":"127.0.0.1:80","cookie":null}"#);
        assert_eq!(
            serde_json::from_str::<Message>(r#"{"say":"done"}"#).unwrap(),
            Message::Done { shared: false }
        );
    }

    #[tokio::test]
    async fn other_sockets_are_no_channel() {
        let (stream, _other) = StdStream::pair().unwrap();
        assert!(Channel::over(stream.into()).is_err());
        assert!(Channel::over(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn a_long_name_is_cut_at_a_letter() {
        let place = Place::of(&"ä".repeat(MAX_NAME), "127.0.0.1:1".parse().unwrap());
        assert_eq!(place.listener.len(), MAX_NAME);
        assert_eq!(Place::of("a", place.address).listener, "a");
    }
}
