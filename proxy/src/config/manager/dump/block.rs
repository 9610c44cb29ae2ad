//! Where the bytes of resources are: those that came together lie together, and go together. Packed, they take a tenth.

use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

/// So many bytes are packed together: more are hardly smaller, and who looks at one resource unpacks all of them.
pub(super) const PACKED: usize = 64 << 10;

/// The bytes of some resources, one after the other.
#[derive(Debug)]
pub(super) struct Block {
    content: Content,
    /// How many they are.
    length: usize,
}

#[derive(Debug)]
enum Content {
    Plain(Box<[u8]>),
    Packed(Box<[u8]>),
}

/// A resource: its place in a block.
#[derive(Debug, Clone)]
pub struct Stored {
    pub(super) block: Arc<Block>,
    at: u32,
    length: u32,
}

impl Block {
    fn plain(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len(), content: Content::Plain(bytes.into()) }
    }

    /// As it is, if it cannot be packed.
    fn packed(bytes: Vec<u8>) -> Self {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
            Ok(packed) => Self { length: bytes.len(), content: Content::Packed(packed.into()) },
            Err(_) => Self::plain(bytes),
        }
    }

    pub(super) const fn is_packed(&self) -> bool {
        matches!(self.content, Content::Packed(_))
    }

    /// How many bytes its resources had.
    pub(super) const fn length(&self) -> usize {
        self.length
    }
}

impl Stored {
    /// How many bytes it has.
    pub(super) const fn length(&self) -> usize {
        self.length as usize
    }

    /// Whether it is the same in the same place.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.block, &other.block) && self.at == other.at
    }
}

/// Resources that shall lie together.
#[derive(Debug, Default)]
pub struct Together {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Together {
    /// Adds an encoded resource. Protobuf has none of 4 GiB, and no response has.
    pub fn add(&mut self, resource: &[u8]) {
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(resource);
        self.places.push((at, resource.len() as u32));
    }

    /// Adds what another one has.
    pub fn append(&mut self, other: &Self) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&other.bytes);
        self.places.extend(other.places.iter().map(|(at, length)| (start + at, *length)));
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The resources in the order in which they were added.
    pub fn stored(self) -> impl Iterator<Item = Stored> {
        let block = Arc::new(Block::plain(self.bytes));
        self.places.into_iter().map(move |(at, length)| Stored { block: Arc::clone(&block), at, length })
    }

    /// The same, packed.
    pub(super) fn packed(self) -> impl Iterator<Item = Stored> {
        let block = Arc::new(Block::packed(self.bytes));
        self.places.into_iter().map(move |(at, length)| Stored { block: Arc::clone(&block), at, length })
    }
}

/// Reads resources one after the other. What it unpacked last it has at hand: the next one is mostly in the same block.
#[derive(Debug, Default)]
pub struct Unpacker(Option<(Arc<Block>, Vec<u8>)>);

impl Unpacker {
    pub(super) fn bytes<'a>(&'a mut self, stored: &'a Stored) -> &'a [u8] {
        let range = stored.at as usize..stored.at as usize + stored.length();
        let packed = match &stored.block.content {
            Content::Plain(bytes) => return bytes.get(range).unwrap_or_default(),
            Content::Packed(packed) => packed,
        };
        let at_hand = self.0.take_if(|(last, _)| Arc::ptr_eq(last, &stored.block)).map(|(_, bytes)| bytes);
        let bytes = at_hand.unwrap_or_else(|| {
            let mut bytes = Vec::with_capacity(stored.block.length);
            if let Err(e) = DeflateDecoder::new(&**packed).read_to_end(&mut bytes) {
                unreachable!("it was packed in this process: {e}");
            }
            bytes
        });
        let (_, bytes) = self.0.insert((Arc::clone(&stored.block), bytes));
        bytes.get(range).unwrap_or_default()
    }
}
