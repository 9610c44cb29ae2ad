//! Fields and small messages of protobuf's own as they stand in bytes.

use prost::encoding::WireType;
use prost_reflect::{Kind, Value};

use super::{FIRST, SECOND};
use crate::duration;

/// One field as it stands in the bytes.
pub(super) struct Part<'b> {
    pub(super) number: u32,
    wire: WireType,
    /// A varint, or the bits of a fixed number.
    number_value: u64,
    /// What a length stands before.
    content: &'b [u8],
}

impl<'b> Part<'b> {
    pub(super) fn read(bytes: &mut &'b [u8]) -> Option<Self> {
        let key = varint(bytes)?;
        let (number, wire) = (u32::try_from(key >> 3).ok()?, WireType::try_from(key & 7).ok()?);
        let mut part = Self { number, wire, number_value: 0, content: &[] };
        match wire {
            WireType::Varint => part.number_value = varint(bytes)?,
            WireType::ThirtyTwoBit => part.number_value = u32::from_le_bytes(take(bytes)?).into(),
            WireType::SixtyFourBit => part.number_value = u64::from_le_bytes(take(bytes)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(varint(bytes)?).ok()?;
                (part.content, *bytes) = bytes.split_at_checked(length)?;
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        }
        Some(part)
    }

    pub(super) fn content(&self) -> Option<&'b [u8]> {
        (self.wire == WireType::LengthDelimited).then_some(self.content)
    }

    /// Whether it is a scalar of this kind.
    pub(super) fn is(&self, kind: &Kind) -> bool {
        let wire = match kind {
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
            Kind::String | Kind::Bytes => WireType::LengthDelimited,
            Kind::Message(_) => return false,
            _ => WireType::Varint,
        };
        self.wire == wire && (*kind != Kind::String || std::str::from_utf8(self.content).is_ok())
    }

    /// The scalar of this kind that it is, as decoders read it. Of the kinds that no rule is about there is none.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "decoders cut as well")]
    pub(super) fn value(&self, kind: &Kind) -> Option<Value> {
        if !self.is(kind) {
            return None;
        }
        let number = self.number_value;
        Some(match kind {
            Kind::Double => Value::F64(f64::from_bits(number)),
            Kind::Float => Value::F32(f32::from_bits(number as u32)),
            Kind::Int32 => Value::I32(number as i32),
            Kind::Int64 => Value::I64(number as i64),
            Kind::Uint32 => Value::U32(number as u32),
            Kind::Uint64 => Value::U64(number),
            Kind::Bool => Value::Bool(number != 0),
            Kind::Enum(_) => Value::EnumNumber(number as i32),
            Kind::String => Value::String(std::str::from_utf8(self.content).ok()?.to_owned()),
            Kind::Bytes => Value::Bytes(self.content.to_vec().into()),
            _ => return None,
        })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            // Of the tenth byte one bit is left.
            return (shift < 63 || *byte <= 1).then_some(value);
        }
    }
    None
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// The value in a wrapper.
pub(super) fn wrapped(kind: &Kind, bytes: &[u8]) -> Option<Value> {
    let (mut value, mut rest) = (Value::default_value(kind), bytes);
    while !rest.is_empty() {
        let part = Part::read(&mut rest)?;
        value = part.value(kind).filter(|_| part.number == FIRST)?;
    }
    Some(value)
}

/// Nanoseconds of a duration or a time.
pub(super) fn nanos(bytes: &[u8]) -> Option<i128> {
    let (mut seconds, mut nanos, mut rest) = (0, 0, bytes);
    while !rest.is_empty() {
        let part = Part::read(&mut rest)?;
        match part.number {
            FIRST => seconds = part.value(&Kind::Int64)?.as_i64()?,
            SECOND => nanos = part.value(&Kind::Int32)?.as_i32()?,
            _ => return None,
        }
    }
    Some(duration::nanos(seconds, nanos))
}
