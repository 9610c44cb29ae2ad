//! One proxy of a supervisor: the process, and the conversation on its standard input.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::wire::{Channel, Message};
use super::super::{Held, SocketId};

/// What is started, again and again: the path is looked up each time, so that another binary may be there.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: OsString,
    pub(super) arguments: Vec<OsString>,
}

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is not ready yet.
    Starting,
    /// It accepts; since when.
    Serving(Instant),
    /// It drains, or was given up.
    Leaving,
}

/// A child.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) stage: Stage,
    /// When it is ended by force.
    pub(super) deadline: Option<Instant>,
    /// What it keeps of what it was given, and what it has opened besides: until it takes over.
    pub(super) kept: Vec<SocketId>,
    pub(super) opened: Vec<Held>,
    tell: mpsc::Sender<Vec<Message>>,
}

/// What a child said, and the descriptor that came with it.
pub(super) type Said = (Pid, Message, Option<OwnedFd>);

impl Child {
    /// Starts one, which is given copies of `sockets`.
    ///
    /// # Errors
    /// The program is not there, or the system has no more processes or files.
    pub(super) fn start(
        program: &Program,
        sockets: &[Held],
        serving: bool,
        said: mpsc::Sender<Said>,
    ) -> io::Result<Self> {
        let copies = sockets.iter().map(Held::copy).collect::<io::Result<Vec<_>>>()?;
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new(&program.path);
        // In a group of its own: an interrupt from the terminal comes through the supervisor, and only once.
        command.args(&program.arguments).stdin(Stdio::from(theirs)).process_group(0);
        // It is waited for with all others: see `reap`.
        let process = command.spawn()?;
        let raw = i32::try_from(process.id()).ok();
        let pid = raw.and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no process id"))?;
        let (tell, told) = mpsc::channel(64);
        tokio::spawn(async move {
            if let Err(error) = converse(&channel, copies, serving, pid, told, said).await {
                tracing::debug!(pid = pid.as_raw_pid(), %error, "the conversation with a proxy ended");
            }
        });
        let (kept, opened) = (Vec::new(), Vec::new());
        Ok(Self { pid, stage: Stage::Starting, deadline: None, kept, opened, tell })
    }

    /// One that does nothing, for tests of what it is told.
    #[cfg(test)]
    pub(super) fn silent(pid: i32, stage: Stage) -> (Self, mpsc::Receiver<Vec<Message>>) {
        let (tell, told) = mpsc::channel(64);
        let (kept, opened) = (Vec::new(), Vec::new());
        let pid = Pid::from_raw(pid).unwrap();
        (Self { pid, stage, deadline: None, kept, opened, tell }, told)
    }

    /// Says something to it, without waiting.
    pub(super) fn tell(&self, messages: Vec<Message>) {
        // One that does not listen has ended, or will be ended at its deadline.
        let _ = self.tell.try_send(messages);
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process(self.pid, signal);
    }
}

async fn converse(
    channel: &Channel,
    sockets: Vec<Held>,
    serving: bool,
    pid: Pid,
    mut told: mpsc::Receiver<Vec<Message>>,
    said: mpsc::Sender<Said>,
) -> io::Result<()> {
    channel.send(&Message::Hello { pid: std::process::id(), serving }, None).await?;
    for held in &sockets {
        channel.send(&Message::Socket(held.place.clone()), Some(held.socket.as_fd())).await?;
    }
    // Who closes a listener must have the last descriptor.
    drop(sockets);
    channel.send(&Message::End, None).await?;
    loop {
        tokio::select! {
            messages = told.recv() => {
                let Some(messages) = messages else { return Ok(()) };
                for message in &messages {
                    channel.send(message, None).await?;
                }
            }
            received = channel.receive() => match received? {
                Some((message, with)) => {
                    if said.send((pid, message, with)).await.is_err() {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
        }
    }
}
