//! The conversation of a proxy with the keeper of sockets: another proxy, or a supervisor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::wire::{Channel, Message};
use super::{Held, PATIENCE, Request, SocketId};

/// So many questions are open at a time. A supervisor drops answers that find no place ([`super::supervisor`]).
const AT_ONCE: usize = 16;

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
pub(super) enum Answer {
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
    pub(super) fn start(channel: Channel, supervised: bool, requests: mpsc::Sender<Request>) -> Self {
        let (say, says) = mpsc::channel(64);
        tokio::spawn(talk(channel, supervised, says, requests));
        Self { say, supervised }
    }

    pub(super) async fn say(&self, message: Message) {
        // A keeper that is gone hears nothing.
        let _ = self.say.send(Saying { message, with: None, answer: None }).await;
    }

    /// Whether the keeper is a supervisor.
    #[must_use]
    pub const fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// The answer; None when the keeper is gone.
    pub(super) async fn ask(&self, message: Message) -> Option<Answer> {
        self.question(message).await.await.ok()
    }

    /// Asks. What is answered comes by itself.
    async fn question(&self, message: Message) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let _ = self.say.send(Saying { message, with: None, answer: Some(answer) }).await;
        answered
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

    /// Has the keeper close its copies of sockets. Afterwards those of this process are the last; true: they are not, because an heir has
    /// them, too, or because the keeper does not answer.
    pub async fn forget(&self, sockets: Vec<SocketId>) -> bool {
        let all = async {
            let mut shared = false;
            for some in sockets.chunks(AT_ONCE) {
                let mut answers = Vec::with_capacity(some.len());
                for socket in some {
                    answers.push(self.question(Message::Forget(*socket)).await);
                }
                for answer in answers {
                    shared |= matches!(answer.await, Ok(Answer::Done { shared: true }));
                }
            }
            shared
        };
        timeout(PATIENCE, all).await.unwrap_or_else(|_| {
            tracing::warn!("the supervisor does not answer, and has its copies of sockets still");
            true
        })
    }
}

async fn talk(
    channel: Channel,
    supervised: bool,
    mut says: mpsc::Receiver<Saying>,
    requests: mpsc::Sender<Request>,
) {
    let mut unanswered: VecDeque<oneshot::Sender<Answer>> = VecDeque::new();
    let (mut kept, mut hears, mut refused) = (Vec::new(), true, false);
    loop {
        let said = tokio::select! {
            saying = says.recv() => {
                let Some(Saying { message, with, answer: asked }) = saying else { return };
                if refused {
                    answer(asked, Answer::Refused);
                    continue;
                }
                unanswered.extend(asked);
                if !hears {
                    continue;
                }
                match channel.send(&message, with.as_ref().map(AsFd::as_fd)).await {
                    Ok(()) => {}
                    // One that is gone may have said something before.
                    Err(error) if is_gone(&error) => hears = false,
                    Err(error) => {
                        tracing::warn!(%error, "nothing can be said to the keeper of the sockets");
                        break;
                    }
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
                refused = true;
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
    // Who asks only now was refused nevertheless.
    while refused && let Some(saying) = says.recv().await {
        answer(saying.answer, Answer::Refused);
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn answer(asked: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(asked) = asked {
        // Who asked may have lost patience.
        let _ = asked.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::time::Instant;

    use super::*;

    fn id() -> SocketId {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        SocketId::of(socket.local_addr().unwrap(), &socket)
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_says_nothing_has_the_sockets_still() {
        let (keeper, theirs) = Channel::pair().unwrap();
        let link = Link::start(Channel::over(theirs).unwrap(), true, mpsc::channel(4).0);
        let began = Instant::now();
        assert!(link.forget(vec![id(), id(), id()]).await);
        assert_eq!(began.elapsed(), PATIENCE, "for all of them together");
        let answers = async {
            while let Some((message, _)) = keeper.receive().await.unwrap() {
                assert!(matches!(message, Message::Forget(_)));
                keeper.send(&Message::Done { shared: false }, None).await.unwrap();
            }
        };
        tokio::select! {
            () = answers => unreachable!(),
            shared = link.forget(vec![id(), id()]) => assert!(!shared),
        }
    }
}
