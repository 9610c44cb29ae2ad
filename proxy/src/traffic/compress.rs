//! `envoy.extensions.filters.http.compressor.v3.Compressor`: which answers are compressed, and how they are coded meanwhile.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use http::header::{self, HeaderMap, HeaderValue};

use crate::http::head::ResponseHead;
use crate::route::text::StringMatch;

/// What Envoy compresses without `content_type`.
pub const CONTENT_TYPES: [&str; 8] = [
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];
/// Envoy's default of `min_content_length`.
pub const MIN_LENGTH: u64 = 30;

/// A compiled `Compressor`.
#[derive(Debug)]
pub struct Compressor {
    /// `compressor_library`.
    pub coding: Coding,
    /// `enabled` of the response's direction.
    pub enabled: bool,
    /// `min_content_length`.
    pub min_length: u64,
    /// `content_type` and `content_type_matcher`, without parameters; none is [`CONTENT_TYPES`].
    pub types: Box<[StringMatch]>,
    /// `disable_on_etag_header`.
    pub not_with_etag: bool,
    /// `weaken_etag_on_compress`.
    pub weaken_etag: bool,
    /// `remove_accept_encoding_header`.
    pub remove_accept_encoding: bool,
}

/// A content coding and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `gzip` (RFC 1952).
    Gzip {
        /// `compression_level`, 1 to 9.
        level: u32,
        /// `window_bits`, 9 to 15.
        window: u8,
    },
    /// `br` (RFC 7932).
    Brotli {
        /// `quality`, 0 to 11.
        quality: u32,
        /// `window_bits`, 10 to 24.
        window: u32,
    },
    /// `zstd` (RFC 8878).
    Zstd {
        /// `compression_level`.
        level: i32,
        /// `enable_checksum`.
        checksum: bool,
    },
}

impl Coding {
    /// Its name in `content-encoding`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }
}

/// The one of `offered` that a client wants most (RFC 9110 §12.5.3); of equal ones the first. None: it wants none.
#[must_use]
pub fn choose<'c>(accept: &str, offered: &'c [Arc<Compressor>]) -> Option<&'c Arc<Compressor>> {
    let listed = |name: &str| {
        accept.split(',').find_map(|part| {
            let (coding, parameters) = part.split_once(';').unwrap_or((part, ""));
            coding.trim().eq_ignore_ascii_case(name).then(|| quality(parameters))
        })
    };
    let any = listed("*").flatten();
    let identity = listed("identity").flatten();
    let mut best: Option<(u16, &Arc<Compressor>)> = None;
    for compressor in offered {
        let quality = match listed(compressor.coding.name()) {
            Some(quality) => quality,
            None => any,
        };
        let Some(quality) = quality.filter(|quality| *quality > 0) else { continue };
        if best.is_none_or(|(most, _)| quality > most) {
            best = Some((quality, compressor));
        }
    }
    best.filter(|(quality, _)| identity.is_none_or(|plain| plain <= *quality))
        .map(|(_, compressor)| compressor)
}

/// The weight of a coding in thousandths; None when it is not one.
fn quality(parameters: &str) -> Option<u16> {
    let Some((_, weight)) =
        parameters.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
    else {
        return parameters.trim().is_empty().then_some(1000);
    };
    let weight: f32 = weight.trim().parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0) as u16)
}

impl Compressor {
    /// Whether an answer with this head may be compressed. `length` is that of its body, when it is known.
    #[must_use]
    pub fn fits(&self, head: &ResponseHead, length: Option<u64>) -> bool {
        let headers = &head.headers;
        let coded = headers.contains_key(header::CONTENT_ENCODING)
            || headers.contains_key(header::CONTENT_RANGE)
            || has_token(headers, &header::CACHE_CONTROL, "no-transform")
            || (self.not_with_etag && headers.contains_key(header::ETAG));
        if coded {
            return false;
        }
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        length.is_none_or(|length| length >= self.min_length) && kind.is_none_or(|kind| self.is_type(kind))
    }

    fn is_type(&self, value: &[u8]) -> bool {
        let kind = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if self.types.is_empty() {
            return CONTENT_TYPES.iter().any(|known| known.as_bytes() == kind);
        }
        self.types.iter().any(|known| known.is_match(kind))
    }

