//! What an upstream is to do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

/// What an upstream does with one request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) early: bool,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Send(Bytes),
    Pause(Duration),
    Until(Arc<Notify>),
    ReadBody,
    Close,
    Reset,
    Hang,
    Echo,
}

impl Answer {
    /// These bytes, once the whole request has come.
    #[must_use]
    pub fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Self { early: false, steps: vec![Step::Send(Bytes::copy_from_slice(bytes.as_ref()))] }
    }

    /// No byte: combine with [`Answer::close`], [`Answer::reset`] or [`Answer::hang`].
    #[must_use]
    pub fn nothing() -> Self {
        Self { early: false, steps: Vec::new() }
    }

    /// 200 with a Content-Length.
    #[must_use]
    pub fn ok(body: &str) -> Self {
        Self::status(200, "OK", body)
    }

    /// Any status with a Content-Length.
    #[must_use]
    pub fn status(status: u16, phrase: &str, body: &str) -> Self {
        Self::raw(format!("HTTP/1.1 {status} {phrase}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// 200, chunked, with trailers.
    #[must_use]
    pub fn chunked(chunks: &[&str], trailers: &[(&str, &str)]) -> Self {
        let mut text = String::from("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n");
        if !trailers.is_empty() {
            let names: Vec<_> = trailers.iter().map(|(n, _)| *n).collect();
            text += &format!("Trailer: {}\r\n", names.join(", "));
        }
        text += "\r\n";
        for chunk in chunks {
            text += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
        }
        text += "0\r\n";
        for (name, value) in trailers {
            text += &format!("{name}: {value}\r\n");
        }
        Self::raw(text + "\r\n")
    }

    /// Begins when the head of the request has come; its body stays unread unless [`Answer::read_body`] is a step.
    #[must_use]
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Then these bytes.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(Bytes::copy_from_slice(bytes.as_ref())))
    }

    /// Then silence for a while.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.then(Step::Pause(time))
    }

    /// Then nothing until the test gives a permit.
    #[must_use]
    pub fn until(self, permit: &Arc<Notify>) -> Self {
        self.then(Step::Until(permit.clone()))
    }

    /// Then read the rest of the request's body.
    #[must_use]
    pub fn read_body(self) -> Self {
        self.then(Step::ReadBody)
    }

    /// Then FIN.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close)
    }

    /// Then RST.
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Reset)
    }

    /// Then silence with the connection open.
    #[must_use]
    pub fn hang(self) -> Self {
        self.then(Step::Hang)
    }

    /// Then send back every byte that comes, and FIN after FIN: what a switched protocol does.
    #[must_use]
    pub fn echo(self) -> Self {
        self.then(Step::Echo)
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}
