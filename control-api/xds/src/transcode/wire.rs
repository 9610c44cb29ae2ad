//! The few bytes of protobuf's wire format that are written by hand.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost_reflect::DynamicMessage;

/// Appends `item`, an item of the list `field` of the message that the fields `spine` lead to from the root.
pub(super) fn append(out: &mut Vec<u8>, spine: &[u32], field: u32, item: &DynamicMessage) {
    let bytes = item.encode_to_vec();
    // Length of the content of each message around the item, from the inside.
    let mut lengths = vec![bytes.len()];
    let mut inside = field;
    for outer in spine.iter().rev() {
        let content = lengths.last().copied().unwrap_or_default();
        lengths.push(key_len(inside) + encoded_len_varint(content as u64) + content);
        inside = *outer;
    }
    for (number, length) in spine.iter().chain([&field]).zip(lengths.iter().rev()) {
        encode_key(*number, WireType::LengthDelimited, out);
        encode_varint(*length as u64, out);
    }
    out.extend_from_slice(&bytes);
}
