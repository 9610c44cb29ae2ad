//! Questions to name servers, and what they answer: as bytes, like [`wire`](super::wire).

use std::time::Duration;

use super::wire::{
    AD, CD, HEADER, Key, OPT, QR, Query, RA, RD, TC, code, kind, plain_name, push_opt, record, u16_at, u32_at,
};

/// A question to a name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The message.
    pub message: Vec<u8>,
    /// Where the question ends.
    pub(super) question: usize,
}

impl Asked {
    /// Asks for `key` with this ID. Each letter of the name whose bit in `spelling` is set is upper case (0x20).
    #[must_use]
    pub fn new(key: &Key, id: u16, spelling: &[u8; 32], edns: bool) -> Self {
        let mut message = Vec::with_capacity(HEADER + key.name.len() + 4 + OPT);
        message.extend(id.to_be_bytes());
        message.extend([RD, if key.unchecked { CD } else { 0 }, 0, 1, 0, 0, 0, 0, 0, 0]);
        for (i, byte) in key.name.iter().enumerate() {
            // Lengths of labels are no letters: they are 63 at most.
            let upper = (spelling[(i / 8) % 32] >> (i % 8)) & 1 != 0;
            message.push(if upper { byte.to_ascii_uppercase() } else { *byte });
        }
        message.extend(key.kind.to_be_bytes());
        message.extend(key.class.to_be_bytes());
        let question = message.len();
        if edns {
            push_opt(&mut message, key.signatures, 0);
        }
        Self { message, question }
    }

    /// Whether a message answers this.
    #[must_use]
    pub fn fits(&self, answer: &[u8]) -> Fit {
        let same_id = answer.get(..2) == self.message.get(..2);
        let is_answer = answer.get(2).is_some_and(|flags| flags & QR != 0 && (flags >> 3) & 0xf == 0);
        if !same_id || !is_answer {
            return Fit::No;
        }
        let (own, theirs) = (&self.message[HEADER..self.question], answer.get(HEADER..self.question));
        match theirs {
            Some(theirs) if u16_at(answer, 4) == Some(1) => {
                if theirs == own {
                    Fit::Yes
                } else if theirs.eq_ignore_ascii_case(own) {
                    Fit::OtherCase
                } else {
                    Fit::No
                }
            }
            // Servers that do not understand a question may leave it out.
            _ if u16_at(answer, 4) == Some(0)
                && matches!(code_of(answer), code::FORM_ERR | code::NOT_IMP) =>
            {
                Fit::Yes
            }
            _ => Fit::No,
        }
    }
}

/// Whether a message answers a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Yes,
    /// But for the case of letters, so that it may be a forgery.
    OtherCase,
    /// It does not.
    No,
}

/// The response code in a message's header.
#[must_use]
pub fn code_of(message: &[u8]) -> u8 {
    message.get(3).map_or(code::SERV_FAIL, |flags| flags & 0xf)
}

/// Whether a message is cut short.
#[must_use]
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & TC != 0)
}

/// What a name server has answered, without its OPT record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    message: Vec<u8>,
    /// Where the TTLs are.
    pub(super) ttls: Vec<usize>,
    /// Where the name of the question stands again, whole: servers that do not compress write it there, as we have spelled it.
    names: Vec<usize>,
    /// How long it holds. None: it is not to be kept.
    pub ttl: Option<Duration>,
    /// NXDOMAIN, or no record of the type.
    pub negative: bool,
}

/// A TTL is not believed beyond this.
const TTL_CEILING: u32 = 86_400;
/// And that of a negative answer (RFC 2308 §5 wants one to three hours at most).
const NEGATIVE_CEILING: u32 = 300;
/// What an SOA has at least from its TTL on: TTL, length, two names, and five numbers (RFC 1035 §3.3.13).
const SOA_FROM_TTL: usize = 4 + 2 + 2 + 20;