    /// Changes the head of an answer that is compressed.
    pub fn mark(&self, headers: &mut HeaderMap) {
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(self.coding.name()));
        // The bytes are others: a strong validator would lie.
        let strong = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
        if let Some(tag) = strong {
            headers.remove(header::ETAG);
            let weak = [b"W/", tag.as_bytes()].concat();
            if let Some(weak) = HeaderValue::from_bytes(&weak).ok().filter(|_| self.weaken_etag) {
                headers.insert(header::ETAG, weak);
            }
        }
    }
}

/// Tells caches that the answer depends on `accept-encoding`.
pub fn vary(headers: &mut HeaderMap) {
    if has_token(headers, &header::VARY, "accept-encoding") || has_token(headers, &header::VARY, "*") {
        return;
    }
    crate::http::headers::append_list(headers, &header::VARY, b", ", b"Accept-Encoding");
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// A coding under way. What it has ready is taken with [`Self::take`].
pub struct Encoder(State);

enum State {
    Gzip(Box<Compress>, Vec<u8>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// At the beginning of a body.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(coding: Coding) -> io::Result<Self> {
        Ok(Self(match coding {
            Coding::Gzip { level, window } => {
                State::Gzip(Box::new(Compress::new_gzip(Compression::new(level), window)), Vec::new())
            }
            Coding::Brotli { quality, window } => {
                State::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, quality, window)))
            }
            Coding::Zstd { level, checksum } => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
                encoder.include_checksum(checksum)?;
                State::Zstd(Box::new(encoder))
            }
        }))
    }

    /// Takes a piece of the body.
    ///
    /// # Errors
    /// The library failed.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            State::Gzip(gzip, out) => deflate(gzip, data, out, FlushCompress::None),
            State::Brotli(brotli) => brotli.write_all(data),
            State::Zstd(zstd) => zstd.write_all(data),
        }
    }

    /// Makes everything ready that came so far.
    ///
    /// # Errors
    /// The library failed.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            State::Gzip(gzip, out) => deflate(gzip, &[], out, FlushCompress::Sync),
            State::Brotli(brotli) => brotli.flush(),
            State::Zstd(zstd) => zstd.flush(),
        }
    }

    /// How many bytes are ready.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            State::Gzip(_, out) => out.len(),
            State::Brotli(brotli) => brotli.get_ref().len(),
            State::Zstd(zstd) => zstd.get_ref().len(),
        }
    }

    /// Whether nothing is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is ready.
    pub fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(match &mut self.0 {
            State::Gzip(_, out) => out,
            State::Brotli(brotli) => brotli.get_mut(),
            State::Zstd(zstd) => zstd.get_mut(),
        }))
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// The library failed.
    pub fn finish(self) -> io::Result<Bytes> {
        Ok(Bytes::from(match self.0 {
            State::Gzip(mut gzip, mut out) => {
                deflate(&mut gzip, &[], &mut out, FlushCompress::Finish)?;
                out
            }
            State::Brotli(brotli) => brotli.into_inner(),
            State::Zstd(zstd) => zstd.finish()?,
        }))
    }
}

