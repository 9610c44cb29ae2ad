//! Header compression (RFC 7541): an encoder that never compresses, so that any bytes can be sent, and a decoder.

use std::collections::{HashMap, VecDeque};
use std::sync::LazyLock;

/// Fields of one header block, in order. Names and values are read as Latin-1.
pub type Block = Vec<(String, String)>;

/// Encodes fields as literals without indexing and without Huffman coding (§6.2.2): nothing is checked or lower-cased.
#[must_use]
pub fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields: Vec<(&[u8], &[u8])> = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    encode_bytes(&fields)
}

/// [`encode`] for names and values that are not text.
#[must_use]
pub fn encode_bytes(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x00);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

/// One field as a literal with incremental indexing (§6.2.1): it enters the peer's dynamic table.
#[must_use]
pub fn encode_indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name);
    string(&mut block, value);
    block
}

fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    integer(block, 0x00, 7, bytes.len());
    block.extend_from_slice(bytes);
}

/// Appends an integer with a prefix of `bits` bits (§5.1).
fn integer(block: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let limit = (1usize << bits) - 1;
    if value < limit {
        block.push(first | value as u8);
        return;
    }
    block.push(first | limit as u8);
    let mut rest = value - limit;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The decoding side of one connection.
#[derive(Debug)]
pub struct Decoder {
    dynamic: VecDeque<(String, String)>,
    size: usize,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { dynamic: VecDeque::new(), size: 0, limit: 4096 }
    }
}

impl Decoder {
    /// Decodes one header block.
    ///
    /// # Errors
    /// What is wrong with the block.
    pub fn decode(&mut self, mut input: &[u8]) -> Result<Block, String> {
        let mut block = Block::new();
        while let Some(first) = input.first().copied() {
            match first {
                0x80.. => {
                    let index = take_integer(&mut input, 7)?;
                    block.push(self.entry(index)?);
                }
                0x40..0x80 => {
                    let field = self.literal(&mut input, 6)?;
                    self.insert(field.clone());
                    block.push(field);
                }
                0x20..0x40 => {
                    self.limit = take_integer(&mut input, 5)?;
                    self.evict();
                }
                _ => block.push(self.literal(&mut input, 4)?),
            }
        }
        Ok(block)
    }

    fn literal(&self, input: &mut &[u8], bits: u8) -> Result<(String, String), String> {
        let name = match take_integer(input, bits)? {
            0 => take_string(input)?,
            index => self.entry(index)?.0,
        };
        Ok((name, take_string(input)?))
    }

    fn entry(&self, index: usize) -> Result<(String, String), String> {
        let missing = || format!("index {index} is in no table");
        if let Some((name, value)) = STATIC.get(index.wrapping_sub(1)) {
            return Ok(((*name).to_owned(), (*value).to_owned()));
        }
        let dynamic = index.checked_sub(STATIC.len() + 1).ok_or_else(missing)?;
        self.dynamic.get(dynamic).cloned().ok_or_else(missing)
    }

    fn insert(&mut self, field: (String, String)) {
        self.size += cost(&field);
        self.dynamic.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let Some(field) = self.dynamic.pop_back() else { break };
            self.size -= cost(&field);
        }
    }
}

/// What an entry counts for (§4.1). Strings here hold one character an octet.
fn cost(field: &(String, String)) -> usize {
    field.0.chars().count() + field.1.chars().count() + 32
}

fn take_integer(input: &mut &[u8], bits: u8) -> Result<usize, String> {
    let limit = (1usize << bits) - 1;
    let mut value = usize::from(take(input)?) & limit;
    if value < limit {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(take(input)?);
        value += (byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err("integer too long".into())
}

fn take(input: &mut &[u8]) -> Result<u8, String> {
    let (first, rest) = input.split_first().ok_or("header block ends early")?;
    *input = rest;
    Ok(*first)
}

fn take_string(input: &mut &[u8]) -> Result<String, String> {
    let huffman = input.first().is_some_and(|b| b & 0x80 != 0);
    let length = take_integer(input, 7)?;
    let (bytes, rest) = input.split_at_checked(length).ok_or("string ends early")?;
    *input = rest;
    if huffman { unhuffman(bytes) } else { Ok(crate::http1::latin1(bytes)) }
}

/// Decodes bit by bit.
fn unhuffman(bytes: &[u8]) -> Result<String, String> {
    let mut text = String::new();
    let (mut code, mut length) = (0u32, 0u8);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        if let Some(symbol) = SYMBOLS.get(&(length, code)) {
            text.push(char::from(u8::try_from(*symbol).map_err(|_| "EOS in a string")?));
            (code, length) = (0, 0);
        }
        if length > 30 {
            return Err("no such Huffman code".into());
        }
    }
    let padding_is_ones = code == (1 << length) - 1;
    if length < 8 && padding_is_ones { Ok(text) } else { Err("bad Huffman padding".into()) }
}

/// Symbols by length and code. The code is canonical: the codes of one length are consecutive numbers, in the order of
/// the symbols.
static SYMBOLS: LazyLock<HashMap<(u8, u32), usize>> = LazyLock::new(|| {
    let mut order: Vec<usize> = (0..HUFFMAN_BITS.len()).collect();
    order.sort_by_key(|symbol| (HUFFMAN_BITS[*symbol], *symbol));
    let (mut next, mut length) = (0u32, 0u8);
    let mut symbols = HashMap::new();
    for symbol in order {
        next <<= HUFFMAN_BITS[symbol] - length;
        length = HUFFMAN_BITS[symbol];
        symbols.insert((length, next), symbol);
        next += 1;
    }
    symbols
});

/// Length of the code of each symbol, 256 is EOS (RFC 7541 Appendix B).
#[rustfmt::skip]
const HUFFMAN_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// RFC 7541 Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        digits.chunks(2).map(|p| u8::from_str_radix(&p.iter().collect::<String>(), 16).unwrap()).collect()
    }

    fn field(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn the_huffman_examples_of_the_rfc() {
        // RFC 7541 C.4: three requests on one connection.
        let mut decoder = Decoder::default();
        let common = [field(":method", "GET"), field(":scheme", "http"), field(":path", "/")];
        let first = decoder.decode(&hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).unwrap();
        assert_eq!(first[..3], common);
        assert_eq!(first[3], field(":authority", "www.example.com"));
        let second = decoder.decode(&hex("8286 84be 5886 a8eb 1064 9cbf")).unwrap();
        assert_eq!(second[3..], [field(":authority", "www.example.com"), field("cache-control", "no-cache")]);
        let third =
            decoder.decode(&hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf")).unwrap();
        assert_eq!(third[4], field("custom-key", "custom-value"));
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let long = "v".repeat(70_000);
        let fields = [(":path", "/x"), ("UPPER", "a\r\nb"), ("empty", ""), ("long", long.as_str())];
        let decoded = Decoder::default().decode(&encode(&fields)).unwrap();
        let expected: Vec<_> = fields.iter().map(|(n, v)| field(n, v)).collect();
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_broken_block_is_an_error() {
        for block in ["ff", "40", "c0", "00 05 61", "41 81 ff ff ff"] {
            assert!(Decoder::default().decode(&hex(block)).is_err(), "{block}");
        }
    }
}
