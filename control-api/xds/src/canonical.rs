//! One sequence of bytes for one meaning. Protobuf writes the entries of a map in any order, so two replicas, or one of them
//! twice, would give different versions to the same resource; here they are sorted, in nested `Any`s too.

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost_reflect::{Kind, MessageDescriptor};

use crate::any;
use crate::pb::google::protobuf::Any;
use crate::schema::Schema;

/// Deeper than any resource; what lies below is left as it is.
const MAX_DEPTH: u32 = 64;

impl Schema {
    /// The bytes of the message in `any`, with the entries of its maps sorted. What the schema does not know, and bytes that are
    /// no such message, stay as they are.
    #[must_use]
    pub fn canonical(&self, any: &Any) -> Vec<u8> {
        self.canonical_at(any, 0)
    }

    fn canonical_at(&self, any: &Any, depth: u32) -> Vec<u8> {
        let message = any::type_name(&any.type_url).and_then(|name| self.message(name));
        message
            .and_then(|message| self.sorted(&message, &any.value, depth))
            .unwrap_or_else(|| any.value.clone())
    }

    /// None when `bytes` are no `message`, or too deep.
    fn sorted(&self, message: &MessageDescriptor, bytes: &[u8], depth: u32) -> Option<Vec<u8>> {
        if depth > MAX_DEPTH {
            return None;
        }
        if message.full_name() == "google.protobuf.Any" {
            let any = Any::decode(bytes).ok()?;
            let value = self.canonical_at(&any, depth + 1);
            return Some(Any { value, ..any }.encode_to_vec());
        }
        let mut out = Vec::with_capacity(bytes.len());
        // The entries of the map that is being read: its field number, and each entry as it will be written.
        let mut run: (u32, Vec<Vec<u8>>) = (0, Vec::new());
        let mut rest = bytes;
        while !rest.is_empty() {
            let field = Field::read(&mut rest)?;
            if field.number != run.0 {
                flush(&mut run, &mut out);
            }
            let known = message.get_field(field.number);
            match (field.content, known.as_ref().map(|f| (f.kind(), f.is_map()))) {
                (Some(content), Some((Kind::Message(inner), is_map))) => {
                    let content = self.sorted(&inner, content, depth + 1)?;
                    if is_map {
                        run.0 = field.number;
                        run.1.push(content);
                    } else {
                        write(field.number, &content, &mut out);
                    }
                }
                _ => out.extend_from_slice(field.whole),
            }
        }
        flush(&mut run, &mut out);
        Some(out)
    }
}

/// A field as it stands in the bytes.
struct Field<'b> {
    number: u32,
    whole: &'b [u8],
    /// Of a length-delimited field.
    content: Option<&'b [u8]>,
}

impl<'b> Field<'b> {
    fn read(rest: &mut &'b [u8]) -> Option<Self> {
        let start = *rest;
        let (number, wire) = decode_key(rest).ok()?;
        let mut content = None;
        let skip = match wire {
            WireType::Varint => {
                decode_varint(rest).ok()?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
                content = Some(rest.get(..length)?);
                length
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        *rest = rest.get(skip..)?;
        Some(Self { number, whole: &start[..start.len() - rest.len()], content })
    }
}

fn flush(run: &mut (u32, Vec<Vec<u8>>), out: &mut Vec<u8>) {
    run.1.sort_unstable();
    for entry in run.1.drain(..) {
        write(run.0, &entry, out);
    }
}

fn write(number: u32, content: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::core::v3::Metadata;
    use crate::pb::google::protobuf::value::Kind as ValueKind;
    use crate::pb::google::protobuf::{Struct, Value};

    fn number(n: f64) -> Value {
        Value { kind: Some(ValueKind::NumberValue(n)) }
    }

    /// Many entries, in maps that each have a random order of their own.
    fn cluster(keys: impl Iterator<Item = u32> + Clone) -> Cluster {
        let fields = || keys.clone().map(|k| (format!("key-{k}"), number(k.into()))).collect();
        let names = keys.clone().map(|k| (format!("filter-{k}"), Struct { fields: fields() }));
        Cluster {
            name: "a".into(),
            metadata: Some(Metadata { filter_metadata: names.collect(), ..Metadata::default() }),
            ..Cluster::default()
        }
    }

    #[test]
    fn equal_messages_have_equal_bytes_and_the_meaning_stays() {
        let schema = Schema::load();
        let one = any::pack(&cluster(0..20));
        let other = any::pack(&cluster((0..20).rev()));
        assert_ne!(one, other, "maps are written in any order");
        assert_eq!(schema.canonical(&one), schema.canonical(&other));
        let canonical = Any { value: schema.canonical(&one), ..one.clone() };
        assert_eq!(any::unpack::<Cluster>(&canonical), Ok(cluster(0..20)));
    }

    #[test]
    fn an_any_inside_is_sorted_too() {
        let schema = Schema::load();
        let nest = |keys: Vec<u32>| {
            let inner = Any {
                type_url: "type.googleapis.com/google.protobuf.Struct".into(),
                value: cluster(keys.into_iter()).metadata.unwrap().filter_metadata["filter-1"]
                    .encode_to_vec(),
            };
            any::pack(&Cluster {
                typed_extension_protocol_options: [("x".to_owned(), inner)].into(),
                ..Cluster::default()
            })
        };
        let (one, other) = (nest((0..20).collect()), nest((0..20).rev().collect()));
        assert_eq!(schema.canonical(&one), schema.canonical(&other));
    }

    #[test]
    fn bytes_that_are_no_message_stay() {
        let schema = Schema::load();
        for value in [vec![0xff], vec![0x0a, 0x05, b'a'], vec![0x0b]] {
            let any = Any { type_url: crate::kind::Kind::Cluster.type_url().into(), value: value.clone() };
            assert_eq!(schema.canonical(&any), value);
        }
    }
}
