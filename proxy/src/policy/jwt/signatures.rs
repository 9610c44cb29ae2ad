//! Signatures that were found genuine: a client sends the same token with every request, and verifying costs far more than
//! all else that happens to it. What a token says is checked each time.

use foldhash::{HashMap, HashMapExt as _};

use super::keys::KeySetId;

/// Most tokens that are remembered; with one more all are forgotten. Only genuine ones count, so that no stranger can make that
/// happen.
const MAX: usize = 256;

/// The longest token that is remembered, bytes.
const MAX_TOKEN: usize = 4096;

/// See the module. One for each worker.
#[derive(Debug, Default)]
pub struct Signatures {
    genuine: HashMap<Box<str>, KeySetId>,
}

impl Signatures {
    /// Whether `token` was verified with these very keys.
    #[must_use]
    pub fn knows(&self, token: &str, keys: KeySetId) -> bool {
        self.genuine.get(token) == Some(&keys)
    }

    /// `token` was verified with these keys.
    pub fn remember(&mut self, token: &str, keys: KeySetId) {
        if token.len() > MAX_TOKEN {
            return;
        }
        if self.genuine.len() >= MAX {
            self.genuine = HashMap::new();
        }
        self.genuine.insert(token.into(), keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jwt::keys::KeySet;

    #[test]
    fn a_token_is_known_by_its_whole_text_and_its_keys() {
        let text = br#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;
        let (old, new) = (KeySet::parse(text).unwrap().id(), KeySet::parse(text).unwrap().id());
        let mut signatures = Signatures::default();
        signatures.remember("a.b.c", old);
        assert!(signatures.knows("a.b.c", old));
        assert!(!signatures.knows("a.b.c", new), "keys that were fetched anew are other keys");
        assert!(!signatures.knows("a.b.d", old));
    }

    #[test]
    fn there_are_never_too_many_and_none_is_too_long() {
        let keys = KeySet::parse(br#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#).unwrap().id();
        let mut signatures = Signatures::default();
        for n in 0..2 * MAX + 1 {
            signatures.remember(&n.to_string(), keys);
            assert!(signatures.genuine.len() <= MAX && signatures.knows(&n.to_string(), keys));
        }
        let long = "a".repeat(MAX_TOKEN + 1);
        signatures.remember(&long, keys);
        assert!(!signatures.knows(&long, keys));
    }
}
