//! One sequence of bytes for one meaning. Protobuf writes the entries of a map in any order, so that two replicas, or one of them
//! twice, would give different bytes to the same resource. Here they are sorted by key: in the message, in the messages inside
//! of it, and in those that are packed in an `Any`.
//!
//! Sorting moves entries and changes no length, so it is done in place. Where the API has maps was found out when this crate was built:
//! of a message that cannot hold one, nothing is looked at.

use std::io::Read;
use std::ops::Range;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost::{Message, Name};

use crate::any;
use crate::blob::{MapField, MapMessage, MapTable};
use crate::pb::google::protobuf::Any;

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/maps.bin.gz"));

/// Unpacked once: a control plane encodes resources all the time.
static MAPS: LazyLock<Maps> = LazyLock::new(|| {
    Maps::unpack().unwrap_or_else(|e| unreachable!("the build script has written the table: {e}"))
});

/// Deeper than any resource; what lies below is left as it is.
const MAX_DEPTH: u32 = 64;

/// Fields of `google.protobuf.Any`.
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// Puts `message` into an Any: equal messages give the same bytes, in every process.
#[must_use]
pub fn pack<M: Message + Name>(message: &M) -> Any {
    let mut any = any::pack(message);
    sort(&mut any);
    any
}

/// Sorts the entries of all maps in the message that `any` holds. What is no message of the API stays as it is, and so does what
/// comes after bytes that are no protobuf.
pub fn sort(any: &mut Any) {
    if let Some(message) = MAPS.named(&any.type_url) {
        // Where the bytes end being protobuf, there is nothing more to sort.
        let _ = MAPS.message(message, &mut any.value, 0);
    }
}

struct Maps(Vec<MapMessage>);

/// A map whose entries are being read: its field number, and where each entry stands, with its key and value.
#[derive(Default)]
struct Run {
    number: u32,
    entries: Vec<Entry>,
}

/// An entry of a map.
struct Entry {
    /// With the number of the field and the length.
    whole: Range<usize>,
    /// Without a key it is the default.
    key: Range<usize>,
}

impl Maps {
    fn unpack() -> Result<Self, Box<dyn std::error::Error>> {
        let mut bytes = Vec::new();
        GzDecoder::new(TABLE).read_to_end(&mut bytes)?;
        Ok(Self(MapTable::decode(bytes.as_slice())?.messages))
    }

    fn named(&self, type_url: &str) -> Option<&MapMessage> {
        let name = any::type_name(type_url)?;
        self.0.binary_search_by(|message| message.name.as_str().cmp(name)).ok().map(|place| &self.0[place])
    }

    fn inside(&self, field: &MapField) -> Option<&MapMessage> {
        self.0.get(usize::try_from(field.inside?).ok()?)
    }

    /// None when the bytes are no message, or too deep.
    fn message(&self, message: &MapMessage, bytes: &mut [u8], depth: u32) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        if message.fields.is_empty() {
            return self.any(bytes, depth);
        }
        let mut run = Run::default();
        let mut from = 0;
        while from < bytes.len() {
            let field = Field::read(bytes, from)?;
            let known = message.fields.iter().find(|f| f.number == field.number);
            if field.number != run.number {
                run.sort(bytes);
                run.number = field.number;
            }
            if let (Some(known), Some(content)) = (known, field.content.clone()) {
                let inside = self.inside(known);
                if known.is_map {
                    let key = self.entry(inside, bytes, content, depth)?;
                    run.entries.push(Entry { whole: field.whole.clone(), key });
                } else if let Some(inside) = inside {
                    self.message(inside, &mut bytes[content], depth + 1)?;
                }
            }
            from = field.whole.end;
        }
        run.sort(bytes);
        Some(())
    }

    /// The key of an entry, whose value is sorted.
    fn entry(
        &self,
        value: Option<&MapMessage>,
        bytes: &mut [u8],
        entry: Range<usize>,
        depth: u32,
    ) -> Option<Range<usize>> {
        let mut key = entry.start..entry.start;
        let mut from = entry.start;
        while from < entry.end {
            let field = Field::read(&bytes[..entry.end], from)?;
            match (field.number, field.content) {
                (1, content) => key = content.unwrap_or_else(|| field.whole.clone()),
                (2, Some(content)) => {
                    if let Some(value) = value {
                        self.message(value, &mut bytes[content], depth + 1)?;
                    }
                }
                _ => {}
            }
            from = field.whole.end;
        }
        Some(key)
    }

    fn any(&self, bytes: &mut [u8], depth: u32) -> Option<()> {
        let (mut message, mut value) = (None, None);
        let mut from = 0;
        while from < bytes.len() {
            let field = Field::read(bytes, from)?;
            match (field.number, field.content) {
                (TYPE_URL, Some(url)) => message = self.named(std::str::from_utf8(&bytes[url]).ok()?),
                (VALUE, Some(content)) => value = Some(content),
                _ => {}
            }
            from = field.whole.end;
        }
        if let (Some(message), Some(value)) = (message, value) {
            // The bytes of another message, or of none, are nothing to the message around them.
            let _ = self.message(message, &mut bytes[value], depth + 1);
        }
        Some(())
    }
}

impl Run {
    /// Sorts what was read, and forgets it. Of entries with the same key the last one holds, so that they keep their order.
    fn sort(&mut self, bytes: &mut [u8]) {
        let key = |entry: &Entry| &bytes[entry.key.clone()];
        if !self.entries.is_sorted_by(|a, b| key(a) <= key(b)) {
            let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else { return };
            let place = first.whole.start..last.whole.end;
            self.entries.sort_by(|a, b| key(a).cmp(key(b)));
            let sorted: Vec<u8> =
                self.entries.iter().flat_map(|entry| &bytes[entry.whole.clone()]).copied().collect();
            bytes[place].copy_from_slice(&sorted);
        }
        self.entries.clear();
    }
}

/// A field as it stands in the bytes.
struct Field {
    number: u32,
    whole: Range<usize>,
    /// Of a length-delimited field.
    content: Option<Range<usize>>,
}

impl Field {
    fn read(bytes: &[u8], from: usize) -> Option<Self> {
        let mut rest = &bytes[from..];
        let (number, wire) = decode_key(&mut rest).ok()?;
        let length = match wire {
            WireType::Varint => {
                decode_varint(&mut rest).ok()?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let start = bytes.len() - rest.len();
        let end = start.checked_add(length).filter(|end| *end <= bytes.len())?;
        let content = (wire == WireType::LengthDelimited).then_some(start..end);
        Some(Self { number, whole: from..end, content })
    }
}

#[cfg(test)]
#[path = "canonical/tests.rs"]
mod tests;
