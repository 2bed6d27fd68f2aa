//! Doors for `tests/fuzz`: records as a disk gives them back. Not for anybody else.

use bytes::Bytes;

use crate::record::Codec;

/// Decodes a record of `key`; None where it is refused.
pub fn decode(secret: Option<&[u8; 32]>, key: &str, record: &[u8]) -> Option<Bytes> {
    Codec::new(secret).decode(key, record).ok()
}

/// Encodes one.
pub fn encode(secret: Option<&[u8; 32]>, key: &str, value: &[u8]) -> Option<Vec<u8>> {
    Codec::new(secret).encode(key, value).ok()
}
