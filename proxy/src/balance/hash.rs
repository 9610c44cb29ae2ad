//! The hash functions of consistent hashing. They are Envoy's, so that both send a key to the same endpoint.

use twox_hash::XxHash64;

/// xxHash64 of `bytes`.
#[must_use]
pub fn xx(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// xxHash64 of `bytes` with another seed than zero.
#[must_use]
pub fn xx_seeded(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// The seed of libstdc++'s `std::hash`, which MURMUR_HASH_2 is compatible with.
const MURMUR_SEED: u64 = 0xc70f_6907;
const MURMUR_FACTOR: u64 = 0xc6a4_a793_5bd1_e995;

/// MurmurHash64A of `bytes`, as `std::hash` of libstdc++ has it.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> u64 {
    const fn mix(word: u64) -> u64 {
        let word = word.wrapping_mul(MURMUR_FACTOR);
        (word ^ (word >> 47)).wrapping_mul(MURMUR_FACTOR)
    }
    const fn shift(word: u64) -> u64 {
        word ^ (word >> 47)
    }
    let mut hash = MURMUR_SEED ^ (bytes.len() as u64).wrapping_mul(MURMUR_FACTOR);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash ^ mix(u64::from_le_bytes(*word))).wrapping_mul(MURMUR_FACTOR);
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MURMUR_FACTOR);
    }
    shift(shift(hash).wrapping_mul(MURMUR_FACTOR))
}

/// Joins the hash of one more policy to what there is: rotated, so that two equal ones do not cancel each other out.
#[must_use]
pub const fn combine(hash: Option<u64>, next: u64) -> u64 {
    match hash {
        None => next,
        Some(hash) => hash.rotate_left(1) ^ next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test values of xxHash64.
    #[test]
    fn xx_hash_is_the_published_one() {
        assert_eq!(xx(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xx(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xx(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_ne!(xx_seeded(1, b"abc"), xx(b"abc"));
    }

    /// Values of `std::hash<std::string>` of libstdc++.
    #[test]
    fn murmur_is_that_of_libstdcpp() {
        assert_eq!(murmur2(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur2(b"a"), 4_993_892_634_952_068_459);
        assert_eq!(murmur2(b"hello"), 2_762_169_579_135_187_400);
        assert_eq!(murmur2(b"127.0.0.1:8080_12"), 13_359_345_509_635_455_857);
    }

    #[test]
    fn equal_hashes_do_not_cancel_out() {
        assert_eq!(combine(None, 5), 5);
        assert_eq!(combine(Some(5), 5), 10 ^ 5);
        assert_eq!(combine(Some(1 << 63), 0), 1);
    }
}
