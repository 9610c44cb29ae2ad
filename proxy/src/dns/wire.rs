//! DNS messages as bytes (RFC 1035 §4): what is asked, where the TTLs are, and answers of our own.
//!
//! A message is not taken apart and put together again: records that we do not know pass unchanged. Every read is checked; no bytes of a
//! peer make this panic.

use std::net::IpAddr;
use std::time::Duration;

/// Length of the header.
pub const HEADER: usize = 12;
/// What a UDP answer may have without EDNS (RFC 1035 §4.2.1).
pub const PLAIN_UDP: usize = 512;
/// What we accept by UDP: passes every usual MTU unfragmented.
pub const OUR_UDP: u16 = 1232;
/// What a client gets by UDP at most, whatever its EDNS says.
const MOST_UDP: usize = 4096;
/// Length of an OPT record without options.
pub(super) const OPT: usize = 11;

/// Record types that are looked at (IANA's registry of DNS parameters).
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Start of a zone.
    pub const SOA: u16 = 6;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Service binding (RFC 9460).
    pub const SVCB: u16 = 64;
    /// Service binding of HTTPS.
    pub const HTTPS: u16 = 65;
    /// Zone transfers (IXFR 251, AXFR 252), which are not for caches.
    pub const IXFR: u16 = 251;
    /// The other one.
    pub const AXFR: u16 = 252;
    /// Every type.
    pub const ANY: u16 = 255;
}

/// Response codes.
pub mod code {
    /// No error.
    pub const NO_ERROR: u8 = 0;
    /// The question is malformed.
    pub const FORM_ERR: u8 = 1;
    /// The server has failed.
    pub const SERV_FAIL: u8 = 2;
    /// There is no such name.
    pub const NX_DOMAIN: u8 = 3;
    /// Not implemented.
    pub const NOT_IMP: u8 = 4;
    /// The server does not want to.
    pub const REFUSED: u8 = 5;
}

/// Class IN.
pub const IN: u16 = 1;

// Bits of the third byte, and of the fourth.
pub(super) const QR: u8 = 0x80;
pub(super) const TC: u8 = 0x02;
pub(super) const RD: u8 = 0x01;
pub(super) const RA: u8 = 0x80;
pub(super) const AD: u8 = 0x20;
pub(super) const CD: u8 = 0x10;

/// What a client's EDNS says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Bytes that it takes by UDP.
    pub size: u16,
    /// DO: it wants signatures.
    pub signatures: bool,
    version: u8,
}

/// By what an answer is found again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The name in lower case, as it stands in a message: labels with their lengths, and the root's.
    pub name: Box<[u8]>,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// DO.
    pub signatures: bool,
    /// CD: the server is not to check signatures.
    pub unchecked: bool,
}

/// A client's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Of the message.
    pub id: u16,
    /// What is asked.
    pub key: Key,
    /// The question as it came: name, type, class.
    pub question: Box<[u8]>,
    /// Its EDNS, if it has it.
    pub edns: Option<Edns>,
    /// RD.
    pub(super) recursion: bool,
}

/// A message that is no question for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAQuery {
    /// Nothing is to be answered.
    Silence,
    /// This is.
    Answer(Vec<u8>),
}

pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(super) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Where an uncompressed name ends. None: it does not, or is longer than 255 bytes.
pub(super) fn plain_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return (at - start <= 255 && at <= message.len()).then_some(at);
        }
        if length > 63 || at - start > 255 {
            return None;
        }
        at += length;
    }
}

/// Where a name ends in the message that may be compressed; where a pointer leads to does not matter.
fn any_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// A record: its parts in the message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) start: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where its TTL is.
    pub(super) ttl: usize,
    pub(super) end: usize,
}

/// The record that begins there.
pub(super) fn record(message: &[u8], start: usize) -> Option<Record> {
    let name = any_name(message, start)?;
    let length = usize::from(u16_at(message, name + 8)?);
    let end = name + 10 + length;
    (end <= message.len()).then_some(Record {
        start,
        kind: u16_at(message, name)?,
        class: u16_at(message, name + 2)?,
        ttl: name + 4,
        end,
    })
}

impl Query {
    /// Reads a client's message.
    ///
    /// # Errors
    /// It is no question that can be asked here, and what to answer to that.
    pub fn read(message: &[u8]) -> Result<Self, NotAQuery> {
        let (Some(id), Some(&[high, low])) =
            (u16_at(message, 0), message.get(2..4).and_then(|flags| <&[u8; 2]>::try_from(flags).ok()))
        else {
            return Err(NotAQuery::Silence);
        };
        if message.len() < HEADER || high & QR != 0 {
            return Err(NotAQuery::Silence);
        }
        let refuse = |code: u8| {
            let mut answer = vec![0; HEADER];
            answer[..2].copy_from_slice(&id.to_be_bytes());
            (answer[2], answer[3]) = (QR | (high & !TC), RA | code);
            Err(NotAQuery::Answer(answer))
        };
        if (high >> 3) & 0xf != 0 {
            return refuse(code::NOT_IMP);
        }
        if u16_at(message, 4) != Some(1) {
            return refuse(code::FORM_ERR);
        }
        let Some(end) = plain_name(message, HEADER).filter(|end| end + 4 <= message.len()) else {
            return refuse(code::FORM_ERR);
        };
        let (Some(kind), Some(class)) = (u16_at(message, end), u16_at(message, end + 2)) else {
            return refuse(code::FORM_ERR);
        };
        let Ok(edns) = edns(message, end + 4) else { return refuse(code::FORM_ERR) };
        let query = Self {
            id,
            key: Key {
                // Lengths of labels are below the letters.
                name: message[HEADER..end].to_ascii_lowercase().into(),
                kind,
                class,
                signatures: edns.is_some_and(|edns| edns.signatures),
                unchecked: low & CD != 0,
            },
            question: message[HEADER..end + 4].into(),
            edns,
            recursion: high & RD != 0,
        };
        if edns.is_some_and(|edns| edns.version != 0) {
            return Err(NotAQuery::Answer(query.bad_version()));
        }
        if matches!(kind, kind::AXFR | kind::IXFR) {
            return Err(NotAQuery::Answer(query.answer(code::REFUSED)));
        }
        Ok(query)
    }

