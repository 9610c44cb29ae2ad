//! Query strings.

use percent_encoding::percent_decode_str;

use super::pages::Answer;

/// The parameters of a request. A page takes what it knows; the rest is an error.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let decode = |text: &str| decode(&text.replace('+', " "));
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// Adds a parameter that stood in the path.
    pub(super) fn put(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), decode(value)));
    }

    /// Takes the parameter `name` out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes a switch out: `?name`, `?name=true`, or off by `?name=false`.
    pub(super) fn take_switch(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| value != "false")
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nothing is left that the page does not know.
    pub(super) fn finish(self) -> Result<(), Answer> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Answer::bad_request(&format!("unknown query parameter `{name}`"))),
        }
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