fn deflate(gzip: &mut Compress, data: &[u8], out: &mut Vec<u8>, flush: FlushCompress) -> io::Result<()> {
    let start = gzip.total_in();
    loop {
        out.reserve(4096);
        let read = usize::try_from(gzip.total_in() - start).unwrap_or(data.len());
        let status = gzip.compress_vec(&data[read..], out, flush).map_err(io::Error::other)?;
        let whole = gzip.total_in() - start == data.len() as u64;
        // With room left in the output there is nothing more to come.
        let done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            _ => whole && out.len() < out.capacity(),
        };
        if done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use proptest::prelude::*;
    use std::io::Read;

    const GZIP: Coding = Coding::Gzip { level: 6, window: 12 };
    const BROTLI: Coding = Coding::Brotli { quality: 3, window: 18 };
    const ZSTD: Coding = Coding::Zstd { level: 3, checksum: true };

    fn compressor(coding: Coding) -> Arc<Compressor> {
        Arc::new(Compressor {
            coding,
            enabled: true,
            min_length: MIN_LENGTH,
            types: Box::default(),
            not_with_etag: false,
            weaken_etag: false,
            remove_accept_encoding: false,
        })
    }

    fn decode(coding: Coding, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Gzip { .. } => flate2::read::GzDecoder::new(data).read_to_end(&mut out),
            Coding::Brotli { .. } => brotli::Decompressor::new(data, 4096).read_to_end(&mut out),
            Coding::Zstd { .. } => zstd::stream::read::Decoder::new(data).unwrap().read_to_end(&mut out),
        }
        .unwrap();
        out
    }

    #[test]
    fn the_coding_with_the_highest_weight_is_taken() {
        let offered = [compressor(GZIP), compressor(BROTLI)];
        let chosen = |accept| choose(accept, &offered).map(|c| c.coding.name());
        assert_eq!(chosen("gzip, br"), Some("gzip"), "the first filter of two equal ones");
        assert_eq!(chosen("gzip;q=0.5, br"), Some("br"));
        assert_eq!(chosen("GZIP ; q=0.5 , br;q=0.4"), Some("gzip"));
        assert_eq!(chosen("*"), Some("gzip"));
        assert_eq!(chosen("gzip;q=0, *;q=0.1"), Some("br"));
        assert_eq!(chosen("br;q=0"), None);
        assert_eq!(chosen("br;q=2"), None, "not a weight");
        assert_eq!(chosen("identity, gzip;q=0.5"), None);
        assert_eq!(chosen("identity;q=0.1, gzip;q=0.5"), Some("gzip"));
        assert_eq!(chosen("deflate"), None);
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn what_is_compressed() {
        let compressor = compressor(GZIP);
        let fits = |list: &[(header::HeaderName, &str)], length| {
            let mut head = ResponseHead::new(StatusCode::OK);
            for (name, value) in list {
                head.headers.insert(name, value.parse().unwrap());
            }
            compressor.fits(&head, length)
        };
        let json = (header::CONTENT_TYPE, "application/json; charset=utf-8");
        assert!(fits(std::slice::from_ref(&json), Some(30)));
        assert!(!fits(std::slice::from_ref(&json), Some(29)));
        assert!(fits(&[], None));
        assert!(!fits(&[(header::CONTENT_TYPE, "application/grpc")], None));
        assert!(!fits(&[json.clone(), (header::CONTENT_ENCODING, "br")], None));
        assert!(!fits(&[json.clone(), (header::CONTENT_RANGE, "bytes 0-9/99")], None));
        assert!(!fits(&[json, (header::CACHE_CONTROL, "public, No-Transform")], None));
    }

    #[test]
    fn validators_and_vary() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, "\"x\"".parse().unwrap());
        compressor(GZIP).mark(&mut headers);
        assert!(!headers.contains_key(header::ETAG));
        headers.insert(header::ETAG, "W/\"x\"".parse().unwrap());
        compressor(GZIP).mark(&mut headers);
        assert_eq!(headers[header::ETAG], "W/\"x\"");
        headers.insert(header::VARY, "Cookie".parse().unwrap());
        vary(&mut headers);
        vary(&mut headers);
        assert_eq!(headers[header::VARY], "Cookie, Accept-Encoding");
    }

    #[test]
    fn a_flush_gives_all_that_came() {
        let mut encoder = Encoder::new(GZIP).unwrap();
        encoder.write(b"event: one\n\n").unwrap();
        encoder.flush().unwrap();
        let ready = encoder.take();
        let mut out = [0; 12];
        flate2::read::GzDecoder::new(&ready[..]).read_exact(&mut out).unwrap();
        assert_eq!(&out, b"event: one\n\n");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(pieces in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..3000), any::<bool>()), 0..8)) {
            for coding in [GZIP, BROTLI, ZSTD] {
                let mut encoder = Encoder::new(coding).unwrap();
                let (mut plain, mut coded) = (Vec::new(), Vec::new());
                for (piece, flush) in &pieces {
                    encoder.write(piece).unwrap();
                    if *flush {
                        encoder.flush().unwrap();
                    }
                    coded.extend_from_slice(&encoder.take());
                    plain.extend_from_slice(piece);
                }
                coded.extend_from_slice(&encoder.finish().unwrap());
                prop_assert_eq!(decode(coding, &coded), plain);
            }
        }
    }
}