    /// The name for people, in lower case.
    #[must_use]
    pub fn name(&self) -> String {
        text(&self.key.name)
    }

    /// How many bytes the client takes by UDP.
    #[must_use]
    pub fn udp_size(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.size).clamp(PLAIN_UDP, MOST_UDP))
    }

    /// An answer without records.
    #[must_use]
    pub fn answer(&self, code: u8) -> Vec<u8> {
        let mut out = self.start(code, false);
        self.push_opt(&mut out, 0);
        out
    }

    /// An answer that says only that it would have been too long.
    #[must_use]
    pub fn truncated(&self) -> Vec<u8> {
        let mut out = self.start(code::NO_ERROR, false);
        out[2] |= TC;
        self.push_opt(&mut out, 0);
        out
    }

    /// An answer with addresses of the right family.
    #[must_use]
    pub fn addresses(&self, addresses: &[IpAddr], ttl: Duration) -> Vec<u8> {
        let mut out = self.start(code::NO_ERROR, true);
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX >> 1);
        // 28 bytes each at most: a message has room for 2,300.
        let count: u16 = 2000.min(addresses.len().try_into().unwrap_or(u16::MAX));
        for address in &addresses[..count.into()] {
            // The name of the question.
            out.extend([0xc0, 12]);
            let mut push = |kind: u16, data: &[u8], length: u16| {
                out.extend(kind.to_be_bytes());
                out.extend(IN.to_be_bytes());
                out.extend(ttl.to_be_bytes());
                out.extend(length.to_be_bytes());
                out.extend(data);
            };
            match address {
                IpAddr::V4(ip) => push(kind::A, &ip.octets(), 4),
                IpAddr::V6(ip) => push(kind::AAAA, &ip.octets(), 16),
            }
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        self.push_opt(&mut out, 0);
        out
    }

    fn bad_version(&self) -> Vec<u8> {
        let mut out = self.start(code::NO_ERROR, false);
        // BADVERS is 16: its upper eight bits are in OPT.
        self.push_opt(&mut out, 1);
        out
    }

    /// Header and question.
    fn start(&self, code: u8, authoritative: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.question.len() + OPT + 28);
        out.extend(self.id.to_be_bytes());
        let recursion = if self.recursion { RD } else { 0 };
        let unchecked = if self.key.unchecked { CD } else { 0 };
        out.extend([QR | recursion | if authoritative { 0x04 } else { 0 }, RA | unchecked | code]);
        out.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.question);
        out
    }

    /// Adds our OPT for a client that has one.
    pub(super) fn push_opt(&self, message: &mut Vec<u8>, extended_code: u8) {
        if let Some(edns) = self.edns {
            push_opt(message, edns.signatures, extended_code);
        }
    }
}

/// Appends an OPT record and counts it.
pub(super) fn push_opt(message: &mut Vec<u8>, signatures: bool, extended_code: u8) {
    let count = u16_at(message, 10).unwrap_or(0).saturating_add(1);
    message[10..12].copy_from_slice(&count.to_be_bytes());
    message.push(0);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(OUR_UDP.to_be_bytes());
    message.extend([extended_code, 0, if signatures { 0x80 } else { 0 }, 0, 0, 0]);
}

/// The OPT record among those of a question.
fn edns(message: &[u8], mut at: usize) -> Result<Option<Edns>, ()> {
    let records =
        (6..HEADER).step_by(2).filter_map(|count| u16_at(message, count)).map(u32::from).sum::<u32>();
    let mut found = None;
    for _ in 0..records {
        let record = record(message, at).ok_or(())?;
        if record.kind == kind::OPT {
            let [_, version, flags, _] = u32_at(message, record.ttl).ok_or(())?.to_be_bytes();
            let edns = Edns { size: record.class, signatures: flags & 0x80 != 0, version };
            // Two are an error (RFC 6891 §6.1.1).
            if found.replace(edns).is_some() {
                return Err(());
            }
        }
        at = record.end;
    }
    Ok(found)
}

/// A name for people.
#[must_use]
pub fn text(name: &[u8]) -> String {
    let (mut out, mut at) = (String::new(), 0);
    while let Some(length) = name.get(at).map(|length| usize::from(*length)).filter(|length| *length > 0) {
        let label = name.get(at + 1..at + 1 + length).unwrap_or_default();
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(&label.escape_ascii().to_string());
        at += 1 + length;
    }
    if out.is_empty() { ".".to_owned() } else { out }
}

/// A name as it stands in a message, in lower case. None: it cannot be one.
#[must_use]
pub fn labels(name: &str) -> Option<Box<[u8]>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        out.push(length);
        out.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    out.push(0);
    (out.len() <= 255).then(|| out.into())
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