impl Reply {
    /// Reads a complete answer. None: it is malformed, or says that the server failed.
    #[must_use]
    pub fn read(key: &Key, message: &[u8]) -> Option<Self> {
        let code = code_of(message);
        if !matches!(code, code::NO_ERROR | code::NX_DOMAIN) || u16_at(message, 4)? != 1 {
            return None;
        }
        let mut at = plain_name(message, HEADER)?.checked_add(4).filter(|at| *at <= message.len())?;
        let counts = [u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
        let (mut ttls, mut names) = (Vec::new(), Vec::new());
        let (mut least, mut found, mut soa) = (u32::MAX, false, None);
        let (mut end, mut extra) = (None, 0);
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let record = record(message, at)?;
                at = record.end;
                if record.kind == kind::OPT {
                    if section != 2 || u32_at(message, record.ttl)?.to_be_bytes()[0] != 0 {
                        // Where it does not belong; BADVERS, BADCOOKIE, …
                        return None;
                    }
                    // What is behind it goes with it: it is additional.
                    end.get_or_insert(record.start);
                    continue;
                }
                if end.is_some() {
                    continue;
                }
                let ttl = believed(u32_at(message, record.ttl)?);
                ttls.push(record.ttl);
                let name = message.get(record.start..record.start + key.name.len());
                if name.is_some_and(|name| name.eq_ignore_ascii_case(&key.name)) {
                    names.push(record.start);
                }
                match section {
                    0 => {
                        found |= record.kind == key.kind || key.kind == kind::ANY;
                        least = least.min(ttl);
                    }
                    1 if record.kind == kind::SOA => {
                        if record.end - record.ttl < SOA_FROM_TTL {
                            return None;
                        }
                        let minimum = believed(u32_at(message, record.end - 4)?);
                        soa = Some(ttl.min(minimum));
                    }
                    2 => extra += 1,
                    _ => {}
                }
            }
        }
        let negative = code == code::NX_DOMAIN || !found;
        let ttl = if negative {
            soa.map(|soa| soa.min(least).min(NEGATIVE_CEILING))
        } else {
            Some(least.min(TTL_CEILING))
        };
        let end = end.unwrap_or(at);
        if end + OPT > usize::from(u16::MAX) {
            // With ours it would fit nowhere.
            return None;
        }
        let mut message = message[..end].to_vec();
        message[10..12].copy_from_slice(&u16::to_be_bytes(extra));
        Some(Self { message, ttls, names, ttl: ttl.map(|ttl| Duration::from_secs(ttl.into())), negative })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.len() + (self.ttls.len() + self.names.len()) * size_of::<usize>()
    }

    /// Whether there is no such name.
    #[must_use]
    pub fn is_no_name(&self) -> bool {
        code_of(&self.message) == code::NX_DOMAIN
    }

    /// The answer to a client's question, as it holds now. With `exists`, NXDOMAIN is no data.
    #[must_use]
    pub fn answer(&self, query: &Query, left: Left, exists: bool) -> Vec<u8> {
        let mut out = self.message.clone();
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        // Nobody's authority; AD stays.
        out[2] = QR | if query.recursion { RD } else { 0 };
        let code = if exists && self.is_no_name() { code::NO_ERROR } else { code_of(&self.message) };
        out[3] = RA | (out[3] & AD) | if query.key.unchecked { CD } else { 0 } | code;
        if let Some(question) = out.get_mut(HEADER..HEADER + query.question.len()) {
            question.copy_from_slice(&query.question);
        }
        let spelled = &query.question[..query.key.name.len()];
        for at in &self.names {
            if let Some(name) = out.get_mut(*at..*at + spelled.len()) {
                name.copy_from_slice(spelled);
            }
        }
        for at in &self.ttls {
            let Some(field) = out.get_mut(*at..*at + 4) else { continue };
            let came =
                believed(u32::from_be_bytes([field[0], field[1], field[2], field[3]])).min(TTL_CEILING);
            let ttl = match left {
                Left::After(age) => came.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
                Left::Fixed(ttl) => u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX >> 1),
            };
            field.copy_from_slice(&ttl.to_be_bytes());
        }
        query.push_opt(&mut out, 0);
        out
    }
}

/// What TTLs an answer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// What is left of them after this time.
    After(Duration),
    /// This.
    Fixed(Duration),
}

/// A TTL with its highest bit set is zero (RFC 2181 §8).
const fn believed(ttl: u32) -> u32 {
    if ttl > u32::MAX >> 1 { 0 } else { ttl }
}
