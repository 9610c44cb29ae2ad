//! Signals: SIGTERM and SIGINT drain, a second one ends at once, SIGUSR1 reopens log files.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::drain::{Drain, Phase};
use crate::telemetry::access_log::LogControl;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM, SIGINT.
    End,
    /// SIGUSR1.
    ReopenLogs,
}

/// The signal handlers of the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user1: Signal,
}

impl Signals {
    /// Installs the handlers. To be called early: before, SIGTERM ends the process without draining.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::End,
            _ = self.interrupt.recv() => Request::End,
            _ = self.user1.recv() => Request::ReopenLogs,
        }
    }

    /// Obeys signals until the process ends.
    pub async fn run(mut self, drain: Drain, logs: LogControl) {
        loop {
            obey(self.next().await, &drain, &logs);
        }
    }
}

/// Does what one signal asks for.
pub fn obey(request: Request, drain: &Drain, logs: &LogControl) {
    match request {
        Request::ReopenLogs => {
            tracing::info!("SIGUSR1: reopening log files");
            logs.reopen();
        }
        Request::End if drain.phase() == Phase::Serving => {
            tracing::info!("draining; a second signal ends at once");
            drain.start();
        }
        Request::End => {
            tracing::warn!("second signal: ending at once");
            drain.force();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::access_log::LogWriter;

    #[tokio::test]
    async fn the_first_end_drains_and_the_second_forces() {
        let writer = LogWriter::start().unwrap();
        let (drain, logs) = (Drain::new(), writer.control());
        obey(Request::ReopenLogs, &drain, &logs);
        assert_eq!(drain.phase(), Phase::Serving);
        obey(Request::End, &drain, &logs);
        assert_eq!(drain.phase(), Phase::Draining);
        obey(Request::End, &drain, &logs);
        assert_eq!(drain.phase(), Phase::Forced);
        writer.shutdown(Duration::from_secs(20));
    }

    #[tokio::test]
    async fn real_signals_arrive() {
        let mut signals = Signals::install().unwrap();
        let own = rustix::process::getpid();
        for (raised, expected) in [
            (rustix::process::Signal::USR1, Request::ReopenLogs),
            (rustix::process::Signal::TERM, Request::End),
            (rustix::process::Signal::INT, Request::End),
        ] {
            rustix::process::kill_process(own, raised).unwrap();
            assert_eq!(signals.next().await, expected);
        }
    }
}
