//! When the plugin's token is asked for and tried, and what its kubeconfig has meanwhile. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Tokens in the life of one: most of it is left when no installer comes any more.
const RENEWALS: u32 = 4;

/// A question for the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// A new token, by this kubeconfig, which has the installer's own.
    Token(String),
    /// Whether it knows the token of this kubeconfig, which is the node's.
    Known(String),
}

/// What came of a [`Question`].
#[derive(Debug)]
pub(super) enum Answer {
    /// A token and how long it is good for, or why there is none.
    Token(Result<(String, Duration), String>),
    /// This kubeconfig was tried. False: its token has ended, or its account is gone or another one.
    Known(String, bool),
}

/// The kubeconfigs of one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// With the installer's own token, which is good as long as its pod is here.
    pub(super) own: String,
    /// With the token that was granted last, if that is not written yet.
    pub(super) granted: Option<String>,
    /// What the node has. Empty: nothing.
    pub(super) found: String,
    /// Whether that is for the API server, with whatever token.
    pub(super) fits: bool,
}

/// The token in the kubeconfig, where the plugin is to have one of its own.
#[derive(Debug, Default)]
pub(super) struct Token {
    /// When the next one is asked for. None: now.
    next: Option<Instant>,
    /// When the one that the node has is tried. None: now.
    tried: Option<Instant>,
    /// The one that is to be written.
    granted: Option<String>,
    /// Why there is none, if so.
    missing: Option<String>,
    /// The kubeconfig that the API server did not know, the last time one was tried.
    dead: Option<String>,
    /// The kubeconfig with the installer's own, if that is what the node has.
    lent: Option<String>,
    own: String,
    found: String,
}

impl Token {
    pub(super) fn granted(&self) -> Option<&str> {
        self.granted.as_deref()
    }

    /// The kubeconfig that is to be written, if one is.
    pub(super) fn wanted(&mut self, files: Files) -> Option<String> {
        let Files { own, granted, found, fits } = files;
        let fits = fits && self.dead.as_ref() != Some(&found);
        let granted = granted.filter(|granted| *granted != found);
        if granted.is_none() {
            // It is there, whoever wrote it: another one is asked for when it is time.
            self.granted = None;
        }
        if found == own {
            self.lent = Some(found.clone());
        }
        // What is there may be good for a while. Where nothing is, the installer's own will do; it is followed, but not put in the place of what
        // another installer got meanwhile: in an update two are here, each with its own.
        let lent = (!fits || self.lent.as_ref() == Some(&found)).then(|| own.clone());
        let wanted = granted.or(lent).filter(|wanted| *wanted != found);
        (self.own, self.found) = (own, found);
        wanted
    }

    /// The node has this now.
    pub(super) fn wrote(&mut self, text: String) {
        self.granted = None;
        self.lent = (text == self.own).then(|| text.clone());
        self.found = text;
    }

    /// What is to be asked now.
    pub(super) fn due(&self, now: Instant) -> Option<Question> {
        let is_due = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        match self {
            _ if self.own.is_empty() => None,
            _ if is_due(self.next) && self.granted.is_none() => Some(Question::Token(self.own.clone())),
            _ if is_due(self.tried) && !self.found.is_empty() => Some(Question::Known(self.found.clone())),
            _ => None,
        }
    }

    /// When something is due, if nothing is now.
    pub(super) fn wakes(&self) -> Option<Instant> {
        let next = self.next.filter(|_| self.granted.is_none());
        let tried = self.tried.filter(|_| !self.found.is_empty());
        next.into_iter().chain(tried).min().filter(|_| !self.own.is_empty())
    }

    /// `pause`: until the same is asked again, where the answer does not say.
    pub(super) fn answered(&mut self, answer: Answer, now: Instant, pause: Duration) {
        let later = now.checked_add(pause);
        match answer {
            Answer::Token(Ok((token, life))) => {
                // Before it is written: where it cannot be, that is no reason to ask for another one.
                self.next = now.checked_add(pause.max(life / RENEWALS));
                self.tried = later;
                (self.granted, self.missing) = (Some(token), None);
            }
            Answer::Token(Err(why)) => {
                self.next = later;
                self.missing = Some(format!("there is no new token {why}"));
            }
            Answer::Known(_, true) => {
                self.tried = later;
                self.dead = None;
            }
            Answer::Known(text, false) => {
                // One is asked for at once.
                (self.tried, self.next, self.dead) = (later, None, Some(text));
            }
        }
    }

    /// What is wrong, in words.
    pub(super) fn wrong(&self) -> Option<String> {
        let dead = self.dead.as_ref().is_some_and(|dead| *dead == self.found);
        let dead = dead.then(|| "the API server does not take the token that the plugin has".to_owned());
        let wrong: Vec<_> = dead.into_iter().chain(self.missing.clone()).collect();
        (!wrong.is_empty()).then(|| wrong.join(", and "))
    }
}
